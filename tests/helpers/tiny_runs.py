"""Runs that take a fraction of a second."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nsrelu_bench import training
from nsrelu_bench.config import RunConfig
from nsrelu_bench.records.writer import RunWriter
from nsrelu_bench.sweep import execute_run

TINY = {"dataset": "digits", "width": 8, "depth": 2, "epochs": 2, "probe_size": 200}
DIVERGING: dict[str, Any] = {"act": "nsrelu(1)", "lr": 1e4, "epochs": 3}


def tiny(**settings: Any) -> RunConfig:
    return RunConfig(**(TINY | settings))


def make(study: Path, **settings: object) -> Path:
    config = tiny(**settings)
    list(execute_run(config, study / config.run_id))
    return study / config.run_id


def stop_after(epoch: int, config: RunConfig, folder: Path) -> None:
    """Make a run that is killed while it keeps the checkpoint of the epoch after this one."""

    def interrupt() -> dict[str, Any]:
        raise KeyboardInterrupt

    def begin() -> None:
        with RunWriter(folder, config, checkpoint_after=0) as writer:
            for record in training.run(config, writer.checkpoint):
                if record.metrics["epoch"] == config.total_epochs:
                    raise KeyboardInterrupt
                behind = record.metrics["epoch"] > epoch
                writer.append(replace(record, checkpoint=interrupt) if behind else record)

    with pytest.raises(KeyboardInterrupt):
        begin()
