"""Every gate of NSReLU, held against its definition.

The definition is written here once more, in NumPy, and shares nothing with `activations`. What a
gate can't do, and says so, is in `GATE_DIFFERENCES`.
"""

import copy
import pickle
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from nsrelu_bench.activations import DTYPES, NSReLU, surrogate
from nsrelu_bench.config import GATES
from nsrelu_bench.tools import check
from nsrelu_bench.tools.check import Check
from nsrelu_bench.tools.exactness import hold, hold_that, normal, relu_value, subnormals

GATE_LEAKS = (0.01, 0.1, 1.0)

# Raises AssertionError if the gate is not as it should be; returns a remark, mostly empty.
GateCase = Callable[[str], str]


def run_gate_checks(*, compiled: bool = True) -> list[Check]:
    """Check every gate in every case; without `compiled`, not under torch.compile."""
    cases = [case for case in GATE_CASES if compiled or case != "torch.compile"]
    gates = [gate for gate in GATES if gate != "always"]
    return [_check(gate, case) for gate in gates for case in cases]


def _check(gate: str, case: str) -> Check:
    reason, behaves = GATE_DIFFERENCES.get(case, ("", GATE_CASES[case]))
    return check.outcome(gate, case, reason, partial(behaves, gate))


def _gradient(x: Tensor, grad: Tensor, leak: float, gate: str, axis: int = -1) -> Tensor:
    """Return the gradient by the table of the definition; `axis` is that of the units."""
    values = x.detach().double().numpy()
    g = grad.detach().double().numpy()
    batch = tuple(other for other in range(x.dim()) if other != axis % x.dim())
    dead = np.all(values <= 0, axis=batch, keepdims=True) & (values <= 0)
    passes = {
        "up": (values <= 0) & (g < 0),
        "dead": dead,
        "rescue": dead & (g < 0),
        "down": (values <= 0) & (g > 0),
    }[gate]
    precision = np.float64 if x.dtype == torch.float64 else np.float32
    slope = np.where(values > 0, precision(1), np.where(passes, precision(leak), precision(0)))
    return torch.from_numpy(np.asarray(g.astype(precision) * slope)).to(x.dtype)


def _hold(
    module: Callable[[Tensor], Tensor], x: Tensor, leak: float, gate: str, axis: int = -1
) -> None:
    """Hold value and gradient at `x`, for gradients of either sign."""
    x = x.detach().requires_grad_()
    y = module(x)
    hold("value", x, y, relu_value(x))
    grad = normal(y.shape, y.dtype, seed=1)
    for sign in (1, -1):
        (gradient,) = torch.autograd.grad(y, x, sign * grad, retain_graph=True)
        defined = ~x.detach().isnan()
        expected = _gradient(x, sign * grad, leak, gate, axis)
        hold("gradient", x.detach()[defined], gradient[defined], expected[defined])


def _module(gate: str, leak: float = 0.1, axis: int = -1, *, inplace: bool = False) -> NSReLU:
    return NSReLU(leak, inplace=inplace, gate=gate, unit_axis=axis)


def _batch(shape: tuple[int, ...] = (50, 20), axis: int = -1) -> Tensor:
    """Return values with a unit that is off for all examples."""
    x = normal(shape)
    x.select(axis, 0).abs_().neg_()
    return x


def _gradients(gate: str) -> str:
    for leak in GATE_LEAKS:
        _hold(_module(gate, leak), _batch(), leak, gate)
        _hold(_module(gate, leak), _batch((2, 50, 20)), leak, gate)
    return ""


def _batch_of_one(gate: str) -> str:
    _hold(_module(gate), _batch((1, 50)), 0.1, gate)
    return ""


def _points(points: Callable[[torch.finfo], list[float]], gate: str) -> str:
    """Hold the gradient where points are units of one example, and examples of one unit."""
    for dtype in DTYPES:
        row = torch.tensor([points(torch.finfo(dtype))], dtype=dtype)
        for x in (row, row.t().contiguous()):
            _hold(_module(gate), x, 0.1, gate)
    return ""


def _dtype(dtype: torch.dtype, gate: str) -> str:
    largest = torch.finfo(dtype).max
    x = torch.cat([_batch(), torch.zeros(2, 20)]).to(dtype)
    x[-2:, 1:] = torch.tensor([[-largest], [largest]], dtype=dtype)
    for leak in GATE_LEAKS:
        _hold(_module(gate, leak), x, leak, gate)
    return ""


def _non_contiguous(gate: str) -> str:
    _hold(_module(gate), _batch((8, 6), 0).t()[::2], 0.1, gate)
    _hold(_module(gate), normal((6, 1)).expand(6, 8), 0.1, gate)
    return ""


def _channels_last(gate: str) -> str:
    x = _batch((2, 3, 4, 5), 1).contiguous(memory_format=torch.channels_last)
    for inplace in (False, True):
        module = nn.Sequential(check.Clone(), _module(gate, axis=1, inplace=inplace))
        _hold(module, x, 0.1, gate, axis=1)
        y = module(x.requires_grad_())
        (gradient,) = torch.autograd.grad(y.sum(), x)
        for name, tensor in {"value": y, "gradient": gradient}.items():
            kept = tensor.is_contiguous(memory_format=torch.channels_last)
            hold_that(kept, f"{name} is not channels_last")
    return ""


def _empty(gate: str) -> str:
    _hold(_module(gate), normal((0, 3)), 0.1, gate)
    return ""


def _in_place(gate: str) -> str:
    for leak in GATE_LEAKS:
        _hold(nn.Sequential(check.Clone(), _module(gate, leak, inplace=True)), _batch(), leak, gate)
    x = _batch()
    kept = _module(gate, inplace=True)(x).data_ptr() == x.data_ptr()
    hold_that(kept, "the input is not overwritten")
    return ""


def _other_forms(gate: str) -> str:
    pairs = {"relu/leaky_relu(0.1)": 0.1, "relu/identity": 1.0}
    for pair, leak in pairs.items():
        _hold(partial(surrogate, forward=pair, gate=gate), _batch(), leak, gate)
    own = partial(surrogate, forward="relu", backward=partial(torch.mul, 1.0), gate=gate)
    x, grad = _batch().requires_grad_(), normal((50, 20), seed=1)
    (gradient,) = torch.autograd.grad(own(x), x, grad)
    hold("gradient", x, gradient, _gradient(x, grad, 1.0, gate))
    return ""


def _double_backward(gate: str) -> str:
    for leak in GATE_LEAKS:
        x = _batch().double().requires_grad_()
        weight = normal((50, 20), torch.float64, seed=2).requires_grad_()
        loss = (_module(gate, leak)(x) * weight).sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        hold("first gradient", x, first, _gradient(x, weight, leak, gate))
        (second,) = torch.autograd.grad(first.sum(), weight)
        sign = weight.sign()
        hold("second gradient", x, second, _gradient(x, sign, leak, gate) * sign)
    return ""


def _vmap(gate: str) -> str:
    """Hold that each slice is a batch of its own."""
    x, grad = _batch((4, 6, 5)), normal((4, 6, 5), seed=1)

    def loss(x: Tensor, g: Tensor) -> Tensor:
        result: Tensor = (_module(gate)(x) * g).sum()
        return result

    hold("value", x, torch.func.vmap(_module(gate))(x), relu_value(x))
    for batch, weights in ((x, grad), (x.transpose(0, 1), grad.transpose(0, 1))):
        gradient = torch.func.vmap(torch.func.grad(loss))(batch, weights)
        slices = zip(batch, weights, strict=True)
        expected = torch.stack([_gradient(part, g, 0.1, gate) for part, g in slices])
        hold("gradient", batch, gradient, expected)
    return ""


def _func_grad(gate: str) -> str:
    x, grad = _batch(), normal((50, 20), seed=1)
    gradient = torch.func.grad(lambda x: (_module(gate)(x) * grad).sum())(x)
    hold("gradient", x, gradient, _gradient(x, grad, 0.1, gate))
    return ""


def _forward_mode_is_refused(gate: str) -> str:
    try:
        with warnings.catch_warnings():
            # PyTorch warns that its own forward mode still uses torch.jit.script.
            warnings.simplefilter("ignore", FutureWarning)
            torch.func.jvp(_module(gate), (_batch(),), (_batch(),))
    except NotImplementedError as error:
        hold_that("forward mode" in str(error), f"the message is {error}")
    else:
        raise AssertionError("forward mode gives a tangent")
    return ""


def _compile(gate: str) -> str:
    backend, remark = check.compile_backend()
    torch.compiler.reset()
    module = torch.compile(_module(gate), backend=backend, fullgraph=True)
    x = _batch().requires_grad_()
    for sign in (1, -1):
        y, grad = module(x), sign * normal((50, 20), seed=1)
        hold("value", x, y, relu_value(x))
        (gradient,) = torch.autograd.grad(y, x, grad)
        hold("gradient", x, gradient, _gradient(x, grad, 0.1, gate))
    return remark


def _exports_values_alone(gate: str) -> str:
    x = _batch()
    program = torch.export.export(_module(gate), (x,)).module()
    hold("value", x, program(x), relu_value(x))
    return ""


def _copy_and_pickle(gate: str) -> str:
    module = _module(gate, 0.3)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301
        hold_that(repr(twin) == repr(module), f"{module!r} comes back as {twin!r}")
        _hold(twin, _batch(), 0.3, gate)
    hold_that(not module.state_dict(), "the state_dict is not empty")
    return ""


def _no_gradient(gate: str) -> str:
    x = _batch()
    with torch.no_grad():
        y = _module(gate)(x.clone().requires_grad_())
    hold("value", x, y, relu_value(x))
    hold_that(not y.requires_grad, "the value requires grad under no_grad")
    return ""


def _saved_memory(gate: str) -> str:
    return check.saved_memory(lambda _: _module(gate, axis=0))


GATE_CASES: dict[str, GateCase] = {
    "gradients": _gradients,
    "batch of one": _batch_of_one,
    "0": partial(_points, lambda _: [0.0]),
    "-0.0": partial(_points, lambda _: [-0.0]),
    "infinities": partial(_points, lambda _: [-torch.inf, torch.inf]),
    "NaN": partial(_points, lambda _: [torch.nan, 1.0, -1.0]),
    "subnormals": partial(_points, subnormals),
    **{str(dtype).removeprefix("torch."): partial(_dtype, dtype) for dtype in DTYPES},
    "non-contiguous": _non_contiguous,
    "channels_last": _channels_last,
    "empty": _empty,
    "in place": _in_place,
    "other forms": _other_forms,
    "double backward": _double_backward,
    "torch.func.vmap": _vmap,
    "torch.func.grad": _func_grad,
    "torch.func.jvp": _forward_mode_is_refused,
    "torch.compile": _compile,
    "torch.export": _exports_values_alone,
    "copy and pickle": _copy_and_pickle,
    "no gradient needed": _no_gradient,
    "saved memory": _saved_memory,
}

GATE_DIFFERENCES: dict[str, tuple[str, GateCase]] = {
    "torch.func.jvp": (
        "refused in one line: a gate reads the sign of the gradient, and a tangent has none",
        _forward_mode_is_refused,
    ),
    "torch.export": (
        "a gate's gradient is not exported: the program has that of its values, ReLU's, or none",
        _exports_values_alone,
    ),
}
