"""A run without training, for the tests of what it leaves on disk."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from helpers.tiny_runs import tiny

from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.training.epoch import Epoch

FAKE_CONFIG = tiny(epochs=2)

FAKE_ENVIRONMENT = {
    "packages": {"torch": "2.15.0"},
    "git_commit": None,
    "device": "cpu",
    "processor": "made up",
    "cpu_capability": "AVX2",
    "threads": 1,
}


def fake_run(config: RunConfig, checkpoint: Mapping[str, Any] | None = None) -> Iterator[Epoch]:
    """Yield epochs such as `train.run` yields, which go on from a checkpoint in the same way."""
    first = 0
    state = torch.arange(3.0)
    if checkpoint is not None:
        first, state = checkpoint["epoch"] + 1, checkpoint["state"]
    for epoch in range(first, config.total_epochs + 1):
        state = state * 1.5 + epoch
        yield Epoch(
            {"epoch": epoch, "step": 10 * epoch, "train_loss": state.sum().item()},
            [{"epoch": epoch, "layer": name, "zero_fraction": 0.1 * epoch} for name in "ab"],
            {"epoch": epoch, "time_s": 0.25},
            None,
            [{"epoch": epoch, "step": 10 * epoch}] if config.probe_every else [],
            [{"layer": "a", "quantile": 0.5, "value": 1.5}] if epoch == config.epochs else [],
            partial(dict, epoch=epoch, state=state),
        )
