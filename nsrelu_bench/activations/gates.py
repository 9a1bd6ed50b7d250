"""Gates: where a surrogate of ReLU passes on a gradient below 0 (`config.GATES`).

With g the gradient at the output and s the gradient that the surrogate computes of it::

    dx = s   where x > 0
         s   where x <= 0 and the gate lets it pass
         0   elsewhere

    always       everywhere
    up           where g < 0 and s < 0, so that descent raises x
    dead         at units that are off for the whole batch
    rescue       at units that are off for the whole batch, where g < 0 and s < 0
    net_rescue   at units that are off for the whole batch, if the sums of g and of s over it are
                 both < 0, so that descent raises the unit on the whole
    down         where g > 0 and s > 0, so that descent lowers x

A unit is off where x <= 0. The whole batch is what one call sees: all axes but that of the units.
Under `torch.func.vmap` each slice is a batch of its own. A gate reads the sign of g: gradients have
derivatives, as those of any surrogate, but there is no forward mode.

The sums of "net_rescue" are computed in float32, in float64 of float64. A sum that is 0 but for
rounding has the sign that the order of summation gives it, which may differ between the forms here,
devices and versions of PyTorch: such a unit passes all of its gradient or nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from nsrelu_bench.activations.autograd import Applier, is_plain
from nsrelu_bench.errors import UsageError


class Rule(NamedTuple):
    """Where a gate lets the gradient pass below 0.

    Attributes:
        moves_x: The way that descent moves x there: 1 up only, -1 down only, 0 both.
        whole_units: Whether only at units that are off for the whole batch.
        net: Whether x moves that way on the whole, by the sums over the batch, and not everywhere.
    """

    moves_x: int
    whole_units: bool
    net: bool = False


#: The rule of each gate; "always" needs none.
RULES = {
    "up": Rule(1, whole_units=False),
    "dead": Rule(0, whole_units=True),
    "rescue": Rule(1, whole_units=True),
    "net_rescue": Rule(1, whole_units=True, net=True),
    "down": Rule(-1, whole_units=False),
}

NO_FORWARD_MODE = "a gate reads the sign of the gradient: there is no forward mode (jvp)"

#: Number of elements of a batch that are searched first for units that are on.
SAMPLE = 2**15


def gated_nsrelu(
    x: Tensor, leak: float, gate: str, unit_axis: int | None = None, *, inplace: bool = False
) -> Tensor:
    """Apply NSReLU with a gate; like ReLU, it keeps only its result for the backward.

    `inplace` allows the input to be overwritten, except for views and under transforms.

    Raises:
        UsageError: The gate needs the axis of the units, and it is not certain.
    """
    axes = batch_axes(x, gate, unit_axis)
    plain = is_plain()
    if inplace and torch.is_grad_enabled() and x.is_leaf and x.requires_grad:
        return F.relu_(x)  # raises, as it should: before the values are touched
    # Overwriting a view would give it another place in the graph.
    inplace = inplace and plain and not (torch.is_grad_enabled() and x._is_view())
    if plain and RULES[gate].whole_units and x.device.type == "cpu":
        return _relu_with_revival(x, leak, gate, axes, inplace=inplace)
    return _gated_nsrelu(x, leak, gate, axes, inplace)


def gated_surrogate(
    x: Tensor, slope: Callable[..., Tensor], gate: str, unit_axis: int | None = None
) -> Tensor:
    """Apply ReLU with the gradient ``slope(x, g)`` and a gate.

    Raises:
        UsageError: The gate needs the axis of the units, and it is not certain.
    """
    return _gated_surrogate(x, slope, gate, batch_axes(x, gate, unit_axis))


def check_unit_axis(unit_axis: int | None) -> int | None:
    """Return `unit_axis`; raise UsageError unless it is a whole number or None."""
    if unit_axis is not None and (isinstance(unit_axis, bool) or not isinstance(unit_axis, int)):
        raise UsageError(f"unit_axis must be a whole number, got {unit_axis!r}")
    return unit_axis


def batch_axes(x: Tensor, gate: str, unit_axis: int | None) -> tuple[int, ...]:
    """Return the axes that make up the batch for a gate on units: all but that of the units.

    In an input (N, F) the units are on axis 1. For other shapes `unit_axis` is needed, since
    (N, T, F) and (N, C, L) look alike. Other gates need no axes.

    Raises:
        UsageError: It is missing, or there is no such axis.
    """
    if not RULES[gate].whole_units:
        return ()
    axis = 1 if unit_axis is None and x.dim() == 2 else unit_axis
    if axis is None or not -x.dim() <= axis < x.dim():
        got = "" if axis is None else f", got {axis}"
        raise UsageError(
            f"gate {gate!r} needs unit_axis for an input of shape {tuple(x.shape)}: 1 for the"
            f" channels of a convolution, -1 for the features of a linear layer{got}"
        )
    axes = list(range(x.dim()))
    del axes[axis]
    return tuple(axes)


class GatedNSReLUFunction(Function):
    """NSReLU with a gate; keeps its result, whose sign is all that the backward needs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        leak: float,  # noqa: ARG004 (the backward's, as the two that follow)
        gate: str,  # noqa: ARG004
        axes: tuple[int, ...],  # noqa: ARG004
        inplace: bool,
    ) -> Tensor:
        """Return max(x, 0)."""
        return F.relu(x, inplace=inplace)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the result."""
        x, ctx.leak, ctx.gate, ctx.axes, inplace = inputs
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient that the gate leaves."""
        (y,) = ctx.saved_tensors
        rule = RULES[ctx.gate]
        single = rule.moves_x and not rule.whole_units
        if single and is_plain() and not torch.is_grad_enabled():
            return _gate_in_one_buffer(grad, y, ctx.leak, ctx.gate), None, None, None, None
        # The leak last: no sign depends on it, and sums over a batch not on how it is rounded.
        gated = _gate(grad, grad, y, ctx.gate, ctx.axes)
        return _leaky_slope(gated, y, ctx.leak, True), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Tensor:
        """Refuse: a tangent has no sign that a gate could read."""
        raise NotImplementedError(NO_FORWARD_MODE)


_gated_nsrelu = Applier(GatedNSReLUFunction)


class GatedSurrogateFunction(Function):
    """ReLU with the gradient ``slope(x, g)`` and a gate; keeps its input."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        slope: Callable[..., Tensor],  # noqa: ARG004 (the backward's, as those that follow)
        gate: str,  # noqa: ARG004
        axes: tuple[int, ...],  # noqa: ARG004
    ) -> Tensor:
        """Return max(x, 0)."""
        return F.relu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        """Keep the input."""
        x, ctx.slope, ctx.gate, ctx.axes = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient that the gate leaves."""
        (x,) = ctx.saved_tensors
        return _gate(ctx.slope(x, grad), grad, x, ctx.gate, ctx.axes), None, None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Tensor:
        """Refuse: a tangent has no sign that a gate could read."""
        raise NotImplementedError(NO_FORWARD_MODE)


_gated_surrogate = Applier(GatedSurrogateFunction)


def _gate(
    surrogate: Tensor, grad: Tensor, saved: Tensor, gate: str, axes: tuple[int, ...]
) -> Tensor:
    """Return what a gate leaves of a surrogate's gradient; `saved` is ReLU's input or output."""
    rule = RULES[gate]
    passes: Tensor | bool = True
    if rule.whole_units:
        passes = (saved.amax(axes, keepdim=True) if axes and saved.numel() else saved) <= 0
    # That of NSReLU, whose slope comes last, is the gradient itself: once is enough.
    for values in (grad,) if surrogate is grad else (grad, surrogate):
        moving = _sum(values, axes) if rule.net else values
        if rule.moves_x > 0:
            passes = passes & (moving < 0)
        elif rule.moves_x < 0:
            passes = passes & (moving > 0)
    return torch.where((saved > 0) | passes, surrogate, 0)


def _sum(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the sum over the batch for each unit, in float32 at least."""
    precision = torch.promote_types(values.dtype, torch.float32)
    # Without axes torch.sum would take all of them.
    return values.sum(axes, keepdim=True, dtype=precision) if axes else values


def _gate_in_one_buffer(grad: Tensor, y: Tensor, leak: float, gate: str) -> Tensor:
    """Return what `_gate` does for NSReLU at single elements, in one buffer and three kernels.

    ReLU's gradient is `grad` above 0 and 0 below: the smaller of it and `grad` is `grad` above 0
    and its negative part below, the larger its positive part.
    """
    dx: Tensor = _relu_slope(grad, y, 0)
    clip = torch.minimum if RULES[gate].moves_x > 0 else torch.maximum
    clip(grad, dx, out=dx)
    result: Tensor = _leaky_slope_into(dx, y, leak, True, grad_input=dx)
    return result


def _relu_with_revival(
    x: Tensor, leak: float, gate: str, axes: tuple[int, ...], *, inplace: bool
) -> Tensor:
    """Apply ReLU itself, and add a gradient only where there are units that are off everywhere.

    Most batches have none: then the backward is ReLU's own.
    """
    y = torch.relu_(x) if inplace else torch.relu(x)
    node = y.grad_fn
    if node is not None and y.numel():
        highest = _highest_unless_all_on(y.detach(), axes)
        if highest is not None:
            node.register_hook(partial(_revive, highest, axes, leak, gate))
    return y


def _highest_unless_all_on(y: Tensor, axes: tuple[int, ...]) -> Tensor | None:
    """Return the highest output of each unit in a batch; None where all units are on somewhere."""
    if y.numel() > 4 * SAMPLE and 0 in axes:
        sample = y[: max(1, len(y) * SAMPLE // y.numel())]
        if sample.amax(axes).min().item() > 0:
            return None
    highest = y.amax(axes, keepdim=True) if axes else y
    return None if highest.min().item() > 0 else highest


def _revive(
    highest: Tensor,
    axes: tuple[int, ...],
    leak: float,
    gate: str,
    grad_inputs: tuple[Tensor | None, ...],
    grad_outputs: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...] | None:
    """Add the gradient of dead units to ReLU's, which is 0 there."""
    (dx,), (grad,) = grad_inputs, grad_outputs
    if dx is None or grad is None:
        return None
    rule, passes, dead = RULES[gate], grad, highest == 0
    if rule.net:
        dead = dead & (rule.moves_x * _sum(grad, axes) < 0)
    elif rule.moves_x:
        passes = grad.clamp(max=0) if rule.moves_x > 0 else grad.clamp(min=0)
    return (dx.addcmul_(passes, dead.to(grad.dtype), value=leak),)


_relu_slope = torch.ops.aten.threshold_backward.default
_leaky_slope = torch.ops.aten.leaky_relu_backward.default
_leaky_slope_into = torch.ops.aten.leaky_relu_backward.grad_input
