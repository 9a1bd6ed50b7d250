"""Activations whose backward pass is not their forward's own; first of all NSReLU.

NSReLU is ReLU forward and leaky ReLU backward::

    forward   y  = max(x, 0)
    backward  dx = g           where x > 0
                   leak * g    where x <= 0, so also at 0 and -0.0

`IMPLS` holds four implementations of it, which give the same numbers. NaN stays NaN, and has no
defined gradient. No implementation may skip its backward because ``x.requires_grad`` is False:
under ``torch.func`` and in forward mode that flag is False, yet the tensor is differentiated.

`surrogate` pairs any other functions, in the same four implementations (`PAIR_IMPLS`).
named_functions.py has those with a name; gates.py says where a gradient passes below 0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from nsrelu_bench.activations.autograd import Applier
from nsrelu_bench.activations.gates import gated_nsrelu, gated_surrogate
from nsrelu_bench.activations.named_functions import FUNCTIONS, check_dtype, relu_of_input
from nsrelu_bench.activations.own import load_own
from nsrelu_bench.config import (
    GATES,
    LEARNABLE,
    ActivationSpec,
    FunctionSpec,
    check_parameter,
    parse_activation,
)
from nsrelu_bench.errors import UsageError, lookup

Elementwise = Callable[[Tensor], Tensor]


def nsrelu(
    x: Tensor,
    leak: float = 0.1,
    impl: str = "native",
    gate: str = "always",
    unit_axis: int | None = None,
) -> Tensor:
    """Apply NSReLU: max(x, 0), with the gradient of leaky ReLU; 0 at 0, slope `leak` there.

    Leak 0 is ReLU, leak 1 the straight-through estimator.

    Args:
        x: Any shape; the result has the same.
        leak: The slope of the gradient below 0.
        impl: How it is computed: a name in `IMPLS`; "native" with a gate.
        gate: Where the leak passes: a name in `config.GATES`.
        unit_axis: The axis of the units, for the gates "dead", "rescue" and "net_rescue"; only for
            an input of two dimensions it need not be given.

    Raises:
        UsageError: An argument is out of range or unknown, or the axis of the units is not certain.
        TypeError: `x` is not of a floating-point type.
    """
    check_dtype(x)
    compute = lookup(IMPLS, impl, "implementation")
    if check_gate(gate, impl, leak) == "always":
        return compute(x, check_parameter("leak", leak))
    return gated_nsrelu(x, check_parameter("leak", leak), gate, unit_axis)


def nsrelu_(
    x: Tensor, leak: float = 0.1, gate: str = "always", unit_axis: int | None = None
) -> Tensor:
    """Apply `nsrelu` in place; autograd then keeps one tensor, the result, as it does for ReLU.

    Raises:
        UsageError: As for `nsrelu`.
        TypeError: `x` is not of a floating-point type.
        RuntimeError: `x` may not be changed in place, for instance a leaf that requires grad.
    """
    check_dtype(x)
    leak = check_parameter("leak", leak)
    if x.is_leaf and x.requires_grad and torch.is_grad_enabled():
        return F.relu_(x)  # raises, as it should: before the values are touched
    if check_gate(gate, "native", leak) != "always":
        return gated_nsrelu(x, leak, gate, unit_axis, inplace=True)
    # The values first, hidden from autograd but not from its version counter: a backward that has
    # saved x raises. leaky_relu_ then changes no value, since none is negative; it saves its result
    # and reads only "result > 0" from it, which is "x > 0".
    x.detach().relu_()
    return F.leaky_relu_(x, leak)


def surrogate(
    x: Tensor,
    forward: str | FunctionSpec | Elementwise = "relu",
    backward: str | FunctionSpec | Elementwise | None = None,
    impl: str = "native",
    training: bool = True,
    gate: str | None = None,
    unit_axis: int | None = None,
) -> Tensor:
    """Return `forward` of `x` with the gradient of `backward`.

    Args:
        x: Any shape; the result has the same.
        forward: A name with its parameters, such as "bsilu(1.67)", or a function that works element
            by element. Without a `backward` it may name a pair: "relu/gelu@up".
        backward: The same; `from_derivative` makes one of a derivative.
        impl: How it is computed: a name in `PAIR_IMPLS`; "native" with a gate.
        training: Whether "rrelu" draws its slopes; otherwise it takes their mean.
        gate: Where the gradient passes below 0: a name in `config.GATES`. The forward is relu then.
        unit_axis: As for `nsrelu`.

    Raises:
        UsageError: A name or a parameter is wrong, or the axis of the units is not certain.
        TypeError: `x` is not of a floating-point type.
    """
    first, second, gate = resolve_pair(forward, backward, gate)
    return apply_pair(x, first, second, impl, training, gate, unit_axis)


def from_derivative(derivative: Elementwise) -> Elementwise:
    """Make a backward of a derivative: a function to be used for its gradient, not its values."""
    return partial(_with_slope, derivative=derivative)


def multiplication_trick(x: Tensor, forward: Elementwise, derivative: Elementwise) -> Tensor:
    """Return `forward` of `x` with the gradient of `derivative`, without a Function; to learn from.

    NaN where x * derivative(x) is infinite; second derivatives are 0. `x` itself gets the gradient
    ``g * derivative(x)``, as from every implementation of the pair.

    Source: arXiv 2406.00177, m = x * stop(d(x)), y = m - stop(m) + stop(f(x)).
    """
    m = x * derivative(x.detach())
    return m - m.detach() + forward(x.detach())


class FWBWMismatch(Function):
    """Return `x_forward`, and send the gradient to `x_backward`, summed to its shape.

    The shape of `x_backward` must broadcast to that of `x_forward`. The result shares the memory
    of `x_forward`, which gets no gradient.

    Raises:
        ValueError: The shapes don't fit.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x_forward: Tensor, x_backward: Tensor) -> Tensor:
        """Return `x_forward`."""
        if not _broadcasts(x_backward.shape, x_forward.shape):
            raise ValueError(
                f"x_backward of shape {tuple(x_backward.shape)} does not broadcast to x_forward"
                f" of shape {tuple(x_forward.shape)}"
            )
        # A view of an input could not be changed in place afterwards (dropout does that).
        return x_forward.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Remember the shapes; no tensor is kept."""
        ctx.shape = output.shape
        ctx.shape_backward = inputs[1].shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        """Give all of the gradient to `x_backward`."""
        return None, grad.sum_to_size(ctx.shape_backward)

    @staticmethod
    def jvp(ctx: Any, _: Tensor, tangent: Tensor) -> Tensor:
        """Pass on the tangent of `x_backward`."""
        return tangent.expand(ctx.shape)


_mismatch = Applier(FWBWMismatch)


class NSReLUFunction(Function):
    """NSReLU as a Function that keeps its result, whose sign is all that the backward needs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, leak: float) -> Tensor:  # noqa: ARG004 (the backward's)
        """Return max(x, 0)."""
        return F.relu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        """Keep the result."""
        ctx.leak = inputs[1]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient, times `leak` where x <= 0."""
        return _slope(ctx, grad), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        """Return the tangent, times `leak` where x <= 0."""
        return _slope(ctx, tangent)


_nsrelu_function = Applier(NSReLUFunction)


def _slope(ctx: Any, grad: Tensor) -> Tensor:
    """Return `grad` where y > 0, leak * grad elsewhere: one kernel; torch.where takes three."""
    (y,) = ctx.saved_tensors
    result: Tensor = torch.ops.aten.leaky_relu_backward(grad, y, ctx.leak, True)
    return result


class SurrogateFunction(Function):
    """Any values with any gradient, as a Function that keeps its input.

    It takes the input, a function of it, and ``slope(x, grad)``, which is linear in grad.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, forward: Elementwise, slope: Callable[..., Tensor]) -> Tensor:  # noqa: ARG004
        """Return the values."""
        return forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        """Keep the input."""
        x, _, ctx.slope = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient times the slope."""
        return ctx.slope(*ctx.saved_tensors, grad), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        """Return the tangent times the slope: for a function of one element they are the same."""
        slope: Tensor = ctx.slope(*ctx.saved_tensors, tangent)
        return slope


_surrogate_function = Applier(SurrogateFunction)


def _native(x: Tensor, leak: float) -> Tensor:
    """Let autograd record PyTorch's own leaky ReLU, then overwrite the values."""
    if leak == 0:
        return F.relu(x)  # the same by definition; leaky_relu(-inf, 0) is NaN
    y = F.leaky_relu(x, leak)
    y.detach().relu_()
    return y


def _pair_native(x: Tensor, forward: Elementwise, backward: Elementwise) -> Tensor:
    """Let autograd record the backward function, then overwrite the values.

    Allowed where the gradient is computed from the input, not from the result; where it is not,
    autograd says that the result was modified.
    """
    y = backward(x)
    y.detach().copy_(forward(x.detach()))
    return y


def _pair_detach(x: Tensor, forward: Elementwise, backward: Elementwise) -> Tensor:
    """Add the difference of the values as a constant; rounds once more, NaN at infinities.

    The order matters: ``f.detach() + b - b.detach()`` overflows from half the largest number on.
    """
    b = backward(x)
    return b + (forward(x.detach()) - b.detach())


def _pair_function(x: Tensor, forward: Elementwise, backward: Elementwise) -> Tensor:
    """Compute the slope in the backward pass, by a pull-back of its own.

    Not under `torch.func`: a pull-back inside of one that has left its transform is an internal
    error of PyTorch. There the other Function gives the same gradients.
    """
    if torch._C._are_functorch_transforms_active():
        return _pair_mismatch(x, forward, backward)
    return _surrogate_function(x, forward, partial(_pull_back, backward))


def _pair_mismatch(x: Tensor, forward: Elementwise, backward: Elementwise) -> Tensor:
    return _mismatch(forward(x.detach()), backward(x))


def _pull_back(backward: Elementwise, x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient at `x` for the gradient at `backward` of `x`."""
    pull_back = torch.func.vjp(backward, x)[1]
    gradient: Tensor = pull_back(grad)[0]
    return gradient


def _with_slope(x: Tensor, derivative: Elementwise) -> Tensor:
    return _surrogate_function(x, torch.clone, lambda x, grad: grad * derivative(x))


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size in (1, wanted) for size, wanted in pairs)


# One of the two functions of a pair.
_Part = FunctionSpec | Elementwise


def check_gate(gate: str, impl: str, leak: float) -> str:
    """Return the name of a gate for NSReLU; raise UsageError unless it exists and makes sense."""
    if gate not in GATES or (gate != "always" and leak == 0):
        lookup(GATES, gate, "gate")
        ActivationSpec(FunctionSpec("relu"), FunctionSpec("leaky_relu", (leak,)), gate)
    check_gate_impl(gate, impl)
    return gate


def check_gate_impl(gate: str, impl: str) -> None:
    """Raise UsageError for an implementation other than "native" with a gate."""
    if gate != "always" and impl != "native":
        raise UsageError(f"gate {gate!r} needs implementation 'native', got {impl!r}")


def resolve_pair(
    forward: str | FunctionSpec | Elementwise,
    backward: str | FunctionSpec | Elementwise | None,
    gate: str | None = None,
) -> tuple[_Part, _Part, str]:
    """Parse the names among the two functions of a pair; return both and the gate."""
    if isinstance(forward, str) and (backward is None or isinstance(backward, str)):
        spec = parse_activation(forward, backward=backward, gate=gate)
        first, second, gate = spec.forward, spec.backward, spec.gate
        parts: tuple[_Part, _Part] = first, second
    else:
        one = _resolve_part("forward", forward)
        parts = one, one if backward is None else _resolve_part("backward", backward)
        gate = gate or "always"
        if all(isinstance(part, FunctionSpec) for part in parts):
            ActivationSpec(*parts, gate)  # type: ignore[arg-type]
        elif lookup(GATES, gate, "gate") and gate != "always" and one != FunctionSpec("relu"):
            name = getattr(one, "__name__", one)
            raise UsageError(f"gate {gate!r} needs a forward of relu, got {name}")
    for part in parts:
        if isinstance(part, FunctionSpec) and part.name in LEARNABLE:
            raise UsageError(f"{part.name} has a weight of its own: build('{part}') makes a module")
    one = load_own(parts[0])
    return one, one if parts[0] == parts[1] else load_own(parts[1]), gate


def _resolve_part(kind: str, part: str | FunctionSpec | Elementwise) -> _Part:
    if not isinstance(part, str):
        return part
    spec = parse_activation(part)
    if not spec.tied:
        raise UsageError(f"{kind} must be one function, got the pair {part!r}")
    return spec.forward


def apply_pair(
    x: Tensor,
    forward: _Part,
    backward: _Part,
    impl: str,
    training: bool,
    gate: str = "always",
    unit_axis: int | None = None,
) -> Tensor:
    """Return `forward` of `x` with the gradient of `backward`, as `impl` computes it."""
    check_dtype(x)
    lookup(IMPLS, impl, "implementation")
    if forward == backward:
        return _bind(forward, training)(x)
    check_gate_impl(gate, impl)
    if (
        forward == FunctionSpec("relu")
        and isinstance(backward, FunctionSpec)
        and backward.name == "leaky_relu"
    ):
        (leak,) = backward.parameters
        if gate == "always":
            return IMPLS[impl](x, leak)
        return gated_nsrelu(x, leak, gate, unit_axis)
    if gate != "always":
        return gated_surrogate(x, partial(_pull_back, _bind(backward, training)), gate, unit_axis)
    if backward == FunctionSpec("relu"):
        backward = relu_of_input
    elif impl == "native" and not isinstance(backward, FunctionSpec):
        impl = "mismatch"  # an unknown function may return its input, or keep its result
    return PAIR_IMPLS[impl](x, _bind(forward, training), _bind(backward, training))


def _bind(part: _Part, training: bool) -> Elementwise:
    """Return a function of the input alone."""
    if not isinstance(part, FunctionSpec):
        return part
    function = FUNCTIONS[part.name]
    parameters = (*part.parameters, training) if part.name == "rrelu" else part.parameters
    return lambda x: function(x, *parameters)


# The implementations of NSReLU: f(x, leak).
IMPLS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "native": _native,
    "detach": lambda x, leak: _pair_detach(x, F.relu, partial(F.leaky_relu, negative_slope=leak)),
    "function": _nsrelu_function,
    "mismatch": lambda x, leak: _mismatch(F.relu(x.detach()), F.leaky_relu(x, leak)),
}

# The same of any other pair: f(x, forward, backward).
PAIR_IMPLS: dict[str, Callable[[Tensor, Elementwise, Elementwise], Tensor]] = {
    "native": _pair_native,
    "detach": _pair_detach,
    "function": _pair_function,
    "mismatch": _pair_mismatch,
}
