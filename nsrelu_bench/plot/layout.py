"""Lay out a figure: title, legend, the line below it, colour bar, shared limits and names."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, StrMethodFormatter

from nsrelu_bench.plot.panel_data import group_label, outcomes
from nsrelu_bench.plot.style import HATCH, WARNING, activation_style, run_mark
from nsrelu_bench.text import wrap


def new_figure(size: tuple[float, float]) -> Figure:
    """Return a figure of this size in inches, with the constrained layout."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def add_frame(
    figure: Figure, handles: Sequence[Artist] = (), title: str = "", foot: str = ""
) -> None:
    """Add a title above the panels, a legend and a foot below them, and make room for these."""
    width, height = figure.get_size_inches()
    size = mpl.rcParams["font.size"]
    letters = int(0.96 * width * 72 / (0.53 * size))  # a letter is some 0.53 of its height wide
    title = wrap(title, int(letters / 1.1), "")
    foot = wrap(foot, int(letters / 0.85), "")
    legend = _add_legend(figure, handles) if handles else None
    heights = [
        (1.25 * (foot.count("\n") + 1) * 0.85 + 0.3) * size / 72 if foot else 0.0,
        legend.get_window_extent().height / figure.dpi if legend else 0.0,
        (1.25 * (title.count("\n") + 1) + 0.6) * size / 72 if title else 0.0,
    ]
    height += sum(heights)
    figure.set_size_inches(width, height)
    below, above = sum(heights[:2]) / height, heights[2] / height
    if foot:
        at = {"x": 0.5, "y": 0.25 * size / 72 / height, "ha": "center", "va": "bottom"}
        figure.text(s=foot, **at, fontsize=0.85 * size, color="0.35")
    if legend:
        legend.set_bbox_to_anchor((0.5, heights[0] / height), figure.transFigure)
    if title:
        at = {"x": 0.5, "y": 1 - 0.3 * size / 72 / height, "ha": "center", "va": "top"}
        figure.text(s=title, **at, fontsize=size, fontweight="bold")
    engine = cast("ConstrainedLayoutEngine", figure.get_layout_engine())
    engine.set(rect=(0, below, 1, 1 - below - above))


def _add_legend(figure: Figure, handles: Sequence[Artist]) -> Legend:
    """Add a legend with as few rows, and then as few columns, as the figure's width allows."""
    make = partial(
        figure.legend, handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0), borderaxespad=0
    )
    for columns in range(min(len(handles), 6), 0, -1):
        legend = make(ncols=columns)
        if legend.get_window_extent().width <= 0.98 * figure.bbox.width or columns == 1:
            break
        legend.remove()
    rows = math.ceil(len(handles) / columns)
    legend.remove()
    return make(ncols=math.ceil(len(handles) / rows))


def activation_entries(groups: pd.DataFrame, *, dashes: bool) -> list[Line2D]:
    """Return an entry per activation, with the number of its runs that did not end well."""
    entries = []
    for _, runs in groups.groupby("line", sort=False):
        style = activation_style(runs["act"].iloc[0])
        dash = style.dash if dashes else "none"
        entries.append(Line2D([], [], ls=dash, label=group_label(runs, "line"), **style.point))
    return entries


def outcome_entries(
    groups: pd.DataFrame, *, lines: bool, marked: Sequence[str] = ("diverged", "collapsed")
) -> list[Artist]:
    """Return entries for the marks of these runs; `lines` for figures over the epochs."""
    width = mpl.rcParams["lines.linewidth"] / 2 if lines else 0
    ended, entries = outcomes(groups), list[Artist]()
    for outcome in marked:
        if (ended == outcome).any():
            mark = run_mark(outcome)
            entries.append(Line2D([], [], color="0.3", lw=width, label=f"{outcome} run", **mark))
    if lines and "gradient_lost_step" in groups and groups["gradient_lost_step"].notna().any():
        entries.append(Line2D([], [], color="0.3", label="gradient lost", **WARNING))
    return entries


def diverged_cells(groups: pd.DataFrame) -> Sequence[Artist]:
    """Return the entry for hatched cells, if there are any."""
    there = [o for o in ("diverged", "collapsed") if (outcomes(groups) == o).any()]
    short = {"diverged": "div.: share that diverged", "collapsed": "coll.: share that collapsed"}
    return [Patch(**HATCH, label="; ".join(short[o] for o in there))] if there else []


def add_colorbar(figure: Figure, axes: Sequence[Axes]) -> None:
    """Add one colour bar for all heat maps, which share their scale."""
    meshes = [mesh for ax in axes for mesh in ax.collections if isinstance(mesh, QuadMesh)]
    if meshes:
        norm, text = meshes[0].norm, str(meshes[0].get_label())[1:]
        top = cast("float", norm.vmax)
        beyond = any((np.asarray(mesh.get_array(), dtype=float) > top).any() for mesh in meshes)
        extend = "max" if beyond else "neither"
        width, height = figure.get_size_inches()
        options: dict[str, Any] = {"label": text, "extend": extend}
        if height > 2 * width:
            options |= {"location": "top", "aspect": 30, "pad": 0.1 * width / height}
        bar = figure.colorbar(meshes[0], ax=list(axes), **options)
        if isinstance(norm, LogNorm):
            decades = math.log10(top / cast("float", norm.vmin))
            bar.locator = LogLocator(subs=(1, 2, 5) if decades <= 4 else (1,))
            bar.formatter = StrMethodFormatter("{x:g}")
            bar.minorticks_off()
            bar.update_ticks()


def freeze_layout(figure: Figure) -> None:
    """Lay the figure out now, and not again when it is saved.

    Positions are rounded, since the solver's last digits depend on memory addresses.
    """
    cast("ConstrainedLayoutEngine", figure.get_layout_engine()).execute(figure)
    figure.set_layout_engine(None)  # "none" leaves one behind, for which a file is drawn twice
    for ax in figure.axes:
        ax.set_position(np.round(ax.get_position(original=True).bounds, 6).tolist())


def share_limits(axes: Sequence[Axes], columns: int) -> bool:
    """Give all panels the same limits, and only the outer ones tick labels.

    An axis is not shared if the data of some panel would take up less than a quarter of it. Return
    whether both axes are shared.
    """
    x = _union([ax.get_xlim() for ax in axes], {ax.get_xscale() for ax in axes})
    y = _union([ax.get_ylim() for ax in axes], {ax.get_yscale() for ax in axes})
    for place, ax in enumerate(axes):
        if x is not None:
            ax.set_xlim(x)
            ax.tick_params(labelbottom=place + columns >= len(axes))
        if y is not None:
            ax.set_ylim(y)
            ax.tick_params(labelleft=not place % columns)
    return x is not None and y is not None


def _union(limits: Sequence[tuple[float, float]], scales: set[str]) -> tuple[float, float] | None:
    """Return limits around all of these, with a margin, or None if they are too different."""
    log = scales == {"log"}
    ends = np.log10(limits) if log else np.asarray(limits)
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if len(scales) > 1 or (ends[:, 1] - ends[:, 0]).min() < 0.25 * (high - low):
        return None
    if log:
        return 10**low, 10**high
    margin = 0.0 if len(set(limits)) == 1 else 0.03 * (high - low)
    return low - margin, high + margin


def name_outer_axes(axes: Sequence[Axes], columns: int) -> None:
    """Remove the name of an axis if the panel below or to the left has the same."""
    for ax, below in zip(axes, axes[columns:], strict=False):
        if ax.get_xlabel() == below.get_xlabel():
            ax.set_xlabel("")
    for place in reversed(range(len(axes))):
        if place % columns and axes[place].get_ylabel() == axes[place - 1].get_ylabel():
            axes[place].set_ylabel("")
