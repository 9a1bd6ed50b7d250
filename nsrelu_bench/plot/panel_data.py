"""What panels draw, taken from the frames of a study."""

from typing import Any

import numpy as np
import pandas as pd

from nsrelu_bench.compare import STATES, is_percent, parse_act, summarise
from nsrelu_bench.errors import BenchError

#: More than this in one figure can't be read, and is refused.
MAX_PANELS = 12
MAX_LINES = 12

#: Settings whose names differ from what people call them.
SETTINGS = {"lr": "learning rate", "batch_size": "batch size"}


class NothingToDrawError(BenchError):
    """The runs don't have what a figure shows, or too much of it; the message says what."""


# What the panels share.


def history_of(named: pd.DataFrame, metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the finite values of a metric by run and epoch, in percent if it is a fraction."""
    columns = ["run_id", "state", "act", "group"]
    if metric not in metrics:
        return pd.DataFrame(columns=[*columns, "epoch", "value"])
    # A run that stands in two studies has its rows twice.
    metrics = metrics.drop_duplicates(["run_id", "epoch"])
    values = metrics[["run_id", "epoch"]].assign(value=_scaled(metrics[metric], metric))
    history: pd.DataFrame = named[columns].merge(values, on="run_id").sort_values("epoch")
    finite: pd.DataFrame = history[np.isfinite(history["value"])]
    return finite


def final_of(runs: pd.DataFrame, metric: str) -> "pd.Series[float]":
    """Return a final metric, in percent if it is a fraction; NaN unless the run is completed."""
    finished = runs["state"].isin(STATES[:2])
    if metric == "diverged_fraction":
        return (runs["state"] == "diverged").where(finished).astype(float) * 100
    if metric not in runs:
        return pd.Series(np.nan, index=runs.index)
    return _scaled(runs[metric], metric).where(runs["state"] == "completed")


def _scaled(values: "pd.Series[Any]", metric: str) -> "pd.Series[float]":
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    return numbers * 100 if is_percent(metric) else numbers


def depth_grid(named: pd.DataFrame, layers: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the mean of a metric by layer, in order of depth, and epoch."""
    if metric not in layers:
        return pd.DataFrame()
    layers = layers[["run_id", "epoch", "layer", metric]]
    layers = layers.drop_duplicates(["run_id", "epoch", "layer"])
    values = named[["run_id", "state"]].merge(layers, on="run_id")
    values["value"] = _scaled(values[metric], metric)
    values = values[np.isfinite(values["value"])]
    for state in STATES[:2]:
        of_state = values[values["state"] == state]
        if not of_state.empty:
            grid: pd.DataFrame = of_state.pivot_table(
                index="layer", columns="epoch", values="value"
            )
            epochs = sorted(layers["epoch"].unique())
            return grid.reindex(index=of_state["layer"].unique(), columns=epochs)
    return pd.DataFrame()


def cells_of(runs: pd.DataFrame, x: str, y: str, metric: str) -> pd.DataFrame:
    """Return the mean of a final metric by two settings; NaN where there is no such run."""
    finished = runs[runs["state"].isin(STATES[:2])]
    values = finished.assign(value=final_of(finished, metric))
    means: pd.DataFrame = values.pivot_table(index=y, columns=x, values="value", dropna=False)
    return means


def families_of(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the runs of each activation that has a leak; those of relu are its leak 0."""
    parsed = runs["act"].map(parse_act)
    leaks = runs.assign(leak=[0.0 if act == "relu" else leak for act, leak in parsed])
    families = [family for family, _ in parsed]
    names = [name for name, leak in dict.fromkeys(parsed) if leak is not None]
    relu = [family == "relu" for family in families]
    return {
        name: leaks[
            [is_relu or family == name for is_relu, family in zip(relu, families, strict=True)]
        ]
        for name in dict.fromkeys(names)
    }


def several_leaks(runs: pd.DataFrame) -> bool:
    """Tell whether the runs of a family have more than one leak beside relu's 0."""
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


def name_of(runs: pd.DataFrame, column: str = "group") -> str:
    """Name a group, and say how many of its runs were not completed: "relu (2/6 diverged)"."""
    states = runs["state"].where(runs["state"].isin(STATES), "unfinished")
    counts = [f"{(states == s).sum()}/{len(runs)} {s}" for s in STATES[1:] if (states == s).any()]
    return str(runs[column].iloc[0]) + (f" ({', '.join(counts)})" if counts else "")


def refuse_many(count: int, limit: int, kind: str) -> None:
    """Raise NothingToDrawError where there are more of a kind than can be read."""
    if count > limit:
        raise NothingToDrawError(f"{count} {kind} are more than the {limit} that can be read")
