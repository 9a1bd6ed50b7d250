"""List the runs of a sweep: their status, what varies, and about how long they take."""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from nsrelu_bench.config import RunConfig, find_varying, parse_settings, run_config
from nsrelu_bench.files import read_bytes
from nsrelu_bench.records import Status

Plan = Sequence[tuple[RunConfig, Status | None, bool]]

#: What an epoch's time depends on.
COSTS = (
    *("dataset", "train_size", "model", "width", "depth", "batch_norm", "batch_size"),
    *("threads", "device", "precision", "compile", "stack"),
)

#: Earlier runs to read; more do not improve the estimate.
MAX_EARLIER = 200


def format_runs(
    plan: Plan, study: Path, workers: int, *, timed: bool = False, as_json: bool = False
) -> str:
    """List the runs of `plan_runs`: status, whether they are due, and the settings that vary.

    Args:
        plan: The runs.
        study: The study's folder; times are estimated from the runs in it and in its neighbours.
        workers: Processes that run at once.
        timed: Whether to time an epoch of each model and data set for that, instead.
        as_json: For programs.

    Raises:
        BenchError: A data set, a model or a device that is timed can't be had.
    """
    varying = find_varying([config for config, _, _ in plan])
    waiting = [config for config, _, due in plan if due]
    known = _time_epochs(waiting) if timed else _earlier_epochs(study)
    rows: list[dict[str, Any]] = [
        {
            "run_id": config.run_id,
            "state": status.state if status else "new",
            "due": due,
            "settings": {name: config.settings[name] for name in varying},
            "estimated_s": _seconds(config, known) if due else None,
        }
        for config, status, due in plan
    ]
    if as_json:
        return json.dumps(rows, indent=2) + "\n"
    lines = [
        f"{'run ' if row['due'] else 'keep'}  {row['state']:11}  {row['run_id']}"
        + "".join(f"  {name}={_plain(value)}" for name, value in row["settings"].items())
        for row in rows
    ]
    costs = [row["estimated_s"] for row in rows if row["due"]]
    end = f"{len(rows)} runs, {len(costs)} to run{_time(costs, workers, timed=timed)}"
    return "\n".join([*lines, end, ""])


def _plain(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _time(costs: Sequence[float | None], workers: int, *, timed: bool) -> str:
    """Return about how long runs of these seconds take, as the end of a line."""
    if not costs:
        return ""
    known = [cost for cost in costs if cost is not None]
    if not known:
        return "; no earlier runs to estimate the time from: use --time"
    processes = min(workers, len(costs))
    hours = sum(known) / processes / 3600
    amount = f"{hours:.1f} hours" if hours >= 1 else f"{max(hours * 60, 0.1):.1f} minutes"
    others = f", for {len(known)} of them" if len(known) < len(costs) else ""
    source = "a timed epoch" if timed else "earlier runs"
    return f"; about {amount} in {processes} process{'es' * (processes > 1)}{others}, from {source}"


Key = tuple[Any, ...]


def _key(config: RunConfig) -> Key:
    return tuple(getattr(config, name) for name in COSTS)


def _seconds(config: RunConfig, epochs: Mapping[Key, float]) -> float | None:
    epoch_s = epochs.get(_key(config))
    return None if epoch_s is None else epoch_s * config.total_epochs


def _time_epochs(runs: Sequence[RunConfig]) -> dict[Key, float]:
    """Return the seconds of an epoch of each model and data set, timed now."""
    from nsrelu_bench.sweep.time_epochs import time_epoch

    return {key: time_epoch(config) for key, config in {_key(c): c for c in runs}.items()}


def _earlier_epochs(study: Path) -> dict[Key, float]:
    """Return the seconds of an epoch of earlier runs, by the settings that matter."""
    known: dict[Key, list[float]] = {}
    folders: Iterable[Path] = itertools.chain(study.glob("*/"), study.parent.glob("*/*/"))
    for folder in itertools.islice(dict.fromkeys(folders), MAX_EARLIER):
        with suppress(OSError, ValueError, KeyError):
            text = read_bytes(folder / "timing.csv").decode()
            times = [float(row["time_s"]) for row in csv.DictReader(io.StringIO(text, newline=""))]
            settings = parse_settings(read_bytes(folder / "config.yaml"), "config.yaml")
            if times[1:]:  # the first is of measuring before training
                known.setdefault(_key(run_config(settings)), []).append(median(times[1:]))
    return {key: median(times) for key, times in known.items()}
