"""`check`: every implementation and gate of NSReLU against its definition.

definition.py has the definition, check_cases.py what is tried and the differences that are
documented.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from nsrelu_bench.activations import IMPLS, NSReLU
from nsrelu_bench.config import GATES
from nsrelu_bench.errors import describe_error, error_reason
from nsrelu_bench.text import align, wrap
from nsrelu_bench.tools.check_cases import CASES, DOCUMENTED, GATE_CASES, Case, Clone
from nsrelu_bench.tools.definition import Subject

Outcome = Literal["agrees", "documented", "disagrees"]

NATIVE_IN_PLACE = "native in place"


@dataclass(frozen=True)
class Check:
    """The result of one case for one implementation or gate."""

    subject: str
    case: str
    outcome: Outcome
    detail: str = ""


def run_checks(*, compiled: bool = True) -> list[Check]:
    """Check every implementation in every case; without `compiled`, not under torch.compile.

    The first use of the compiler takes most of the time, about 20 s on one core.
    """
    subjects = [Subject(impl, partial(_make, impl=impl)) for impl in IMPLS]
    subjects.append(
        Subject(NATIVE_IN_PLACE, lambda *given: nn.Sequential(Clone(), _make(*given, inplace=True)))
    )
    return _run(subjects, CASES, compiled=compiled)


def run_gate_checks(*, compiled: bool = True) -> list[Check]:
    """Check every gate in every case; without `compiled`, not under torch.compile."""
    gates = [gate for gate in GATES if gate != "always"]
    leaks = (0.01, 0.1, 1.0)
    subjects = [Subject(gate, partial(_make, gate=gate), gate, leaks) for gate in gates]
    return _run(subjects, GATE_CASES, compiled=compiled)


def _make(leak: float, axis: int, **settings: Any) -> NSReLU:
    return NSReLU(leak, unit_axis=axis, **settings)


def _run(subjects: Sequence[Subject], cases: Mapping[str, Case], *, compiled: bool) -> list[Check]:
    names = [name for name in cases if compiled or name != "torch.compile"]
    return [_check(subject, name, cases[name]) for subject in subjects for name in names]


def _check(subject: Subject, name: str, case: Case) -> Check:
    reason, case = DOCUMENTED.get((subject.name, name), ("", case))
    try:
        remark = case(subject)
    except Exception as error:  # whatever goes wrong in it is a finding about the subject
        describe = error_reason if isinstance(error, AssertionError) else describe_error
        return Check(subject.name, name, "disagrees", describe(error))
    return Check(subject.name, name, "documented" if reason else "agrees", reason or remark or "")


def format_checks(checks: list[Check], width: int | None = None) -> str:
    """Lay out the outcomes as a table of cases by subjects, then remarks and the count.

    `width` is that of the terminal, None for a pipe.
    """
    subjects = list(dict.fromkeys(check.subject for check in checks))
    cases = list(dict.fromkeys(check.case for check in checks))
    outcomes = {(check.case, check.subject): check.outcome for check in checks}
    shown = {"agrees": "agrees", "documented": "documented", "disagrees": "DISAGREES", "": "-"}
    rows = [["case", *subjects]]
    rows += [
        [case, *(shown[outcomes.get((case, subject), "")] for subject in subjects)]
        for case in cases
    ]
    lines = align(rows, width)

    remarks: dict[tuple[str, str, str], list[str]] = {}
    for check in checks:
        if check.detail:
            key = (check.case, shown[check.outcome], check.detail)
            remarks.setdefault(key, []).append(check.subject)
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
