"""Layers in front of a ReLU that keep a surrogate's gradient to themselves.

Where the activation is off, a surrogate's gradient trains the weights and the bias of the unit, but
is not passed on to the layers below. Those get the gradient of the units that are on: of NSReLU
the true one. The cost is one more kernel per layer; the matrix products are the same.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from nsrelu_bench.activations.autograd import Applier
from nsrelu_bench.errors import UsageError


class LocalLinear(nn.Linear):
    """`nn.Linear` directly in front of a surrogate of ReLU, which must not overwrite its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b, (..., F)."""
        return _local_linear(x, self.weight, self.bias)


class LocalConv2d(nn.Conv2d):
    """`nn.Conv2d` directly in front of a surrogate of ReLU, which must not overwrite its input.

    Raises:
        UsageError: The padding is not zeros, or has no numbers.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            raise UsageError(
                "LocalConv2d takes a number of zeros as padding,"
                f" got padding={self.padding!r}, padding_mode={self.padding_mode!r}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution, (N, C, H, W)."""
        settings = (self.stride, self.padding, self.dilation, self.groups)
        return _local_conv2d(x, self.weight, self.bias, settings)


class LocalLinearFunction(Function):
    """A linear layer that passes on to its input only the gradient of outputs above 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W^T + b."""
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the input, the weights and the output."""
        ctx.save_for_backward(*inputs[:2], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of the input, the weights and the bias."""
        x, weight, y = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dx = dweight = dbias = None
        if needs_x:
            dx = (_on(grad, y) @ weight.to(grad.dtype)).to(x.dtype)
        flat = grad.flatten(0, -2)
        if needs_weight:
            dweight = (flat.t() @ x.flatten(0, -2).to(grad.dtype)).to(weight.dtype)
        if needs_bias:
            dbias = flat.sum(0).to(weight.dtype)
        return dx, dweight, dbias


_local_linear = Applier(LocalLinearFunction)


class LocalConv2dFunction(Function):
    """A convolution that passes on to its input only the gradient of outputs above 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]
    ) -> Tensor:
        """Return the convolution."""
        return F.conv2d(x, weight, bias, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the input, the weights and the output."""
        ctx.settings = inputs[3]
        ctx.save_for_backward(*inputs[:2], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input, the weights and the bias."""
        x, weight, y = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        stride, padding, dilation, groups = ctx.settings
        same = x.to(grad.dtype), weight.to(grad.dtype)
        rest = [len(weight)], stride, padding, dilation, False, [0, 0], groups
        dx = dweight = dbias = None
        backward = torch.ops.aten.convolution_backward
        if needs_x:
            dx = backward(_on(grad, y), *same, *rest, [True, False, False])[0].to(x.dtype)
        if needs_weight or needs_bias:
            _, dweight, dbias = backward(grad, *same, *rest, [False, needs_weight, needs_bias])
            dweight, dbias = (
                part if part is None else part.to(weight.dtype) for part in (dweight, dbias)
            )
        return dx, dweight, dbias, None


_local_conv2d = Applier(LocalConv2dFunction)


def _on(grad: Tensor, y: Tensor) -> Tensor:
    """Return `grad` where y > 0, 0 elsewhere."""
    result: Tensor = torch.ops.aten.threshold_backward(grad, y, 0)
    return result
