"""Panels over the epochs."""

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nsrelu_bench.plot.axes import (
    axes_for,
    finish,
    mark_runs,
    marks_along,
    needs_log,
    set_metric_axis,
)
from nsrelu_bench.plot.panel_data import (
    MAX_LINES,
    NothingToDrawError,
    check_count,
    epoch_values,
    group_label,
    label_column,
    means,
    warning_epochs,
)
from nsrelu_bench.plot.style import WARNING, activation_style


def curves(
    groups: pd.DataFrame,
    metrics: pd.DataFrame,
    *,
    metric: str = "test_accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric over the epochs: the mean of the completed runs with its 95 % t band.

    Each diverged run has a thin line of its own that ends in a cross, so the mean is over the same
    runs at every epoch. A collapsed run has a line too, and counts in the mean. A tick on the axis
    shows where the gradient of a run lost the true one.

    `metrics` has one row per run and epoch, of the network or of one layer.

    Raises:
        NothingToDrawError: No run has the metric, or there are more than 12 groups.
    """
    parts = list(groups.groupby("group", sort=False))
    check_count(len(parts), MAX_LINES, "lines")
    values = epoch_values(groups, metrics, metric)
    if values.empty:
        raise NothingToDrawError(f"no run has {metric}")
    axes, name, log = axes_for(ax), label_column(groups), needs_log(metric, values["value"])
    completed = values[values["state"] == "completed"]
    set_metric_axis(axes, _shown(values, metric), metric, log=log)
    table = means(completed, ["group", "epoch"], metric, log=log)
    for place, (group, runs) in enumerate(parts):
        mean = table.loc[[group]].reset_index() if group in table.index else table.iloc[:0]
        style = activation_style(str(runs["act"].iloc[0]))
        axes.plot([], [], ls=style.dash, label=group_label(runs, name), **style.point)
        if mean.empty:
            continue
        epochs = mean["epoch"]
        axes.fill_between(epochs, mean["low"], mean["high"], color=style.color, alpha=0.15, lw=0)
        axes.plot(epochs, mean["mean"], ls=style.dash, color=style.color, label=f"_{group}")
        marks_along(axes, epochs, mean["mean"], place, len(parts), **style.point)
    _draw_lost_runs(axes, values)
    _draw_warnings(axes, warning_epochs(groups, metrics))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    return finish(axes, ax)


def _shown(values: pd.DataFrame, metric: str) -> "pd.Series[float]":
    """Return the values that the limits must include: those of completed runs, if there are any."""
    completed = values[values["state"] == "completed"]
    trained = completed[completed["epoch"] > 0]
    if metric.endswith("accuracy") and trained["epoch"].nunique() > 2:
        completed = trained  # the accuracy of an untrained network would flatten the rest
    return (values if completed.empty else completed)["value"]


def _draw_lost_runs(axes: Axes, values: pd.DataFrame) -> None:
    """Draw each diverged run up to its last finite value, and each collapsed run."""
    limits, width = axes.get_ylim(), mpl.rcParams["lines.linewidth"] / 2
    for outcome in ("collapsed", "diverged"):
        runs = values[values["outcome"] == outcome]
        for _, run in runs.groupby("run_id", sort=False):
            color = activation_style(run["act"].iloc[0]).color
            axes.plot(run["epoch"], run["value"], color=color, lw=width)
        axes.set_ylim(limits)
        last = runs.drop_duplicates("run_id", keep="last")
        mark_runs(axes, last.assign(x=last["epoch"]), outcome)


def _draw_warnings(axes: Axes, lost: pd.DataFrame) -> None:
    """Draw a tick on the axis of epochs where the gradient of a run lost the true one."""
    for act, runs in lost.groupby("act", sort=False):
        style: dict[str, Any] = WARNING | {"color": activation_style(str(act)).color}
        axes.plot(runs["epoch"], [0] * len(runs), transform=axes.get_xaxis_transform(), **style)
