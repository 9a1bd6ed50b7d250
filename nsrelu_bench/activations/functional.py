"""Activations whose backward pass is not their forward's own; first of all NSReLU.

NSReLU is ReLU forward and leaky ReLU backward::

    forward   y  = max(x, 0)
    backward  dx = g           where x > 0
                   leak * g    where x <= 0, so also at 0 and -0.0

`IMPLS` holds four formulations of it, which give the same numbers. NaN stays NaN, and has no
defined gradient. No formulation may skip its backward because ``x.requires_grad`` is False: under
``torch.func`` and in forward mode a tensor says so and is differentiated all the same.

`surrogate` makes any other pair of functions, in the same four formulations (`PAIR_IMPLS`). The
functions that have a name stand in `FUNCTIONS`; docs/activations.md has a card of each.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from nsrelu_bench.config import LEARNABLE, FunctionSpec, check_parameter, parse_activation
from nsrelu_bench.errors import UsageError, lookup

Elementwise = Callable[[Tensor], Tensor]


def nsrelu(x: Tensor, leak: float = 0.1, impl: str = "native") -> Tensor:
    """Apply NSReLU: max(x, 0), with the gradient of leaky ReLU; 0 at 0, slope `leak` there.

    Takes any shape and returns the same. Leak 0 is ReLU, leak 1 the straight-through estimator.

    Raises:
        UsageError: `leak` is not from 0 to 1, or there is no such `impl`.
        TypeError: `x` is not of a floating-point type.
    """
    check_dtype(x)
    return lookup(IMPLS, impl, "implementation")(x, check_parameter("leak", leak))


def nsrelu_(x: Tensor, leak: float = 0.1) -> Tensor:
    """Apply `nsrelu` in place; autograd then keeps one tensor, the result, as it does for ReLU.

    Raises:
        UsageError: `leak` is not from 0 to 1.
        TypeError: `x` is not of a floating-point type.
        RuntimeError: `x` may not be changed in place, for instance a leaf that requires grad.
    """
    check_dtype(x)
    leak = check_parameter("leak", leak)
    if x.is_leaf and x.requires_grad and torch.is_grad_enabled():
        return F.relu_(x)  # raises, as it should: before the values are touched
    # The values first, out of autograd's sight but not of its version counter: whoever has saved
    # x for a backward is told. leaky_relu_ then changes no value, since none is negative; it saves
    # its result and reads only "result > 0" from it, which is "x > 0".
    x.detach().relu_()
    return F.leaky_relu_(x, leak)


def surrogate(
    x: Tensor,
    forward: str | Elementwise = "relu",
    backward: str | Elementwise | None = None,
    impl: str = "native",
    training: bool = True,
) -> Tensor:
    """Return `forward` of `x` with the gradient of `backward`; of any shape, and the same.

    Either is a name with its parameters, such as "bsilu(1.67)", or a function that works element
    by element; `from_derivative` makes one of a derivative. Without a `backward`, `forward` may
    name a pair: "relu/gelu". `training` says whether "rrelu" draws its slopes or takes the mean.

    Raises:
        UsageError: A name or a parameter is wrong, or there is no such `impl`.
        TypeError: `x` is not of a floating-point type.
    """
    return apply_pair(x, *resolve_pair(forward, backward), impl, training)


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


# torch.compile traces no Function that has a jvp; these are the same without.
class _TracedMismatch(FWBWMismatch):
    jvp = staticmethod(Function.jvp)  # type: ignore[assignment]


class _TracedNSReLU(NSReLUFunction):
    jvp = staticmethod(Function.jvp)  # type: ignore[assignment]


class _TracedSurrogate(SurrogateFunction):
    jvp = staticmethod(Function.jvp)  # type: ignore[assignment]


def _native(x: Tensor, leak: float) -> Tensor:
    """Let autograd record PyTorch's own leaky ReLU, then overwrite the values."""
    if leak == 0:
        return F.relu(x)  # the same by definition; leaky_relu(-inf, 0) is NaN
    y = F.leaky_relu(x, leak)
    y.detach().relu_()
    return y


def _detach(x: Tensor, leak: float) -> Tensor:
    """Add the difference of the values as a constant; NaN at infinities.

    The order matters: ``f.detach() + b - b.detach()`` overflows from half the largest number on.
    """
    b = F.leaky_relu(x, leak)
    return b + (F.relu(x) - b).detach()


def _function(x: Tensor, leak: float) -> Tensor:
    function = _TracedNSReLU if torch.compiler.is_compiling() else NSReLUFunction
    y: Tensor = function.apply(x, leak)
    return y


def _mismatch(x_forward: Tensor, x_backward: Tensor) -> Tensor:
    function = _TracedMismatch if torch.compiler.is_compiling() else FWBWMismatch
    y: Tensor = function.apply(x_forward, x_backward)
    return y


def _nsrelu_mismatch(x: Tensor, leak: float) -> Tensor:
    return _mismatch(F.relu(x.detach()), F.leaky_relu(x, leak))


def _pair_native(x: Tensor, forward: Elementwise, backward: Elementwise) -> Tensor:
    """Let autograd record the backward function, then overwrite the values.

    Allowed where the gradient is computed from the input, not from the result; where it is not,
    autograd says that the result was modified.
    """
    y = backward(x)
    y.detach().copy_(forward(x.detach()))
    return y


def _pair_detach(x: Tensor, forward: Elementwise, backward: Elementwise) -> Tensor:
    """Add the difference of the values as a constant; rounds once more, NaN at infinities."""
    b = backward(x)
    return b + (forward(x.detach()) - b.detach())


def _pair_function(x: Tensor, forward: Elementwise, backward: Elementwise) -> Tensor:
    return _slope_function(x, forward, partial(_pull_back, backward))


def _pair_mismatch(x: Tensor, forward: Elementwise, backward: Elementwise) -> Tensor:
    return _mismatch(forward(x.detach()), backward(x))


def _pull_back(backward: Elementwise, x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient at `x` for the gradient at `backward` of `x`."""
    pull_back = torch.func.vjp(backward, x)[1]
    gradient: Tensor = pull_back(grad)[0]
    return gradient


def _with_slope(x: Tensor, derivative: Elementwise) -> Tensor:
    return _slope_function(x, torch.clone, lambda x, grad: grad * derivative(x))


def _slope_function(x: Tensor, forward: Elementwise, slope: Callable[..., Tensor]) -> Tensor:
    function = _TracedSurrogate if torch.compiler.is_compiling() else SurrogateFunction
    y: Tensor = function.apply(x, forward, slope)
    return y


def bsilu(x: Tensor, alpha: float = 1.67) -> Tensor:
    """B-SiLU: (x + alpha) sigmoid(x) - alpha / 2.

    Source: SUGAR, arXiv 2505.22074, eq. 7.
    """
    return (x + alpha) * x.sigmoid() - alpha / 2


def nelu(x: Tensor, alpha: float = 0.05) -> Tensor:
    """NeLU: x where x > 0, -alpha / (1 + x^2) elsewhere; the slope there is negative, at 0 it is 0.

    Source: SUGAR, arXiv 2505.22074, which uses its derivative, 2 alpha x / (1 + x^2)^2.
    """
    return torch.where(x > 0, x, -alpha / (1 + x * x))


def helu(x: Tensor, alpha: float = 0.05) -> Tensor:
    """Return max(x + alpha, 0), whose slope is 1 where x > -alpha; 0 at -alpha.

    Source: HeLU, arXiv 2411.10573, whose backward it is; the forward there is ReLU.
    """
    return _relu_of_input(x + alpha)


def _relu_of_input(x: Tensor) -> Tensor:
    """ReLU whose gradient is computed from the input, where F.relu's is from the result."""
    return F.threshold(x, 0.0, 0.0)


def leaky_relu_clamp(x: Tensor, negative_slope: float = 0.1) -> Tensor:
    """Leaky ReLU as a sum of two clamps, to learn from; its gradient at 0 is not negative_slope.

    There it is 0, as what clamp passes at its bound (PyTorch 2.15), or 1 + negative_slope where
    clamp passes everything.

    Source: PyTorch's documentation of LeakyReLU, max(0, x) + negative_slope * min(0, x).
    """
    return x.clamp(min=0) + negative_slope * x.clamp(max=0)


def leaky_relu_where(x: Tensor, negative_slope: float = 0.1) -> Tensor:
    """Leaky ReLU as a choice between two values, to learn from; its gradient at 0 is 1."""
    return torch.where(x < 0, negative_slope * x, x)


class LeakyReLUFunction(Function):
    """Leaky ReLU as a Function, to learn from; its gradient at 0 is negative_slope, as PyTorch's.

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


def check_dtype(x: Tensor) -> None:
    """Raise TypeError unless `x` is of a floating-point type."""
    if x.dtype not in DTYPES:
        *most, last, got = [str(dtype).removeprefix("torch.") for dtype in (*DTYPES, x.dtype)]
        raise TypeError(f"activations need a tensor of {', '.join(most)} or {last}, got {got}")


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size in (1, wanted) for size, wanted in pairs)


# One of the two functions of a pair.
_Part = FunctionSpec | Elementwise


def resolve_pair(
    forward: str | Elementwise, backward: str | Elementwise | None
) -> tuple[_Part, _Part]:
    """Read the names among the two functions of a pair."""
    if isinstance(forward, str) and (backward is None or isinstance(backward, str)):
        label = parse_activation(forward, backward=backward)
        pair: tuple[_Part, _Part] = label.forward, label.backward
    else:
        one = parse_activation(forward).forward if isinstance(forward, str) else forward
        other = parse_activation(backward).forward if isinstance(backward, str) else backward
        pair = one, one if other is None else other
    for part in pair:
        if isinstance(part, FunctionSpec) and part.name in LEARNABLE:
            raise UsageError(f"{part.name} has a weight of its own: build('{part}') makes a module")
    return pair


def apply_pair(x: Tensor, forward: _Part, backward: _Part, impl: str, training: bool) -> Tensor:
    """Return `forward` of `x` with the gradient of `backward`, as `impl` computes it."""
    check_dtype(x)
    lookup(IMPLS, impl, "implementation")
    if forward == backward:
        return _bind(forward, training)(x)
    if (
        forward == FunctionSpec("relu")
        and isinstance(backward, FunctionSpec)
        and backward.name == "leaky_relu"
    ):
        return IMPLS[impl](x, *backward.parameters)
    if backward == FunctionSpec("relu"):
        backward = _relu_of_input
    elif impl == "native" and not isinstance(backward, FunctionSpec):
        impl = "mismatch"  # a function that nobody knows may return its input, or keep its result
    return PAIR_IMPLS[impl](x, _bind(forward, training), _bind(backward, training))


def _bind(part: _Part, training: bool) -> Elementwise:
    """Return a function of the input alone."""
    if not isinstance(part, FunctionSpec):
        return part
    function = FUNCTIONS[part.name]
    parameters = (*part.parameters, training) if part.name == "rrelu" else part.parameters
    return lambda x: function(x, *parameters)


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Every function of `config.FUNCTIONS`: f(x, *parameters). Their gradients are computed from the
# input, but for relu's, so that the values can be overwritten.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "identity": torch.clone,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "prelu": F.leaky_relu,
    "rrelu": F.rrelu,
    "bsilu": bsilu,
    "nelu": nelu,
    "helu": helu,
}

# The formulations of NSReLU: f(x, leak).
IMPLS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "native": _native,
    "detach": _detach,
    "function": _function,
    "mismatch": _nsrelu_mismatch,
}

# The same of any other pair: f(x, forward, backward).
PAIR_IMPLS: dict[str, Callable[[Tensor, Elementwise, Elementwise], Tensor]] = {
    "native": _pair_native,
    "detach": _pair_detach,
    "function": _pair_function,
    "mismatch": _pair_mismatch,
}
