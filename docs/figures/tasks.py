"""Draw tasks.png and random_labels.png: accuracy task by task.

python docs/figures/tasks.py
"""

from pathlib import Path

import pandas as pd
from bands import draw_median
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
FINDINGS = HERE.parents[1] / "findings"

#: Settings beside the activation; colour, line and text of the legend.
Arm = tuple[str, dict[str, object], str, str]

PERMUTED_DIGITS: list[Arm] = [
    ("leaky_relu(0.1)", {}, "-", "LeakyReLU: no zeros"),
    ("relu", {"weight_decay": 1e-4}, "--", "ReLU with L2: half of the units dead"),
    ("rescue(0.1)", {}, "-", "rescue: 85 % zeros, no dead unit"),
    ("relu", {"redo": 100}, ":", "ReLU with ReDo"),
    ("relu", {}, "-", "ReLU"),
    ("nsrelu(0.1)", {}, "-", "NSReLU"),
]
RANDOM_LABELS: list[Arm] = [
    ("rescue(0.1)", {}, "-", "rescue"),
    ("leaky_relu(0.1)", {}, "-", "LeakyReLU"),
    ("relu", {"layer_norm": True}, "-.", "ReLU with layer norm"),
    ("relu", {"redo": 97}, ":", "ReLU with ReDo"),
    ("relu", {"weight_decay": 1e-4}, "--", "ReLU with L2"),
    ("nsrelu(0.1)", {}, "-", "NSReLU"),
    ("relu", {}, "-", "ReLU"),
]


def draw_tasks(ax: Axes, tasks: pd.DataFrame, arms: list[Arm]) -> None:
    """Draw the median over the seeds of each arm, and the range of those with a full line."""
    settings = tasks.columns[1 : tasks.columns.get_loc("seed")].drop("lr", errors="ignore")
    for act, others, dashes, name in arms:
        chosen = {"act": act, **dict.fromkeys(settings, 0), **others}
        arm = tasks[(tasks[list(chosen)] == pd.Series(chosen)).all(axis=1)]
        by_task = 100 * arm.pivot_table(index="task", columns="seed", values="test_accuracy")
        draw_median(ax, by_task, act, dashes, name, band=dashes == "-")
    ax.set(xlabel="task", ylim=(0, 101), xlim=(1, tasks["task"].max()))
    ax.spines[["top", "right"]].set_visible(False)


def permuted_digits() -> Figure:
    """Draw a hundred permuted tasks."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    ax = figure.subplots()
    draw_tasks(ax, pd.read_csv(FINDINGS / "tasks" / "tasks.csv"), PERMUTED_DIGITS)
    ax.set_ylabel("test accuracy (%)")
    ax.set_title(
        "A hundred permuted tasks: median of 6 seeds, band from lowest to highest", size=11
    )
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.22), ncols=2, fontsize=9)
    return figure


def random_labels() -> Figure:
    """Draw random labels memorised over twenty tasks, at two learning rates."""
    tasks = pd.read_csv(FINDINGS / "random_labels" / "tasks.csv")
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots(ncols=2, sharey=True)
    for ax, (lr, part) in zip(axes, tasks.groupby("lr"), strict=True):
        draw_tasks(ax, part, RANDOM_LABELS)
        ax.set_title(f"Adam, learning rate {lr:g}", size=10)
        ax.set_xticks([1, 5, 10, 15, 20])
    axes[0].set_ylabel("memorised (%)")
    figure.suptitle(
        "Random labels, memorised anew 20 times: median of 8 seeds, band from lowest to highest",
        size=11,
    )
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        frameon=False,
        loc="outside lower center",
        ncols=4,
        fontsize=9,
    )
    return figure


if __name__ == "__main__":
    permuted_digits().savefig(HERE / "tasks.png", dpi=130)
    random_labels().savefig(HERE / "random_labels.png", dpi=130)
