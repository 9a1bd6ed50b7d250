"""Compute the numbers that panels draw.

`groups` is always a frame of runs, or a part of it, as `nsrelu_bench.compare.name_groups` returns
it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from nsrelu_bench.compare import (
    COUNTED_STATES,
    collapsed,
    is_percent,
    join_settings,
    parse_act,
    rank,
    summarise,
)
from nsrelu_bench.errors import BenchError
from nsrelu_bench.records import DONE

#: More than this can't be read in one figure, and is refused.
MAX_PANELS = 12
MAX_LINES = 12

#: Labels of settings whose names are abbreviated.
SETTING_LABELS = {"lr": "learning rate", "batch_size": "batch size"}

#: Metrics that spread over orders of magnitude. They are drawn on a logarithmic axis, with
#: geometric means and with intervals of the logarithms.
LOG_METRICS = ("grad_norm", "pre_grad_norm", "train_loss", "val_loss", "test_loss")

OUTCOMES = ("completed", "collapsed", *COUNTED_STATES[1:])


class NothingToDrawError(BenchError):
    """The runs have no data for a figure, or too much; the message says which."""


def outcomes(groups: pd.DataFrame) -> "pd.Series[str]":
    """Return how each run ended, one of `OUTCOMES`: a completed run may have collapsed."""
    states = groups["state"].where(groups["state"].isin(COUNTED_STATES), "unfinished")
    return states.mask(collapsed(groups), "collapsed")


def epoch_values(groups: pd.DataFrame, metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the finite values of a metric by run and epoch, in percent if it is a fraction."""
    runs = groups[["run_id", "state", "act", "line", "group"]].assign(outcome=outcomes(groups))
    if metric not in metrics:
        return runs.iloc[:0].assign(epoch=0.0, value=0.0)
    metrics = metrics.drop_duplicates(["run_id", "epoch"])  # a run may be in two studies
    values = metrics[["run_id", "epoch"]].assign(value=in_percent(metrics[metric], metric))
    history: pd.DataFrame = runs.merge(values, on="run_id").sort_values("epoch", kind="stable")
    finite: pd.DataFrame = history[np.isfinite(history["value"])]
    return finite


def add_unit_fractions(metrics: pd.DataFrame, layers: pd.DataFrame) -> pd.DataFrame:
    """Add, for each count of units such as `dormant_units`, the fraction of all units."""
    counts = [str(c) for c in metrics if str(c).endswith("_units")]
    if not counts or not {"run_id", "epoch", "units"}.issubset(layers):
        return metrics
    layers = layers.drop_duplicates(["run_id", "epoch", "layer"])
    units = layers.groupby(["run_id", "epoch"])["units"].sum()
    keys = pd.MultiIndex.from_frame(metrics[["run_id", "epoch"]])
    total = pd.to_numeric(units.reindex(keys)).to_numpy(dtype=float)
    names = {count: count.removesuffix("units") + "fraction" for count in counts}
    fractions = {
        name: pd.to_numeric(metrics[count], errors="coerce") / total
        for count, name in names.items()
        if name not in metrics
    }
    return metrics.assign(**fractions)


def warning_epochs(groups: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the runs whose gradient lost the true one, with the `epoch` of that, a fraction."""
    column = "gradient_lost_step"
    if column not in groups or not {"run_id", "epoch", "step"}.issubset(metrics):
        return groups.iloc[:0].assign(epoch=0.0)
    step = pd.to_numeric(groups[column], errors="coerce")
    lost = groups.assign(lost_step=step)[step.notna()].drop_duplicates("run_id")
    clocks = {str(run): rows for run, rows in metrics.groupby("run_id")}
    places = [
        np.interp(step, clocks[run]["step"], clocks[run]["epoch"]) if run in clocks else np.nan
        for run, step in zip(lost["run_id"], lost["lost_step"], strict=True)
    ]
    return lost.assign(epoch=places).dropna(subset=["epoch"])


def final_values(groups: pd.DataFrame, metric: str) -> "pd.Series[float]":
    """Return a final metric, in percent if it is a fraction; NaN unless the run is completed.

    The metrics ``diverged_fraction`` and ``collapsed_fraction`` are 0 or 100 for a finished run.
    """
    for outcome in ("diverged", "collapsed"):
        if metric == f"{outcome}_fraction":
            ended = (outcomes(groups) == outcome).astype(float) * 100
            return ended.where(groups["state"].isin(DONE))
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
    for state in DONE:
        runs = values[values["state"] == state]
        if not runs.empty:
            grid: pd.DataFrame = runs.pivot_table(index="layer", columns="epoch", values="value")
            epochs = sorted(layers["epoch"].unique())
            return grid.reindex(index=runs["layer"].unique(), columns=epochs)
    return pd.DataFrame()


def cell_means(runs: pd.DataFrame, x: str, y: str, metric: str) -> pd.DataFrame:
    """Return the mean of a final metric by two settings; NaN for combinations without a run."""
    finished = runs[runs["state"].isin(DONE)]
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
    """Return whether a family has more than one leak besides relu's 0."""
    return len(set(runs["leak"]) - {0.0}) > 1


def setting_label(setting: str) -> str:
    """Return the label of a setting."""
    return SETTING_LABELS.get(setting, setting.replace("_", " "))


def numeric_settings(groups: pd.DataFrame, varying: Sequence[str]) -> list[str]:
    """Return those of the settings that are numbers."""
    is_numeric = pd.api.types.is_numeric_dtype
    return [c for c in varying if is_numeric(groups[c]) and groups[c].dtype != bool]


def means(values: pd.DataFrame, keys: Sequence[str], metric: str, *, log: bool) -> pd.DataFrame:
    """Return `mean`, `low`, `high` of `value` by keys, with the 95 % t interval.

    With `log`, the mean is the geometric mean, and the interval is that of the logarithms. The
    interval of a fraction is cut off at 0 and 100 %.
    """
    if log:
        table = summarise(values.assign(value=np.log10(values["value"])), keys)
        return 10.0 ** table[["mean", "low", "high"]]
    table = summarise(values, keys)
    if is_percent(metric):
        table = table.assign(low=table["low"].clip(lower=0), high=table["high"].clip(upper=100))
    return table[["mean", "low", "high"]]


def group_label(runs: pd.DataFrame, column: str = "group") -> str:
    """Name a group, with the number of its runs that did not end well: "relu (2/6 diverged)"."""
    ended = outcomes(runs)
    counts = [f"{(ended == o).sum()}/{len(runs)} {o}" for o in OUTCOMES[1:] if (ended == o).any()]
    return str(runs[column].iloc[0]) + (f" ({', '.join(counts)})" if counts else "")


def label_column(groups: pd.DataFrame) -> str:
    """Return the column with the groups' names: that of the activation if they share settings."""
    return "line" if len(groups["setting"].unique()) == 1 else "group"


def count_seeds(groups: pd.DataFrame) -> str:
    """Return how many seeds the groups have: "12 seeds", "10 to 12 seeds"."""
    counts = groups.groupby("group")["seed"].nunique()
    low, high = int(counts.min()), int(counts.max())
    return f"{low} to {high} seeds" if low < high else f"{low} seed" + "s" * (low != 1)


def split_by(groups: pd.DataFrame, settings: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """Split runs by the values of settings, in order, each with a name: "lr=0.1 width=64"."""
    if not settings:
        return [("", groups)]
    parts = [
        (list(part[list(settings)].iloc[0]), part)
        for _, part in groups.groupby(list(settings), dropna=False)
    ]
    parts.sort(key=lambda pair: [rank(value) for value in pair[0]])
    return [(join_settings(part, settings)[0], part) for _, part in parts]


def check_count(count: int, limit: int, kind: str) -> None:
    """Raise NothingToDrawError if there are more than `limit` of a kind."""
    if count > limit:
        raise NothingToDrawError(
            f"{count} {kind} are more than the {limit} that can be read;"
            " choose fewer runs with --where, such as --where act=relu,nsrelu"
        )
