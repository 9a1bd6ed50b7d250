"""How metrics and numbers are written for people."""

import math
from collections.abc import Iterable

#: Names of metrics for people: in figures, and short in tables.
LABELS = {
    "train_loss": "train loss",
    "val_loss": "validation loss",
    "val_accuracy": "validation accuracy",
    "zero_fraction": "zeros after activation",
    "negative_fraction": "inputs <= 0",
    "dead_fraction": "dead units",
    "submerged_fraction": "submerged units",
    "grad_norm": "gradient norm",
    "pre_grad_norm": "gradient norm before activation",
    "zero_grad_units": "units with zero gradient",
    "died_units": "units that died",
    "diverged_fraction": "runs that diverged",
    "surrogate_cosine": "cosine to true gradient",
}


def label(metric: str) -> str:
    """Name a metric for people."""
    return LABELS.get(metric, metric.replace("_", " "))


def is_percent(metric: str) -> bool:
    """Tell whether a metric is a fraction that people read in percent."""
    return metric.endswith(("accuracy", "fraction"))


def places_for(halves: Iterable[float]) -> int:
    """Return how many decimal places show the middle one of the half-widths, at least one."""
    positive = sorted(half for half in halves if half > 0)
    return min(max(math.ceil(-math.log10(positive[len(positive) // 2])), 1), 4) if positive else 1


def fixed(value: float, places: int, sign: str = "") -> str:
    """Write a number with so many decimal places, and no minus before zero."""
    return f"{round(value, places) + 0.0:{sign}.{places}f}"


def plain(metric: str, value: float) -> str:
    """Write a value of a metric without its spread."""
    return f"{fixed(value * 100, 1)} %" if is_percent(metric) else f"{value:.3g}"


def format_p(p: float) -> str:
    """Write a p value with two digits."""
    return "-" if math.isnan(p) else f"{p:.2g}"
