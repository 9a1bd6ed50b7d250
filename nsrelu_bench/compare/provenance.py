"""Describe where the runs of a comparison come from: what they share, and which count twice."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from nsrelu_bench.compare.baseline import MEASURING
from nsrelu_bench.compare.grouping import format_setting, varies
from nsrelu_bench.compare.outcomes import chance_accuracy
from nsrelu_bench.records import ENVIRONMENT, find_mixed


def provenance(frame: pd.DataFrame, config_columns: Sequence[str]) -> dict[str, Any]:
    """Return what a `Comparison` records about its runs, by attribute."""
    return {
        "shared": dict(zip(frame["section"], frame["shared"], strict=True)),
        "datasets": tuple(map(str, frame["dataset"].unique())) if "dataset" in frame else (),
        "chance": _chance(frame),
        "studies": tuple(map(str, frame["study"].unique())) if "study" in frame else (),
        "environment": _environment(frame),
        "mixed": find_mixed(frame) | _mixed_probes(frame, config_columns),
        "copies": _copies(frame, config_columns),
    }


def _chance(runs: pd.DataFrame) -> dict[str, list[float]]:
    """Return the accuracy of guessing on each data set; several where only some runs record it."""
    if "dataset" not in runs:
        return {}
    levels = chance_accuracy(runs).groupby(runs["dataset"], sort=False).unique()
    return {str(name): sorted(found) for name, found in levels.items()}


def _mixed_probes(runs: pd.DataFrame, config_columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the sizes of the probe set where runs of different sizes are compared."""
    if "probe_size" in config_columns or "probe_size" not in runs or not varies(runs["probe_size"]):
        return {}
    return {"probe_size": [format_setting(size) for size in sorted(runs["probe_size"].unique())]}


def _environment(runs: pd.DataFrame) -> dict[str, str]:
    """Return what all runs were computed with, if recorded and the same; without digests."""
    names = [name for name in ENVIRONMENT if name in runs and not name.endswith("digest")]
    values = {name: runs[name].dropna().unique() for name in names}
    return {name: str(there[0]) for name, there in values.items() if len(there) == 1}


def _copies(runs: pd.DataFrame, config_columns: Sequence[str]) -> dict[tuple[str, str], int]:
    """Count, for pairs of studies, the runs of the first that train as one of the second does."""
    if "study" not in config_columns:
        return {}
    training = [c for c in config_columns if c in runs and c not in ("study", *MEASURING)]
    repeated = runs[runs.duplicated(training, keep=False)]
    counts: dict[tuple[str, str], int] = {}
    for _, same in repeated.groupby(training, dropna=False) if len(repeated) else ():
        first, *others = sorted(set(same["study"]))
        for other in others:
            counts[other, first] = counts.get((other, first), 0) + 1
    return counts
