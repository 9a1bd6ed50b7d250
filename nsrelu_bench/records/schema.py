"""Which files a run folder has, and the columns of each."""

import math
import re

from nsrelu_bench.config import MEASURES, RunConfig

_SPLITS = tuple(
    f"{split}_{name}" for split in ("train", "val", "test") for name in ("loss", "accuracy")
)

# The rate stands where the design's first columns end; measures added later come after it.
_FIRST = tuple(MEASURES)[: 1 + list(MEASURES).index("surrogate_cosine")]
_FURTHER = tuple(MEASURES)[len(_FIRST) :]

#: The CSV files of a run and their columns; docs/metrics.md defines them. steps.csv is there only
#: where measures are taken between epochs.
COLUMNS = {
    "metrics.csv": ("epoch", "step", *_SPLITS, *_FIRST, "lr", *_FURTHER, "task"),
    "layers.csv": ("epoch", "layer", "units", *MEASURES),
    "timing.csv": ("epoch", "time_s", "train_s", "measure_s", "evaluate_s"),
    "steps.csv": ("epoch", "step", "train_loss", "train_accuracy", *MEASURES),
    "quantiles.csv": ("layer", "quantile", "value"),
}


def csv_names(config: RunConfig) -> list[str]:
    """Return the CSV files that a run writes."""
    return [name for name in COLUMNS if name != "steps.csv" or config.probe_every]


#: A cell of the CSV files: a number as Python writes it, or nothing.
NUMBER = re.compile(r"(-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?)?")


def format_cell(value: float | int | str | None) -> str:
    """Write a value so that it reads back the same; what is not finite is no value."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)
