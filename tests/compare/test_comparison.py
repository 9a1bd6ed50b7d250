"""Comparisons of made-up runs by hand: means, pairs, choices, and the words for them."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers.made_up import BETTER, MADE_UP_CONFIG, RELU, TWO, lose, make_runs, row, study

from nsrelu_bench.compare import comparison as c
from nsrelu_bench.compare.grouping import COUNTED_STATES
from nsrelu_bench.compare.notes import notes
from nsrelu_bench.compare.sign_flips import step_down_p
from nsrelu_bench.compare.tables import FORMATS, format_table
from nsrelu_bench.compare.verdicts import verdicts
from nsrelu_bench.errors import BenchError, UsageError

BETTER_THAN = np.subtract(BETTER, RELU)
WORSE_ZEROS = np.array([-0.1, -0.2, 0.0, -0.1, -0.1, -0.2])

#: One activation differs from relu in accuracy and zeros, the other in nothing.
THREE = study(
    make_runs("relu", RELU),
    make_runs("nsrelu(0.1)", BETTER).assign(zero_fraction=0.5 + WORSE_ZEROS),
    make_runs("leaky_relu(0.1)", RELU),
).assign(negative_fraction=0.3)


def test_means_and_paired_differences_by_hand() -> None:
    found = row(c.compare(TWO, MADE_UP_CONFIG), "nsrelu(0.1)")
    assert found["n"] == found["pairs"] == 6
    assert found["mean"] == pytest.approx(0.94)
    assert found["sd"] == pytest.approx(np.std(BETTER, ddof=1))
    assert found["diff"] == pytest.approx(0.015)
    assert (found["diff_low"], found["diff_high"]) == pytest.approx((0.01, 0.02))  # typical values
    assert found["p"] == found["p_adjusted"] == pytest.approx(2 / 64)
    assert found["p_better"] == 1
    assert found["d_z"] == pytest.approx(0.015 / np.std([2, 1, 1, 2, 1, 2], ddof=1) * 100)
    assert found["baseline_mean"] == pytest.approx(np.mean(RELU))


def test_the_order_of_runs_does_not_matter() -> None:
    runs = study(TWO, make_runs("leaky_relu(0.1)", RELU[::-1]))
    shuffled = runs.sample(frac=1, random_state=3)
    assert format_table(c.compare(shuffled, MADE_UP_CONFIG)) == format_table(
        c.compare(runs, MADE_UP_CONFIG)
    )


def test_a_run_that_is_given_twice_counts_once() -> None:
    doubled = study(TWO, TWO, lose(TWO, [0], "interrupted"))
    assert format_table(c.compare(doubled, MADE_UP_CONFIG)) == format_table(
        c.compare(TWO, MADE_UP_CONFIG)
    )


def test_a_run_that_is_found_with_two_results_is_refused() -> None:
    doubled = study(TWO, TWO.assign(grad_norm=TWO["grad_norm"] + 1))
    message = r"^run relu-\{\}-0 was found twice, with different numbers \(grad_norm 1.9 and 2.9\)"
    with pytest.raises(BenchError, match=message):
        c.compare(doubled, MADE_UP_CONFIG)


def test_rates_that_differ_in_the_last_digit_are_two_groups() -> None:
    other = make_runs("nsrelu(0.1)", BETTER, lr=float(np.nextafter(0.1, 1)))
    groups = c.compare(study(TWO, other), MADE_UP_CONFIG).rows["group"].unique()
    assert list(groups) == [
        "relu lr=0.1",
        "nsrelu(0.1) lr=0.1",
        "nsrelu(0.1) lr=0.10000000000000002",
    ]


def test_names_that_look_like_numbers_stay_text() -> None:
    runs = study(TWO.assign(dataset="007"), TWO.assign(dataset="7", run_id=TWO["run_id"] + "b"))
    assert list(c.compare(runs, MADE_UP_CONFIG).rows["section"].unique()) == ["007, mlp", "7, mlp"]


def test_two_runs_with_the_same_settings_and_seed_are_refused() -> None:
    doubled = study(TWO, TWO.assign(run_id=TWO["run_id"] + "x"))
    with pytest.raises(BenchError, match="same settings and seed"):
        c.compare(doubled, MADE_UP_CONFIG)


def test_only_seeds_that_both_have_are_paired() -> None:
    few = make_runs("nsrelu(0.1)", BETTER).query("seed >= 2")
    found = row(c.compare(study(make_runs("relu", RELU[:5]), few), MADE_UP_CONFIG), "nsrelu(0.1)")
    assert (found["n"], found["pairs"]) == (4, 3)
    assert found["diff"] == pytest.approx((0.01 + 0.02 + 0.01) / 3)
    assert found["baseline_mean"] == pytest.approx(0.93)


def test_pairs_have_the_same_settings() -> None:
    worse = [a - 0.1 for a in RELU]
    runs = study(TWO, make_runs("relu", worse, lr=0.2), make_runs("nsrelu(0.1)", worse, lr=0.2))
    comparison = c.compare(runs, MADE_UP_CONFIG)
    assert list(comparison.rows["group"].unique()) == [
        "relu lr=0.1",
        "nsrelu(0.1) lr=0.1",
        "relu lr=0.2",
        "nsrelu(0.1) lr=0.2",
    ]
    assert row(comparison, "nsrelu(0.1) lr=0.2")["diff"] == 0
    assert row(comparison, "nsrelu(0.1) lr=0.2")["p"] == 1


def test_impl_is_named_only_where_it_varies() -> None:
    other = make_runs("nsrelu(0.1)", BETTER, impl="detach")
    comparison = c.compare(study(TWO, other), MADE_UP_CONFIG)
    assert list(comparison.rows["group"].unique()) == [
        "relu",
        "nsrelu(0.1) impl=detach",
        "nsrelu(0.1) impl=native",
    ]
    assert row(comparison, "nsrelu(0.1) impl=detach")["pairs"] == 6


def test_settings_that_a_run_does_not_have_are_not_named() -> None:
    config = [*MADE_UP_CONFIG, "momentum"]
    runs = study(TWO.assign(momentum=0.9), make_runs("relu", RELU, momentum=np.nan))
    groups = c.compare(runs, config).rows["group"].unique()
    assert list(groups) == ["relu momentum=0.9", "nsrelu(0.1) momentum=0.9", "relu"]


def test_lost_runs_are_counted_and_not_averaged() -> None:
    runs = study(TWO, lose(make_runs("nsrelu(1)", BETTER), [0, 1]))
    runs = lose(runs, [5], "failed")
    runs.loc[runs["seed"] == 4, "state"] = "running"  # with metrics of an earlier epoch
    found = row(c.compare(runs, MADE_UP_CONFIG), "nsrelu(1)")
    assert list(found[["runs", *COUNTED_STATES]]) == [6, 2, 2, 1, 1]
    assert (found["n"], found["mean"]) == (2, pytest.approx(0.94))
    text = format_table(c.compare(runs, MADE_UP_CONFIG))
    assert "over 10 of 18 runs; left out: 2 diverged, 3 failed, 3 unfinished" in text


def test_a_group_that_all_diverged_stays_in_the_table() -> None:
    runs = study(TWO, lose(make_runs("nsrelu(1)", BETTER), list(range(6))))
    comparison = c.compare(runs, MADE_UP_CONFIG)
    found = row(comparison, "nsrelu(1)")
    assert (found["n"], found["diverged"]) == (0, 6)
    assert np.isnan(found["mean"])
    assert (found["itt_mean"], found["pairs"]) == (pytest.approx(0.1), 6)
    for fmt in FORMATS:
        assert "nsrelu(1)" in format_table(comparison, fmt)


def test_all_runs_diverged() -> None:
    text = format_table(c.compare(lose(TWO, list(range(6))), MADE_UP_CONFIG))
    assert "over 0 of 12 runs; left out: 12 diverged" in text


def test_one_seed_has_means_and_nothing_more() -> None:
    comparison = c.compare(TWO.query("seed == 0"), MADE_UP_CONFIG)
    found = row(comparison, "nsrelu(0.1)")
    assert found["diff"] == pytest.approx(0.02)
    none = ["sd", "low", "diff_low", "p", "p_adjusted", "p_holm", "p_equivalent", "d_z"]
    assert found[none].isna().all()
    assert found["verdict"] == "not shown: one pair has no spread"


def test_a_baseline_that_is_not_there_is_said() -> None:
    only = make_runs("nsrelu(0.1)", BETTER)
    text = format_table(c.compare(only, MADE_UP_CONFIG))
    assert "vs relu: paired by settings and seed; there is no pair" in text
    with pytest.raises(UsageError, match="unknown baseline 'gelo'"):
        c.compare(only, MADE_UP_CONFIG, baseline="gelo")


def test_a_bare_name_is_a_baseline_where_it_has_one_leak() -> None:
    assert c.compare(TWO, MADE_UP_CONFIG, baseline="nsrelu").baseline == "nsrelu(0.1)"
    several = r"^baseline 'nsrelu' is one of several: nsrelu\(0.1\), nsrelu\(1\)$"
    with pytest.raises(UsageError, match=several):
        c.compare(study(TWO, make_runs("nsrelu(1)", RELU)), MADE_UP_CONFIG, baseline="nsrelu")


def test_metrics_may_be_missing_in_part() -> None:
    runs = TWO.drop(columns="grad_norm").assign(dead_fraction=np.nan, zero_fraction=None)
    runs.loc[runs["seed"] == 0, "test_accuracy"] = np.inf
    comparison = c.compare(runs, MADE_UP_CONFIG)
    assert comparison.metrics == ("test_accuracy",)
    asked = c.compare(runs, MADE_UP_CONFIG, metrics=["test_accuracy", "dead_fraction"])
    assert asked.metrics == ("test_accuracy", "dead_fraction")
    assert row(comparison, "relu")["n"] == 5
    foot = notes(comparison)
    assert "test_accuracy: 10 of the 12 completed runs of 2 groups have a value." in foot
    with pytest.raises(UsageError, match="unknown metric 'grad_nrm'"):
        c.compare(TWO, MADE_UP_CONFIG, metrics=["grad_nrm"])


# The family.


def test_what_a_table_shows_changes_no_p_value() -> None:
    few, many = (
        row(c.compare(THREE, MADE_UP_CONFIG, metrics=metrics), "nsrelu(0.1)")
        for metrics in (["test_accuracy"], ["grad_norm", "test_accuracy", "negative_fraction"])
    )
    pd.testing.assert_series_equal(few, many, check_names=False)


@pytest.mark.parametrize("where", [["act=nsrelu"], ["lr=0.1"], ["lr=0.1", "act=nsrelu(0.1)"]])
def test_what_is_shown_of_a_study_changes_no_p_value(where: list[str]) -> None:
    random = np.random.default_rng(0)
    parts = [
        make_runs(act, list(np.add(values, random.normal(0, 0.01, 6))), lr=lr)
        for lr in (0.1, 0.2)
        for act, values in (("relu", RELU), ("nsrelu(0.1)", BETTER), ("elu", RELU))
    ]
    runs = study(*parts)
    few = c.compare(runs, MADE_UP_CONFIG, where=where)
    keys = ["act", "metric"]
    every = c.compare(runs, MADE_UP_CONFIG).rows.query("lr == 0.1").set_index(keys)
    found = few.rows[few.rows["lr"] == 0.1] if "lr" in few.rows else few.rows
    found = found.set_index(keys)
    for column in ("diff", "diff_low", "p", "p_adjusted", "p_holm", "p_equivalent", "verdict"):
        pd.testing.assert_series_equal(found[column], every.loc[found.index, column])
    assert few.tests == 12


def test_the_tests_of_a_study_are_a_family_of_their_own() -> None:
    alone = c.compare(THREE, MADE_UP_CONFIG).rows
    other = TWO.assign(study="t", run_id=TWO["run_id"] + "t")
    both = c.compare(study(THREE, other), MADE_UP_CONFIG)
    assert both.tests_of == {"s": 6, "t": 3}
    assert both.tests == 9
    of_three = both.rows[both.rows["study"] == "s"]
    assert list(of_three["p_adjusted"]) == pytest.approx(list(alone["p_adjusted"]), nan_ok=True)


def test_a_condition_on_seeds_chooses_what_is_tested() -> None:
    few = row(c.compare(TWO, MADE_UP_CONFIG, where=["seed=0,1,2"]), "nsrelu(0.1)")
    assert (few["runs"], few["pairs"]) == (3, 3)


def test_a_condition_on_a_tuned_setting_comes_before_tuning() -> None:
    groups = (
        c.compare(tunable(), MADE_UP_CONFIG, tune=["lr"], where=["lr=0.2"]).rows["group"].unique()
    )
    assert list(groups) == ["relu", "nsrelu(0.1)"]


def test_adjusted_p_values_are_those_of_the_whole_family() -> None:
    comparison = c.compare(THREE, MADE_UP_CONFIG)
    differences = [BETTER_THAN, WORSE_ZEROS, np.zeros(6)]
    expected = step_down_p(np.array([*differences, *(np.zeros(6) for _ in range(3))]))
    rows = comparison.rows[comparison.rows["group"] == "nsrelu(0.1)"].set_index("metric")
    found = rows.loc[list(comparison.family.metrics), "p_adjusted"]
    assert list(found) == pytest.approx(expected[:3])
    assert comparison.tests == 6
    assert comparison.rows.loc[comparison.rows["metric"] == "grad_norm", "p_adjusted"].isna().all()
    assert comparison.rows["p_holm"].max() <= 1


def test_a_family_can_be_declared() -> None:
    asked = {"primary": "grad_norm", "secondary": ["test_accuracy"], "margins": {"grad_norm": 0.5}}
    comparison = c.compare(THREE, MADE_UP_CONFIG, **asked)
    assert comparison.family.metrics == ("grad_norm", "test_accuracy")
    assert comparison.main_metric == "grad_norm"
    assert comparison.tests == 4
    assert row(comparison, "nsrelu(0.1)", "grad_norm")["verdict"] == "higher, equivalent within 0.5"
    assert row(comparison, "nsrelu(0.1)", "zero_fraction")["verdict"] == ""


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"primary": "acc"}, "unknown metric 'acc'; choose from: test_accuracy, "),
        ({"secondary": ["zeros"]}, "unknown metric 'zeros'"),
        ({"margins": {"accuracy": 1.0}}, "unknown metric 'accuracy'; did you mean"),
        ({"margins": {"test_accuracy": 0.0}}, "margin of test_accuracy must be above 0, got 0"),
    ],
)
def test_a_family_of_what_was_not_measured_is_refused(asked: dict, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        c.compare(TWO, MADE_UP_CONFIG, **asked)


# Several studies.


def test_runs_that_train_alike_in_two_studies_are_counted() -> None:
    config = [*MADE_UP_CONFIG, "probe_size"]
    one = TWO.assign(study="a", probe_size=100)
    other = TWO[TWO["seed"] < 4].assign(study="b", probe_size=200, run_id=TWO["run_id"] + "b")
    assert c.compare(study(one, other), config).copies == {("b", "a"): 8}
    assert c.compare(study(one, other.assign(lr=0.2)), config).copies == {}


# Choosing.


def tunable() -> pd.DataFrame:
    """nsrelu(0.1) is better on the test set with lr 0.2, on the validation set with 0.1."""
    high = make_runs("nsrelu(0.1)", [0.99] * 6, lr=0.2).assign(val_accuracy=0.5)
    return study(TWO, high, make_runs("relu", [0.8] * 6, lr=0.2))


def test_tuning_never_looks_at_the_test_set() -> None:
    comparison = c.compare(tunable(), MADE_UP_CONFIG, tune=["lr"])
    assert list(comparison.rows["group"].unique()) == ["relu lr=0.1", "nsrelu(0.1) lr=0.1"]
    assert "never by the test set" in "\n".join(notes(comparison))


def test_tuning_pairs_across_the_tuned_setting() -> None:
    runs = tunable()
    runs.loc[(runs["act"] != "relu") & (runs["lr"] == 0.2), "val_accuracy"] = 0.999
    comparison = c.compare(runs, MADE_UP_CONFIG, tune=["lr"])
    found = row(comparison, "nsrelu(0.1) lr=0.2")
    assert (found["baseline_group"], found["pairs"]) == ("relu lr=0.1", 6)


@pytest.mark.parametrize("failed", [{"state": "diverged"}, {"collapsed": 1.0}])
def test_tuning_prefers_settings_that_train(failed: dict) -> None:
    runs = tunable()
    runs.loc[runs["lr"] == 0.2, "val_accuracy"] = 0.999
    lost = (runs["lr"] == 0.2) & (runs["seed"] == 3)
    for column, value in failed.items():
        runs.loc[lost, column] = value
    groups = c.compare(runs, MADE_UP_CONFIG, tune=["lr"]).rows["group"].unique()
    assert list(groups) == ["relu lr=0.1", "nsrelu(0.1) lr=0.1"]


def test_tuning_drops_no_activation() -> None:
    runs = tunable()
    runs.loc[runs["act"] != "relu", "state"] = "diverged"
    rows = c.compare(runs, MADE_UP_CONFIG, tune=["lr"]).rows
    assert rows[rows["act"] == "nsrelu(0.1)"]["diverged"].unique() == [6]


@pytest.mark.parametrize("name", ["act", "leak", "seed", "lrr"])
def test_what_can_not_be_tuned(name: str) -> None:
    with pytest.raises(UsageError, match=f"unknown setting '{name}'"):
        c.compare(TWO, MADE_UP_CONFIG, tune=[name])


def test_sections_and_sorting() -> None:
    other = TWO.assign(dataset="cifar10", run_id=TWO["run_id"] + "c")
    comparison = c.compare(study(TWO, other), MADE_UP_CONFIG, sort="test_accuracy")
    heads = comparison.rows.drop_duplicates(["section", "group"])
    assert list(heads["section"]) == ["cifar10, mlp"] * 2 + ["digits, mlp"] * 2
    assert list(heads["act"]) == ["nsrelu(0.1)", "relu"] * 2
    assert all(
        line.startswith(("cifar10, mlp: ", "digits, mlp: ")) for line in verdicts(comparison)
    )
    with pytest.raises(UsageError, match="unknown column to sort by 'accuracy'"):
        c.compare(TWO, MADE_UP_CONFIG, sort="accuracy")


def test_by_makes_tables() -> None:
    comparison = c.compare(tunable(), MADE_UP_CONFIG, by=["lr"])
    assert list(comparison.rows["section"].unique()) == ["lr 0.1", "lr 0.2"]
    assert list(comparison.rows["group"].unique()) == ["relu", "nsrelu(0.1)"]


def test_counts_are_whole_numbers() -> None:
    rows = c.compare(
        study(TWO, lose(make_runs("nsrelu(1)", BETTER), [*range(6)])), MADE_UP_CONFIG
    ).rows
    assert {column: rows[column].dtype.kind for column in ("n", "pairs")} == {
        "n": "i",
        "pairs": "i",
    }
    assert rows.loc[rows["act"] == "relu", "pairs"].tolist() == [0] * 4
    assert rows.loc[rows["act"] == "nsrelu(1)", "n"].tolist() == [0] * 4


def test_nothing_to_compare() -> None:
    with pytest.raises(BenchError, match="no runs to compare"):
        c.compare(TWO.iloc[:0], MADE_UP_CONFIG)


def test_runs_without_a_validation_accuracy_can_not_be_tuned() -> None:
    runs = TWO.drop(columns="val_accuracy")
    with pytest.raises(BenchError) as caught:
        c.compare(runs, MADE_UP_CONFIG, tune=["lr", "epochs"])
    assert str(caught.value) == ("tune lr, epochs: the runs have no val_accuracy to choose by")


@pytest.mark.parametrize("how", ["metrics", "primary", "secondary"])
@pytest.mark.parametrize(("setting", "arms"), [("local", []), ("lr", []), ("lr", ["lr"])])
def test_a_setting_is_no_metric(how: str, setting: str, arms: list[str]) -> None:
    runs, columns = TWO.assign(local=False), [*MADE_UP_CONFIG, "local"]
    with pytest.raises(UsageError, match=f"^'{setting}' is a setting, not a metric; ") as caught:
        c.compare(runs, columns, arms=arms, **{how: setting if how == "primary" else [setting]})
    offered = str(caught.value).partition("choose from: ")[2].split(", ")
    assert "test_accuracy" in offered
    assert not {*columns, "study"} & set(offered)


@pytest.mark.parametrize("how", ["metrics", "primary", "secondary", "margins"])
@pytest.mark.parametrize(
    ("measure", "more"),
    [("weight_norm", "; docs/metrics.md says where it has no value"), ("mine.parts:spread", "")],
)
def test_a_measure_that_no_run_took_needs_new_runs(how: str, measure: str, more: str) -> None:
    value = {"primary": measure, "margins": {measure: 0.1}}.get(how, [measure])
    with pytest.raises(UsageError) as caught:
        c.compare(TWO, MADE_UP_CONFIG, **{how: value})
    assert str(caught.value) == (
        f"no run has {measure}: runs made before it was added, or without it in measures,"
        f" need --fresh{more}"
    )


def test_sorting_by_a_setting_goes_from_small_to_large() -> None:
    runs = study(TWO.assign(lr=0.3), make_runs("relu", RELU, lr=0.05))
    runs = study(runs, make_runs("relu", RELU, lr=0.1))
    heads = c.compare(runs, MADE_UP_CONFIG, sort="lr").rows.drop_duplicates("group")
    assert list(heads["group"]) == [
        "relu lr=0.05",
        "relu lr=0.1",
        "relu lr=0.3",
        "nsrelu(0.1) lr=0.3",
    ]


def test_each_study_has_a_table_of_its_own() -> None:
    one = TWO.assign(study="one")
    other = TWO.assign(study="other", test_accuracy=TWO["test_accuracy"] - 0.1)
    both = pd.concat([one, other], ignore_index=True)
    rows = c.compare(both, MADE_UP_CONFIG, metrics=["test_accuracy"]).rows
    alone = c.compare(other, MADE_UP_CONFIG, metrics=["test_accuracy"]).rows
    assert list(dict.fromkeys(rows["study"])) == ["one", "other"]
    of_other = rows[rows["study"] == "other"]
    assert of_other["group"].tolist() == alone["group"].tolist()
    for column in ("n", "mean", "diff", "p"):
        assert of_other[column].tolist() == pytest.approx(alone[column].tolist(), nan_ok=True)
