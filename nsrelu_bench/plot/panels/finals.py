"""Panels of final metrics: against each other, and over the leak."""

from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from nsrelu_bench.compare import format_setting, summarise
from nsrelu_bench.plot.axes import axes_for, axis_label, finish, limits_around
from nsrelu_bench.plot.panel_data import (
    MAX_LINES,
    NothingToDrawError,
    check_count,
    error_ends,
    final_values,
    group_label,
    has_several_leaks,
    label_column,
    leak_families,
    mean_interval,
)
from nsrelu_bench.plot.style import FRONT, activation_style, cross

FAR = 1e6  # beyond any axes


def tradeoff(
    groups: pd.DataFrame,
    *,
    x: str = "zero_fraction",
    y: str = "test_accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Draw one final metric against another: means with 95 % t intervals, and each seed's point.

    The Pareto front goes through the means that no other one beats in both.

    Args:
        groups: Runs as `name_groups` returns them.
        x: A final metric.
        y: A final metric.
        ax: Where to draw; otherwise a new figure.

    Raises:
        NothingToDrawError: No completed run has both metrics, or there are more than 12 groups.
    """
    check_count(groups["group"].nunique(), MAX_LINES, "points")
    points = groups.assign(x=final_values(groups, x), y=final_values(groups, y))
    points = points.dropna(subset=["x", "y"])
    if points.empty:
        raise NothingToDrawError(f"no completed run has both {x} and {y}")
    axes, size, name = axes_for(ax), mpl.rcParams["lines.markersize"], label_column(groups)
    middles = []
    for group, runs in groups.groupby("group", sort=False):
        style, seeds = activation_style(runs["act"].iloc[0]), points[points["group"] == group]
        mark = style.point | {"ls": "none", "label": group_label(runs, name)}
        if seeds.empty:
            axes.plot([], [], **mark)
            continue
        axes.scatter(seeds["x"], seeds["y"], s=0.4 * size**2, color=style.color, alpha=0.4, lw=0)
        (mid_x, half_x), (mid_y, half_y) = mean_interval(seeds["x"]), mean_interval(seeds["y"])
        x_error, y_error = error_ends(mid_x, half_x, x), error_ends(mid_y, half_y, y)
        axes.errorbar([mid_x], [mid_y], xerr=x_error, yerr=y_error, **mark)
        middles.append((mid_x, mid_y))
    front = pareto_front(middles)
    corners = [(-FAR, front[0][1]), *front, (front[-1][0], -FAR)]
    axes.plot(*zip(*corners, strict=True), **FRONT)
    axes.set(xlim=limits_around(points["x"]), ylim=limits_around(points["y"]))
    axes.set(xlabel=axis_label(x), ylabel=axis_label(y))
    return finish(axes, ax)


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both coordinates, by rising x."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


def leak_curve(
    groups: pd.DataFrame, *, metric: str = "test_accuracy", ax: Axes | None = None
) -> Axes:
    """Draw a final metric over the leak, one line per family; relu is the leak 0 of each.

    Means with 95 % t intervals over completed runs; a cross on the axis where there is none. The
    metric ``diverged_fraction`` is the share of the finished runs that diverged.

    Args:
        groups: Runs as `name_groups` returns them.
        metric: A final metric.
        ax: Where to draw; otherwise a new figure.

    Raises:
        NothingToDrawError: No run has the metric, or no family has more than one leak.
    """
    families = leak_families(groups)
    if not any(map(has_several_leaks, families.values())):
        raise NothingToDrawError("no activation has several leaks")
    leaks = sorted({leak for runs in families.values() for leak in runs["leak"]})
    final = final_values(groups, metric).dropna()
    if final.empty:
        raise NothingToDrawError(f"no run has {metric}")
    axes = axes_for(ax)
    for name, runs in families.items():
        _draw_family(axes, name, runs.assign(value=final), leaks, metric)
    axes.set_xlim(-0.3, len(leaks) - 0.7)
    axes.set_xticks(range(len(leaks)), [format_setting(leak) for leak in leaks])
    axes.set_ylim(limits_around(final))
    axes.set(xlabel="leak (0: relu)", ylabel=axis_label(metric))
    return finish(axes, ax)


def _draw_family(
    axes: Axes, name: str, runs: pd.DataFrame, leaks: Sequence[float], metric: str
) -> None:
    """Draw the means of `value` by leak, and a cross where no run was completed."""
    means = summarise(runs, ["act", "leak"]).reset_index().sort_values("leak")
    places = [leaks.index(leak) for leak in means["leak"]]
    line = activation_style(f"{name}(0.1)")
    axes.plot(places, means["mean"], color=line.color, ls=line.dash, zorder=1)
    halves = means["high"] - means["mean"]
    if metric == "diverged_fraction":
        halves = halves * np.nan
    for place, act, mean, half in zip(places, means["act"], means["mean"], halves, strict=True):
        error = error_ends(mean, half, metric)
        axes.errorbar([place], [mean], yerr=error, **activation_style(act).point)
    for act, leak in runs.groupby("act")["leak"].first().items():
        if act not in set(means["act"]):
            color, at = activation_style(str(act)).color, axes.get_xaxis_transform()
            axes.plot(leaks.index(leak), 0.02, transform=at, color=color, **cross())
