"""Draw mechanism.png: what happens, step by step, where NSReLU breaks down.

python docs/figures/mechanism.py
"""

from pathlib import Path

import pandas as pd
from bands import draw_median
from matplotlib.figure import Figure

STEPS = Path(__file__).parents[2] / "findings" / "mechanism" / "steps.csv"

#: Activation, whether it is local, and the text of the legend.
ARMS = [
    ("relu", False, "ReLU"),
    ("rescue(0.1)", False, "rescue: up, dead units only"),
    ("up(0.1)", False, "up: the half that pulls up"),
    ("nsrelu(0.1)", True, "NSReLU, not passed on (local)"),
    ("nsrelu(0.1)", False, "NSReLU"),
    ("down(0.1)", False, "down: the half that pushes down"),
]
PANELS = [
    ("train_accuracy", "accuracy on the probe set (%)", 100, "linear"),
    ("surrogate_cosine", "cosine to the true gradient", 1, "linear"),
    ("weight_norm", "norm of the weights", 1, "log"),
    ("pre_rms", "pre-activations, root mean square", 1, "log"),
]


def draw() -> Figure:
    """Draw the median over the seeds and the range, for Adam at 0.01 on MNIST."""
    steps = pd.read_csv(STEPS)
    steps = steps[(steps["optimizer"] == "adam") & (steps["lr"] == 0.01)]
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    for ax, (metric, label, scale, axis) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for act, local, name in ARMS:
            arm = steps[(steps["act"] == act) & (steps["local"] == local)]
            by_step = scale * arm.pivot_table(index="step", columns="seed", values=metric)
            draw_median(ax, by_step, act, "--" if local else "-", name)
        ax.set(xlabel="step", title=label, yscale=axis)
        ax.spines[["top", "right"]].set_visible(False)
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        "The push down makes the weights run away: MNIST, Adam at 0.01, 6 seeds", size=12
    )
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_suffix(".png"), dpi=130)
