"""The median over seeds with the range from lowest to highest, for the figures beside this file."""

import pandas as pd
from matplotlib.axes import Axes

from nsrelu_bench.plot.style import activation_style


def draw_median(
    ax: Axes, values: pd.DataFrame, act: str, dashes: str, name: str, *, band: bool = True
) -> None:
    """Draw values (a row per place, a column per seed) in the colour of an activation."""
    color = activation_style(act).color
    ax.plot(values.index, values.median(axis=1), dashes, color=color, label=name, lw=1.8)
    if band:
        low, high = values.min(axis=1), values.max(axis=1)
        ax.fill_between(values.index, low, high, color=color, alpha=0.15)
