"""Describe one run, for `show`."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nsrelu_bench.config import RunConfig, read_run
from nsrelu_bench.records.frames import COUNTERS
from nsrelu_bench.records.schema import CONFIG
from nsrelu_bench.records.status import read_status
from nsrelu_bench.records.summary_rows import read_run as read_row


def describe_run(folder: Path) -> dict[str, Any]:
    """Return the id, the state, settings, final metrics and files of a run.

    Settings that have their default are left out, except for activation, data set, model and seed.

    Raises:
        UsageError: Its config.yaml can't be read.
        OSError: Another of its files can't be read.
    """
    settings = read_run(folder / CONFIG)
    usual = RunConfig().settings
    shown = ("act", "dataset", "model", "seed")
    state = asdict(read_status(folder))
    row = read_row(folder)
    columns = (*settings, *state, *COUNTERS, "leak", "study", "run_id")
    return {
        "run": folder.name,
        "folder": str(folder),
        "ended": {name: value for name, value in state.items() if value is not None},
        "settings": {k: v for k, v in settings.items() if k in shown or v != usual.get(k)},
        "last row": {
            name: value
            for name, value in row.items()
            if isinstance(value, float) and name not in columns and not math.isnan(value)
        },
        "files": sorted(path.name for path in folder.iterdir() if path.name[0] != "."),
    }
