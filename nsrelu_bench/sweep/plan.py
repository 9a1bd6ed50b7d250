"""What a sweep would do: its runs, their status, what varies, and about how long it takes."""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from nsrelu_bench.config import RunConfig, parse_settings, run_config
from nsrelu_bench.files import read_bytes
from nsrelu_bench.records import Status

Plan = Sequence[tuple[RunConfig, Status | None, bool]]

#: What an epoch's time depends on.
COSTS = (
    *("dataset", "train_size", "model", "width", "depth", "batch_norm", "batch_size"),
    *("threads", "device", "precision", "compile", "stack"),
)

#: Earlier runs to look at; more give no better estimate.
MAX_EARLIER = 200


def format_runs(plan: Plan, study: Path, workers: int, *, as_json: bool = False) -> str:
    """List the runs of `plan_runs`: status, whether they are due, and the settings that vary.

    Args:
        plan: The runs.
        study: The study's folder; how long runs take is estimated from those in it and beside it.
        workers: Processes that run at once.
        as_json: For programs.
    """
    varying = find_varying([config for config, _, _ in plan])
    rows: list[dict[str, Any]] = [
        {
            "run_id": config.run_id,
            "state": status.state if status else "new",
            "due": due,
            "settings": {name: config.settings[name] for name in varying},
        }
        for config, status, due in plan
    ]
    if as_json:
        return json.dumps(rows, indent=2) + "\n"
    due = [config for config, _, due in plan if due]
    lines = [
        f"{'run ' if row['due'] else 'keep'}  {row['state']:11}  {row['run_id']}"
        + "".join(f"  {name}={value}" for name, value in row["settings"].items())
        for row in rows
    ]
    return "\n".join(
        [*lines, f"{len(rows)} runs, {len(due)} to run{_time(due, study, workers)}"]
    ) + ("\n")


def find_varying(runs: Sequence[RunConfig]) -> list[str]:
    """Return the settings that differ between runs and that their ids do not show."""
    all_settings = [config.settings for config in runs]
    shown = ("act", "dataset", "model", "seed")
    return [
        name
        for name in RunConfig.model_fields
        if name not in shown and len({repr(settings[name]) for settings in all_settings}) > 1
    ]


def _time(due: Sequence[RunConfig], study: Path, workers: int) -> str:
    """Return about how long runs take, as the end of a line; empty where nothing is known."""
    if not due:
        return ""
    known: dict[tuple[Any, ...], list[float]] = {}
    for key, epoch_s in itertools.islice(_earlier_epochs(study), MAX_EARLIER):
        known.setdefault(key, []).append(epoch_s)
    costs = [
        median(known[key]) * config.total_epochs if (key := _key(config)) in known else None
        for config in due
    ]
    timed = [cost for cost in costs if cost is not None]
    if not timed:
        return "; no earlier run tells how long, --seeds 1 is a way to find out"
    hours = sum(timed) / min(workers, len(due)) / 3600
    amount = f"{hours:.1f} hours" if hours >= 1 else f"{max(hours * 60, 0.1):.1f} minutes"
    others = f", for {len(timed)} of them" if len(timed) < len(costs) else ""
    return f"; about {amount} in {min(workers, len(due))} processes{others}"


def _key(config: RunConfig) -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in COSTS)


def _earlier_epochs(study: Path) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Give what earlier runs cost: their settings that matter, and the seconds of an epoch."""
    folders: Iterable[Path] = itertools.chain(study.glob("*/"), study.parent.glob("*/*/"))
    for folder in dict.fromkeys(folders):
        with suppress(OSError, ValueError, KeyError):
            text = read_bytes(folder / "timing.csv").decode()
            times = [float(row["time_s"]) for row in csv.DictReader(io.StringIO(text, newline=""))]
            settings = parse_settings(read_bytes(folder / "config.yaml"), "config.yaml")
            if times[1:]:  # the first is of measuring before training
                yield _key(run_config(settings)), median(times[1:])
