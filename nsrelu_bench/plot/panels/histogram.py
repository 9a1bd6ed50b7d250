"""The distribution of pre-activations."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from nsrelu_bench.compare import act_order
from nsrelu_bench.plot.axes import axes_for, finish
from nsrelu_bench.plot.panel_data import MAX_LINES, NothingToDrawError, check_count
from nsrelu_bench.plot.style import activation_style


def histogram(values: Mapping[str, ArrayLike], *, bins: int = 60, ax: Axes | None = None) -> Axes:
    """Draw the distribution of pre-activations, one line per activation.

    The axis holds the middle 99.8 % of all values; the legend says which share is <= 0 and how
    many are not finite, which are not drawn.

    Args:
        values: The inputs of an activation's sites, of any shape, by the activation's label.
        bins: Number of bins.
        ax: Where to draw; otherwise a new figure.

    Raises:
        NothingToDrawError: There is no finite value, or there are more than 12 activations.
    """
    check_count(len(values), MAX_LINES, "lines")
    arrays = {act: np.asarray(given, dtype=float).ravel() for act, given in values.items()}
    finite = {act: array[np.isfinite(array)] for act, array in arrays.items()}
    pooled = np.concatenate([*finite.values(), []])
    if not pooled.size:
        raise NothingToDrawError("there are no finite values")
    low, high = np.quantile(pooled, [0.001, 0.999])
    margin = 0.02 * (high - low) or 1.0
    edges = np.linspace(low - margin, high + margin, bins + 1)
    axes = axes_for(ax)
    for act in sorted(finite, key=act_order):
        array, style = finite[act], activation_style(act)
        lost = len(arrays[act]) - len(array)
        notes = [f"{(array <= 0).mean():.0%} <= 0"] if array.size else []
        notes += [f"{lost} not finite"] if lost else []
        heights = np.histogram(array, edges)[0] / max(array.size, 1) / np.diff(edges)
        name = f"{act} ({', '.join(notes)})" if notes else act
        axes.stairs(heights, edges, color=style.color, ls=style.dash, label=name)
    axes.axvline(0, color="0.7", lw=0.6, zorder=0)
    axes.set(xlim=(edges[0], edges[-1]), xlabel="input of the activation", ylabel="density")
    axes.set_ylim(bottom=0)
    return finish(axes, ax)
