"""Words for what a comparison shows: they follow from its adjusted p values alone."""

import math

import numpy as np
import pytest
from helpers.made_up import BETTER, MADE_UP_CONFIG, RELU, TWO, lose, make_runs, row, study

from nsrelu_bench.compare.comparison import compare
from nsrelu_bench.compare.declared_tests import PRIMARY, SECONDARY, verdict
from nsrelu_bench.compare.labels import LABELS, SHORT_LABELS, is_percent, label
from nsrelu_bench.compare.metric_choice import TABLE_METRICS
from nsrelu_bench.compare.notes import notes
from nsrelu_bench.compare.verdicts import verdicts
from nsrelu_bench.records.schema import COLUMNS

ACCURACY = ("", "g", "test_accuracy")


@pytest.mark.parametrize(
    ("difference", "adjusted", "equivalent", "needed", "words"),
    [
        (0.1, 0.049, 0.5, 6, "higher"),
        (-0.1, 0.049, 0.5, 6, "lower"),
        (0.1, 0.05, 0.05, 6, "not shown: would need about 6 seeds"),
        (0.1, 0.05, 0.05, 99, "not shown: would need about 99 seeds"),
        (0.1, 0.05, 0.05, 101, "not shown: would need about 110 seeds"),
        (0.1, 0.05, 0.05, 9_801, "not shown: would need about 9,900 seeds"),
        (0.0, 1.0, 0.04, 6, "equivalent within 1 pp"),
        (-0.001, 0.01, 0.04, 6, "lower, equivalent within 1 pp"),
        (0.1, math.nan, math.nan, 137, "not shown: would need about 140 seeds"),
        (0.1, 0.5, 0.5, 10_001, "not shown: would need more than 10,000 seeds"),
        (0.0, 1.0, math.nan, math.inf, "not shown: the difference is 0"),
        (0.1, math.nan, math.nan, math.nan, "not shown: one pair has no spread"),
    ],
)
def test_words_follow_from_the_adjusted_p_values(
    difference: float, adjusted: float, equivalent: float, needed: float, words: str
) -> None:
    assert verdict(ACCURACY, difference, adjusted, equivalent, 0.01, needed) == words


def test_a_raw_p_never_has_a_word() -> None:
    others = [
        make_runs(f"nsrelu({leak})", list(np.random.default_rng(leak).permutation(RELU)))
        for leak in (1, 2, 3, 4, 5, 6)
    ]
    comparison = compare(study(TWO, *others), MADE_UP_CONFIG)
    rows = comparison.rows
    shown = rows["verdict"].str.contains("higher|lower")
    assert (shown == (rows["p_adjusted"] < 0.05)).all()
    assert (rows.loc[~shown, "p"] < 0.05).any()


def test_a_verdict_in_full() -> None:
    seeds = range(10)
    relu = make_runs("relu", [0.90 + 0.001 * s for s in seeds])
    other = make_runs("nsrelu(0.1)", [0.90 + 0.001 * s + 0.002 * (-1) ** s for s in seeds])
    relu["dead_fraction"] = [0.19 + 0.001 * s for s in seeds]
    other["dead_fraction"] = [0.07 + 0.002 * s for s in seeds]
    assert verdicts(compare(study(relu, other), MADE_UP_CONFIG)) == [
        "nsrelu(0.1) vs relu: accuracy +0.0 pp [-0.2, 0.2], adjusted p = 1: equivalent within 1 pp;"
        " zeros 50.0 % -> 50.0 %, adjusted p = 1: equivalent within 2 pp; dead units 19.4 % -> "
        "7.9 %, adjusted p = 0.0039: lower"
    ]


def test_a_metric_outside_the_family_has_no_word() -> None:
    assert verdicts(compare(TWO, MADE_UP_CONFIG, metrics=["grad_norm"])) == [
        "nsrelu(0.1) vs relu: grad norm 1.93 -> 1.94, p = 0.031, not adjusted"
    ]


def test_few_pairs_have_no_test() -> None:
    comparison = compare(TWO.query("seed < 2"), MADE_UP_CONFIG, metrics=["test_accuracy"])
    assert verdicts(comparison) == [
        "nsrelu(0.1) vs relu: accuracy +1.5 pp, 2 pairs: not shown: would need about 6 seeds"
    ]


def test_failed_runs_are_counted_with_the_baselines() -> None:
    runs = study(lose(make_runs("relu", RELU), [5]), lose(make_runs("nsrelu(1)", BETTER), [0, 1]))
    runs.loc[(runs["act"] == "nsrelu(1)") & (runs["seed"] == 2), "collapsed"] = 1
    (line,) = verdicts(compare(runs, MADE_UP_CONFIG))
    assert line.endswith(
        "; 3 of 6 runs failed to train (2 diverged, 1 collapsed), 1 of 6 of relu, McNemar p = 0.62"
    )


def test_an_all_diverged_group_is_lower_by_intention_to_treat() -> None:
    comparison = compare(
        study(TWO, lose(make_runs("nsrelu(1)", BETTER), [*range(6)])), MADE_UP_CONFIG
    )
    line = next(line for line in verdicts(comparison) if line.startswith("nsrelu(1)"))
    assert line == (
        "nsrelu(1) vs relu: accuracy -82.5 pp [-85.0, -80.0], adjusted p = 0.031: lower; "
        "6 of 6 runs failed to train (6 diverged), 0 of 6 of relu, McNemar p = 0.031"
    )


def test_runs_that_nothing_pairs_with_are_named() -> None:
    later = make_runs("nsrelu(0.1)", BETTER).assign(seed=range(6, 12))
    assert verdicts(compare(study(make_runs("relu", RELU), later), MADE_UP_CONFIG)) == [
        "nsrelu(0.1) vs relu: no finished run with the same settings and seed to pair with"
    ]
    unfinished = lose(later, [*range(6, 12)], "running")
    assert verdicts(compare(study(make_runs("relu", RELU), unfinished), MADE_UP_CONFIG)) == [
        "nsrelu(0.1) vs relu: no run has finished"
    ]


def test_rounding_as_large_as_the_difference_is_said() -> None:
    parts = [
        make_runs(act, [a + sign * shift for a in values], replicate=number)
        for act, values in (("relu", RELU), ("nsrelu(0.1)", BETTER))
        for number, (sign, shift) in enumerate([(1, 0.02), (-1, 0.02)])
    ]
    comparison = compare(study(*parts), [*MADE_UP_CONFIG, "replicate"], metrics=["test_accuracy"])
    rounding = row(comparison, "nsrelu(0.1)")["rounding"]
    assert verdicts(comparison)[0].endswith(
        f": higher (rounding alone gives up to {100 * rounding:.2g} pp)"
    )
    assert any(line.startswith("test accuracy: standard deviation") for line in notes(comparison))


# The foot.


def test_the_foot_says_what_is_averaged_and_tested() -> None:
    assert notes(compare(TWO, MADE_UP_CONFIG))[:6] == [
        "runs: runs of the activation with these settings, one per seed.",
        "diverged: runs whose loss or weights stopped being finite.",
        "accuracy %: fraction of examples classified right on the test data.",
        "zeros %: fraction of the outputs that are exactly 0.",
        "dead %: share of units with output 0 for every example.",
        "grad norm: norm of the gradient of the parameters.",
    ]
    assert notes(compare(TWO, MADE_UP_CONFIG))[6:] == [
        "Mean ± half-width of the 95% t interval over 12 of 12 runs, all completed. [low, high] "
        "where 0 or 100 % cuts it off; the values where there are fewer than 5.",
        "vs relu: paired by seed; the interval inverts the sign-flip test of a single difference.",
        "p is adjusted for the 3 tests of the study, shown or not: primary test_accuracy, secondary"
        " zero_fraction, dead_fraction; step-down maxT over joint sign flips of the seeds, all of "
        "them up to 13 seeds, 9,999 with more.",
        "Verdict: what an adjusted p below 0.05 shows; ~N seeds: how many would show it with a "
        "power of 80%, if the true differences are those observed.",
        "digits: all seeds share its 360 test images, a sample that gives an accuracy of 93% a "
        "standard error of 1.3 pp.",
    ]


def test_the_foot_says_what_few_seeds_can_not_show() -> None:
    line = (
        "With fewer than 6 pairs there is neither a test nor an interval: with 5 pairs p can't go"
    )
    assert f"{line} below 0.0625." in notes(compare(TWO.query("seed < 5"), MADE_UP_CONFIG))
    assert not any(line in note for note in notes(compare(TWO, MADE_UP_CONFIG)))


def test_the_foot_says_what_failed_and_what_it_counts_for() -> None:
    foot = notes(compare(study(TWO, lose(make_runs("nsrelu(1)", BETTER), [0])), MADE_UP_CONFIG))
    assert any("less than half of its best validation accuracy" in line for line in foot)
    assert any("has the accuracy of chance (10 %), and no other" in line for line in foot)


def test_the_foot_counts_the_tests_of_each_study() -> None:
    other = study(TWO, make_runs("elu", RELU)).assign(study="t")
    foot = notes(compare(study(TWO, other), MADE_UP_CONFIG))
    assert any("adjusted for the tests of its study (s 3, t 6), shown" in line for line in foot)


def test_the_foot_warns_of_mixtures_and_of_runs_counted_twice() -> None:
    runs = TWO.assign(torch="2.14.0", cpu_capability="AVX2")
    assert "Computed with torch 2.14.0, cpu_capability AVX2." in notes(
        compare(runs, MADE_UP_CONFIG)
    )
    runs.loc[0, "torch"] = "2.15.0"
    foot = notes(compare(runs, MADE_UP_CONFIG))
    assert "Computed with cpu_capability AVX2." in foot
    mixed = "Careful: these runs differ in torch (2.14.0 and 2.15.0), which changes numbers."
    assert mixed in foot
    copies = study(TWO, TWO.assign(study="t", run_id=TWO["run_id"] + "t"))
    assert (
        "Careful: 12 runs of t train the same configuration and seed as runs of s; they are not "
        "additional evidence."
    ) in notes(compare(copies, MADE_UP_CONFIG))


def test_metrics_have_names_for_people() -> None:
    counted = {"dormant_fraction", "revived_fraction", "collapsed_fraction", "diverged_fraction"}
    measured = {*COLUMNS["metrics.csv"], *counted}
    assert {*LABELS, *SHORT_LABELS, *TABLE_METRICS, PRIMARY, *SECONDARY} <= measured
    percent = [is_percent(m) for m in ("test_accuracy", "dead_fraction", "grad_norm")]
    assert percent == [True, True, False]
    assert label("grad_norm") == "gradient norm"
    assert label("test_accuracy") == "test accuracy"
