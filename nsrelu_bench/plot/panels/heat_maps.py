"""Draw heat maps: a metric by layer and epoch, a final metric over two settings."""

import math
from functools import partial

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_hex, to_rgb
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from nsrelu_bench.compare import format_setting, is_percent
from nsrelu_bench.plot.axes import axes_for, axis_label, finish
from nsrelu_bench.plot.panel_data import (
    NothingToDrawError,
    cell_means,
    group_label,
    layer_grid,
    setting_label,
)
from nsrelu_bench.plot.style import HATCH, HEAT, linear_norm, log_norm
from nsrelu_bench.text import format_fixed

LUMINANCE = (0.2126, 0.7152, 0.0722)

#: How a cell calls runs that did not end well.
ABBREVIATIONS = {"diverged": "div.", "collapsed": "coll."}


def gradient_depth(
    groups: pd.DataFrame,
    layers: pd.DataFrame,
    *,
    metric: str = "grad_norm",
    norm: Normalize | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a heat map of a metric by epoch and layer, the first layer at the bottom.

    The mean is over the completed runs of one group. If no run has completed, it is
    over the diverged ones, up to their end. Hatched cells have no value, grey ones are zero.

    `layers` has one row per run, epoch and layer; `norm` is one scale for several panels.

    Raises:
        NothingToDrawError: No run has the metric.
    """
    grid = layer_grid(groups, layers, metric)
    if grid.empty:
        raise NothingToDrawError(f"no run has {metric} by layer")
    axes, values = axes_for(ax), grid.to_numpy(dtype=float)
    _draw_cells(axes, np.where(values > 0, values, np.nan), metric, norm or log_norm([grid]))
    for row, column in np.argwhere(values == 0):
        axes.add_patch(Rectangle((column, row), 1, 1, color="0.6", lw=0))
    step = max(1, math.ceil(len(grid) / 8))
    axes.set_yticks(np.arange(len(grid))[::step] + 0.5, list(grid.index)[::step])
    step = max(1, math.ceil(grid.shape[1] / 6))
    axes.set_xticks(np.arange(grid.shape[1])[::step] + 0.5, list(grid.columns)[::step])
    axes.set(xlabel="epoch", ylabel="layer", title=group_label(groups))
    return finish(axes, ax)


def phase(
    runs: pd.DataFrame,
    *,
    x: str = "leak",
    y: str = "lr",
    metric: str = "test_accuracy",
    norm: Normalize | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a final metric over two settings: a cell is the mean over its completed runs.

    If some of its runs diverged or collapsed, a cell is hatched and gives their share. A cell
    without a completed run has no colour. For ``x="leak"`` the runs are those of one family, with
    relu as its leak 0. `norm` is one scale for several panels.

    Raises:
        NothingToDrawError: There is no finished run, or a cell would mix several groups.
    """
    _check_unmixed(runs, x, y)
    grid = cell_means(runs, x, y, metric)
    lost = {
        text: cell_means(runs, x, y, f"{outcome}_fraction").to_numpy(dtype=float)
        for outcome, text in ABBREVIATIONS.items()
    }
    if grid.empty:
        raise NothingToDrawError("no run is finished")
    norm = norm or linear_norm([grid])
    axes, means = axes_for(ax), grid.to_numpy()
    _draw_cells(axes, means, metric, norm)
    colors = mpl.colormaps[HEAT](norm(means))
    write = partial(format_fixed, places=1) if is_percent(metric) else "{:.3g}".format
    for (row, column), mean in np.ndenumerate(means):
        empty = math.isnan(mean)
        texts = [] if empty or grid.shape[1] > 6 else [write(mean)]
        shares = {text: share[row, column] for text, share in lost.items()}
        texts += [
            f"{format_fixed(float(share), 0)}% {text}"
            for text, share in shares.items()
            if share > 0
        ]
        color = "white" if empty else to_hex(colors[row, column])
        _mark_cell(axes, (column, row), texts, color, hatched=any(s > 0 for s in shares.values()))
    axes.set_xticks(np.arange(grid.shape[1]) + 0.5, [format_setting(v) for v in grid.columns])
    axes.set_yticks(np.arange(grid.shape[0]) + 0.5, [format_setting(v) for v in grid.index])
    axes.set(xlabel=setting_label(x), ylabel=setting_label(y))
    return finish(axes, ax)


def _draw_cells(axes: Axes, cells: NDArray[np.float64], metric: str, norm: Normalize) -> None:
    """Draw cells of a metric over a hatched background, which shows where there is no value."""
    axes.patch.set(facecolor="white", hatch=HATCH["hatch"], edgecolor=HATCH["ec"], lw=0)
    mesh = axes.pcolormesh(cells, cmap=HEAT, norm=norm, edgecolors="white", lw=0.5)
    mesh.set_label("_" + axis_label(metric))  # for the colour bar; legends skip it


def _check_unmixed(runs: pd.DataFrame, x: str, y: str) -> None:
    """Raise NothingToDrawError if a cell would be the mean over several groups."""
    for column in ["setting"] if x == "leak" else ["line", "setting"]:
        for _, values in runs.groupby([x, y], dropna=False)[column]:
            if len(values.unique()) > 1:
                raise NothingToDrawError(
                    f"a cell of {x} and {y} would mix {' with '.join(values.unique()[:2])}"
                )


def _mark_cell(
    axes: Axes, place: tuple[int, int], texts: list[str], color: str, *, hatched: bool
) -> None:
    """Write lines of text into a cell of this colour, over its hatching if it has one."""
    box = {"facecolor": color, "edgecolor": "none", "pad": 1} if hatched else None
    if hatched:
        axes.add_patch(Rectangle(place, 1, 1, **HATCH))
    light = np.dot(to_rgb(color), LUMINANCE) > 0.45
    axes.text(
        place[0] + 0.5,
        place[1] + 0.5,
        "\n".join(texts),
        color="black" if light else "white",
        ha="center",
        va="center",
        bbox=box,
        fontsize="x-small",
    )
