"""Draw the distribution of pre-activations."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from nsrelu_bench.compare import act_order
from nsrelu_bench.plot.axes import axes_for, finish
from nsrelu_bench.plot.panel_data import MAX_LINES, NothingToDrawError, check_count
from nsrelu_bench.plot.style import activation_style
from nsrelu_bench.text import format_percent


def histogram(values: Mapping[str, ArrayLike], *, bins: int = 60, ax: Axes | None = None) -> Axes:
    """Draw the distribution of pre-activations, one line per activation.

    The axis covers the middle 98 % of the values of each activation. An activation whose values
    spread more than five times as far as those of the median activation, because they run away,
    does not stretch the axis; the share of its values beyond the axis is written in its colour. The
    legend gives the share of values <= 0, and the number of values that are not finite and so are
    not drawn. `values` are the inputs of an activation's sites, of any shape, by its label.

    Raises:
        NothingToDrawError: There is no finite value, or there are more than 12 activations.
    """
    check_count(len(values), MAX_LINES, "lines")
    arrays = {act: np.asarray(given, dtype=float).ravel() for act, given in values.items()}
    finite = {act: array[np.isfinite(array)] for act, array in arrays.items()}
    low, high = _range([array for array in finite.values() if array.size])
    margin = 0.02 * (high - low) or 1.0
    edges = np.linspace(low - margin, high + margin, bins + 1)
    axes, far = axes_for(ax), list[tuple[str, str]]()
    for act in sorted(finite, key=act_order):
        array, style = finite[act], activation_style(act)
        lost = len(arrays[act]) - len(array)
        notes = [f"{format_percent((array <= 0).mean())} <= 0"] if array.size else []
        notes += [f"{lost} not finite"] if lost else []
        heights = np.histogram(array, edges)[0] / max(array.size, 1) / np.diff(edges)
        name = f"{act} ({', '.join(notes)})" if notes else act
        axes.stairs(heights, edges, color=style.color, ls=style.dash, label=name)
        beyond = np.mean((array < edges[0]) | (array > edges[-1])) if array.size else 0
        if beyond > 0.025:
            far.append((f"{format_percent(beyond)} beyond", style.color))
    for line, (text, color) in enumerate(far):
        at, size = (0.03, 0.97 - 0.1 * line), "x-small"
        axes.text(*at, text, transform=axes.transAxes, color=color, fontsize=size, va="top")
    axes.axvline(0, color="0.7", lw=0.6, zorder=0)
    axes.set(xlim=(edges[0], edges[-1]), xlabel="input of the activation", ylabel="density")
    axes.set_ylim(bottom=0)
    return finish(axes, ax)


def _range(arrays: list[NDArray[np.float64]]) -> tuple[float, float]:
    """Return the ends of an axis for these values.

    Raises:
        NothingToDrawError: There is none.
    """
    if not arrays:
        raise NothingToDrawError("there are no finite values")
    ends = np.array([np.quantile(array, [0.01, 0.99]) for array in arrays])
    spread = ends[:, 1] - ends[:, 0]
    if spread.any():
        typical = np.quantile(spread[spread > 0], 0.5, method="lower")
        ends = ends[spread <= 5 * typical]
    return float(ends[:, 0].min()), float(ends[:, 1].max())
