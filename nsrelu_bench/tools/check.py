"""Every implementation of NSReLU, held against its definition.

The definition is written here once more, in NumPy, and shares nothing with `activations`. Where a
formulation can't agree, `DOCUMENTED` says what it does instead, and that is held too.
"""

import copy
import pickle
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.activations import DTYPES, IMPLS, NSReLU
from nsrelu_bench.errors import describe_error, error_reason
from nsrelu_bench.text import align, wrap
from nsrelu_bench.tools.exactness import hold, hold_that, normal, relu_value, subnormals

Outcome = Literal["agrees", "documented", "disagrees"]

# Makes the activation under test, as a module, from its leak.
Make = Callable[[float], nn.Module]

# Raises AssertionError if the activation is not as it should be; returns a remark, mostly empty.
Case = Callable[[Make], str]

LEAKS = (0.0, 0.01, 0.1, 1.0)
NATIVE_IN_PLACE = "native in place"


@dataclass(frozen=True)
class Check:
    """What came out for one implementation in one case."""

    impl: str
    case: str
    outcome: Outcome
    detail: str = ""


def run_checks(*, compiled: bool = True) -> list[Check]:
    """Check every implementation in every case; without `compiled`, not under torch.compile.

    The first use of the compiler takes most of the time, about 20 s on one core.
    """
    makes: dict[str, Make] = {impl: partial(NSReLU, impl=impl) for impl in IMPLS}
    makes[NATIVE_IN_PLACE] = lambda leak: nn.Sequential(Clone(), NSReLU(leak, inplace=True))
    cases = [case for case in CASES if compiled or case != "torch.compile"]
    return [_check(impl, make, case) for impl, make in makes.items() for case in cases]


def format_checks(checks: list[Check], width: int | None = None) -> str:
    """Lay out the outcomes as a table of cases by implementations, then remarks and the count.

    `width` is that of the terminal, None for a pipe.
    """
    impls = list(dict.fromkeys(check.impl for check in checks))
    cases = list(dict.fromkeys(check.case for check in checks))
    outcomes = {(check.case, check.impl): check.outcome for check in checks}
    shown = {"agrees": "agrees", "documented": "documented", "disagrees": "DISAGREES", "": "-"}
    rows = [["case", *impls]]
    rows += [[case, *(shown[outcomes.get((case, impl), "")] for impl in impls)] for case in cases]
    lines = align(rows, width)

    remarks: dict[tuple[str, str, str], list[str]] = {}
    for check in checks:
        if check.detail:
            key = (check.case, shown[check.outcome], check.detail)
            remarks.setdefault(key, []).append(check.impl)
    lines += [""] if remarks else []
    for (case, outcome, detail), found in remarks.items():
        lines.append(wrap(f"{case}, {', '.join(found)}: {outcome}: {detail}", width))

    count = Counter(check.outcome for check in checks)
    lines += [
        "",
        wrap(
            f"{len(checks)} checks: {count['agrees']} agree, {count['documented']} documented,"
            f" {count['disagrees']} disagree",
            width,
        ),
    ]
    return "\n".join(lines)


def _check(impl: str, make: Make, case: str) -> Check:
    reason, behaves = DOCUMENTED.get((impl, case), ("", CASES[case]))
    return outcome(impl, case, reason, partial(behaves, make))


def outcome(subject: str, case: str, reason: str, behaves: Callable[[], str]) -> Check:
    """Run a case; with a `reason` it holds what is documented in place of agreement."""
    try:
        remark = behaves()
    except Exception as error:  # whatever goes wrong in it is a finding about the subject
        describe = error_reason if isinstance(error, AssertionError) else describe_error
        return Check(subject, case, "disagrees", describe(error))
    return Check(subject, case, "documented" if reason else "agrees", reason or remark)


# The definition


def _gradient(x: Tensor, grad: Tensor, leak: float) -> Tensor:
    """Grad where x > 0, leak * grad where x <= 0, rounded once: 16-bit types compute in float32."""
    precision = np.float64 if x.dtype == torch.float64 else np.float32
    upstream = grad.detach().double().numpy().astype(precision)
    slope = np.where(x.detach().double().numpy() > 0, precision(1), precision(leak))
    return torch.from_numpy(np.asarray(upstream * slope)).to(x.dtype)


def _hold_both(module: Callable[[Tensor], Tensor], x: Tensor, leak: float) -> None:
    """Hold value and gradient at `x`, and that `x` itself is left alone."""
    x = x.detach().requires_grad_()
    before = x.detach().clone()
    y = module(x)
    hold("value", x, y, relu_value(x))
    grad = normal(y.shape, y.dtype, seed=1)
    (gradient,) = torch.autograd.grad(y, x, grad)
    defined = ~before.isnan()  # at NaN there is no gradient that would be right
    hold("gradient", before[defined], gradient[defined], _gradient(x, grad, leak)[defined])
    hold("input, which changed to", before, x, before)


# The cases


def _values(make: Make) -> str:
    x = normal((1000,))
    for leak in LEAKS:
        hold("value", x, make(leak)(x), relu_value(x))
    return ""


def _gradients(make: Make) -> str:
    for leak in LEAKS:
        _hold_both(make(leak), normal((1000,)), leak)
    return ""


def _points(points: Callable[[torch.finfo], list[float]], make: Make) -> str:
    for dtype in DTYPES:
        for leak in LEAKS:
            _hold_both(make(leak), torch.tensor(points(torch.finfo(dtype)), dtype=dtype), leak)
    return ""


def _dtype(dtype: torch.dtype, make: Make) -> str:
    largest = torch.finfo(dtype).max
    x = torch.cat([normal((1000,), dtype), torch.tensor([-largest, largest], dtype=dtype)])
    for leak in LEAKS:
        _hold_both(make(leak), x, leak)
    return ""


def _non_contiguous(make: Make) -> str:
    _hold_both(make(0.1), normal((6, 8)).t()[::2], 0.1)
    _hold_both(make(0.1), normal((6, 1)).expand(6, 8), 0.1)
    return ""


def _channels_last(make: Make) -> str:
    x = normal((2, 3, 4, 5)).contiguous(memory_format=torch.channels_last)
    _hold_both(make(0.1), x, 0.1)
    x.requires_grad_()
    y = make(0.1)(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    for name, tensor in {"value": y, "gradient": grad}.items():
        kept = tensor.is_contiguous(memory_format=torch.channels_last)
        hold_that(kept, f"{name} is not channels_last")
    return ""


def _shape(shape: tuple[int, ...], make: Make) -> str:
    for leak in LEAKS:
        _hold_both(make(leak), normal(shape), leak)
        _hold_both(make(leak), -normal(shape), leak)
    return ""


def _integer_input(make: Make) -> str:
    for dtype in (torch.int64, torch.bool):
        try:
            make(0.1)(torch.ones(2, dtype=dtype))
        except TypeError as error:
            message = str(error)
            named = str(dtype).removeprefix("torch.") in message and "float32" in message
            hold_that(named and "\n" not in message, f"the message is {message!r}")
        else:
            raise AssertionError(f"{dtype} is taken without an error")
    return ""


def _double_backward(make: Make) -> str:
    for leak in LEAKS:
        x = normal((100,), torch.float64).requires_grad_()
        weight = normal((100,), torch.float64, seed=2).requires_grad_()
        y = make(leak)(x)
        # d(weight y^2)/dx = 2 weight y s, s the slope; y in turn has slope s.
        (first,) = torch.autograd.grad((weight * y * y).sum(), x, create_graph=True)
        seconds = torch.autograd.grad(first.sum(), [x, weight])
        slope = _gradient(x, torch.ones_like(x), leak)
        expected = {
            "first gradient": (first, 2 * weight * relu_value(x) * slope),
            "second gradient": (seconds[0], 2 * weight * slope * slope),
            "gradient of the gradient by its input": (seconds[1], 2 * relu_value(x) * slope),
        }
        for what, (actual, wanted) in expected.items():
            close = torch.allclose(actual, wanted, rtol=1e-14, atol=0)
            hold_that(close, f"{what} is wrong at leak {leak}")
    return ""


def _vmap(make: Make) -> str:
    x, grad = normal((5, 7)), normal((5, 7), seed=1)
    for leak in LEAKS:
        module = make(leak)
        for dim in (0, 1):
            y = torch.func.vmap(module, in_dims=dim, out_dims=dim)(x)
            hold("value", x, y, relu_value(x))
        gradient = torch.func.vmap(torch.func.grad(partial(_loss, module)))(x, grad)
        hold("gradient per example", x, gradient, _gradient(x, grad, leak))
    return ""


def _func_grad(make: Make) -> str:
    x, grad = normal((5, 7)), normal((5, 7), seed=1)
    for leak in LEAKS:
        module = make(leak)
        # Through vmap the inner tensor says that it requires no grad, and is differentiated.
        for function in (module, torch.func.vmap(module)):
            gradient = torch.func.grad(partial(_loss, function))(x, grad)
            hold("gradient", x, gradient, _gradient(x, grad, leak))
    return ""


def _func_jvp(make: Make) -> str:
    x, tangent = normal((5, 7)), normal((5, 7), seed=1)
    for leak in LEAKS:
        with warnings.catch_warnings():
            # PyTorch warns that its own forward mode still uses torch.jit.script.
            warnings.simplefilter("ignore", FutureWarning)
            pair = torch.func.jvp(make(leak), (x,), (tangent,))
        hold("value", x, pair[0], relu_value(x))
        hold("tangent", x, pair[1], _gradient(x, tangent, leak))
    return ""


def _loss(module: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    return (module(x) * weight).sum()


def _compile(make: Make) -> str:
    backend, remark = compile_backend()
    torch.compiler.reset()
    for leak in (0.0, 0.1):
        module = torch.compile(make(leak), backend=backend, fullgraph=True)
        _hold_both(module, normal((1000,)), leak)
    return remark


def _export(make: Make) -> str:
    x = normal((100,))
    for leak in (0.0, 0.1):
        program = torch.export.export(make(leak), (x,))
        _hold_both(program.module(), x, leak)
    return ""


@cache
def compile_backend() -> tuple[str, str]:
    """Choose inductor where it works, which takes a C++ compiler, else the tracing alone."""
    try:
        torch.compile(torch.relu, backend="inductor")(torch.ones(2))
    except Exception as error:  # of many kinds, by what is missing
        return "aot_eager", f"backend aot_eager, since inductor fails ({type(error).__name__})"
    return "inductor", "backend inductor, no graph break"


def _copy_and_pickle(make: Make) -> str:
    module = make(0.3)
    twins = [copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module))]  # noqa: S301
    for twin in twins:
        hold_that(repr(twin) == repr(module), f"{module!r} comes back as {twin!r}")
        _hold_both(twin, normal((100,)), 0.3)
    hold_that(not module.state_dict(), "the state_dict is not empty")
    return ""


def _autocast(make: Make) -> str:
    weight = normal((8, 7), seed=2).requires_grad_()
    for leak in LEAKS:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = F.linear(normal((5, 7)), weight)
            y = make(leak)(x)
        hold_that(y.dtype == torch.bfloat16, f"value has dtype {y.dtype}")
        hold("value", x, y, relu_value(x))
        grad = normal((5, 8), torch.bfloat16, seed=1)
        (gradient,) = torch.autograd.grad(y, x, grad)
        hold("gradient", x, gradient, _gradient(x, grad, leak))
    return ""


def _inference_mode(make: Make) -> str:
    outside = normal((100,))
    for leak in LEAKS:
        with torch.inference_mode():
            for x in (outside, normal((100,))):
                y = make(leak)(x)
                hold("value", x, y, relu_value(x))
                hold_that(y.is_inference(), "the value is no inference tensor")
    return ""


def _no_gradient(make: Make) -> str:
    x = normal((100,))
    for leak in LEAKS:
        y = make(leak)(x)
        hold("value", x, y, relu_value(x))
        hold_that(not y.requires_grad, "the value requires grad, its input does not")
        with torch.no_grad():
            y = make(leak)(x.clone().requires_grad_())
        hold("value", x, y, relu_value(x))
        hold_that(not y.requires_grad, "the value requires grad under no_grad")
    return ""


def saved_memory(make: Make, tensors: int = 1) -> str:
    """Hold how many tensors a site keeps for the backward, where the next layer keeps its input."""
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def keep(tensor: Tensor) -> _Kept:
        packed = _Kept(tensor.detach())  # its graph would hold it in a cycle
        kept.add(packed)
        return packed

    x = normal((100,)).requires_grad_()
    weight = torch.ones(1, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda packed: packed.tensor):
        loss = (make(0.1)(x + 0) * weight).sum()
    storages = {k.tensor.untyped_storage().data_ptr() for k in kept if k.tensor.numel() == 100}
    loss.backward()
    hold_that(len(storages) == tensors, f"keeps {len(storages)} tensors a site, not {tensors}")
    return ""


@dataclass(eq=False)
class _Kept:
    tensor: Tensor


class Clone(nn.Module):
    """Lends an activation in place a tensor that is its to change."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy of `x`."""
        return x.clone()


def _exports_values_alone(make: Make) -> str:
    x = normal((100,))
    y = torch.export.export(make(0.1), (x,)).module()(x.requires_grad_())
    hold("value", x, y, relu_value(x))
    if y.requires_grad:
        grad = normal((100,), seed=1)
        (gradient,) = torch.autograd.grad(y, x, grad)
        hold("gradient", x, gradient, _gradient(x, grad, 0))
    return ""


def _nan_at_infinities(make: Make) -> str:
    for leak in LEAKS:
        x = torch.tensor([-torch.inf, torch.inf], requires_grad=True)
        y = make(leak)(x)
        hold_that(bool(y.isnan().all()), f"the values at infinities are {y.tolist()}, not NaN")
        (gradient,) = torch.autograd.grad(y.sum(), x)
        hold("gradient", x, gradient, _gradient(x, torch.ones_like(x), leak))
    return ""


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
    "saved memory": saved_memory,
}

# Where an implementation can't agree: what it does instead, and a case that holds it to that.
_TWO_TENSORS = (
    "autograd keeps the pre-activation and the output, where ReLU keeps the output alone",
    partial(saved_memory, tensors=2),
)
_NO_GRADIENT = (
    "a Function's gradient is not exported: the program has that of its values, ReLU's, or none",
    _exports_values_alone,
)
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
}
