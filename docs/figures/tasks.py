"""Draw tasks.png: accuracy task by task, over a hundred permuted tasks.

python docs/figures/tasks.py [FILE]
"""

import sys
from pathlib import Path

import pandas as pd
from bands import draw_median
from matplotlib.figure import Figure

TASKS = Path(__file__).parents[2] / "findings" / "tasks" / "tasks.csv"

#: Activation, steps between resets, weight decay; colour, line and text of the legend.
ARMS = [
    (("leaky_relu(0.1)", 0, 0), "leaky_relu(0.1)", "-", "LeakyReLU: no zeros"),
    (("relu", 0, 1e-4), "relu", "--", "ReLU with L2: half of the units dead"),
    (("rescue(0.1)", 0, 0), "rescue(0.1)", "-", "rescue: 85 % zeros, no dead unit"),
    (("relu", 100, 0), "relu", ":", "ReLU with ReDo"),
    (("relu", 0, 0), "relu", "-", "ReLU"),
    (("nsrelu(0.1)", 0, 0), "nsrelu(0.1)", "-", "NSReLU"),
]


def draw() -> Figure:
    """Draw the median over the seeds of each arm, and the range of three of them."""
    tasks = pd.read_csv(TASKS)
    figure = Figure(figsize=(8, 4), layout="constrained")
    ax = figure.subplots()
    for (act, redo, decay), style, dashes, name in ARMS:
        arm = tasks[
            (tasks["act"] == act) & (tasks["redo"] == redo) & (tasks["weight_decay"] == decay)
        ]
        by_task = 100 * arm.pivot_table(index="task", columns="seed", values="test_accuracy")
        draw_median(ax, by_task, style, dashes, name, band=dashes == "-")
    ax.set(xlabel="task", ylabel="test accuracy (%)", ylim=(0, 100), xlim=(1, 100))
    ax.set_title(
        "A hundred permuted tasks: median of 6 seeds, band from lowest to highest", size=11
    )
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.22), ncols=2, fontsize=9)
    return figure


if __name__ == "__main__":
    target = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_suffix(".png")
    draw().savefig(target, dpi=130)
