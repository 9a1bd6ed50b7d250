"""Draw gates.png: where each gate passes the leak to a unit that is off, as the code computes it.

python docs/figures/gates.py
"""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nsrelu_bench import NSReLU
from nsrelu_bench.config import GATES

#: Where a unit is off: its inputs for three examples, and the gradients of the other two. The
#: gradient of the first is -1 or 1, so that theirs decide about the sum.
ROWS = {
    "off for the whole batch,\nsum of g < 0": ((-1.0, -1.0, -1.0), (-2.0, -2.0)),
    "off for the whole batch,\nsum of g > 0": ((-1.0, -1.0, -1.0), (2.0, 2.0)),
    "on for another\nexample": ((-1.0, 1.0, -1.0), (-2.0, -2.0)),
}
COLUMNS = ("higher\n(g < 0)", "lower\n(g > 0)")
ORANGE = "#d95f02"


def passes(gate: str, row: str, sign: float) -> bool:
    """Return whether the leak passes to the first example, for a gradient of this sign."""
    unit, others = ROWS[row]
    x = torch.tensor(unit).view(-1, 1).requires_grad_()
    grad = torch.tensor([sign, *others]).view(-1, 1)
    (gradient,) = torch.autograd.grad(NSReLU(gate=gate)(x), x, grad)
    return bool(gradient[0] != 0)


def draw_gate(ax: Axes, gate: str) -> None:
    """Fill the cases in which the leak passes, with an arrow in the direction of the step of x."""
    for y, row in enumerate(reversed(ROWS)):
        for column, sign in enumerate((-1.0, 1.0)):
            open_ = passes(gate, row, sign)
            color = ORANGE if open_ else "white"
            ax.fill_between([column, column + 1], y, y + 1, color=color, ec="0.6", lw=1)
            if open_:
                tip, tail = (0.8, 0.2) if sign < 0 else (0.2, 0.8)
                ax.annotate(
                    "",
                    (column + 0.5, y + tip),
                    (column + 0.5, y + tail),
                    arrowprops={"arrowstyle": "-|>", "color": "white", "lw": 2},
                )
    ax.set_title(gate, fontsize=10)
    places = [y + 0.5 for y in range(len(ROWS))]
    ax.set(xlim=(0, 2), ylim=(0, len(ROWS)), xticks=[0.5, 1.5], yticks=places, aspect="equal")
    ax.set_xticklabels(COLUMNS, fontsize=8)
    ax.set_yticklabels(list(ROWS)[::-1], fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def draw() -> Figure:
    """Draw all gates side by side."""
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    for ax, gate in zip(figure.subplots(1, len(GATES), sharey=True), GATES, strict=True):
        draw_gate(ax, gate)
    figure.supylabel("the unit is off here and", fontsize=9)
    figure.supxlabel("this example wants its output; the arrow is the step of x", fontsize=9)
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_suffix(".png"), dpi=160, metadata={"Software": None})
