"""Panels over the epochs."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nsrelu_bench.compare import is_percent, summarise
from nsrelu_bench.plot.axes import axes_for, axis_label, finish, limits_around, set_log_scale
from nsrelu_bench.plot.panel_data import (
    MAX_LINES,
    NothingToDrawError,
    check_count,
    epoch_values,
    group_label,
    label_column,
)
from nsrelu_bench.plot.style import activation_style, cross

#: Metrics that spread over orders of magnitude.
LOG_METRICS = ("grad_norm", "pre_grad_norm", "train_loss", "val_loss", "test_loss")


def curves(
    groups: pd.DataFrame,
    metrics: pd.DataFrame,
    *,
    metric: str = "test_accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric over the epochs: the mean of the completed runs with its 95 % t band.

    Each diverged run is a thin line of its own that ends in a cross, so that the mean is over the
    same runs at every epoch.

    Args:
        groups: Runs as `name_groups` returns them.
        metrics: One row per run and epoch.
        metric: A column of `metrics`.
        ax: Where to draw; otherwise a new figure.

    Raises:
        NothingToDrawError: No run has the metric, or there are more than 12 groups.
    """
    check_count(groups["group"].nunique(), MAX_LINES, "lines")
    values = epoch_values(groups, metrics, metric)
    if values.empty:
        raise NothingToDrawError(f"no run has {metric}")
    axes, name = axes_for(ax), label_column(groups)
    means = summarise(values[values["state"] == "completed"], ["group", "epoch"])
    for place, (group, runs) in enumerate(groups.groupby("group", sort=False)):
        mean = means.loc[[group]].reset_index() if group in means.index else means.iloc[:0]
        _draw_mean(axes, mean, place, str(runs["act"].iloc[0]), metric, group_label(runs, name))
    _set_limits(axes, values, metric)
    _draw_diverged(axes, values)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch", ylabel=axis_label(metric))
    return finish(axes, ax)


def _draw_mean(
    axes: Axes, mean: pd.DataFrame, place: int, act: str, metric: str, label: str
) -> None:
    """Draw a group's mean and band, its marks at other epochs than those of its neighbours."""
    style = activation_style(act)
    line: dict[str, Any] = {"ls": style.dash, "label": label, **style.point}
    if mean.empty:
        axes.plot([], [], **line)
        return
    low, high = mean["low"], mean["high"]
    if is_percent(metric):  # a t interval knows no bounds
        low, high = low.clip(0, 100), high.clip(0, 100)
    axes.fill_between(mean["epoch"], low, high, color=style.color, alpha=0.15, lw=0)
    every = max(1, round(len(mean) / 6))
    axes.plot(mean["epoch"], mean["mean"], markevery=(place % every, every), **line)


def _set_limits(axes: Axes, values: pd.DataFrame, metric: str) -> None:
    """Choose the scale and limits of the y axis from the completed runs, where there are some."""
    completed = values[values["state"] == "completed"]
    trained = completed[completed["epoch"] > 0]
    if metric.endswith("accuracy") and trained["epoch"].nunique() > 2:
        completed = trained  # that an untrained net guesses would flatten all the rest
    shown = (values if completed.empty else completed)["value"]
    if metric in LOG_METRICS and (values["value"] > 0).all():
        set_log_scale(axes, shown)
    else:
        axes.set_ylim(limits_around(shown))


def _draw_diverged(axes: Axes, values: pd.DataFrame) -> None:
    """Draw each diverged run up to its last finite value, within the limits that there are."""
    low, high = axes.get_ylim()
    diverged = values[values["state"] == "diverged"]
    for _, run in diverged.groupby("run_id", sort=False):
        color = activation_style(run["act"].iloc[0]).color
        axes.plot(run["epoch"], run["value"], color=color, lw=cross()["markeredgewidth"] / 2)
        last = run.iloc[-1]
        mark = cross() | {"color": color, "clip_on": False, "zorder": 5}
        if not low <= last["value"] <= high:
            # On the edge that it left by, whatever the limits become.
            edge = float(last["value"] > high)
            axes.plot(last["epoch"], edge, transform=axes.get_xaxis_transform(), **mark)
        else:
            axes.plot(last["epoch"], last["value"], **mark)
    axes.set_ylim(low, high)
