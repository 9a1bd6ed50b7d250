"""What the tests share: one torch thread, and a run that takes a fraction of a second."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nsrelu_bench.config import RunConfig
from nsrelu_bench.sweep import execute

TINY = {"dataset": "digits", "width": 8, "depth": 2, "epochs": 2, "probe_size": 200}


# A shell ignores it for what it starts in the background, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSRELU_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def tiny(**settings: Any) -> RunConfig:
    return RunConfig(**(TINY | settings))


DIVERGING: dict[str, Any] = {"act": "nsrelu(1)", "lr": 1e4, "epochs": 3}


def make(study: Path, **settings: object) -> Path:
    config = tiny(**settings)
    list(execute(config, study / config.run_id))
    return study / config.run_id


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with two completed runs and a diverged one."""
    folder = tmp_path_factory.mktemp("results") / "study"
    make(folder, act="relu")
    make(folder, act="nsrelu(0.1)")
    make(folder, **DIVERGING)
    return folder
