"""List the runs of a sweep: their status, what varies, and about how long they take."""

import csv
import io
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from nsrelu_bench.config import RunConfig, find_varying, parse_settings, run_config
from nsrelu_bench.files import read_bytes
from nsrelu_bench.records import Status

Plan = Sequence[tuple[RunConfig, Status, bool]]

#: The settings that do not change how long an epoch takes. All others do, so that each new one
#: counts until it is known not to. Of the activation, only its parameters do not.
WITHOUT_COST = {
    *("seed", "replicate", "init", "data_dir", "epochs", "tasks"),
    *("lr", "momentum", "weight_decay", "schedule", "leak_schedule"),
}

#: Earlier runs to read; more do not improve the estimate.
MAX_EARLIER = 200

#: Training examples of a timed epoch; that of all of them takes longer in proportion.
TIMED_EXAMPLES = 2000


def format_runs(
    plan: Plan, study: Path, workers: int, *, timed: bool = False, as_json: bool = False
) -> str:
    """List the runs of `plan_runs`: status, whether they are due, and the settings that vary.

    The time that `workers` processes take is estimated from the runs in the study's folder and its
    neighbours or, if `timed`, from an epoch of each kind of run.

    Raises:
        BenchError: A data set, a model or a device that is timed can't be had.
    """
    varying = find_varying([config for config, _, _ in plan])
    waiting = [config for config, _, due in plan if due]
    if timed:
        known = {key: time_epoch(config) for key, config in {_key(c): c for c in waiting}.items()}
    else:
        known = _earlier_epochs(study)
    rows: list[dict[str, Any]] = [
        {
            "run_id": config.run_id,
            "state": status.state,
            "due": due,
            "settings": {name: config.settings[name] for name in varying},
            "estimated_s": known[_key(config)] * config.total_epochs
            if due and _key(config) in known
            else None,
        }
        for config, status, due in plan
    ]
    if as_json:
        return json.dumps(rows, indent=2) + "\n"
    lines = [
        f"{_action(row)}  {row['state']:11}  {row['run_id']}"
        + "".join(f"  {name}={_plain(value)}" for name, value in row["settings"].items())
        for row in rows
    ]
    costs = [row["estimated_s"] for row in rows if row["due"]]
    end = f"{len(rows)} runs, {len(costs)} to run{_time(costs, workers, timed=timed)}"
    return "\n".join([*lines, end, ""])


def _action(row: Mapping[str, Any]) -> str:
    """Return what a sweep does with a run; one that is new and not due is left out by --retry."""
    if row["due"]:
        return "run "
    return "skip" if row["state"] == "new" else "keep"


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
    """Return what decides how long an epoch takes: its measurements do more than its steps."""
    spec = config.activation
    kind = (spec.forward.name, spec.backward.name, spec.gate, spec.tied)
    return (*kind, *config.model_dump(exclude={"act", *WITHOUT_COST}).values())


def time_epoch(config: RunConfig) -> float:
    """Return about how many seconds an epoch takes on this machine, without writing anything.

    Two short epochs are run, since the first has to warm up.

    Raises:
        BenchError: The data set, the model or the device can't be had.
    """
    from nsrelu_bench.data import load_dataset
    from nsrelu_bench.training import run

    total = len(load_dataset(config).train)
    batches = math.ceil(max(TIMED_EXAMPLES, config.probe_size) / config.batch_size)
    examples = min(batches * config.batch_size, total)
    changes = {"epochs": 2, "tasks": 1, "train_size": None if examples == total else examples}
    *_, last = run(config.model_copy(update=changes))
    measuring = last.timing["measure_s"] * _measurements(config, total)
    measuring /= _measurements(config, examples)
    return float(last.timing["train_s"] * total / examples + measuring + last.timing["evaluate_s"])


def _measurements(config: RunConfig, examples: int) -> float:
    """Return how often an epoch of so many examples is measured on average: at its end, between."""
    every = config.probe_every
    return 1 + examples / config.batch_size / every if every else 1.0


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
