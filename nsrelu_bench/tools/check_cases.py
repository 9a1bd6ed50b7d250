"""The cases of `check`: what every form of NSReLU must do, and what some do instead."""

import copy
import pickle
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.activations import DTYPES, NSReLU, surrogate
from nsrelu_bench.config import GATES
from nsrelu_bench.tools.definition import (
    Subject,
    batch,
    expect,
    expect_equal,
    gradients,
    normal,
    nsrelu_gradient,
    nsrelu_slope,
    relu_value,
    subnormals,
)

# Raises AssertionError if a subject is not as it should be; may return a remark.
Case = Callable[[Subject], str | None]


class Clone(nn.Module):
    """Copies the input of an activation in place, which may then overwrite it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy of `x`."""
        return x.clone()


def _values(subject: Subject) -> None:
    x = batch()
    for leak in subject.leaks:
        expect_equal("value", x, subject.module(leak)(x), relu_value(x))


def _gradients(subject: Subject) -> None:
    for leak in subject.leaks:
        for shape in ((50, 20), (2, 50, 20), (1, 50)):
            subject.check(batch(shape), leak)


def _points(points: Callable[[torch.finfo], list[float]], subject: Subject) -> None:
    """Check points as units of one example, and as examples of one unit."""
    for dtype in DTYPES:
        row = torch.tensor([points(torch.finfo(dtype))], dtype=dtype)
        for leak in subject.leaks:
            subject.check(row, leak)
            subject.check(row.t().contiguous(), leak)


def _dtype(dtype: torch.dtype, subject: Subject) -> None:
    largest = torch.finfo(dtype).max
    x = torch.cat([batch(dtype=dtype), torch.zeros(2, 20, dtype=dtype)])
    x[-2:, 1:] = torch.tensor([[-largest], [largest]], dtype=dtype)
    for leak in subject.leaks:
        subject.check(x, leak)


def _non_contiguous(subject: Subject) -> None:
    subject.check(batch((8, 6), 0).t()[::2])
    subject.check(normal((6, 1)).expand(6, 8))


def _channels_last(subject: Subject) -> None:
    x = batch((2, 3, 4, 5), 1).contiguous(memory_format=torch.channels_last)
    subject.check(x, axis=1)
    x.requires_grad_()
    y = subject.module(axis=1)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    for name, tensor in {"value": y, "gradient": gradient}.items():
        kept = tensor.is_contiguous(memory_format=torch.channels_last)
        expect(kept, f"{name} is not channels_last")


def _shape(shape: tuple[int, ...], subject: Subject) -> None:
    for leak in subject.leaks:
        subject.check(normal(shape), leak)
        subject.check(-normal(shape), leak)


def _integer_input(subject: Subject) -> None:
    for dtype in (torch.int64, torch.bool):
        try:
            subject.module()(torch.ones(2, dtype=dtype))
        except TypeError as error:
            message = str(error)
            named = str(dtype).removeprefix("torch.") in message and "float32" in message
            expect(named and "\n" not in message, f"the message is {message!r}")
        else:
            raise AssertionError(f"{dtype} is taken without an error")


def _in_place(subject: Subject) -> None:
    inside = partial(NSReLU, gate=subject.gate, inplace=True)
    module = replace(subject, make=lambda leak, axis: inside(leak, unit_axis=axis)).module()
    x = batch()
    expect(module(x).data_ptr() == x.data_ptr(), "the input is not overwritten")
    in_place = replace(
        subject, make=lambda leak, axis: nn.Sequential(Clone(), inside(leak, unit_axis=axis))
    )
    _gradients(in_place)
    _channels_last(in_place)


def _other_forms(subject: Subject) -> None:
    for pair, leak in {"relu/leaky_relu(0.1)": 0.1, "relu/identity": 1.0}.items():
        subject.check(batch(), leak, module=partial(surrogate, forward=pair, gate=subject.gate))
    own = partial(surrogate, forward="relu", backward=partial(torch.mul, 1.0), gate=subject.gate)
    subject.check(batch(), 1.0, module=own)


def _double_backward(subject: Subject) -> None:
    for leak in subject.leaks:
        x = batch(dtype=torch.float64).requires_grad_()
        weight = gradients((50, 20), torch.float64).requires_grad_()
        y = subject.module(leak)(x)
        (first,) = torch.autograd.grad((weight * y).sum(), x, create_graph=True)
        expect_equal("first gradient", x, first, subject.gradient(x, weight, leak))
        (second,) = torch.autograd.grad(first.sum(), weight)
        slope = torch.from_numpy(nsrelu_slope(x, weight, leak, subject.gate))
        expect_equal("second gradient", x, second, slope)
        if subject.gate == "always":
            _check_square(subject, x, weight, leak)


def _check_square(subject: Subject, x: Tensor, weight: Tensor, leak: float) -> None:
    """Check d(weight y^2)/dx = 2 weight y s, s the slope, and its derivatives: y has slope s."""
    y = subject.module(leak)(x)
    (first,) = torch.autograd.grad((weight * y * y).sum(), x, create_graph=True)
    seconds = torch.autograd.grad(first.sum(), [x, weight])
    slope = subject.gradient(x, torch.ones_like(x), leak)
    expected = {
        "first gradient of the square": (first, 2 * weight * relu_value(x) * slope),
        "second gradient of the square": (seconds[0], 2 * weight * slope * slope),
        "gradient of the gradient by its input": (seconds[1], 2 * relu_value(x) * slope),
    }
    for what, (actual, wanted) in expected.items():
        close = torch.allclose(actual, wanted, rtol=1e-14, atol=0)
        expect(close, f"{what} is wrong at leak {leak}")


def _vmap(subject: Subject) -> None:
    """Check that each slice is a batch of its own."""
    x, grad = batch((4, 6, 5)), gradients((4, 6, 5))
    for leak in subject.leaks:
        module = subject.module(leak)
        for dim in (0, 1):
            y = torch.func.vmap(module, in_dims=dim, out_dims=dim)(x)
            expect_equal("value", x, y, relu_value(x))
            slices, weights = x.movedim(dim, 0), grad.movedim(dim, 0)
            gradient = torch.func.vmap(torch.func.grad(partial(_loss, module)))(slices, weights)
            expected = _of_each(subject, slices, weights, leak)
            expect_equal("gradient per example", slices, gradient, expected)


def _func_grad(subject: Subject) -> None:
    x, grad = batch(), gradients((50, 20))
    for leak in subject.leaks:
        module = subject.module(leak)
        gradient = torch.func.grad(partial(_loss, module))(x, grad)
        expect_equal("gradient", x, gradient, subject.gradient(x, grad, leak))
        # Through vmap the inner tensor says that it requires no grad, and is differentiated.
        gradient = torch.func.grad(partial(_loss, torch.func.vmap(module)))(x, grad)
        expect_equal("gradient through vmap", x, gradient, _of_each(subject, x, grad, leak))


def _of_each(subject: Subject, x: Tensor, grad: Tensor, leak: float) -> Tensor:
    """Return the gradients by definition of slices, each a batch of its own."""
    pairs = zip(x, grad, strict=True)
    return torch.stack([subject.gradient(part, g, leak) for part, g in pairs])


def _loss(module: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    return (module(x) * weight).sum()


def _jvp(subject: Subject, leak: float, x: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    with warnings.catch_warnings():
        # PyTorch warns that its own forward mode still uses torch.jit.script.
        warnings.simplefilter("ignore", FutureWarning)
        value, found = torch.func.jvp(subject.module(leak), (x,), (tangent,))[:2]
        return value, found


def _func_jvp(subject: Subject) -> None:
    x, tangent = batch(), normal((50, 20), seed=1)
    for leak in subject.leaks:
        value, found = _jvp(subject, leak, x, tangent)
        expect_equal("value", x, value, relu_value(x))
        expect_equal("tangent", x, found, subject.gradient(x, tangent, leak))


def _compile(subject: Subject) -> str:
    backend, remark = compile_backend()
    torch.compiler.reset()
    for leak in (0.0, 0.1):
        if leak in subject.leaks:
            compiled = torch.compile(subject.module(leak), backend=backend, fullgraph=True)
            subject.check(batch(), leak, module=compiled)
    return remark


@cache
def compile_backend() -> tuple[str, str]:
    """Choose inductor where it works, which takes a C++ compiler, else the tracing alone."""
    try:
        torch.compile(torch.relu, backend="inductor")(torch.ones(2))
    except Exception as error:  # of many kinds, by what is missing
        return "aot_eager", f"backend aot_eager, since inductor fails ({type(error).__name__})"
    return "inductor", "backend inductor, no graph break"


def _export(subject: Subject) -> None:
    for leak in (0.0, 0.1):
        program = torch.export.export(subject.module(leak), (batch(),))
        subject.check(batch(), leak, module=program.module())


def _copy_and_pickle(subject: Subject) -> None:
    module = subject.module(0.3)
    twins = [copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module))]  # noqa: S301
    for twin in twins:
        expect(repr(twin) == repr(module), f"{module!r} comes back as {twin!r}")
        subject.check(batch(), 0.3, module=twin)
    expect(not module.state_dict(), "the state_dict is not empty")


def _autocast(subject: Subject) -> None:
    weight = normal((8, 7), seed=2).requires_grad_()
    for leak in subject.leaks:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = F.linear(normal((5, 7)), weight)
            y = subject.module(leak)(x)
        expect(y.dtype == torch.bfloat16, f"value has dtype {y.dtype}")
        expect_equal("value", x, y, relu_value(x))
        grad = gradients((5, 8), torch.bfloat16)
        (gradient,) = torch.autograd.grad(y, x, grad)
        expect_equal("gradient", x, gradient, subject.gradient(x, grad, leak))


def _inference_mode(subject: Subject) -> None:
    outside = batch()
    for leak in subject.leaks:
        with torch.inference_mode():
            for x in (outside, batch()):
                y = subject.module(leak)(x)
                expect_equal("value", x, y, relu_value(x))
                expect(y.is_inference(), "the value is no inference tensor")


def _no_gradient(subject: Subject) -> None:
    x = batch()
    for leak in subject.leaks:
        y = subject.module(leak)(x)
        expect_equal("value", x, y, relu_value(x))
        expect(not y.requires_grad, "the value requires grad, its input does not")
        with torch.no_grad():
            y = subject.module(leak)(x.clone().requires_grad_())
        expect_equal("value", x, y, relu_value(x))
        expect(not y.requires_grad, "the value requires grad under no_grad")


def _saved_memory(subject: Subject, tensors: int = 1) -> None:
    """Check how many tensors are kept for the backward where the next layer keeps its input."""
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def keep(tensor: Tensor) -> _Kept:
        packed = _Kept(tensor.detach())  # its graph would hold it in a cycle
        kept.add(packed)
        return packed

    x = normal((100,)).requires_grad_()
    weight = torch.ones(1, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda packed: packed.tensor):
        loss = (subject.module()(x + 0) * weight).sum()
    storages = {k.tensor.untyped_storage().data_ptr() for k in kept if k.tensor.numel() == 100}
    loss.backward()
    expect(len(storages) == tensors, f"keeps {len(storages)} tensors per site, not {tensors}")


@dataclass(eq=False)
class _Kept:
    tensor: Tensor


CASES: dict[str, Case] = {
    "values": _values,
    "gradients": _gradients,
    "0": partial(_points, lambda _: [0.0]),
    "-0.0": partial(_points, lambda _: [-0.0]),
    "infinities": partial(_points, lambda _: [-torch.inf, torch.inf]),
    "NaN": partial(_points, lambda _: [torch.nan, 1.0, -1.0]),
    "subnormals": partial(_points, subnormals),
    **{str(dtype).removeprefix("torch."): partial(_dtype, dtype) for dtype in DTYPES},
    "non-contiguous": _non_contiguous,
    "channels_last": _channels_last,
    "empty": partial(_shape, (0, 3)),
    "0-dimensional": partial(_shape, ()),
    "integer input": _integer_input,
    "double backward": _double_backward,
    "torch.func.vmap": _vmap,
    "torch.func.grad": _func_grad,
    "torch.func.jvp": _func_jvp,
    "torch.compile": _compile,
    "torch.export": _export,
    "copy and pickle": _copy_and_pickle,
    "autocast": _autocast,
    "inference mode": _inference_mode,
    "no gradient needed": _no_gradient,
    "saved memory": _saved_memory,
}

GATE_CASES: dict[str, Case] = {
    **{name: case for name, case in CASES.items() if name != "0-dimensional"},
    "in place": _in_place,
    "other forms": _other_forms,
}


# Where a subject can't agree: what it does instead, and a case that checks that.


def _values_are_exported(subject: Subject) -> None:
    x = batch()
    y = torch.export.export(subject.module(), (x,)).module()(x.requires_grad_())
    expect_equal("value", x, y, relu_value(x))
    if y.requires_grad:
        grad = normal((50, 20), seed=1)
        (gradient,) = torch.autograd.grad(y, x, grad)
        expect_equal("gradient", x, gradient, nsrelu_gradient(x, grad, 0))


def _nan_at_infinities(subject: Subject) -> None:
    for leak in subject.leaks:
        x = torch.tensor([-torch.inf, torch.inf], requires_grad=True)
        y = subject.module(leak)(x)
        expect(bool(y.isnan().all()), f"the values at infinities are {y.tolist()}, not NaN")
        (gradient,) = torch.autograd.grad(y.sum(), x)
        expect_equal("gradient", x, gradient, subject.gradient(x, torch.ones_like(x), leak))


def _jvp_is_refused(subject: Subject) -> None:
    try:
        _jvp(subject, 0.1, batch(), batch())
    except NotImplementedError as error:
        expect("forward mode" in str(error), f"the message is {error}")
    else:
        raise AssertionError("forward mode gives a tangent")


_TWO_TENSORS = (
    "autograd keeps the pre-activation and the output, where ReLU keeps the output alone",
    partial(_saved_memory, tensors=2),
)
_NO_GRADIENT = (
    "a Function's gradient is not exported: the program has that of its values, ReLU's, or none",
    _values_are_exported,
)
_NO_TANGENT = (
    "refused in one line: a gate reads the sign of the gradient, and a tangent has none",
    _jvp_is_refused,
)
#: By subject and case: the difference in words, and the case that checks it.
DOCUMENTED: dict[tuple[str, str], tuple[str, Case]] = {
    ("detach", "infinities"): (
        "the value is NaN, since f - b is inf - inf or a sum of opposite infinities",
        _nan_at_infinities,
    ),
    ("function", "torch.export"): _NO_GRADIENT,
    ("mismatch", "torch.export"): _NO_GRADIENT,
    ("native", "saved memory"): _TWO_TENSORS,
    ("detach", "saved memory"): _TWO_TENSORS,
    ("mismatch", "saved memory"): _TWO_TENSORS,
    **{(gate, "torch.func.jvp"): _NO_TANGENT for gate in GATES if gate != "always"},
    **{(gate, "torch.export"): _NO_GRADIENT for gate in GATES if gate != "always"},
}
