"""Figures that a paper would print.

One function draws one panel: it takes frames and an optional `ax`, and returns the axes. `FIGURES`
says which panels make a figure, and `draw_all` writes them to files. An activation has one colour,
marker and dash everywhere (`appearance`), and runs that diverged are drawn or counted, never left
out in silence. No pyplot: nothing here touches a global figure.
"""

import logging
import math
import os
import textwrap
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from nsrelu_bench.compare import (
    STATES,
    act_order,
    format_setting,
    is_percent,
    join_settings,
    label,
    name_groups,
    parse_act,
    summarise,
    varying_settings,
)
from nsrelu_bench.errors import BenchError, lookup

logger = logging.getLogger(__name__)

#: More than this in one figure can't be read, and is refused.
MAX_PANELS = 12
MAX_LINES = 12

#: The metrics of a figure; where settings vary, a panel each, only the first.
CURVES = ("test_accuracy", "train_loss", "zero_fraction", "dead_fraction")
UNIT_COUNTS = ("dead_units", "dormant_units", "revived_units")
LEAK_CURVES = ("test_accuracy", "zero_fraction", "dead_fraction", "diverged_fraction")

#: Settings that make a phase diagram, the first pair that both vary.
PHASE_AXES = (("leak", "lr"), ("depth", "width"), ("leak", "depth"), ("leak", "width"))

#: Metrics that spread over orders of magnitude.
LOG_METRICS = ("grad_norm", "pre_grad_norm", "train_loss", "val_loss", "test_loss")


class Frames(Protocol):
    """What `nsrelu_bench.load` gives."""

    @property
    def runs(self) -> pd.DataFrame:
        """One row a run: configuration, state, final metrics."""

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a run and epoch."""

    @property
    def layers(self) -> pd.DataFrame:
        """One row a run, epoch and layer."""

    @property
    def config_columns(self) -> list[str]:
        """The columns of `runs` that are configuration."""


class NothingToDrawError(BenchError):
    """The runs don't have what a figure shows, or too much of it; the message says what."""


# What an activation looks like.


@dataclass(frozen=True)
class Look:
    """How an activation is drawn: `color` as hex, the others as matplotlib has them."""

    color: str
    marker: str
    dash: str
    fill: str

    @property
    def point(self) -> dict[str, Any]:
        """Keyword arguments for a marker."""
        return {"color": self.color, "marker": self.marker, "markerfacecolor": self.fill}


def appearance(act: str) -> Look:
    """Return how an activation is drawn: the same in every figure, whatever else is in it.

    relu is black and solid. The shade and the marker of nsrelu (green to violet, dash-dotted) and
    leaky_relu (yellow to brown, dashed, hollow) follow their leak. Others get a colour and a
    marker by their name.
    """
    family, leak = parse_act(act)
    if act == "relu":
        return Look("#000000", "o", "-", "#000000")
    if leak is None or family not in SHADES:
        code = zlib.crc32(act.encode())
        color = OTHERS[code % len(OTHERS)]
        return Look(color, MARKERS[code // 97 % len(MARKERS)], ":", color)
    # Leaks are chosen as 0.01, 0.1, 0.2, 0.5, 1: the cube root spaces these evenly.
    place = min(max(leak, 0.0), 1.0) ** (1 / 3)
    color = to_hex(LinearSegmentedColormap.from_list(family, SHADES[family])(place))
    marker = MARKERS[round(place * (len(MARKERS) - 1))]
    return Look(color, marker, DASHES[family], "white" if family == "leaky_relu" else color)


# Panels: frames in, axes out.


def curves(
    runs: pd.DataFrame,
    metrics: pd.DataFrame,
    config_columns: Sequence[str],
    *,
    metric: str = "test_accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric over the epochs: the mean of the completed runs with its 95 % t band.

    Each diverged run is a thin line of its own that ends in a cross, so that the mean is over the
    same runs at every epoch.

    Raises:
        NothingToDrawError: No run has the metric, or there are more than 12 groups.
    """
    named = name_groups(runs, config_columns)
    _refuse_many(len(named["group"].unique()), MAX_LINES, "lines")
    history = _history(named, metrics, metric)
    if history.empty:
        raise NothingToDrawError(f"no run has {metric}")
    axes = _axes(ax)
    means = summarise(history[history["state"] == "completed"], ["group", "epoch"])
    for place, (group, part) in enumerate(named.groupby("group", sort=False)):
        look = appearance(part["act"].iloc[0])
        if group in means.index:
            mean = means.loc[[group]].reset_index()
            axes.fill_between(
                mean["epoch"], mean["low"], mean["high"], color=look.color, alpha=0.15, lw=0
            )
            every = max(1, round(len(mean) / 6))
            axes.plot(
                mean["epoch"],
                mean["mean"],
                ls=look.dash,
                markevery=(place % every, every),
                label=_name(part),
                **look.point,
            )
        else:
            axes.plot([], [], ls=look.dash, label=_name(part), **look.point)
    done = history[history["state"] == "completed"]
    trained = done[done["epoch"] > 0]
    if metric.endswith("accuracy") and trained["epoch"].nunique() > 2:
        done = trained  # that an untrained net guesses would flatten all the rest
    if done.empty:
        done = history
    if metric in LOG_METRICS and (history["value"] > 0).all():
        _log_scale(axes, done["value"])
    else:
        axes.set_ylim(_limits(done["value"]))
    _draw_diverged(axes, history)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch", ylabel=_axis_label(metric))
    return _finish(axes, ax)


def _limits(values: "pd.Series[float]") -> tuple[float, float]:
    """Return limits that hold the runs; intervals over two seeds may reach far beyond."""
    low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _log_scale(axes: Axes, values: "pd.Series[float]") -> None:
    """Make the y axis logarithmic, with plain numbers on it even where it spans no decade."""
    axes.set_yscale("log", subs=[])
    low, high = (10**end for end in _limits(values.map(math.log10)))
    axes.set_ylim(low, high)
    locator = LogLocator(subs=(1, 2, 5)) if high / low >= 10 else MaxNLocator(5)
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter("{x:g}")


def _draw_diverged(axes: Axes, history: pd.DataFrame) -> None:
    """Draw each diverged run up to its last finite value, within the limits that there are."""
    low, high = axes.get_ylim()
    diverged = history[history["state"] == "diverged"]
    for _, run in diverged.groupby("run_id", sort=False):
        color = appearance(run["act"].iloc[0]).color
        axes.plot(run["epoch"], run["value"], color=color, lw=_cross()["markeredgewidth"] / 2)
        last = run.iloc[-1]
        mark = _cross() | {"color": color, "clip_on": False, "zorder": 5}
        if not low <= last["value"] <= high:
            # On the edge that it left by, whatever the limits become.
            edge = float(last["value"] > high)
            axes.plot(last["epoch"], edge, transform=axes.get_xaxis_transform(), **mark)
        else:
            axes.plot(last["epoch"], last["value"], **mark)
    axes.set_ylim(low, high)


def tradeoff(
    runs: pd.DataFrame,
    config_columns: Sequence[str],
    *,
    x: str = "zero_fraction",
    y: str = "test_accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Draw one final metric against another: means with 95 % t intervals, and each seed's point.

    The Pareto front goes through the means that no other one beats in both.

    Raises:
        NothingToDrawError: No completed run has both metrics, or there are more than 12 groups.
    """
    named = name_groups(runs, config_columns)
    _refuse_many(len(named["group"].unique()), MAX_LINES, "points")
    points = named.assign(x=_final(named, x), y=_final(named, y)).dropna(subset=["x", "y"])
    if points.empty:
        raise NothingToDrawError(f"no completed run has both {x} and {y}")
    axes, size = _axes(ax), mpl.rcParams["lines.markersize"]
    middles = []
    for group, part in named.groupby("group", sort=False):
        look, seeds = appearance(part["act"].iloc[0]), points[points["group"] == group]
        style = look.point | {"ls": "none", "label": _name(part)}
        if seeds.empty:
            axes.plot([], [], **style)
            continue
        axes.scatter(seeds["x"], seeds["y"], s=0.4 * size**2, color=look.color, alpha=0.4, lw=0)
        (mid_x, half_x), (mid_y, half_y) = _interval(seeds["x"]), _interval(seeds["y"])
        axes.errorbar([mid_x], [mid_y], xerr=[half_x], yerr=[half_y], **style)
        middles.append((mid_x, mid_y))
    front = pareto_front(middles)
    ends = [(-FAR, front[0][1]), *front, (front[-1][0], -FAR)]
    axes.plot(*zip(*ends, strict=True), **FRONT)
    axes.set(xlim=_limits(points["x"]), ylim=_limits(points["y"]))
    axes.set(xlabel=_axis_label(x), ylabel=_axis_label(y))
    return _finish(axes, ax)


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both coordinates, by rising x."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


def gradient_depth(
    runs: pd.DataFrame,
    layers: pd.DataFrame,
    config_columns: Sequence[str],
    *,
    metric: str = "grad_norm",
    norm: Normalize | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a heat map of a metric by epoch and layer, the first layer at the bottom.

    The mean is over the completed runs of one group, or, where there are none, over the diverged
    ones as far as they go; `norm` gives several panels one scale. Hatched: no value; grey: zero.

    Raises:
        NothingToDrawError: No run has the metric.
    """
    named = name_groups(runs, config_columns)
    grid = _depth_grid(named, layers, metric)
    if grid.empty:
        raise NothingToDrawError(f"no run has {metric} by layer")
    axes = _axes(ax)
    _hatch_background(axes)
    values = grid.to_numpy(dtype=float)
    shown = np.where(values > 0, values, np.nan)
    norm = norm or _log_norm([grid])
    mesh = axes.pcolormesh(shown, cmap=HEAT, norm=norm, edgecolors="white", lw=0.5)
    mesh.set_label("_" + _axis_label(metric))  # for the colour bar; legends skip it
    for row, column in np.argwhere(values == 0):
        axes.add_patch(Rectangle((column, row), 1, 1, color="0.6", lw=0))
    step = max(1, math.ceil(len(grid) / 8))
    axes.set_yticks(np.arange(len(grid))[::step] + 0.5, list(grid.index)[::step])
    step = max(1, math.ceil(grid.shape[1] / 6))
    axes.set_xticks(np.arange(grid.shape[1])[::step] + 0.5, list(grid.columns)[::step])
    axes.set(xlabel="epoch", ylabel="layer", title=_name(named))
    return _finish(axes, ax)


def leak_curve(
    runs: pd.DataFrame,
    config_columns: Sequence[str],
    *,
    metric: str = "test_accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Draw a final metric over the leak, one line a family; relu is the leak 0 of each.

    Means with 95 % t intervals over completed runs; a cross on the axis where there is none. The
    metric ``diverged_fraction`` is the share of the finished runs that diverged.

    Raises:
        NothingToDrawError: No run has the metric, or no family has more than one leak.
    """
    named = name_groups(runs, config_columns)
    families = _families(named)
    if not any(map(_several_leaks, families.values())):
        raise NothingToDrawError("no activation has several leaks")
    leaks = sorted({leak for part in families.values() for leak in part["leak"]})
    final = _final(named, metric).dropna()
    if final.empty:
        raise NothingToDrawError(f"no run has {metric}")
    axes = _axes(ax)
    for name, part in families.items():
        values = part.assign(value=final).dropna(subset=["value"])
        table = summarise(values, ["act", "leak"]).reset_index().sort_values("leak")
        places = [leaks.index(leak) for leak in table["leak"]]
        line = appearance(f"{name}(0.1)")
        axes.plot(places, table["mean"], color=line.color, ls=line.dash, zorder=1)
        halves = table["high"] - table["mean"]
        if metric == "diverged_fraction":
            halves = halves * np.nan
        for place, act, mean, half in zip(places, table["act"], table["mean"], halves, strict=True):
            axes.errorbar([place], [mean], yerr=[half], **appearance(act).point)
        # A cross on the axis where no run was completed.
        for act, leak in part.groupby("act")["leak"].first().items():
            if act not in set(table["act"]):
                color, at = appearance(str(act)).color, axes.get_xaxis_transform()
                axes.plot(leaks.index(leak), 0.02, transform=at, color=color, **_cross())
    axes.set_xlim(-0.3, len(leaks) - 0.7)
    axes.set_xticks(range(len(leaks)), [format_setting(leak) for leak in leaks])
    axes.set_ylim(_limits(final))
    axes.set(xlabel="leak (0: relu)", ylabel=_axis_label(metric))
    return _finish(axes, ax)


def phase(
    runs: pd.DataFrame,
    config_columns: Sequence[str],
    *,
    x: str = "leak",
    y: str = "lr",
    metric: str = "test_accuracy",
    norm: Normalize | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a final metric over two settings: a cell is the mean over its completed runs.

    A cell some of whose runs diverged is hatched and says which share; one without a completed
    run has no colour. `norm` gives several panels one scale. For ``x="leak"`` the runs have a
    column `leak`, in which relu has the leak 0.

    Raises:
        NothingToDrawError: There is no finished run, or other settings vary too.
    """
    mixed = [c for c in varying_settings(runs, config_columns) if c not in (x, y)]
    if x != "leak" and len(runs["act"].unique()) > 1:
        mixed.append("act")
    if mixed:
        raise NothingToDrawError(f"{', '.join(mixed)} vary beside {x} and {y}; choose one by where")
    means = _cells(runs, x, y, metric)
    diverged = _cells(runs, x, y, "diverged_fraction")
    if diverged.empty:
        raise NothingToDrawError("no run is finished")
    norm = norm or _linear_norm([means])
    axes = _axes(ax)
    _hatch_background(axes)
    mesh = axes.pcolormesh(means.to_numpy(), cmap=HEAT, norm=norm, edgecolors="white", lw=0.5)
    mesh.set_label("_" + _axis_label(metric))  # for the colour bar; legends skip it
    colors = mpl.colormaps[HEAT](norm(means.to_numpy()))
    shares = diverged.to_numpy(dtype=float)
    for (row, column), mean in np.ndenumerate(means.to_numpy()):
        roomy = means.shape[1] <= 6 and not math.isnan(mean)
        color = "white" if math.isnan(mean) else to_hex(colors[row, column])
        text = _cell_text(mean, metric) if roomy else ""
        _mark_cell(axes, (column, row), text, float(shares[row, column]), color)
    axes.set_xticks(np.arange(means.shape[1]) + 0.5, [format_setting(v) for v in means.columns])
    axes.set_yticks(np.arange(means.shape[0]) + 0.5, [format_setting(v) for v in means.index])
    axes.set(xlabel=SETTINGS.get(x, x), ylabel=SETTINGS.get(y, y))
    return _finish(axes, ax)


def _mark_cell(axes: Axes, place: tuple[int, int], text: str, diverged: float, color: str) -> None:
    """Write into a cell of that colour, and hatch it where some percent of its runs diverged."""
    box = None
    if diverged > 0:
        text = f"{text}\n{diverged:.0f}% div.".strip()
        axes.add_patch(Rectangle(place, 1, 1, **HATCH))
        box = {"facecolor": color, "edgecolor": "none", "pad": 1}
    light = np.dot(to_rgb(color), LUMINANCE) > 0.45
    axes.text(
        place[0] + 0.5,
        place[1] + 0.5,
        text,
        color="black" if light else "white",
        ha="center",
        va="center",
        bbox=box,
        fontsize="x-small",
    )


def _hatch_background(axes: Axes) -> None:
    """Show cells without a value as hatched."""
    axes.patch.set(facecolor="white", hatch=HATCH["hatch"], edgecolor=HATCH["ec"], lw=0)


def _cell_text(mean: float, metric: str) -> str:
    return f"{mean:.1f}" if is_percent(metric) else f"{mean:.3g}"


# What the panels share.


def _history(named: pd.DataFrame, metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the finite values of a metric by run and epoch, in percent if it is a fraction."""
    columns = ["run_id", "state", "act", "group"]
    if metric not in metrics:
        return pd.DataFrame(columns=[*columns, "epoch", "value"])
    # A run that stands in two studies has its rows twice.
    metrics = metrics.drop_duplicates(["run_id", "epoch"])
    values = metrics[["run_id", "epoch"]].assign(value=_scaled(metrics[metric], metric))
    history: pd.DataFrame = named[columns].merge(values, on="run_id").sort_values("epoch")
    finite: pd.DataFrame = history[np.isfinite(history["value"])]
    return finite


def _final(runs: pd.DataFrame, metric: str) -> "pd.Series[float]":
    """Return a final metric, in percent if it is a fraction; NaN unless the run is completed."""
    finished = runs["state"].isin(STATES[:2])
    if metric == "diverged_fraction":
        return (runs["state"] == "diverged").where(finished).astype(float) * 100
    if metric not in runs:
        return pd.Series(np.nan, index=runs.index)
    return _scaled(runs[metric], metric).where(runs["state"] == "completed")


def _scaled(values: "pd.Series[Any]", metric: str) -> "pd.Series[float]":
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    return numbers * 100 if is_percent(metric) else numbers


def _depth_grid(named: pd.DataFrame, layers: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the mean of a metric by layer, in order of depth, and epoch."""
    if metric not in layers:
        return pd.DataFrame()
    layers = layers[["run_id", "epoch", "layer", metric]]
    layers = layers.drop_duplicates(["run_id", "epoch", "layer"])
    values = named[["run_id", "state"]].merge(layers, on="run_id")
    values["value"] = _scaled(values[metric], metric)
    values = values[np.isfinite(values["value"])]
    for state in STATES[:2]:
        of_state = values[values["state"] == state]
        if not of_state.empty:
            grid: pd.DataFrame = of_state.pivot_table(
                index="layer", columns="epoch", values="value"
            )
            epochs = sorted(layers["epoch"].unique())
            return grid.reindex(index=of_state["layer"].unique(), columns=epochs)
    return pd.DataFrame()


def _cells(runs: pd.DataFrame, x: str, y: str, metric: str) -> pd.DataFrame:
    """Return the mean of a final metric by two settings; NaN where there is no such run."""
    finished = runs[runs["state"].isin(STATES[:2])]
    values = finished.assign(value=_final(finished, metric))
    means: pd.DataFrame = values.pivot_table(index=y, columns=x, values="value", dropna=False)
    return means


def _families(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the runs of each activation that has a leak; those of relu are its leak 0."""
    parsed = runs["act"].map(parse_act)
    leaks = runs.assign(leak=[0.0 if act == "relu" else leak for act, leak in parsed])
    families = [family for family, _ in parsed]
    names = [name for name, leak in dict.fromkeys(parsed) if leak is not None]
    relu = [family == "relu" for family in families]
    return {
        name: leaks[
            [is_relu or family == name for is_relu, family in zip(relu, families, strict=True)]
        ]
        for name in dict.fromkeys(names)
    }


def _several_leaks(runs: pd.DataFrame) -> bool:
    return len(set(runs["leak"]) - {0.0}) > 1


def _interval(values: "pd.Series[float]") -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % t interval, NaN for a single value."""
    row = summarise(values.to_frame("value").assign(key=0), ["key"]).iloc[0]
    return float(row["mean"]), float(row["high"] - row["mean"])


def _name(runs: pd.DataFrame, column: str = "group") -> str:
    """Name a group, and say how many of its runs were not completed: "relu (2/6 diverged)"."""
    states = runs["state"].where(runs["state"].isin(STATES), "unfinished")
    counts = [f"{(states == s).sum()}/{len(runs)} {s}" for s in STATES[1:] if (states == s).any()]
    return str(runs[column].iloc[0]) + (f" ({', '.join(counts)})" if counts else "")


def _cross() -> dict[str, Any]:
    """Return the mark of a diverged run, in proportion to the other marks."""
    size, width = mpl.rcParams["lines.markersize"], mpl.rcParams["lines.linewidth"]
    return {"marker": "x", "markersize": 1.2 * size, "markeredgewidth": width}


def _axis_label(metric: str) -> str:
    return label(metric) + " (%)" * is_percent(metric)


def _log_norm(grids: Iterable[pd.DataFrame]) -> LogNorm:
    """Return a scale over the positive values."""
    values = np.concatenate([grid.to_numpy(dtype=float).ravel() for grid in grids])
    values = values[values > 0]
    return LogNorm(values.min(), values.max()) if len(values) else LogNorm(0.1, 1)


def _linear_norm(grids: Iterable[pd.DataFrame]) -> Normalize:
    values = np.concatenate([grid.to_numpy(dtype=float).ravel() for grid in grids])
    values = values[np.isfinite(values)]
    return Normalize(values.min(), values.max()) if len(values) else Normalize(0, 1)


def _refuse_many(count: int, limit: int, kind: str) -> None:
    if count > limit:
        raise NothingToDrawError(
            f"{count} {kind} are more than the {limit} that can be read; choose some by where"
        )


def _axes(ax: Axes | None) -> Axes:
    """Return the caller's axes, or those of a new figure."""
    return _new_figure((3.3, 2.6)).subplots() if ax is None else ax


def _new_figure(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(axes: Axes, given: Axes | None) -> Axes:
    """Add the legend or the colour bar, unless the caller gave the axes and sees to that."""
    if given is None:
        figure = cast("Figure", axes.figure)
        _add_legend(figure, axes.get_legend_handles_labels()[0])
        _add_colorbar(figure, [axes])
    return axes


def _add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
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


def _add_colorbar(figure: Figure, axes: Sequence[Axes]) -> None:
    """Add the one colour bar of all heat maps, which share their scale."""
    meshes = [mesh for ax in axes for mesh in ax.collections if isinstance(mesh, QuadMesh)]
    if meshes:
        norm, text = meshes[0].norm, str(meshes[0].get_label())[1:]
        top = cast("float", norm.vmax)
        beyond = any((np.asarray(mesh.get_array(), dtype=float) > top).any() for mesh in meshes)
        extend = "max" if beyond else "neither"
        bar = figure.colorbar(meshes[0], ax=list(axes), label=text, extend=extend)
        if isinstance(norm, LogNorm):
            bar.locator, bar.formatter = LogLocator(subs=(1, 2, 5)), StrMethodFormatter("{x:g}")
            bar.minorticks_off()
            bar.update_ticks()


# Figures: which panels, side by side.


Panel = Callable[..., Axes]


@dataclass(frozen=True)
class Plan:
    """The panels of a figure.

    Attributes:
        panels: The title of each, and a function that draws it when it is called with `ax`.
        legend: Runs as `name_groups` returns them, whose activations the legend names.
        marks: Makes further entries of the legend, when the style is known.
        dashes: Whether the legend shows the activations' lines, or their markers alone.
        columns: How many panels may stand side by side.
        alike: Whether all show the same quantities, on axes that they share.
    """

    panels: Sequence[tuple[str, Panel]]
    legend: pd.DataFrame | None = None
    marks: Callable[[], Sequence[Artist]] = tuple
    dashes: bool = True
    columns: int = 3
    alike: bool = True


def plan_curves(frames: Frames, metric: str | None = None) -> Plan:
    """Losses, accuracy and sparsity over the epochs; one of them where settings vary."""
    named = name_groups(frames.runs, frames.config_columns)
    wanted = (metric,) if metric else CURVES[: None if len(_facets(named)) == 1 else 1]
    return _over_epochs(frames, named, wanted)


def plan_units(frames: Frames, metric: str | None = None) -> Plan:
    """Dead, dormant and revived units over the epochs."""
    named = name_groups(frames.runs, frames.config_columns)
    return _over_epochs(frames, named, (metric,) if metric else UNIT_COUNTS)


def plan_cosine(frames: Frames, metric: str | None = None) -> Plan:
    """The cosine between the surrogate and the true gradient over the epochs."""
    metric = metric or "surrogate_cosine"
    named = name_groups(frames.runs, frames.config_columns)
    values = _history(named, frames.metrics, metric)["value"]
    if metric == "surrogate_cosine" and (values > 1 - 1e-9).all() and len(values):
        raise NothingToDrawError("every activation has its own gradient: all cosines are 1")
    return _over_epochs(frames, named, (metric,))


def _over_epochs(frames: Frames, named: pd.DataFrame, metrics: Sequence[str]) -> Plan:
    """Plan a panel for each setting and metric that there is."""
    there = [m for m in metrics if not _history(named, frames.metrics, m).empty]
    if not there:
        raise NothingToDrawError(f"no run has {' or '.join(metrics)}")
    _refuse_many(len(named["line"].unique()), MAX_LINES, "lines")
    if len(_facets(named)) * len(there) > MAX_PANELS:
        there = there[:1]
    panels = [
        (setting, partial(curves, part, frames.metrics, frames.config_columns, metric=metric))
        for setting, part in _facets(named, len(there))
        for metric in there
    ]
    lost = bool((named["state"] == "diverged").any())
    return Plan(
        panels,
        legend=named,
        marks=lambda: [_diverged_entry()] if lost else [],
        alike=len(there) == 1,
    )


def _diverged_entry() -> Line2D:
    cross = _cross()
    width = cross["markeredgewidth"] / 2
    return Line2D([], [], color="0.3", lw=width, label="diverged run", **cross)


def plan_tradeoff(frames: Frames, metric: str | None = None) -> Plan:
    """Accuracy against sparsity."""
    named = name_groups(frames.runs, frames.config_columns)
    panels = [
        (setting, partial(tradeoff, part, frames.config_columns, y=metric or "test_accuracy"))
        for setting, part in _facets(named)
    ]
    return Plan(panels, legend=named, marks=lambda: [Line2D([], [], **FRONT)], dashes=False)


def plan_gradient_depth(frames: Frames, metric: str | None = None) -> Plan:
    """The gradient's norm by layer and epoch, a panel for each group."""
    metric = metric or "grad_norm"
    named = name_groups(frames.runs, frames.config_columns)
    groups = [part for _, part in named.groupby("group", sort=False)]
    _refuse_many(len(groups), MAX_PANELS, "panels")
    grids = [_depth_grid(part, frames.layers, metric) for part in groups]
    completed = [
        grid
        for part, grid in zip(groups, grids, strict=True)
        if (part["state"] == "completed").any()
    ]
    norm = _log_norm(completed or grids)  # a gradient that explodes would flatten the others
    panels = [
        (
            _name(part),
            partial(
                gradient_depth, part, frames.layers, frames.config_columns, metric=metric, norm=norm
            ),
        )
        for part, grid in zip(groups, grids, strict=True)
        if not grid.empty
    ]
    alike = len({(tuple(grid.index), grid.shape) for grid in grids if not grid.empty}) == 1
    return Plan(panels, alike=alike)


def plan_leak(frames: Frames, metric: str | None = None) -> Plan:
    """Accuracy, sparsity, dead units and divergence over the leak."""
    named = name_groups(frames.runs, frames.config_columns)
    families = _families(named)
    if not any(map(_several_leaks, families.values())):
        raise NothingToDrawError("no activation has several leaks")
    wanted = (metric,) if metric else LEAK_CURVES[: None if len(_facets(named)) == 1 else 1]
    there = [m for m in wanted if _final(named, m).notna().any()]
    if not there:
        raise NothingToDrawError(f"no run has {' or '.join(wanted)}")
    of_family = named[named["run_id"].isin(pd.concat(families.values())["run_id"])]
    panels = [
        (setting, partial(leak_curve, part, frames.config_columns, metric=m))
        for setting, part in _facets(of_family, len(there))
        for m in there
    ]
    same = len({frozenset(part["act"]) for _, part in _facets(of_family)}) == 1
    return Plan(panels, legend=of_family, alike=same and len(there) == 1)


def plan_phase(frames: Frames, metric: str | None = None) -> Plan:
    """A final metric over two settings, the first pair of `PHASE_AXES` that vary."""
    metric = metric or "test_accuracy"
    named = name_groups(frames.runs, frames.config_columns)
    varying = varying_settings(named, frames.config_columns)
    by_leak = {name: part for name, part in _families(named).items() if _several_leaks(part)}
    axes = {*varying, *(["leak"] if by_leak else [])}
    pair = next((pair for pair in PHASE_AXES if axes.issuperset(pair)), None)
    if pair is None:
        raise NothingToDrawError(
            f"none of the pairs {', '.join(map(' x '.join, PHASE_AXES))} varies"
        )
    x, y = pair
    by_act = {str(act): part for act, part in named.groupby("act")}
    acts = {act: by_act[act] for act in sorted(by_act, key=act_order)}
    rest = [c for c in varying if c not in pair]
    parts = {}
    for name, part in (by_leak if "leak" in pair else acts).items():
        texts = pd.Series(join_settings(part, rest), index=part.index)
        for text, cell in part.groupby(texts):
            parts[f"{name} {text}".strip()] = cell
    _refuse_many(len(parts), MAX_PANELS, "panels")
    norm = _linear_norm(_cells(part, x, y, metric) for part in parts.values())
    panels = [
        (title, partial(phase, part, frames.config_columns, x=x, y=y, metric=metric, norm=norm))
        for title, part in parts.items()
    ]
    some = any((part["state"] == "diverged").any() for part in parts.values())
    return Plan(panels, marks=lambda: [_hatch_entry()] if some else [], columns=2, alike=False)


def _hatch_entry() -> Patch:
    return Patch(**HATCH, label="div.: share of runs that diverged")


def _facets(named: pd.DataFrame, each: int = 1) -> list[tuple[str, pd.DataFrame]]:
    """Split runs by the settings that vary beside the activation."""
    parts = [(str(setting), part) for setting, part in named.groupby("setting", sort=False)]
    _refuse_many(len(parts) * each, MAX_PANELS, "panels")
    return parts


@dataclass(frozen=True)
class Style:
    """Where a figure goes: widths in inches of a single panel and of several, and rcParams."""

    column: float
    page: float
    dpi: int
    rc: dict[str, Any]


def figure(plan: Plan, style: str = "paper") -> Figure:
    """Draw the panels of a plan side by side, with one legend or colour bar for all.

    Raises:
        UsageError: There is no such style.
        NothingToDrawError: A panel has no data.
    """
    chosen = lookup(STYLES, style, "style")
    count = len(plan.panels)
    columns = 2 if count == 4 else min(plan.columns, count)
    width = chosen.column if count == 1 else chosen.page
    height = chosen.column * {1: 0.7, 2: 0.62}.get(columns, 0.52)
    with mpl.style.context(["default", RC, chosen.rc]):
        drawn = _new_figure((width, math.ceil(count / columns) * height))
        axes: list[Axes] = []
        for place, (title, panel) in enumerate(plan.panels):
            ax = drawn.add_subplot(math.ceil(count / columns), columns, place + 1)
            # Said here, or the number of ticks follows from the style at the time of saving.
            ax.tick_params(labelsize=mpl.rcParams["font.size"])
            panel(ax=ax)
            # A letter is some 0.6 of its height wide.
            letters = width / columns * 72 / (0.6 * mpl.rcParams["axes.titlesize"])
            ax.set_title(textwrap.fill(title, int(letters)))
            axes.append(ax)
        if plan.alike:
            _share_limits(axes, columns)
        _name_outer(axes, columns)
        _add_legend(drawn, [*_legend_entries(plan), *plan.marks()])
        _add_colorbar(drawn, axes)
        drawn.draw_without_rendering()  # lays out, which saving in each format would do again
    drawn.set_layout_engine("none")
    return drawn


def _share_limits(axes: Sequence[Axes], columns: int) -> None:
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


def _name_outer(axes: Sequence[Axes], columns: int) -> None:
    """Leave out the names of axes that the panel below or to the left has too."""
    for ax, below in zip(axes, axes[columns:], strict=False):
        if ax.get_xlabel() == below.get_xlabel():
            ax.set_xlabel("")
    for place in reversed(range(len(axes))):
        if place % columns and axes[place].get_ylabel() == axes[place - 1].get_ylabel():
            axes[place].set_ylabel("")


def _legend_entries(plan: Plan) -> list[Line2D]:
    """Return an entry for each activation, which counts the runs of all panels."""
    if plan.legend is None:
        return []
    entries = []
    for _, part in plan.legend.groupby("line", sort=False):
        look = appearance(part["act"].iloc[0])
        dash = look.dash if plan.dashes else "none"
        entries.append(Line2D([], [], ls=dash, label=_name(part, "line"), **look.point))
    return entries


def draw_all(
    frames: Frames,
    out_dir: Path,
    kinds: Sequence[str] | None = None,
    formats: Sequence[str] = ("png", "svg"),
    style: str = "paper",
    metric: str | None = None,
    tell: Callable[[str], None] = logger.info,
) -> list[Path]:
    """Write figures to `out_dir` as <kind>.<format>, and return their paths.

    Args:
        frames: What `nsrelu_bench.load` gives.
        out_dir: A folder; made where there is none.
        kinds: Keys of `FIGURES`; None for all.
        formats: Keys of `FORMATS`. The bytes of an SVG or PDF depend on the data alone.
        style: A key of `STYLES`.
        metric: What to draw in place of a figure's own metrics.
        tell: Is given one line for each figure that there is no data for.

    Raises:
        UsageError: There is no such kind, format or style.
        BenchError: A file can't be written.
    """
    plans = {kind: lookup(FIGURES, kind, "figure") for kind in kinds or FIGURES}
    savers = {fmt: lookup(FORMATS, fmt, "format") for fmt in formats}
    dpi = lookup(STYLES, style, "style").dpi
    paths = []
    with mpl.style.context(["default", RC]):
        for kind, plan in plans.items():
            try:
                drawn = figure(plan(frames, metric), style)
            except NothingToDrawError as reason:
                tell(f"no figure {kind}: {reason}")
                continue
            for fmt, metadata in savers.items():
                path = out_dir / f"{kind}.{fmt}"
                _save(drawn, path, dpi=dpi, metadata=metadata)
                paths.append(path)
    return paths


def _save(drawn: Figure, path: Path, **options: Any) -> None:
    """Write beside the file, then rename, so that nobody sees half a figure."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(draft, format=path.suffix[1:], **options)
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise BenchError(f"can't write {path}: {error.strerror}") from None


# Looks. Hues that colour-blind people tell apart, and that fall in luminance with the leak.

MARKERS = ("v", "<", "^", ">", "s", "D", "p", "P", "d", "*")
DASHES = {"leaky_relu": "--", "nsrelu": "-."}
SHADES = {
    "leaky_relu": ("#f0b030", "#d95f02", "#7a2804"),
    "nsrelu": ("#66cdaa", "#1f83c4", "#3b0f70"),
}
OTHERS = ("#cc79a7", "#882255", "#999933", "#117733", "#d55e00", "#661100", "#aa4499")

HEAT = "viridis"
LUMINANCE = (0.2126, 0.7152, 0.0722)
FAR = 1e6  # beyond any axes
HATCH: dict[str, Any] = {"fill": False, "hatch": "////", "ec": "0.6", "lw": 0}
FRONT: dict[str, Any] = {
    "color": "0.5",
    "ls": ":",
    "drawstyle": "steps-pre",
    "label": "Pareto front",
    "zorder": 0,
}
SETTINGS = {"lr": "learning rate", "batch_size": "batch size"}

#: Whatever the user's matplotlibrc says, figures look the same and SVGs have the same bytes.
RC: dict[str, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.w_pad": 0.06,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "nsrelu-bench",
}

STYLES: dict[str, Style] = {
    "paper": Style(
        column=3.3,
        page=6.9,
        dpi=300,
        rc={
            "font.size": 8,
            "axes.titlesize": 8,
            "axes.linewidth": 0.6,
            "lines.linewidth": 1.1,
            "lines.markersize": 3.5,
        },
    ),
    "talk": Style(
        column=8,
        page=13,
        dpi=120,
        rc={
            "font.size": 16,
            "axes.titlesize": 16,
            "axes.linewidth": 1,
            "lines.linewidth": 2.2,
            "lines.markersize": 7,
        },
    ),
}

#: Each format's metadata; a date would make the bytes differ from run to run.
FORMATS: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}

FIGURES: dict[str, Callable[[Frames, str | None], Plan]] = {
    "curves": plan_curves,
    "tradeoff": plan_tradeoff,
    "units": plan_units,
    "gradient_depth": plan_gradient_depth,
    "cosine": plan_cosine,
    "leak": plan_leak,
    "phase": plan_phase,
}
