"""Leaky ReLU written in three ways, which differ in the gradient at 0.

PyTorch's own gives negative_slope there. A comparison of activations that writes its own leaky ReLU
compares this too.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def leaky_relu_clamp(x: Tensor, negative_slope: float = 0.1) -> Tensor:
    """Leaky ReLU as a sum of two clamps; its gradient at 0 is not negative_slope.

    There it is 0, as what clamp passes at its bound (PyTorch 2.15), or 1 + negative_slope where
    clamp passes everything.

    Source: PyTorch's documentation of LeakyReLU, max(0, x) + negative_slope * min(0, x).
    """
    return x.clamp(min=0) + negative_slope * x.clamp(max=0)


def leaky_relu_where(x: Tensor, negative_slope: float = 0.1) -> Tensor:
    """Leaky ReLU as a choice between two values; its gradient at 0 is 1."""
    return torch.where(x < 0, negative_slope * x, x)


class LeakyReLUFunction(Function):
    """Leaky ReLU as a Function; its gradient at 0 is negative_slope, as PyTorch's.

    The gradient for x <= 0 is ``+negative_slope``; a minus there is a common mistake.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, negative_slope: float) -> Tensor:
        """Return x where x > 0, negative_slope * x elsewhere."""
        return torch.where(x > 0, x, negative_slope * x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:  # noqa: ARG004
        """Keep the input."""
        x, ctx.negative_slope = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient, times negative_slope where x <= 0."""
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, grad, ctx.negative_slope * grad), None
