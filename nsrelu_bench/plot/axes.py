"""What the panels do to their axes: labels, limits, logarithmic scales, a figure of their own."""

import math
from typing import cast

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from nsrelu_bench.compare import is_percent, label
from nsrelu_bench.plot.layout import add_colorbar, add_legend, new_figure


def axis_label(metric: str) -> str:
    """Name a metric and its unit."""
    return label(metric) + " (%)" * is_percent(metric)


def axes_for(ax: Axes | None) -> Axes:
    """Return the caller's axes, or those of a new figure."""
    return new_figure((3.3, 2.6)).subplots() if ax is None else ax


def finish(axes: Axes, given: Axes | None) -> Axes:
    """Add the legend or the colour bar to a panel's own figure; a caller's axes stay bare."""
    if given is None:
        figure = cast("Figure", axes.figure)
        add_legend(figure, axes.get_legend_handles_labels()[0])
        add_colorbar(figure, [axes])
    return axes


def limits_around(values: "pd.Series[float]") -> tuple[float, float]:
    """Return limits that hold the runs; intervals over two seeds may reach far beyond."""
    low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def set_log_scale(axes: Axes, values: "pd.Series[float]") -> None:
    """Make the y axis logarithmic, with plain numbers on it even where it spans no decade."""
    axes.set_yscale("log", subs=[])
    low, high = (10**end for end in limits_around(values.map(math.log10)))
    axes.set_ylim(low, high)
    steps = (1, 2, 5) if high / low <= 1000 else (1,)
    locator = LogLocator(subs=steps) if high / low >= 10 else MaxNLocator(5)
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter("{x:g}")
