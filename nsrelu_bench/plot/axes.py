"""Prepare the axes of panels: labels, limits, scales, marks."""

import math
from collections.abc import Iterable
from typing import Any, Literal, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation, Transform

from nsrelu_bench.compare import is_percent, label
from nsrelu_bench.plot.layout import add_colorbar, add_frame, new_figure
from nsrelu_bench.plot.panel_data import LOG_METRICS
from nsrelu_bench.plot.style import activation_style, run_mark


def axis_label(metric: str) -> str:
    """Name a metric and its unit."""
    if metric.endswith("_units"):
        return f"{label(metric)} (count)"
    return label(metric) + " (%)" * is_percent(metric)


def axes_for(ax: Axes | None) -> Axes:
    """Return the caller's axes, or those of a new figure."""
    return new_figure((3.3, 2.6)).subplots() if ax is None else ax


def finish(axes: Axes, given: Axes | None) -> Axes:
    """Finish a panel: without a caller's axes, its figure gets a legend or a colour bar.

    Texts are taken literally: a dollar sign in a name does not begin mathematics.
    """
    for text in axes.findobj(Text):
        text.set_parse_math(False)
    if given is None:
        figure = cast("Figure", axes.figure)
        add_frame(figure, axes.get_legend_handles_labels()[0])
        add_colorbar(figure, [axes])
    return axes


def limits_around(values: "pd.Series[float]") -> tuple[float, float]:
    """Return limits around the runs; intervals over two seeds may go far beyond them."""
    low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def needs_log(metric: str, values: "pd.Series[float]") -> bool:
    """Return whether a metric is drawn on a logarithmic axis."""
    return metric in LOG_METRICS and bool((values > 0).all())


def set_metric_axis(
    axes: Axes,
    values: "pd.Series[float]",
    metric: str,
    *,
    log: bool,
    which: Literal["x", "y"] = "y",
) -> None:
    """Set the label, limits and scale of an axis for a metric."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_label_text(axis_label(metric))
    if not log:
        axes.set(**{f"{which}lim": limits_around(values)})
        return
    low, high = (10**end for end in limits_around(values.map(math.log10)))
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    # Plain numbers, even if it spans less than a decade.
    steps = (1, 2, 5) if high / low <= 1000 else (1,)
    axis.set_major_locator(LogLocator(subs=steps) if high / low >= 10 else MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def dodge(axes: Axes, place: int, count: int) -> Transform:
    """Return the transform that draws mark `place` of `count` beside the others."""
    points = (place - (count - 1) / 2) * 0.8 * mpl.rcParams["lines.markersize"]
    figure = cast("Figure", axes.figure)
    return axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def mark_runs(
    axes: Axes, runs: pd.DataFrame, outcome: str, transform: Transform | None = None
) -> None:
    """Mark runs, with columns `x`, `value` and `act`, as diverged or collapsed.

    A mark beyond the limits of the axes is drawn on their edge.
    """
    low, high = axes.get_ylim()
    for act, x, value in zip(runs["act"], runs["x"], runs["value"], strict=True):
        style: dict[str, Any] = run_mark(outcome) | {"color": activation_style(act).color}
        style |= {"clip_on": False, "zorder": 5}
        if low <= value <= high:
            axes.plot([x], [value], transform=transform or axes.transData, **style)
        else:  # in the coordinates of the axes, whatever the limits become
            axes.plot([x], [float(value > high)], transform=axes.get_xaxis_transform(), **style)
    axes.set_ylim(low, high)


def marks_along(
    axes: Axes, x: Iterable[float], y: Iterable[float], place: int, count: int, **style: Any
) -> None:
    """Put up to five marks on line `place` of `count`, to identify it.

    Each line has its marks in other places, also between its points: otherwise, lines that coincide
    would hide each other's marks.
    """
    xs, ys = np.asarray(list(x), dtype=float), np.asarray(list(y), dtype=float)
    log = axes.get_yscale() == "log"
    number = min(5, max(len(xs) - 1, 1))
    shares = (np.arange(number) + (place + 0.5) / count) / number
    at = xs[0] + shares * (xs[-1] - xs[0])
    values = 10 ** np.interp(at, xs, np.log10(ys)) if log else np.interp(at, xs, ys)
    axes.plot(at, values, ls="none", **style)
