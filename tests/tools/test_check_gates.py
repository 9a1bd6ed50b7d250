import pytest
import torch

from nsrelu_bench.activations import gates
from nsrelu_bench.config import GATES
from nsrelu_bench.tools.check_gates import GATE_CASES, GATE_DIFFERENCES, run_gate_checks

GATED = [gate for gate in GATES if gate != "always"]


@pytest.fixture(scope="module")
def checks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nsrelu_bench.tools.check.compile_backend", lambda: ("aot_eager", "traced"))
        return run_gate_checks()


def test_every_gate_agrees_or_is_documented_not_to(checks):
    assert [(check.impl, check.case) for check in checks] == [
        (g, c) for g in GATED for c in GATE_CASES
    ]
    for check in checks:
        expected = "documented" if check.case in GATE_DIFFERENCES else "agrees"
        assert check.outcome == expected, (check.impl, check.case, check.detail)


def wrong(change):
    """Return `gates.gated_nsrelu` with something changed in its arguments."""
    right = gates.gated_nsrelu

    def gated(x, leak, gate, unit_axis=None, *, inplace=False):
        arguments = {"leak": leak, "gate": gate, "unit_axis": unit_axis, "inplace": inplace}
        return right(x, **arguments | change(x, **arguments))

    return gated


OTHER_GATE = {"rescue": "up", "up": "down", "down": "up"}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda *_, **a: {"leak": 2 * a["leak"]}, set(GATED)),
        (lambda *_, gate, **__: {"gate": OTHER_GATE.get(gate, gate)}, {"up", "down", "rescue"}),
        (lambda x, **_: {"unit_axis": 0} if x.dim() > 1 else {}, {"dead", "rescue"}),
    ],
    ids=["leak", "gate", "axis"],
)
def test_a_wrong_gate_is_found(change, found, monkeypatch):
    monkeypatch.setattr("nsrelu_bench.activations.modules.gated_nsrelu", wrong(change))
    outcomes = [check for check in run_gate_checks(compiled=False) if check.case == "gradients"]
    assert {check.impl for check in outcomes if check.outcome == "disagrees"} == found


def test_a_gate_without_the_refusal_of_forward_mode_is_found(monkeypatch):
    monkeypatch.setattr(
        "nsrelu_bench.activations.modules.gated_nsrelu", lambda x, *_, **__: torch.relu(x)
    )
    outcomes = {check.case: check.outcome for check in run_gate_checks(compiled=False)}
    assert outcomes["torch.func.jvp"] == "disagrees"
