"""Define the files of a run folder and their columns."""

import math
import re

from nsrelu_bench.config import METRICS, SITE_MEASURES, RunConfig, is_own

CONFIG = "config.yaml"
ENVIRONMENT_FILE = "env.json"
STATUS = "status.json"
CHECKPOINT = "checkpoint.pt"
SUMMARY = "summary.csv"
STUDY = "study.yaml"

#: A checkpoint may be larger than other files that are read.
MAX_CHECKPOINT_BYTES = 1 << 36

_SCORES = tuple(name for name in METRICS if name not in SITE_MEASURES)

# `lr` ends the columns that the design fixes; measures that were added later come after it.
_FIRST = tuple(SITE_MEASURES)[: 1 + list(SITE_MEASURES).index("surrogate_cosine")]
_FURTHER = tuple(SITE_MEASURES)[len(_FIRST) :]

#: How training went: 1 for a collapsed network, and the step of the early warning.
_OUTCOME = ("collapsed", "gradient_lost_step")

#: The CSV files of a run and their columns; docs/metrics.md defines them. steps.csv exists only
#: where measures are taken between epochs.
COLUMNS = {
    "metrics.csv": ("epoch", "step", *_SCORES, *_FIRST, "lr", *_FURTHER, "task", *_OUTCOME),
    "layers.csv": ("epoch", "layer", "units", *SITE_MEASURES),
    "timing.csv": ("epoch", "time_s", "train_s", "measure_s", "evaluate_s"),
    "steps.csv": ("epoch", "step", "train_loss", "train_accuracy", *SITE_MEASURES),
    "quantiles.csv": ("layer", "quantile", "value"),
}

#: The files that every done run must have.
REQUIRED = (CONFIG, "metrics.csv", "layers.csv", "timing.csv")

#: A cell of these files, except for `layer`: a number as Python writes it, or nothing. Numbers with
#: more digits are refused: pandas turns 5,000 digits into text.
CELL = re.compile(r"(?:-?[0-9]{1,18}(?:\.[0-9]{1,25})?(?:e[+-]?[0-9]{1,3})?)?")


def csv_files(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """Return the columns of the CSV files that a run writes; the user's own measures come last."""
    own = tuple(name for name in config.measured if is_own(name))
    return {
        name: columns + own if name in ("metrics.csv", "layers.csv", "steps.csv") else columns
        for name, columns in COLUMNS.items()
        if name != "steps.csv" or config.probe_every
    }


def format_cell(value: float | int | str | None) -> str:
    """Format a value so that it reads back the same; empty for None and what is not finite."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)
