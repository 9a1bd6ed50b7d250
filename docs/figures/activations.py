"""Draw activations.png: forward pass and derivative of four activations, as the code computes them.

python docs/figures/activations.py
"""

from itertools import product
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nsrelu_bench.activations import build

LEAK = 0.25  # the default, 0.1, would be hard to see
ACTIVATIONS = {
    "relu": "ReLU",
    f"leaky_relu({LEAK})": "LeakyReLU",
    f"nsrelu({LEAK})": "NSReLU",
    f"rescue({LEAK})": "NSReLU, gate rescue",
}
BLUE, ORANGE = "#1f77b4", "#d95f02"


def slopes(act: str, x: Tensor) -> dict[tuple[bool, float], Tensor]:
    """Return the slope (N,) that the backward pass uses at `x` (N,), each value as a unit.

    By whether another example of the batch turns the unit on, and by the sign of the gradient
    that arrives: negative where the loss wants the unit's output higher.
    """
    found = {}
    for on_elsewhere, sign in product((False, True), (-1.0, 1.0)):
        batch = torch.stack([x, torch.ones_like(x) if on_elsewhere else x]).requires_grad_()
        arriving = torch.full_like(batch, sign)
        (gradient,) = torch.autograd.grad(build(act)(batch), batch, arriving)
        found[on_elsewhere, sign] = gradient[0] / sign
    return found


def draw_derivative(ax: Axes, act: str, off: Tensor, on: Tensor) -> None:
    """Draw what the backward pass uses below and above 0; two lines where it depends on more."""
    below, above = slopes(act, off), slopes(act, on)
    dead, others = below.pop((False, -1.0)), next(iter(below.values()))
    ax.plot(on, above[True, 1.0], color=ORANGE)
    ax.plot(off, others, color=ORANGE)
    if not torch.equal(dead, others):
        ax.plot(off, dead, color=ORANGE, ls="--")
        ax.annotate("dead unit,\nto be raised", (-1.2, LEAK + 0.06), ha="center", fontsize=8)
        ax.annotate("otherwise", (-1.2, -0.06), ha="center", va="top", fontsize=8)


def draw() -> Figure:
    """Draw all activations side by side."""
    off, on = torch.linspace(-2, 0, 201), torch.linspace(0, 2, 202)[1:]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(2, len(ACTIVATIONS), sharex=True, sharey="row")
    for (act, title), upper, lower in zip(ACTIVATIONS.items(), *panels, strict=True):
        x = torch.cat([off, on])
        upper.plot(x, build(act)(x[None])[0], color=BLUE)
        draw_derivative(lower, act, off, on)
        upper.set_title(title, fontsize=10)
        upper.set(xlim=(-2, 2), ylim=(-0.75, 2))
        lower.set(ylim=(-0.4, 1.25), xlabel="x")
        for ax in (upper, lower):
            ax.axhline(0, color="0.8", lw=0.8, zorder=0)
            ax.axvline(0, color="0.8", lw=0.8, zorder=0)
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize=8)
    panels[0, 0].set_ylabel("forward: y")
    panels[1, 0].set_ylabel("backward: dy/dx")
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_suffix(".png"), dpi=160, metadata={"Software": None})
