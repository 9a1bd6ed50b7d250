"""Baselines: an activation, a value of another setting, a study; and what each is paired with."""

import numpy as np
import pytest
from helpers.made_up import BETTER, MADE_UP_CONFIG, RELU, TWO, lose, make_runs, row, study

from nsrelu_bench.compare import Baseline, read_baseline
from nsrelu_bench.compare.comparison import compare
from nsrelu_bench.compare.notes import notes
from nsrelu_bench.compare.tables import format_table
from nsrelu_bench.compare.verdicts import verdicts
from nsrelu_bench.errors import UsageError

INIT = [*MADE_UP_CONFIG, "init", "probe_size"]
HE = TWO.assign(init="he", probe_size=1000)
#: relu gains 2 pp from the other initialisation, nsrelu loses 1 pp, gelu has no partner.
RAI = study(
    make_runs("relu", list(np.add(RELU, 0.02)), init="rai"),
    make_runs("nsrelu(0.1)", list(np.subtract(BETTER, 0.01)), init="rai"),
    make_runs("gelu", RELU, init="rai"),
).assign(probe_size=1000)
BOTH = study(HE, RAI)


def test_a_setting_is_tested_within_each_activation() -> None:
    comparison = compare(BOTH, INIT, baseline="init=he")
    relu, nsrelu = (row(comparison, f"{act} init=rai") for act in ("relu", "nsrelu(0.1)"))
    assert (relu["diff"], nsrelu["diff"]) == pytest.approx((0.02, -0.01))
    assert (relu["baseline_group"], relu["pairs"]) == ("relu init=he", 6)
    assert relu["baseline_mean"] == pytest.approx(np.mean(RELU))
    assert row(comparison, "gelu init=rai")["pairs"] == 0
    marked = comparison.rows.groupby("group")["is_baseline"].all()
    assert set(marked[marked].index) == {"relu init=he", "nsrelu(0.1) init=he"}


def test_words_name_both_sides_and_leave_out_what_has_no_partner() -> None:
    comparison = compare(BOTH, INIT, baseline="init=he")
    assert "vs init=he" in format_table(comparison)
    assert [line.partition(":")[0] for line in verdicts(comparison)] == [
        "relu init=rai vs relu init=he",
        "nsrelu(0.1) init=rai vs nsrelu(0.1) init=he",
    ]
    assert "1 of 3 other groups have no run of init=he to pair with." in notes(comparison)


def test_a_condition_on_the_setting_keeps_the_baseline() -> None:
    comparison = compare(BOTH, INIT, baseline="init=he", where=["init=rai", "act=relu"])
    assert set(comparison.rows["group"]) == {"relu init=he", "relu init=rai"}
    assert comparison.tests == 6  # those of nsrelu too


def test_one_study_is_compared_with_another() -> None:
    first = HE.assign(study="first", run_id="f" + HE["run_id"])
    second = HE.assign(study="second", probe_size=2000, test_accuracy=HE["test_accuracy"] + 0.01)
    second = study(second, make_runs("gelu", RELU, init="he", probe_size=2000, study="second"))
    runs = study(first, second)
    comparison = compare(runs, INIT, baseline="study=first")
    assert row(comparison, "relu study=second")["diff"] == pytest.approx(0.01)
    assert row(comparison, "relu study=second")["pairs"] == 6
    assert compare(runs, INIT, baseline="study=/some/where/first").baseline == "study=first"
    careful = [line for line in notes(comparison) if line.startswith("Careful")]
    assert [line.split(",")[0] for line in careful] == [
        "Careful: these runs differ in probe_size (1000 and 2000)"
    ]


@pytest.mark.parametrize(
    ("baseline", "options", "message"),
    [
        ("init=hi", {}, "no run has init=hi; init is one of: he, rai"),
        ("init=he,rai", {}, "baseline init=he,rai: must be one value, got he, rai"),
        ("lr=0.1", {}, "baseline lr=0.1: every run has it, so there is nothing to compare"),
        ("seed=0", {}, "unknown setting 'seed'; choose from: act, init"),
        ("study=first", {}, "baseline study=first: there is one study only; name the other"),
        ("init=he", {"by": ["init"]}, "baseline init=he: init can't be in by or tune as well"),
        ("init=he", {"tune": ["init"]}, "baseline init=he: init can't be in by or tune as well"),
    ],
    ids=lambda value: value if isinstance(value, str) and "=" in value else "",
)
def test_a_baseline_that_makes_no_sense_is_one_line(
    baseline: str, options: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        compare(BOTH, INIT, baseline=baseline, **options)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_where_nothing_pairs_the_reason_is_said() -> None:
    other = RAI.assign(epochs=8, seed=RAI["seed"] + 10)
    with pytest.raises(UsageError) as error:
        compare(study(HE, other), INIT, baseline="init=he")
    assert str(error.value) == (
        "baseline init=he: no other run has the same activation, settings and seed"
        " (epochs is 5 there, 8 elsewhere; seed is 0, 1, 2, ... there, 10, 11, 12, ... elsewhere)"
    )


@pytest.mark.parametrize("text", ["nsrelu", "act=nsrelu", "act = nsrelu(0.10)"])
def test_an_activation_may_be_named_as_a_setting(text: str) -> None:
    assert read_baseline(BOTH, text, INIT) == Baseline("act", "nsrelu(0.1)")


def test_an_implementation_can_be_the_baseline() -> None:
    other = make_runs("nsrelu(0.1)", RELU, impl="detach")
    comparison = compare(study(TWO, other), MADE_UP_CONFIG, baseline="impl=native")
    found = row(comparison, "nsrelu(0.1) impl=detach")
    assert found["baseline_group"] == "nsrelu(0.1) impl=native"
    assert found["diff"] == pytest.approx(-0.015)


def test_a_lost_run_counts_as_chance_against_a_setting_too() -> None:
    lost = study(HE, lose(RAI, [0]))
    found = row(compare(lost, INIT, baseline="init=he"), "relu init=rai")
    assert found["diff"] == pytest.approx((0.1 - 0.9 + 5 * 0.02) / 6)
