"""Draw final metrics: one against another, and over a setting."""

from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nsrelu_bench.compare import format_setting
from nsrelu_bench.plot.axes import (
    axes_for,
    axis_label,
    dodge,
    finish,
    limits_around,
    mark_runs,
    needs_log,
    set_metric_axis,
)
from nsrelu_bench.plot.panel_data import (
    MAX_LINES,
    NothingToDrawError,
    check_count,
    final_values,
    group_label,
    has_several_leaks,
    label_column,
    leak_families,
    means,
    outcomes,
    setting_label,
)
from nsrelu_bench.plot.style import FRONT, activation_style, run_mark

FAR = 1e6  # beyond any axes


def tradeoff(
    groups: pd.DataFrame,
    *,
    x: str = "zero_fraction",
    y: str = "test_accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Draw one final metric against another: means with 95 % t intervals, and each seed's point.

    The Pareto front goes through the means that no other mean beats in both. Collapsed runs have
    marks instead of points.

    Raises:
        NothingToDrawError: No completed run has both metrics, or there are more than 12 groups.
    """
    check_count(groups["group"].nunique(), MAX_LINES, "points")
    points = groups.assign(
        x=final_values(groups, x), value=final_values(groups, y), outcome=outcomes(groups)
    ).dropna(subset=["x", "value"])
    if points.empty:
        raise NothingToDrawError(f"no completed run has both {x} and {y}")
    axes, size, name = axes_for(ax), mpl.rcParams["lines.markersize"], label_column(groups)
    middles = []
    for group, runs in groups.groupby("group", sort=False):
        style, seeds = activation_style(runs["act"].iloc[0]), points[points["group"] == group]
        label = group_label(runs, name)
        if seeds.empty:
            axes.plot([], [], ls="none", label=label, **style.point)
            continue
        axes.scatter(seeds["x"], seeds["value"], s=0.4 * size**2, c=style.color, alpha=0.4, lw=0)
        middles.append(_draw_middle(axes, seeds, x, y, label))
    front = pareto_front(middles)
    corners = [(-FAR, front[0][1]), *front, (front[-1][0], -FAR)]
    axes.plot(*zip(*corners, strict=True), **FRONT)
    axes.set(xlim=limits_around(points["x"]), ylim=limits_around(points["value"]))
    axes.set(xlabel=axis_label(x), ylabel=axis_label(y))
    mark_runs(axes, points[points["outcome"] == "collapsed"], "collapsed")
    return finish(axes, ax)


def _draw_middle(
    axes: Axes, seeds: pd.DataFrame, x: str, y: str, label: str
) -> tuple[float, float]:
    """Draw the means of a group's `x` and `value` with their intervals; return the means."""
    keyed = seeds.assign(key=0)
    across = means(keyed.assign(value=keyed["x"]), ["key"], x, log=False).iloc[0]
    along = means(keyed, ["key"], y, log=False).iloc[0]
    errors = [
        [[side["mean"] - side["low"]], [side["high"] - side["mean"]]] for side in (across, along)
    ]
    style = activation_style(seeds["act"].iloc[0])
    # A rim distinguishes a mark from one that it covers.
    mark = style.point | ({"markeredgecolor": "white"} if style.fill == style.color else {})
    axes.errorbar(
        [across["mean"]],
        [along["mean"]],
        xerr=errors[0],
        yerr=errors[1],
        ls="none",
        label=label,
        markeredgewidth=0.5,
        **mark,
    )
    return float(across["mean"]), float(along["mean"])


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
    """Draw a final metric over the leak, one line per family, with relu as leak 0 of each.

    Marks and intervals are those of `setting_curve`.

    Raises:
        NothingToDrawError: No run has the metric, or no family has more than one leak.
    """
    families = leak_families(groups)
    if not any(map(has_several_leaks, families.values())):
        raise NothingToDrawError("no activation has several leaks")
    leaks = sorted({leak for runs in families.values() for leak in runs["leak"]})
    lines = {
        f"{name}(0.1)": runs.assign(x=runs["leak"].map(leaks.index))
        for name, runs in families.items()
    }
    axes = axes_for(ax)
    _draw_lines(axes, lines, metric)
    axes.set_xlim(-0.3, len(leaks) - 0.7)
    axes.set_xticks(range(len(leaks)), [format_setting(leak) for leak in leaks])
    axes.set_xlabel("leak (0: relu)")
    return finish(axes, ax)


def setting_curve(
    groups: pd.DataFrame, *, x: str, metric: str = "test_accuracy", ax: Axes | None = None
) -> Axes:
    """Draw a final metric over the only setting that varies, a numeric one; a line per activation.

    Means and 95 % t intervals are over completed runs, those of several activations side by side. A
    cross on the axis means that no run completed; each collapsed run has a mark. The metric
    ``diverged_fraction`` is the share of the finished runs that diverged.

    Raises:
        NothingToDrawError: No run has the metric, or there are more than 12 activations.
    """
    runs = groups.assign(x=pd.to_numeric(groups[x])).dropna(subset=["x"])
    by_line = {str(line): part for line, part in runs.groupby("line", sort=False)}
    check_count(len(by_line), MAX_LINES, "lines")
    axes = axes_for(ax)
    _draw_lines(axes, by_line, metric)
    places = sorted(set(runs["x"]))
    low, high = places[0], places[-1]
    if low > 0 and high >= 10 * low:
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** 0.1, high * (high / low) ** 0.1)
    else:
        margin = 0.1 * (high - low) or 0.5
        axes.set_xlim(low - margin, high + margin)
    shown = places[:: -(-len(places) // 8)]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_setting(value)))
    axes.set_xlabel(setting_label(x))
    return finish(axes, ax)


def _draw_lines(axes: Axes, lines: dict[str, pd.DataFrame], metric: str) -> None:
    """Draw lines over `x`, each in the style of its only activation, or of the one in its key.

    Raises:
        NothingToDrawError: No run has the metric.
    """
    runs = pd.concat(lines.values()).drop_duplicates("run_id")
    final = final_values(runs, metric).dropna()
    if final.empty:
        raise NothingToDrawError(f"no run has {metric}")
    log = needs_log(metric, final)
    set_metric_axis(axes, final, metric, log=log)
    drawn: set[tuple[str, float]] = set()  # relu is in every family
    for place, (name, part) in enumerate(lines.items()):
        values = part.assign(value=final_values(part, metric), outcome=outcomes(part))
        table = means(values, ["act", "x"], metric, log=log).reset_index().sort_values("x")
        if metric.endswith(("diverged_fraction", "collapsed_fraction")):
            table[["low", "high"]] = np.nan
        acts = part["act"].unique()
        line = activation_style(acts[0] if len(acts) == 1 else name.split(" ")[0])
        at = dodge(axes, place, len(lines))
        axes.plot(table["x"], table["mean"], c=line.color, ls=line.dash, zorder=1, transform=at)
        for _, point in table.iterrows():
            if (point["act"], point["x"]) not in drawn:
                error = [[point["mean"] - point["low"]], [point["high"] - point["mean"]]]
                style = activation_style(point["act"]).point
                axes.errorbar([point["x"]], [point["mean"]], yerr=error, transform=at, **style)
            drawn.add((point["act"], point["x"]))
        collapsed = values[values["outcome"] == "collapsed"].dropna(subset=["value"])
        mark_runs(axes, collapsed, "collapsed", at)
        _mark_missing(axes, part, table)


def _mark_missing(axes: Axes, runs: pd.DataFrame, table: pd.DataFrame) -> None:
    """Draw a cross on the axis where no run completed."""
    there = set(zip(table["act"], table["x"], strict=True))
    for act, x in dict.fromkeys(zip(runs["act"], runs["x"], strict=True)):
        if (act, x) not in there:
            mark: dict[str, Any] = run_mark("diverged") | {"color": activation_style(act).color}
            axes.plot([x], [0.02], transform=axes.get_xaxis_transform(), **mark)
