"""Figures that lay themselves out: legend, colour bar, shared limits and names of axes."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter


def new_figure(size: tuple[float, float]) -> Figure:
    """Return a figure of that size in inches that lays itself out."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Add a legend below the axes, as wide as the figure allows, and make room for it."""
    if not handles:
        return
    make = partial(figure.legend, handles=handles, loc="outside lower center")
    for columns in range(min(len(handles), 6), 0, -1):
        legend = make(ncols=columns)
        if legend.get_window_extent().width <= 0.98 * figure.bbox.width or columns == 1:
            break
        legend.remove()
    rows = math.ceil(len(handles) / columns)
    legend.remove()
    legend = make(ncols=math.ceil(len(handles) / rows))  # as few columns as those rows need
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + legend.get_window_extent().height / figure.dpi)


def add_colorbar(figure: Figure, axes: Sequence[Axes]) -> None:
    """Add the one colour bar of all heat maps, which share their scale."""
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


def share_limits(axes: Sequence[Axes], columns: int) -> None:
    """Give all panels limits that hold the data of each, and tick labels to the left ones."""
    x = _union([ax.get_xlim() for ax in axes], axes[0].get_xscale())
    y = _union([ax.get_ylim() for ax in axes], axes[0].get_yscale())
    for place, ax in enumerate(axes):
        ax.set(xlim=x, ylim=y)
        if place % columns:
            ax.tick_params(labelleft=False)


def _union(limits: Sequence[tuple[float, float]], scale: str) -> tuple[float, float]:
    """Return limits around all; a little more where a panel's own margin is too small for that."""
    lows, highs = zip(*limits, strict=True)
    low, high = min(lows), max(highs)
    same = len(set(limits)) == 1
    margin = 0.0 if same or scale == "log" else 0.03 * (high - low)
    return low - margin, high + margin


def name_outer_axes(axes: Sequence[Axes], columns: int) -> None:
    """Leave out the names of axes that the panel below or to the left has too."""
    for ax, below in zip(axes, axes[columns:], strict=False):
        if ax.get_xlabel() == below.get_xlabel():
            ax.set_xlabel("")
    for place in reversed(range(len(axes))):
        if place % columns and axes[place].get_ylabel() == axes[place - 1].get_ylabel():
            axes[place].set_ylabel("")
