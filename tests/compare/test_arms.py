import pytest
from helpers.made_up import BETTER, MADE_UP_CONFIG, RELU, make_runs, row, study

from nsrelu_bench.compare import compare, name_arms
from nsrelu_bench.errors import UsageError

ARM_CONFIG = [*MADE_UP_CONFIG, "redo", "local"]
USUAL = {"redo": 0, "local": False}
RUNS = study(
    make_runs("relu", RELU, **USUAL),
    make_runs("relu", BETTER, **USUAL | {"redo": 100}),
    make_runs("rescue(0.1)", BETTER, **USUAL),
    make_runs("rescue(0.1)", RELU, **USUAL | {"local": True}),
)


def test_a_setting_is_compared_like_an_activation() -> None:
    comparison = compare(RUNS, ARM_CONFIG, arms=["redo"])
    groups = ["relu", "relu redo=100", "rescue(0.1)", "rescue(0.1) local"]
    assert sorted(comparison.rows["group"].unique()) == groups
    assert row(comparison, "relu redo=100")["diff"] == pytest.approx(0.015)
    assert row(comparison, "rescue(0.1) local")["diff"] == pytest.approx(0)
    assert set(comparison.rows["pairs"]) == {0, 6}


def test_settings_of_the_activation_need_not_be_named() -> None:
    comparison = compare(RUNS, ARM_CONFIG)
    assert row(comparison, "rescue(0.1) local redo=0")["pairs"] == 6
    assert row(comparison, "relu redo=100")["pairs"] == 0  # nothing there to compare it with


def test_a_condition_on_an_arm_changes_no_test() -> None:
    whole = compare(RUNS, ARM_CONFIG, arms=["redo"])
    part = compare(RUNS, ARM_CONFIG, arms=["redo"], where=["redo=100"])
    assert row(part, "relu redo=100")["p_adjusted"] == row(whole, "relu redo=100")["p_adjusted"]
    assert set(part.rows["group"]) == {"relu", "relu redo=100"}


def test_the_value_of_most_runs_is_left_out_of_the_label() -> None:
    runs = study(RUNS, make_runs("nsrelu(0.1)", RELU, **USUAL))
    named, columns = name_arms(runs, ARM_CONFIG, ["redo"])
    assert {"redo", "local"}.isdisjoint(columns)
    assert set(named["act"]) == {
        *("relu", "relu redo=100", "nsrelu(0.1)", "rescue(0.1)", "rescue(0.1) local")
    }


def test_an_unknown_arm_names_the_choices() -> None:
    with pytest.raises(UsageError, match="unknown setting 'reddo'; did you mean 'redo'"):
        compare(RUNS, ARM_CONFIG, arms=["reddo"])
