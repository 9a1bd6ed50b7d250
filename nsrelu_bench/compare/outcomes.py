"""Find the outcome of each run: its final metrics, or the accuracy of chance if it diverged.

A mean over the surviving runs flatters an activation whose other runs diverged. So differences and
verdicts are by intention to treat: every run that finished counts.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nsrelu_bench.compare.sign_flips import TIE
from nsrelu_bench.config import CLASSES
from nsrelu_bench.records import DONE

#: The metric that is 1 for a run that failed to train, and 0 for others.
FAILED = "failed_to_train"

#: What names a group, and one of its metrics.
GROUP = ["section", "group"]
KEYS = [*GROUP, "metric"]


def chance_accuracy(runs: pd.DataFrame) -> "pd.Series[float]":
    """Return the accuracy of guessing for each run: one over the classes of its data set.

    It is 0 where their number is not known: runs of older versions did not record it.
    """
    classes = pd.Series(np.nan, index=runs.index)
    if "dataset" in runs:
        classes = runs["dataset"].map(CLASSES).astype(float)
    if "classes" in runs:
        recorded = pd.to_numeric(runs["classes"], errors="coerce").astype(float)
        classes = recorded.where(recorded >= 1, classes)
    return (1 / classes).fillna(0.0)


def failed_to_train(runs: pd.DataFrame) -> "pd.Series[float]":
    """Return 1 for each run that diverged or collapsed, NaN for unfinished ones, otherwise 0."""
    finished = runs["state"].isin(DONE)
    failed = (runs["state"] == "diverged") | collapsed(runs)
    return failed.astype(float).where(finished)


def collapsed(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Return whether each run collapsed; False for runs of older versions, which did not say."""
    if "collapsed" not in runs:
        return pd.Series(False, index=runs.index)
    return (pd.to_numeric(runs["collapsed"], errors="coerce") == 1) & (runs["state"] == "completed")


def outcomes(frame: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return the final metrics of finished runs, one row per run and metric that has a value.

    The columns are `section`, `group`, `is_baseline`, `study`, `pair`, `seed`, `replicate`,
    `metric`, `value`, and `survived`. A diverged run has the accuracy of chance, and no other
    metric. `FAILED` is one of the metrics.
    """
    finished = frame[frame["state"].isin(DONE)]
    lost = finished["state"] == "diverged"
    by_chance = chance_accuracy(finished)
    wide = finished[["section", "group", "is_baseline", "pair", "seed"]].assign(
        study=finished.get("study", ""),
        replicate=finished.get("replicate", 0),
        survived=~lost,
    )
    keep = list(wide)
    for metric in metrics:
        values = pd.to_numeric(finished[metric], errors="coerce").astype(float)
        instead = by_chance if metric.endswith("accuracy") else np.nan
        wide[metric] = values.mask(lost, instead)
    wide[FAILED] = failed_to_train(finished)
    table = wide.melt(id_vars=keep, value_vars=[*metrics, FAILED], var_name="metric")
    finite: pd.DataFrame = table[np.isfinite(table["value"])]
    return finite


def mean_over_replicates(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the mean of some columns over replicates: one row per group, metric and seed.

    Replicates differ only in rounding; seeds are independent.
    """
    key = [*KEYS, "seed"]
    if not table.duplicated(key).any():
        return table[[*key, *columns]]
    return table.groupby(key, sort=False)[list(columns)].mean().reset_index()


def pair_with_baseline(table: pd.DataFrame) -> pd.DataFrame:
    """Return the paired values of each group, metric and seed: `value`, `baseline`, `difference`.

    A run is paired with the baseline's run that has its `pair`, seed and replicate.
    `baseline_group` names the baseline's group, and `study` the study.
    """
    pair = ["pair", "seed", "replicate", "metric"]
    base = table[table["is_baseline"]].drop_duplicates(pair)
    base = base[[*pair, "value", "group"]].rename(
        columns={"value": "baseline", "group": "baseline_group"}
    )
    pairs = table[~table["is_baseline"]].merge(base, on=pair)
    difference = pairs["value"] - pairs["baseline"]
    # Values that differ only because their sums were rounded differently count as equal.
    largest = pairs[["value", "baseline"]].abs().max(axis=1)
    pairs["difference"] = difference.where(difference.abs() > 1e-3 * TIE * largest, 0.0)
    names = pairs.groupby(KEYS, sort=False)[["baseline_group", "study"]].first()
    seeds = mean_over_replicates(pairs, ["value", "baseline", "difference"])
    return seeds.merge(names.reset_index(), on=KEYS)
