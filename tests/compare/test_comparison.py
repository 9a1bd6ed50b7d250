"""Comparisons of made-up runs by hand: means, pairs, choices, and the words for them."""

import numpy as np
import pandas as pd
import pytest
from helpers.made_up import BETTER, CONFIG, RELU, TWO, lose, make_runs, row, study
from scipy import stats

from nsrelu_bench.compare import comparison as c
from nsrelu_bench.compare.grouping import STATES
from nsrelu_bench.compare.labels import LABELS, SHORT_LABELS, is_percent, label
from nsrelu_bench.compare.tables import FORMATS, format_table
from nsrelu_bench.compare.verdicts import VERDICT_METRICS, notes, verdict, verdicts
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.records.schema import COLUMNS


def test_means_and_paired_differences_by_hand() -> None:
    found = row(c.compare(TWO, CONFIG), "nsrelu(0.1)")
    assert found["n"] == found["pairs"] == 6
    assert found["mean"] == pytest.approx(0.94)
    assert found["sd"] == pytest.approx(np.std(BETTER, ddof=1))
    assert found["diff"] == pytest.approx(0.015)
    paired = stats.ttest_rel(BETTER, RELU).confidence_interval()
    assert (found["diff_low"], found["diff_high"]) == pytest.approx((paired.low, paired.high))
    assert found["p"] == pytest.approx(2 / 64)
    assert found["d_z"] == pytest.approx(0.015 / np.std([2, 1, 1, 2, 1, 2], ddof=1) * 100)
    assert found["baseline_mean"] == pytest.approx(np.mean(RELU))


def test_the_order_of_runs_does_not_matter() -> None:
    runs = study(TWO, make_runs("leaky_relu(0.1)", RELU[::-1]))
    shuffled = runs.sample(frac=1, random_state=3)
    assert format_table(c.compare(shuffled, CONFIG)) == format_table(c.compare(runs, CONFIG))


def test_a_run_that_is_given_twice_counts_once() -> None:
    doubled = study(TWO, TWO, lose(TWO, [0], "interrupted"))
    assert format_table(c.compare(doubled, CONFIG)) == format_table(c.compare(TWO, CONFIG))


def test_a_run_that_is_found_with_two_results_is_refused() -> None:
    doubled = study(TWO, TWO.assign(grad_norm=TWO["grad_norm"] + 1))
    message = r"^run relu-\{\}-0 was found twice, with different numbers \(grad_norm 1.9 and 2.9\)"
    with pytest.raises(BenchError, match=message):
        c.compare(doubled, CONFIG)


def test_rates_that_differ_in_the_last_digit_are_two_groups() -> None:
    other = make_runs("nsrelu(0.1)", BETTER, lr=float(np.nextafter(0.1, 1)))
    groups = c.compare(study(TWO, other), CONFIG).rows["group"].unique()
    assert list(groups) == [
        "relu lr=0.1",
        "nsrelu(0.1) lr=0.1",
        "nsrelu(0.1) lr=0.10000000000000002",
    ]


def test_names_that_look_like_numbers_stay_text() -> None:
    runs = study(TWO.assign(dataset="007"), TWO.assign(dataset="7", run_id=TWO["run_id"] + "b"))
    assert list(c.compare(runs, CONFIG).rows["section"].unique()) == ["007, mlp", "7, mlp"]


def test_two_runs_with_the_same_settings_and_seed_are_refused() -> None:
    doubled = study(TWO, TWO.assign(run_id=TWO["run_id"] + "x"))
    with pytest.raises(BenchError, match="same settings and seed"):
        c.compare(doubled, CONFIG)


def test_only_seeds_that_both_have_are_paired() -> None:
    few = make_runs("nsrelu(0.1)", BETTER).query("seed >= 2")
    found = row(c.compare(study(make_runs("relu", RELU[:5]), few), CONFIG), "nsrelu(0.1)")
    assert (found["n"], found["pairs"]) == (4, 3)
    assert found["diff"] == pytest.approx((0.01 + 0.02 + 0.01) / 3)
    assert found["baseline_mean"] == pytest.approx(0.93)


def test_pairs_have_the_same_settings() -> None:
    worse = [a - 0.1 for a in RELU]
    runs = study(TWO, make_runs("relu", worse, lr=0.2), make_runs("nsrelu(0.1)", worse, lr=0.2))
    comparison = c.compare(runs, CONFIG)
    assert list(comparison.rows["group"].unique()) == [
        "relu lr=0.1",
        "nsrelu(0.1) lr=0.1",
        "relu lr=0.2",
        "nsrelu(0.1) lr=0.2",
    ]
    assert row(comparison, "nsrelu(0.1) lr=0.2")["diff"] == 0
    assert row(comparison, "nsrelu(0.1) lr=0.2")["p"] == 1


def test_leak_never_and_impl_only_where_it_varies_is_part_of_the_name() -> None:
    other = make_runs("nsrelu(0.1)", BETTER, impl="detach")
    comparison = c.compare(study(TWO, other), CONFIG)
    assert list(comparison.rows["group"].unique()) == [
        "relu",
        "nsrelu(0.1) impl=detach",
        "nsrelu(0.1) impl=native",
    ]
    assert row(comparison, "nsrelu(0.1) impl=detach")["pairs"] == 6


def test_settings_that_an_activation_or_optimizer_has_not_are_left_out() -> None:
    config = [*CONFIG, "momentum"]
    runs = study(TWO.assign(momentum=0.9), make_runs("relu", RELU, momentum=np.nan))
    groups = c.compare(runs, config).rows["group"].unique()
    assert list(groups) == ["relu momentum=0.9", "nsrelu(0.1) momentum=0.9", "relu"]


def test_lost_runs_are_counted_and_not_averaged() -> None:
    runs = study(TWO, lose(make_runs("nsrelu(1)", BETTER), [0, 1]))
    runs = lose(runs, [5], "failed")
    runs.loc[runs["seed"] == 4, "state"] = "running"  # with metrics of an earlier epoch
    found = row(c.compare(runs, CONFIG), "nsrelu(1)")
    assert list(found[["runs", *STATES]]) == [6, 2, 2, 1, 1]
    assert (found["n"], found["mean"]) == (2, pytest.approx(0.94))
    text = format_table(c.compare(runs, CONFIG))
    assert "over 10 of 18 runs; left out: 2 diverged, 3 failed, 3 unfinished" in text


def test_a_group_that_all_diverged_stays_in_the_table() -> None:
    runs = study(TWO, lose(make_runs("nsrelu(1)", BETTER), list(range(6))))
    comparison = c.compare(runs, CONFIG)
    found = row(comparison, "nsrelu(1)")
    assert (found["n"], found["diverged"]) == (0, 6)
    assert np.isnan(found[["mean", "p"]].astype(float)).all()
    assert "nsrelu(1) vs relu: no completed run; 6 of 6 runs diverged" in verdicts(comparison)
    for fmt in FORMATS:
        assert "nsrelu(1)" in format_table(comparison, fmt)


def test_all_runs_diverged() -> None:
    text = format_table(c.compare(lose(TWO, list(range(6))), CONFIG))
    assert "over 0 of 12 runs; left out: 12 diverged" in text


def test_one_seed_has_means_and_nothing_more() -> None:
    comparison = c.compare(TWO.query("seed == 0"), CONFIG)
    found = row(comparison, "nsrelu(0.1)")
    assert found["diff"] == pytest.approx(0.02)
    assert found[["sd", "low", "diff_low", "p", "p_holm", "d_z"]].isna().all()
    (verdict,) = verdicts(comparison)
    assert verdict.startswith("nsrelu(0.1) vs relu: accuracy +2.0 pp: one pair, no test; zeros ")


def test_a_baseline_that_is_not_there_is_said() -> None:
    only = make_runs("nsrelu(0.1)", BETTER)
    text = format_table(c.compare(only, CONFIG))
    assert "vs relu: paired by settings and seed; none to pair" in text
    with pytest.raises(UsageError, match="unknown baseline 'gelo'"):
        c.compare(only, CONFIG, baseline="gelo")


def test_a_bare_name_is_a_baseline_where_it_has_one_leak() -> None:
    assert c.compare(TWO, CONFIG, baseline="nsrelu").baseline == "nsrelu(0.1)"
    several = r"^baseline 'nsrelu' is one of several: nsrelu\(0.1\), nsrelu\(1\)$"
    with pytest.raises(UsageError, match=several):
        c.compare(study(TWO, make_runs("nsrelu(1)", RELU)), CONFIG, baseline="nsrelu")


def test_metrics_may_be_missing_in_part() -> None:
    runs = TWO.drop(columns="grad_norm").assign(dead_fraction=np.nan, zero_fraction=None)
    runs.loc[runs["seed"] == 0, "test_accuracy"] = np.inf
    comparison = c.compare(runs, CONFIG)
    assert comparison.metrics == ("test_accuracy", "zero_fraction", "dead_fraction")
    assert row(comparison, "relu")["n"] == 5
    foot = notes(comparison)
    assert "test_accuracy: 10 of the 12 completed runs of 2 groups have a value." in foot
    with pytest.raises(UsageError, match="unknown metric 'grad_nrm'"):
        c.compare(TWO, CONFIG, metrics=["grad_nrm"])


def test_holm_is_over_the_whole_table() -> None:
    comparison = c.compare(TWO, CONFIG)
    tested = comparison.rows["p"].dropna()
    assert comparison.tests == len(tested) == 4
    assert row(comparison, "nsrelu(0.1)")["p_holm"] == pytest.approx(4 / 32)


# Choosing.


def tunable() -> pd.DataFrame:
    """nsrelu(0.1) is better on the test set with lr 0.2, on the validation set with 0.1."""
    high = make_runs("nsrelu(0.1)", [0.99] * 6, lr=0.2).assign(val_accuracy=0.5)
    return study(TWO, high, make_runs("relu", [0.8] * 6, lr=0.2))


def test_tuning_never_looks_at_the_test_set() -> None:
    comparison = c.compare(tunable(), CONFIG, tune=["lr"])
    assert list(comparison.rows["group"].unique()) == ["relu lr=0.1", "nsrelu(0.1) lr=0.1"]
    assert "test set had no say" in "\n".join(notes(comparison))


def test_tuning_pairs_across_the_tuned_setting() -> None:
    runs = tunable()
    runs.loc[(runs["act"] != "relu") & (runs["lr"] == 0.2), "val_accuracy"] = 0.999
    comparison = c.compare(runs, CONFIG, tune=["lr"])
    found = row(comparison, "nsrelu(0.1) lr=0.2")
    assert (found["baseline_group"], found["pairs"]) == ("relu lr=0.1", 6)


def test_tuning_prefers_settings_that_do_not_diverge() -> None:
    runs = tunable()
    runs.loc[runs["lr"] == 0.2, "val_accuracy"] = 0.999
    lost = (runs["lr"] == 0.2) & (runs["seed"] == 3)
    runs.loc[lost, "state"] = "diverged"
    groups = c.compare(runs, CONFIG, tune=["lr"]).rows["group"].unique()
    assert list(groups) == ["relu lr=0.1", "nsrelu(0.1) lr=0.1"]


def test_an_activation_that_always_diverges_is_not_dropped_by_tuning() -> None:
    runs = tunable()
    runs.loc[runs["act"] != "relu", "state"] = "diverged"
    rows = c.compare(runs, CONFIG, tune=["lr"]).rows
    assert rows[rows["act"] == "nsrelu(0.1)"]["diverged"].unique() == [6]


@pytest.mark.parametrize("name", ["act", "leak", "seed", "lrr"])
def test_what_can_not_be_tuned(name: str) -> None:
    with pytest.raises(UsageError, match=f"unknown setting '{name}'"):
        c.compare(TWO, CONFIG, tune=[name])


def test_sections_and_sorting() -> None:
    other = TWO.assign(dataset="cifar10", run_id=TWO["run_id"] + "c")
    comparison = c.compare(study(TWO, other), CONFIG, sort="test_accuracy")
    heads = comparison.rows.drop_duplicates(["section", "group"])
    assert list(heads["section"]) == ["cifar10, mlp"] * 2 + ["digits, mlp"] * 2
    assert list(heads["act"]) == ["nsrelu(0.1)", "relu"] * 2
    assert all(
        line.startswith(("cifar10, mlp: ", "digits, mlp: ")) for line in verdicts(comparison)
    )
    with pytest.raises(UsageError, match="unknown column to sort by 'accuracy'"):
        c.compare(TWO, CONFIG, sort="accuracy")


def test_by_makes_tables() -> None:
    comparison = c.compare(tunable(), CONFIG, by=["lr"])
    assert list(comparison.rows["section"].unique()) == ["lr 0.1", "lr 0.2"]
    assert list(comparison.rows["group"].unique()) == ["relu", "nsrelu(0.1)"]


def test_counts_are_whole_numbers_and_0_where_there_is_nothing() -> None:
    rows = c.compare(study(TWO, lose(make_runs("nsrelu(1)", BETTER), [*range(6)])), CONFIG).rows
    assert {column: rows[column].dtype.kind for column in ("n", "pairs")} == {
        "n": "i",
        "pairs": "i",
    }
    assert rows.loc[rows["act"] == "relu", "pairs"].tolist() == [0] * 4
    assert rows.loc[rows["act"] == "nsrelu(1)", "n"].tolist() == [0] * 4


def test_nothing_to_compare() -> None:
    with pytest.raises(BenchError, match="no runs to compare"):
        c.compare(TWO.iloc[:0], CONFIG)


# Words.


@pytest.mark.parametrize(
    ("diff", "p", "p_holm", "pairs", "words"),
    [
        (0.1, 0.5, 1.0, 6, "no difference shown"),
        (0.1, 0.05, 0.05, 10, "no difference shown"),
        (0.1, 0.0625, 0.0625, 5, "too few seeds to tell"),
        (0.1, 0.002, 0.004, 10, "higher"),
        (0.1, 0.03, 0.05, 10, "higher (Holm p 0.05)"),
        (-0.1, 0.002, 0.004, 10, "lower"),
        (-0.1, 0.031, 0.25, 6, "lower (Holm p 0.25)"),
    ],
)
def test_words_follow_from_the_numbers(
    diff: float, p: float, p_holm: float, pairs: int, words: str
) -> None:
    assert verdict(diff, p, p_holm, pairs) == words


def test_a_verdict_in_full() -> None:
    seeds = range(10)
    relu = make_runs("relu", [0.90 + 0.001 * s for s in seeds])
    other = make_runs("nsrelu(0.1)", [0.90 + 0.001 * s + 0.002 * (-1) ** s for s in seeds])
    relu["dead_fraction"] = [0.19 + 0.001 * s for s in seeds]
    other["dead_fraction"] = [0.07 + 0.002 * s for s in seeds]
    half = stats.t.ppf(0.975, 9) * np.std([2, -2] * 5, ddof=1) / 10**0.5 / 10
    assert verdicts(c.compare(study(relu, other), CONFIG)) == [
        f"nsrelu(0.1) vs relu: accuracy +0.0 pp [-{half:.1f}, {half:.1f}], p = 1: no difference "
        "shown; zeros 50.0 % -> 50.0 %, p = 1: no difference shown; dead units 19.4 % -> 7.9 %, "
        "p = 0.002: lower"
    ]


def test_a_verdict_on_accuracy_has_its_interval_in_points() -> None:
    comparison = c.compare(TWO, CONFIG, metrics=["test_accuracy"])
    half = stats.t.ppf(0.975, 5) * np.std([2, 1, 1, 2, 1, 2], ddof=1) / 6**0.5
    ends = f"{1.5 - half:.1f}, {1.5 + half:.1f}"
    assert verdicts(comparison) == [
        f"nsrelu(0.1) vs relu: accuracy +1.5 pp [{ends}], p = 0.031: higher"
    ]


def test_runs_that_nothing_pairs_with_are_told() -> None:
    later = make_runs("nsrelu(0.1)", BETTER).assign(seed=range(6, 12))
    assert verdicts(c.compare(study(make_runs("relu", RELU), later), CONFIG)) == [
        "nsrelu(0.1) vs relu: no completed run with the same settings and seed to pair with"
    ]


def test_one_pair_each_is_told_at_the_foot() -> None:
    assert notes(c.compare(TWO.query("seed == 0"), CONFIG))[-1] == (
        "vs relu: paired by settings and seed; one pair each, so no interval and no test."
    )


def test_runs_without_a_validation_accuracy_can_not_be_tuned() -> None:
    runs = TWO.drop(columns="val_accuracy")
    with pytest.raises(BenchError) as caught:
        c.compare(runs, CONFIG, tune=["lr", "epochs"])
    assert str(caught.value) == ("tune lr, epochs: the runs have no val_accuracy to choose by")


def test_two_pairs_are_tested_and_too_few() -> None:
    comparison = c.compare(TWO.query("seed < 2"), CONFIG, metrics=["grad_norm"])
    assert verdicts(comparison) == [
        "nsrelu(0.1) vs relu: grad norm 1.91 -> 1.92, p = 0.5: too few seeds to tell"
    ]


def test_metrics_have_names_for_people() -> None:
    measured = {*COLUMNS["metrics.csv"], "diverged_fraction"}
    assert {*LABELS, *SHORT_LABELS, *c.TABLE_METRICS, *VERDICT_METRICS} <= measured
    percent = [is_percent(m) for m in ("test_accuracy", "dead_fraction", "grad_norm")]
    assert percent == [True, True, False]
    assert label("grad_norm") == "gradient norm"
    assert label("test_accuracy") == "test accuracy"


@pytest.mark.parametrize("column", [column for column in c.RUN_COLUMNS if column != "study"])
def test_what_is_no_metric_can_not_be_compared(column: str) -> None:
    with pytest.raises(UsageError, match=f"unknown metric '{column}'"):
        c.compare(TWO.assign(**{column: TWO.get(column, 1)}), CONFIG, metrics=[column])


def test_sorting_by_a_setting_goes_from_small_to_large() -> None:
    runs = study(TWO.assign(lr=0.3), make_runs("relu", RELU, lr=0.05))
    runs = study(runs, make_runs("relu", RELU, lr=0.1))
    heads = c.compare(runs, CONFIG, sort="lr").rows.drop_duplicates("group")
    assert list(heads["group"]) == [
        "relu lr=0.05",
        "relu lr=0.1",
        "relu lr=0.3",
        "nsrelu(0.1) lr=0.3",
    ]


def test_the_foot_says_how_pairs_were_made_and_tested() -> None:
    three = ["test_accuracy", "zero_fraction", "grad_norm"]
    assert notes(c.compare(TWO, CONFIG, metrics=three)) == [
        "Mean ± half-width of the 95% t interval, over 12 of 12 runs, all completed.",
        "vs relu: paired by seed; p by exact sign flips, two-sided; * where it stays below 0.05"
        " after Holm's adjustment over 3 tests.",
        "3 tests need 7 pairs for a * to be possible.",
    ]


def test_the_foot_says_what_few_seeds_can_not_show() -> None:
    five = notes(c.compare(TWO.query("seed < 5"), CONFIG))
    assert "With 5 pairs p can't go below 2/2^5 = 0.0625." in five
    six = "\n".join(notes(c.compare(TWO, CONFIG)))
    assert "can't go below" not in six
    assert "4 tests need 8 pairs for a * to be possible." in six


def test_each_study_has_a_table_of_its_own() -> None:
    one = TWO.assign(study="one")
    other = TWO.assign(study="other", test_accuracy=TWO["test_accuracy"] - 0.1)
    both = pd.concat([one, other], ignore_index=True)
    rows = c.compare(both, CONFIG, metrics=["test_accuracy"]).rows
    alone = c.compare(other, CONFIG, metrics=["test_accuracy"]).rows
    assert list(dict.fromkeys(rows["study"])) == ["one", "other"]
    of_other = rows[rows["study"] == "other"]
    assert of_other["group"].tolist() == alone["group"].tolist()
    for column in ("n", "mean", "diff", "p"):
        assert of_other[column].tolist() == pytest.approx(alone[column].tolist(), nan_ok=True)


def test_a_study_of_several_versions_of_torch_is_told_so() -> None:
    runs = TWO.assign(torch="2.14.0", cpu_capability="AVX2")
    assert not any("Careful" in line for line in notes(c.compare(runs, CONFIG)))
    runs.loc[0, "torch"] = "2.15.0"
    told = "Careful: these runs were made with torch 2.14.0 and 2.15.0, which changes numbers."
    assert told in notes(c.compare(runs, CONFIG))
