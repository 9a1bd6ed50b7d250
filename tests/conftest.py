"""What the tests share: one torch thread, and a run that takes a fraction of a second."""

from typing import Any

import pytest

from nsrelu_bench.config import RunConfig

TINY = {"dataset": "digits", "width": 8, "depth": 2, "epochs": 2, "probe_size": 200}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def tiny(**settings: Any) -> RunConfig:
    return RunConfig(**(TINY | settings))
