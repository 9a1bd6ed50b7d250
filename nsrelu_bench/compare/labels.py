"""Tell metrics from other columns, name them in tables and figures, and write their values."""

import math
from collections.abc import Collection, Hashable, Iterable

from nsrelu_bench.config import METRICS, is_own
from nsrelu_bench.errors import UsageError, unknown
from nsrelu_bench.records import CONFIG_COLUMNS, KNOWN_COLUMNS
from nsrelu_bench.text import format_fixed

#: Counts of runs, and what each counts.
RUN_COUNTS = {
    "runs": "runs of the activation with these settings, one per seed",
    "diverged": "runs whose loss or weights stopped being finite",
    "collapsed": "completed runs that are no better than guessing, or far below their best",
    "failed": "runs that ended with an error",
    "unfinished": "runs that were interrupted, or are still running",
}

#: The columns that are no metrics: identifiers, settings, states, positions and versions, and what
#: grouping adds. Of those that this package writes, `METRICS` and the user's own measures are.
NOT_METRICS = {
    *KNOWN_COLUMNS,
    *("section", "shared", "line", "setting", "group", "is_baseline", "pair"),
} - METRICS.keys()

#: Names of metrics in figures; others are named after their column.
LABELS = {
    "train_loss": "train loss",
    "val_loss": "validation loss",
    "val_accuracy": "validation accuracy",
    "zero_fraction": "zeros after activation",
    "negative_fraction": "inputs <= 0",
    "dead_fraction": "dead units",
    "submerged_fraction": "submerged units",
    "dormant_fraction": "dormant units",
    "revived_fraction": "units that came back",
    "collapsed_fraction": "runs that collapsed",
    "grad_norm": "gradient norm",
    "pre_grad_norm": "gradient norm before activation",
    "zero_grad_units": "units with zero gradient",
    "died_units": "units that died",
    "diverged_fraction": "runs that diverged",
    "surrogate_cosine": "cosine to true gradient",
}

#: Shorter names, for tables and verdicts.
SHORT_LABELS = {
    "test_accuracy": "accuracy",
    "zero_fraction": "zeros",
    "negative_fraction": "inputs <= 0",
    "dead_fraction": "dead",
    "submerged_fraction": "submerged",
    "grad_norm": "grad norm",
}


def metrics_among(columns: Iterable[Hashable], settings: Collection[str]) -> list[str]:
    """Return those of the columns of runs, epochs or layers that are metrics.

    `settings` are configuration here, in addition to the settings of a run.
    """
    return [str(c) for c in columns if c not in NOT_METRICS and c not in settings]


def check_metric(name: str, known: Collection[str]) -> None:
    """Check that runs have a metric.

    Raises:
        UsageError: There is no such metric, or no run has measured it.
    """
    if name in known:
        return
    if name in METRICS or is_own(name):
        raise UsageError(
            f"no run has {name}: runs made before it was added, or without it in measures, need"
            f" --fresh{'' if is_own(name) else '; docs/metrics.md says where it has no value'}"
        )
    count = name.removesuffix("_fraction")
    if count in RUN_COUNTS:
        kind = "number" if name == count else "share"
        share = f"{count}_fraction"
        instead = share if share in known else f"compare --columns {count}"
        raise UsageError(f"{name!r} is a {kind} of runs, not a metric; use {instead}")
    if name in NOT_METRICS:
        kind = "setting" if name in CONFIG_COLUMNS else "column of a run"
        raise UsageError(f"{name!r} is a {kind}, not a metric; choose from: {', '.join(known)}")
    raise unknown(name, known, "metric")


def label(metric: str) -> str:
    """Return the name of a metric in figures."""
    return LABELS.get(metric, metric.replace("_", " "))


def is_percent(metric: str) -> bool:
    """Return whether a metric is a fraction, which is shown in percent."""
    return metric.endswith(("accuracy", "fraction"))


def best_of(metric: str) -> str | None:
    """Return which value of a metric is best, the "highest" or the "lowest"; None for neither."""
    if metric.endswith("accuracy") or metric == "zero_fraction":
        return "highest"
    if metric.endswith("_loss") or metric.startswith(("dead_", "submerged_", "dormant_")):
        return "lowest"
    return None


def format_value(metric: str, value: float) -> str:
    """Write a value of a metric without its spread."""
    return f"{format_fixed(value * 100, 1)} %" if is_percent(metric) else f"{value:.3g}"


def scale_of(metric: str) -> tuple[int, str]:
    """Return the factor by which a difference in a metric is shown, and its unit."""
    return (100, " pp") if is_percent(metric) else (1, "")


def format_interval(metric: str, low: float, high: float, places: int) -> str:
    """Write an interval as "[92.1, 94.0]"; empty if it is NaN."""
    if math.isnan(low) or math.isnan(high):
        return ""
    scale, _ = scale_of(metric)
    return f"[{format_fixed(scale * low, places)}, {format_fixed(scale * high, places)}]"
