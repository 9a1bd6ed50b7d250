"""Panels that a paper would print: one function draws one.

Each takes frames and an optional `ax`, and returns the axes; `figures` puts them side by side. An
activation has one colour, marker and dash everywhere (`looks.appearance`), and runs that diverged
are drawn or counted, never left out in silence. No pyplot: nothing here touches a global figure.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import ArrayLike

from nsrelu_bench.compare import (
    act_order,
    format_setting,
    is_percent,
    label,
    name_groups,
    summarise,
    varying_settings,
)
from nsrelu_bench.plot.panel_data import (
    MAX_LINES,
    SETTINGS,
    NothingToDrawError,
    cells_of,
    depth_grid,
    error_ends,
    families_of,
    final_of,
    history_of,
    mean_interval,
    name_of,
    refuse_many,
    several_leaks,
)
from nsrelu_bench.plot.style import (
    FRONT,
    HATCH,
    HEAT,
    activation_style,
    add_colorbar,
    add_legend,
    cross,
    hatch_background,
    linear_norm,
    log_norm,
    new_figure,
)

#: Metrics that spread over orders of magnitude.
LOG_METRICS = ("grad_norm", "pre_grad_norm", "train_loss", "val_loss", "test_loss")

LUMINANCE = (0.2126, 0.7152, 0.0722)
FAR = 1e6  # beyond any axes


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
    refuse_many(len(named["group"].unique()), MAX_LINES, "lines")
    history = history_of(named, metrics, metric)
    if history.empty:
        raise NothingToDrawError(f"no run has {metric}")
    axes = _axes(ax)
    means = summarise(history[history["state"] == "completed"], ["group", "epoch"])
    for place, (group, part) in enumerate(named.groupby("group", sort=False)):
        look = activation_style(part["act"].iloc[0])
        if group in means.index:
            mean = means.loc[[group]].reset_index()
            low, high = mean["low"], mean["high"]
            if is_percent(metric):  # a t interval knows no bounds
                low, high = low.clip(0, 100), high.clip(0, 100)
            axes.fill_between(mean["epoch"], low, high, color=look.color, alpha=0.15, lw=0)
            every = max(1, round(len(mean) / 6))
            axes.plot(
                mean["epoch"],
                mean["mean"],
                ls=look.dash,
                markevery=(place % every, every),
                label=name_of(part),
                **look.point,
            )
        else:
            axes.plot([], [], ls=look.dash, label=name_of(part), **look.point)
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
    steps = (1, 2, 5) if high / low <= 1000 else (1,)
    locator = LogLocator(subs=steps) if high / low >= 10 else MaxNLocator(5)
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter("{x:g}")


def _draw_diverged(axes: Axes, history: pd.DataFrame) -> None:
    """Draw each diverged run up to its last finite value, within the limits that there are."""
    low, high = axes.get_ylim()
    diverged = history[history["state"] == "diverged"]
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
    refuse_many(len(named["group"].unique()), MAX_LINES, "points")
    points = named.assign(x=final_of(named, x), y=final_of(named, y)).dropna(subset=["x", "y"])
    if points.empty:
        raise NothingToDrawError(f"no completed run has both {x} and {y}")
    axes, size = _axes(ax), mpl.rcParams["lines.markersize"]
    middles = []
    for group, part in named.groupby("group", sort=False):
        look, seeds = activation_style(part["act"].iloc[0]), points[points["group"] == group]
        style = look.point | {"ls": "none", "label": name_of(part)}
        if seeds.empty:
            axes.plot([], [], **style)
            continue
        axes.scatter(seeds["x"], seeds["y"], s=0.4 * size**2, color=look.color, alpha=0.4, lw=0)
        (mid_x, half_x), (mid_y, half_y) = mean_interval(seeds["x"]), mean_interval(seeds["y"])
        x_error, y_error = error_ends(mid_x, half_x, x), error_ends(mid_y, half_y, y)
        axes.errorbar([mid_x], [mid_y], xerr=x_error, yerr=y_error, **style)
        middles.append((mid_x, mid_y))
    front = pareto_front(middles)
    corners = [(-FAR, front[0][1]), *front, (front[-1][0], -FAR)]
    axes.plot(*zip(*corners, strict=True), **FRONT)
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
    grid = depth_grid(named, layers, metric)
    if grid.empty:
        raise NothingToDrawError(f"no run has {metric} by layer")
    axes = _axes(ax)
    hatch_background(axes)
    values = grid.to_numpy(dtype=float)
    shown = np.where(values > 0, values, np.nan)
    norm = norm or log_norm([grid])
    mesh = axes.pcolormesh(shown, cmap=HEAT, norm=norm, edgecolors="white", lw=0.5)
    mesh.set_label("_" + _axis_label(metric))  # for the colour bar; legends skip it
    for row, column in np.argwhere(values == 0):
        axes.add_patch(Rectangle((column, row), 1, 1, color="0.6", lw=0))
    step = max(1, math.ceil(len(grid) / 8))
    axes.set_yticks(np.arange(len(grid))[::step] + 0.5, list(grid.index)[::step])
    step = max(1, math.ceil(grid.shape[1] / 6))
    axes.set_xticks(np.arange(grid.shape[1])[::step] + 0.5, list(grid.columns)[::step])
    axes.set(xlabel="epoch", ylabel="layer", title=name_of(named))
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
    families = families_of(named)
    if not any(map(several_leaks, families.values())):
        raise NothingToDrawError("no activation has several leaks")
    leaks = sorted({leak for part in families.values() for leak in part["leak"]})
    final = final_of(named, metric).dropna()
    if final.empty:
        raise NothingToDrawError(f"no run has {metric}")
    axes = _axes(ax)
    for name, part in families.items():
        values = part.assign(value=final).dropna(subset=["value"])
        table = summarise(values, ["act", "leak"]).reset_index().sort_values("leak")
        places = [leaks.index(leak) for leak in table["leak"]]
        line = activation_style(f"{name}(0.1)")
        axes.plot(places, table["mean"], color=line.color, ls=line.dash, zorder=1)
        halves = table["high"] - table["mean"]
        if metric == "diverged_fraction":
            halves = halves * np.nan
        for place, act, mean, half in zip(places, table["act"], table["mean"], halves, strict=True):
            error = error_ends(mean, half, metric)
            axes.errorbar([place], [mean], yerr=error, **activation_style(act).point)
        # A cross on the axis where no run was completed.
        for act, leak in part.groupby("act")["leak"].first().items():
            if act not in set(table["act"]):
                color, at = activation_style(str(act)).color, axes.get_xaxis_transform()
                axes.plot(leaks.index(leak), 0.02, transform=at, color=color, **cross())
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
        raise NothingToDrawError(
            f"{', '.join(mixed)} vary beside {x} and {y}; draw a study in which one of them varies"
        )
    means = cells_of(runs, x, y, metric)
    diverged = cells_of(runs, x, y, "diverged_fraction")
    if diverged.empty:
        raise NothingToDrawError("no run is finished")
    norm = norm or linear_norm([means])
    axes = _axes(ax)
    hatch_background(axes)
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


def histogram(values: Mapping[str, ArrayLike], *, bins: int = 60, ax: Axes | None = None) -> Axes:
    """Draw the distribution of pre-activations, a line an activation.

    `values` gives, by an activation's label, the inputs of its sites, of any shape. The axis holds
    the middle 99.8 % of all of them; the legend says which share is <= 0 and how many of them are
    not finite, which are not drawn.

    Raises:
        NothingToDrawError: There is no finite value, or there are more than 12 activations.
    """
    refuse_many(len(values), MAX_LINES, "lines")
    arrays = {act: np.asarray(given, dtype=float).ravel() for act, given in values.items()}
    finite = {act: array[np.isfinite(array)] for act, array in arrays.items()}
    together = np.concatenate([*finite.values(), []])
    if not together.size:
        raise NothingToDrawError("there are no finite values")
    low, high = np.quantile(together, [0.001, 0.999])
    margin = 0.02 * (high - low) or 1.0
    edges = np.linspace(low - margin, high + margin, bins + 1)
    axes = _axes(ax)
    for act in sorted(finite, key=act_order):
        array, look, lost = finite[act], activation_style(act), len(arrays[act]) - len(finite[act])
        notes = [f"{(array <= 0).mean():.0%} <= 0"] if array.size else []
        notes += [f"{lost} not finite"] if lost else []
        heights = np.histogram(array, edges)[0] / max(array.size, 1) / np.diff(edges)
        name = f"{act} ({', '.join(notes)})" if notes else act
        axes.stairs(heights, edges, color=look.color, ls=look.dash, label=name)
    axes.axvline(0, color="0.7", lw=0.6, zorder=0)
    axes.set(xlim=(edges[0], edges[-1]), xlabel="input of the activation", ylabel="density")
    axes.set_ylim(bottom=0)
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


def _cell_text(mean: float, metric: str) -> str:
    return f"{mean:.1f}" if is_percent(metric) else f"{mean:.3g}"


def _axis_label(metric: str) -> str:
    return label(metric) + " (%)" * is_percent(metric)


def _axes(ax: Axes | None) -> Axes:
    """Return the caller's axes, or those of a new figure."""
    return new_figure((3.3, 2.6)).subplots() if ax is None else ax


def _finish(axes: Axes, given: Axes | None) -> Axes:
    """Add the legend or the colour bar, unless the caller gave the axes and sees to that."""
    if given is None:
        figure = cast("Figure", axes.figure)
        add_legend(figure, axes.get_legend_handles_labels()[0])
        add_colorbar(figure, [axes])
    return axes
