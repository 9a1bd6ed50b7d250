from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from helpers.gates import GATED
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nsrelu_bench.activations import gates
from nsrelu_bench.activations.functional import IMPLS, nsrelu_
from nsrelu_bench.activations.modules import NSReLU
from nsrelu_bench.tools import check, check_cases
from nsrelu_bench.tools.check import (
    NATIVE_IN_PLACE,
    Check,
    format_checks,
    run_checks,
    run_gate_checks,
)
from nsrelu_bench.tools.check_cases import CASES, DOCUMENTED, GATE_CASES

NATIVE = IMPLS["native"]


pytestmark = pytest.mark.xdist_group("check")  # what they share is computed once


@pytest.fixture(autouse=True)
def _same_order():
    with patch.dict(IMPLS):  # which monkeypatch would not give back in its order
        yield


@pytest.fixture(scope="module")
def checks():
    # Tracing alone: the compiler would take 20 s, and has a test of its own.
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(check_cases, "compile_backend", lambda: ("aot_eager", "traced"))
        return run_checks()


def outcomes(name, function, monkeypatch, cases):
    """The outcome of each case for a function that is registered as implementation `name`."""
    monkeypatch.setattr(check_cases, "compile_backend", lambda: ("aot_eager", ""))
    monkeypatch.setattr(check, "CASES", {case: CASES[case] for case in cases})
    for other in IMPLS.keys() - {name}:
        monkeypatch.delitem(IMPLS, other)
    monkeypatch.setitem(IMPLS, "native", function)  # which the row in place looks up
    monkeypatch.setitem(IMPLS, name, function)
    return {check.case: check for check in run_checks() if check.subject == name}


@pytest.mark.slow
def test_every_implementation_is_checked_in_every_case(checks):
    expected = [(impl, case) for impl in (*IMPLS, NATIVE_IN_PLACE) for case in CASES]
    assert [(check.subject, check.case) for check in checks] == expected


def test_every_implementation_agrees_or_is_documented_not_to(checks):
    for result in checks:
        documented = (result.subject, result.case) in DOCUMENTED
        assert result.outcome == ("documented" if documented else "agrees"), result
        assert bool(result.detail) == (documented or result.case == "torch.compile"), result


def test_the_compiler_can_be_left_out(monkeypatch):
    for impl in IMPLS.keys() - {"native"}:
        monkeypatch.delitem(IMPLS, impl)
    cases = {check.case for check in run_checks(compiled=False)}
    assert cases == CASES.keys() - {"torch.compile"}


# Wrong implementations, each with the cases that must find it out.


class SlopeFunction(Function):
    """ReLU with a gradient of one's own."""

    @staticmethod
    def forward(ctx, x, leak, slope):
        ctx.save_for_backward(x)
        ctx.leak, ctx.slope = leak, slope
        return F.relu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        precision = torch.float64 if x.dtype == torch.float64 else torch.float32
        slope = ctx.slope(x, ctx.leak).to(precision)
        return (grad.to(precision) * slope).to(x.dtype), None, None


def choose(condition, one, other):
    return torch.where(condition, torch.tensor(one, dtype=torch.float64), other)


def with_slope(slope):
    return lambda x, leak: SlopeFunction.apply(x, leak, slope)


def detach_in_the_other_order(x, leak):
    b = F.leaky_relu(x, leak)
    return F.relu(x).detach() + b - b.detach()


def shortcut_by_requires_grad(x, leak):
    return NATIVE(x, leak) if x.requires_grad else F.relu(x)


def changes_its_input(x, leak):
    y = NATIVE(x, leak)
    x.data.relu_()
    return y


def values_by_way_of_a_list(x, leak):
    y = F.leaky_relu(x, leak)
    y.detach().copy_(torch.tensor(x.relu().tolist(), dtype=x.dtype))
    return y


def overwrites_by_data(x, leak):
    y = F.leaky_relu_(x.clone(), leak)
    y.data.relu_()
    return y


WRONG = {
    "slope 1 at 0": (
        with_slope(lambda x, leak: choose(x < 0, leak, 1)),
        {"0", "-0.0"},
        {"values", "gradients", "infinities"},
    ),
    "wrong sign": (
        with_slope(lambda x, leak: choose(x > 0, 1, -leak)),
        {"gradients", "0", "infinities", "float32"},
        {"values", "empty"},
    ),
    "gradient of relu": (
        lambda x, _: F.relu(x),
        {"gradients", "0", "double backward", "torch.func.vmap", "torch.func.grad"}
        | {"torch.func.jvp", "torch.compile", "copy and pickle", "autocast", "non-contiguous"},
        {"values", "no gradient needed", "saved memory"},
    ),
    "values of leaky relu": (
        F.leaky_relu,
        {"values", "gradients", "no gradient needed", "inference mode"},
        {"0", "empty"},
    ),
    "float32 inside": (
        lambda x, leak: NATIVE(x.float(), leak),
        {"float16", "bfloat16", "float64", "autocast"},
        {"torch.func.vmap", "values"},
    ),
    "the other order of the detach trick": (
        detach_in_the_other_order,
        {"float16", "bfloat16", "float32", "float64", "infinities"},
        {"values", "gradients"},
    ),
    "the gradient at the wrong rounding": (
        with_slope(lambda x, leak: choose(x > 0, 1, round(leak, 1))),
        {"gradients"},
        {"values"},
    ),
    "flushed subnormals": (
        lambda x, _: F.relu(torch.where(x.abs() < torch.finfo(x.dtype).tiny, 0 * x, x)),
        {"subnormals"},
        {"values"},
    ),
    "nan made zero": (lambda x, _: F.relu(x).nan_to_num(0.0), {"NaN"}, {"values"}),
    "no double backward": (
        with_slope(lambda x, leak: choose(x > 0, 1, leak)),
        {"double backward", "torch.func.vmap", "torch.func.jvp"},
        {"values", "0"},
    ),
    "another memory format": (
        lambda x, leak: nsrelu_(x.contiguous().clone(), leak),
        {"channels_last"},
        {"values", "gradients"},
    ),
    "a shortcut by requires_grad": (
        shortcut_by_requires_grad,
        {"torch.func.grad", "torch.func.jvp"},
        {"values", "gradients", "torch.func.vmap", "no gradient needed"},
    ),
    "a changed input": (changes_its_input, {"gradients"}, {"values"}),
    "values by way of a list": (
        values_by_way_of_a_list,
        {"torch.func.vmap", "torch.compile"},
        {"values", "gradients"},
    ),
    "a kept pre-activation": (
        NATIVE,
        {"saved memory"},
        {"values", "gradients", "infinities"},
    ),
    "values hidden from functional transforms": (
        overwrites_by_data,
        {"torch.func.grad", "torch.func.vmap"},
        {"values", "gradients", "saved memory"},
    ),
}


@pytest.mark.covers
@pytest.mark.slow
@pytest.mark.parametrize(("function", "found", "missed"), WRONG.values(), ids=WRONG)
def test_a_wrong_implementation_is_detected(function, found, missed, monkeypatch):
    results = outcomes("wrong", function, monkeypatch, found | missed)
    assert {case for case, check in results.items() if check.outcome == "disagrees"} == found
    for case in found:
        assert results[case].detail
        assert "\n" not in results[case].detail


def only_case(case):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(check, "CASES", {case: CASES[case]})
        return {check.subject: check for check in run_checks()}


def test_integers_that_are_accepted_are_detected(monkeypatch):
    for module in ("functional", "modules"):
        monkeypatch.setattr(f"nsrelu_bench.activations.{module}.check_dtype", lambda _: None)
    results = only_case("integer input")
    assert {result.outcome for result in results.values()} == {"disagrees"}


def test_a_setting_lost_by_pickling_is_detected(monkeypatch):
    monkeypatch.setattr(NSReLU, "__reduce__", lambda _: (NSReLU, ()))
    results = only_case("copy and pickle")
    assert {result.outcome for result in results.values()} == {"disagrees"}


@pytest.mark.parametrize(("impl", "case"), [key for key in DOCUMENTED if key[0] in IMPLS])
def test_a_documented_difference_that_is_gone_is_detected(impl, case, monkeypatch):
    # One that agrees in the case lacks the documented behaviour.
    agreeing = next(name for name in ("function", "native") if (name, case) not in DOCUMENTED)
    (result,) = outcomes(impl, IMPLS[agreeing], monkeypatch, {case}).values()
    assert result.outcome == "disagrees"


@pytest.mark.covers
@pytest.mark.slow
def test_the_compiler_itself_agrees(monkeypatch):
    # With inductor, where there is a C++ compiler; on one form, for the sake of time.
    for impl in IMPLS.keys() - {"native"}:
        monkeypatch.delitem(IMPLS, impl)
    for result in only_case("torch.compile").values():
        assert result.outcome == "agrees", result.detail
        assert result.detail.startswith("backend ")


def test_the_table_shows_every_outcome_and_counts():
    checks = [
        Check("native", "values", "agrees"),
        Check("native", "torch.compile", "agrees", "backend inductor"),
        Check("detach", "values", "documented", "NaN"),
        Check("function", "values", "disagrees", "value 1 at x = 0"),
        Check("function", "torch.compile", "agrees", "backend inductor"),
    ]
    assert format_checks(checks).splitlines() == [
        "case           native  detach      function",
        "values         agrees  documented  DISAGREES",
        "torch.compile  agrees  -           agrees",
        "",
        "torch.compile, native, function: agrees: backend inductor",
        "values, detach: documented: NaN",
        "values, function: DISAGREES: value 1 at x = 0",
        "",
        "5 checks: 3 agree, 1 documented, 1 disagree",
    ]


def test_a_table_without_remarks_has_no_gap():
    assert format_checks([Check("native", "values", "agrees")]).splitlines() == [
        "case    native",
        "values  agrees",
        "",
        "1 checks: 1 agree, 0 documented, 0 disagree",
    ]


# Gates


@pytest.fixture(scope="module")
def gate_checks():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(check_cases, "compile_backend", lambda: ("aot_eager", "traced"))
        return run_gate_checks()


@pytest.mark.slow
def test_every_gate_agrees_or_is_documented_not_to(gate_checks):
    assert [(check.subject, check.case) for check in gate_checks] == [
        (g, c) for g in GATED for c in GATE_CASES
    ]
    for result in gate_checks:
        expected = "documented" if (result.subject, result.case) in DOCUMENTED else "agrees"
        assert result.outcome == expected, (result.subject, result.case, result.detail)


def wrong(change):
    """Return `gates.gated_nsrelu` with something changed in its arguments."""
    right = gates.gated_nsrelu

    def gated(x, leak, gate, unit_axis=None, *, inplace=False):
        arguments = {"leak": leak, "gate": gate, "unit_axis": unit_axis, "inplace": inplace}
        return right(x, **arguments | change(x, **arguments))

    return gated


OTHER_GATE = {"rescue": "up", "net_rescue": "rescue", "up": "down", "down": "up"}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda *_, **a: {"leak": 2 * a["leak"]}, set(GATED)),
        (lambda *_, gate, **__: {"gate": OTHER_GATE.get(gate, gate)}, set(OTHER_GATE)),
        (lambda x, **_: {"unit_axis": 0} if x.dim() > 1 else {}, {"dead", "rescue", "net_rescue"}),
    ],
    ids=["leak", "gate", "axis"],
)
def test_a_wrong_gate_is_found(change, found, monkeypatch):
    monkeypatch.setattr("nsrelu_bench.activations.modules.gated_nsrelu", wrong(change))
    monkeypatch.setattr(check, "GATE_CASES", {"gradients": GATE_CASES["gradients"]})
    outcomes = run_gate_checks(compiled=False)
    assert {outcome.subject for outcome in outcomes if outcome.outcome == "disagrees"} == found


def test_a_gate_without_the_refusal_of_forward_mode_is_found(monkeypatch):
    monkeypatch.setattr(
        "nsrelu_bench.activations.modules.gated_nsrelu", lambda x, *_, **__: torch.relu(x)
    )
    monkeypatch.setattr(check, "GATE_CASES", {"torch.func.jvp": GATE_CASES["torch.func.jvp"]})
    assert {result.outcome for result in run_gate_checks(compiled=False)} == {"disagrees"}
