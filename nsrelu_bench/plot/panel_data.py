"""The numbers that panels draw, taken from runs that are grouped already.

`groups` is always a frame of runs as `nsrelu_bench.compare.name_groups` returns it: grouped once,
then handed from panel to panel.
"""

from typing import Any

import numpy as np
import pandas as pd

from nsrelu_bench.compare import STATES, is_percent, parse_act, summarise
from nsrelu_bench.errors import BenchError

#: What can be read in one figure; more is refused.
MAX_PANELS = 12
MAX_LINES = 12

#: Settings whose names differ from what people call them.
SETTING_LABELS = {"lr": "learning rate", "batch_size": "batch size"}

FINISHED = ("completed", "diverged")


class NothingToDrawError(BenchError):
    """The runs lack what a figure shows, or have too much of it; the message says what."""


def epoch_values(groups: pd.DataFrame, metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the finite values of a metric by run and epoch, in percent if it is a fraction."""
    columns = ["run_id", "state", "act", "line", "group"]
    if metric not in metrics:
        return pd.DataFrame(columns=[*columns, "epoch", "value"])
    metrics = metrics.drop_duplicates(["run_id", "epoch"])  # a run may be in two studies
    values = metrics[["run_id", "epoch"]].assign(value=in_percent(metrics[metric], metric))
    history: pd.DataFrame = groups[columns].merge(values, on="run_id").sort_values("epoch")
    finite: pd.DataFrame = history[np.isfinite(history["value"])]
    return finite


def final_values(groups: pd.DataFrame, metric: str) -> "pd.Series[float]":
    """Return a final metric, in percent if it is a fraction; NaN unless the run is completed."""
    if metric == "diverged_fraction":
        diverged = groups["state"] == "diverged"
        return diverged.where(groups["state"].isin(FINISHED)).astype(float) * 100
    if metric not in groups:
        return pd.Series(np.nan, index=groups.index)
    return in_percent(groups[metric], metric).where(groups["state"] == "completed")


def in_percent(values: "pd.Series[Any]", metric: str) -> "pd.Series[float]":
    """Return values as numbers, times 100 if the metric is a fraction."""
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    return numbers * 100 if is_percent(metric) else numbers


def layer_grid(groups: pd.DataFrame, layers: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the mean of a metric by layer, in order of depth, and epoch."""
    if metric not in layers:
        return pd.DataFrame()
    layers = layers[["run_id", "epoch", "layer", metric]]
    layers = layers.drop_duplicates(["run_id", "epoch", "layer"])
    values = groups[["run_id", "state"]].merge(layers, on="run_id")
    values["value"] = in_percent(values[metric], metric)
    values = values[np.isfinite(values["value"])]
    for state in FINISHED:
        runs = values[values["state"] == state]
        if not runs.empty:
            grid: pd.DataFrame = runs.pivot_table(index="layer", columns="epoch", values="value")
            epochs = sorted(layers["epoch"].unique())
            return grid.reindex(index=runs["layer"].unique(), columns=epochs)
    return pd.DataFrame()


def cell_means(runs: pd.DataFrame, x: str, y: str, metric: str) -> pd.DataFrame:
    """Return the mean of a final metric by two settings; NaN where there is no such run."""
    finished = runs[runs["state"].isin(FINISHED)]
    values = finished.assign(value=final_values(finished, metric))
    means: pd.DataFrame = values.pivot_table(index=y, columns=x, values="value", dropna=False)
    return means


def leak_families(groups: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the runs of each activation that has a leak; those of relu are its leak 0."""
    parsed = groups["act"].map(parse_act)
    leaks = groups.assign(leak=[0.0 if act == "relu" else leak for act, leak in parsed])
    family = parsed.map(lambda pair: pair[0])
    names = dict.fromkeys(name for name, leak in parsed if leak is not None)
    return {name: leaks[family.isin(["relu", name])] for name in names}


def has_several_leaks(runs: pd.DataFrame) -> bool:
    """Return whether a family has more than one leak beside relu's 0."""
    return len(set(runs["leak"]) - {0.0}) > 1


def mean_interval(values: "pd.Series[float]") -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % t interval, NaN for a single value."""
    row = summarise(values.to_frame("value").assign(key=0), ["key"]).iloc[0]
    return float(row["mean"]), float(row["high"] - row["mean"])


def error_ends(middle: float, half: float, metric: str) -> list[list[float]]:
    """Return how far an interval reaches down and up; that of a fraction stays in 0 to 100 %."""
    low, high = middle - half, middle + half
    if is_percent(metric):
        low, high = max(low, 0.0), min(high, 100.0)
    return [[middle - low], [high - middle]]


def group_label(runs: pd.DataFrame, column: str = "group") -> str:
    """Name a group, and count its runs that were not completed: "relu (2/6 diverged)"."""
    states = runs["state"].where(runs["state"].isin(STATES), "unfinished")
    counts = [f"{(states == s).sum()}/{len(runs)} {s}" for s in STATES[1:] if (states == s).any()]
    return str(runs[column].iloc[0]) + (f" ({', '.join(counts)})" if counts else "")


def label_column(groups: pd.DataFrame) -> str:
    """Return which column names the groups: the activation alone where they share settings."""
    return "line" if len(groups["setting"].unique()) == 1 else "group"


def check_count(count: int, limit: int, kind: str) -> None:
    """Raise NothingToDrawError where there are more of a kind than can be read."""
    if count > limit:
        raise NothingToDrawError(f"{count} {kind} are more than the {limit} that can be read")
