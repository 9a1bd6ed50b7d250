"""Draw slow_regression.png: what networks leave unfit, over five million steps.

python docs/figures/slow_regression.py
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from nsrelu_bench.plot.style import activation_style

STUDY = Path(__file__).parents[2] / "findings" / "slow_regression"

#: Arm, activation of the colour, line and text of the legend.
ARMS = [
    ("relu", "relu", "-", "ReLU"),
    ("leaky_relu(0.1)/relu", "leaky_relu(0.1)", ":", "leak in the forward pass only"),
    ("leaky_relu(0.1)", "leaky_relu(0.1)", "-", "LeakyReLU"),
    ("nsrelu(0.1)", "nsrelu(0.1)", "-", "NSReLU"),
    ("up(0.1)", "up(0.1)", "-", "up"),
    ("up(0.1) if off for all inputs", "rescue(0.1)", "-", "up, if off for all inputs"),
]


def draw() -> Figure:
    """Draw the median over the seeds of each arm, and where its runs diverge."""
    bins, runs = (pd.read_csv(STUDY / name) for name in ("bins.csv", "runs.csv"))
    figure = Figure(figsize=(8, 4), layout="constrained")
    ax = figure.subplots()
    for arm, style, dashes, name in ARMS:
        mine = bins[(bins["arm"] == arm) & (bins["mean_norm"] == 3.041)]
        unfit = 100 * mine.pivot_table(index="bin", columns="seed", values="unfit")
        color = activation_style(style).color
        median = unfit.median(axis=1)
        ax.plot(median.index / 10, median, dashes, color=color, label=name, lw=1.8)
        ended = runs[(runs["arm"] == arm) & (runs["mean_norm"] == 3.041)]["diverged_step"].dropna()
        ax.plot(ended / 1e6, [300] * len(ended), "x", color=color, ms=5)
    ax.axhline(5, color="0.6", lw=0.8, ls="--")
    ax.set(xlabel="million steps", ylabel="unfit share of the target's variance (%)")
    ax.set(yscale="log", xlim=(0, 5), ylim=(1e-11, 1000))
    ax.set_title("Slowly changing regression: median of 10 seeds; x: a run diverges", size=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9, ncols=2, loc="center right", bbox_to_anchor=(1, 0.6))
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_suffix(".png"), dpi=130)
