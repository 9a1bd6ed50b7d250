"""What runs count for: those that failed to train, few values, and replicates."""

import numpy as np
import pandas as pd
import pytest
from helpers.made_up import BETTER, MADE_UP_CONFIG, RELU, TWO, lose, make_runs, row, study
from scipy import stats

from nsrelu_bench.compare import comparison as c
from nsrelu_bench.compare import notes


def test_a_diverged_run_counts_with_the_accuracy_of_chance() -> None:
    runs = study(TWO, lose(make_runs("nsrelu(1)", BETTER), [0, 1, 2]))
    found = row(c.compare(runs, MADE_UP_CONFIG), "nsrelu(1)")
    values = [0.1, 0.1, 0.1, *BETTER[3:]]
    assert found["n"] == 3
    assert found["mean"] == pytest.approx(np.mean(BETTER[3:]))
    assert found["itt_mean"] == pytest.approx(np.mean(values))
    assert found["median"] == pytest.approx(np.median(values))
    assert found["iqm"] == pytest.approx(np.mean(sorted(values)[1:5]))
    assert found["pairs"] == 6
    assert found["diff"] == pytest.approx(np.mean(np.subtract(values, RELU)))
    zeros = row(c.compare(runs, MADE_UP_CONFIG), "nsrelu(1)", "zero_fraction")
    assert (zeros["pairs"], zeros["diff"]) == (3, 0)


def test_failures_are_counted_with_their_exact_tests() -> None:
    runs = study(TWO, lose(make_runs("nsrelu(1)", BETTER), [0, 1, 2])).assign(collapsed=0.0)
    runs.loc[(runs["act"] == "nsrelu(1)") & (runs["seed"] == 4), "collapsed"] = 1
    runs.loc[runs["state"] == "diverged", "collapsed"] = np.nan
    found = row(c.compare(runs, MADE_UP_CONFIG), "nsrelu(1)")
    assert list(found[["diverged", "collapsed", "completed"]]) == [3, 1, 3]
    expected = stats.binomtest(4, 6).proportion_ci(method="exact")
    assert found["failed_to_train"] == pytest.approx(4 / 6)
    assert (found["failed_low"], found["failed_high"]) == pytest.approx(tuple(expected))
    assert found["p_failed"] == pytest.approx(stats.binomtest(4, 4).pvalue)


def test_runs_that_do_not_say_did_not_collapse() -> None:
    assert (c.compare(TWO, MADE_UP_CONFIG).rows["collapsed"] == 0).all()


@pytest.mark.parametrize(
    ("recorded", "chance", "said"),
    [
        ({}, 0, "(0 % of folder:x)"),
        ({"classes": 4}, 0.25, "(25 % of folder:x)"),
        ({"classes": [np.nan, *([4.0] * 17)]}, 0.25, "(0 % or 25 % of folder:x)"),
    ],
)
def test_chance_on_ones_own_data_is_that_of_its_classes(
    recorded: dict[str, object], chance: float, said: str
) -> None:
    runs = study(TWO, lose(make_runs("nsrelu(1)", BETTER), [0])).assign(dataset="folder:x")
    comparison = c.compare(runs.assign(**recorded), MADE_UP_CONFIG)
    found = row(comparison, "nsrelu(1)")
    assert found["itt_low"] >= 0
    assert found["itt_mean"] == pytest.approx((chance + sum(BETTER[1:])) / 6)
    assert any(said in line for line in notes(comparison))


@pytest.mark.parametrize("values", [[0.9, 0.8], [0.0, 0.1, 0.2, 0.3]])
def test_few_values_have_no_interval(values: list[float]) -> None:
    rows = c.compare(make_runs("relu", values), MADE_UP_CONFIG).rows
    assert rows[["low", "high", "itt_low", "itt_high"]].isna().all(axis=None)


def test_intervals_of_fractions_stay_within_0_and_1() -> None:
    comparison = c.compare(make_runs("relu", [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]), MADE_UP_CONFIG)
    assert row(comparison, "relu")["low"] == 0
    assert row(comparison, "relu")["high"] < 1
    assert row(comparison, "relu", "grad_norm")["low"] < 1


# Replicates.


def replicated(act: str, accuracies: list[float], shift: float) -> pd.DataFrame:
    """Two replicates of each seed, which differ by twice the shift."""
    parts = [
        make_runs(act, [a + sign * shift for a in accuracies], replicate=number)
        for number, sign in enumerate((1, -1))
    ]
    return study(*parts)


def test_replicates_are_averaged_and_their_spread_separated() -> None:
    runs = study(replicated("relu", RELU, 0.01), replicated("nsrelu(0.1)", BETTER, 0.01))
    comparison = c.compare(runs, [*MADE_UP_CONFIG, "replicate"])
    found = row(comparison, "nsrelu(0.1)")
    assert found["runs"] == 12
    assert found["n"] == found["pairs"] == 6
    assert found["diff"] == pytest.approx(0.015)
    assert found["p"] == pytest.approx(2 / 64)
    assert found["sd_rounding"] == pytest.approx(np.std([0.01, -0.01], ddof=1))
    assert found["rounding"] == pytest.approx(1.96 * found["sd_rounding"] * (2 / 6) ** 0.5)
    assert found["sd_seed"] < np.std(BETTER, ddof=1)


def test_replicates_pair_with_their_like() -> None:
    runs = study(replicated("relu", RELU, 0.01), replicated("nsrelu(0.1)", BETTER, 0.01))
    runs = runs[(runs["act"] == "relu") | (runs["replicate"] == 1)]
    assert row(c.compare(runs, [*MADE_UP_CONFIG, "replicate"]), "nsrelu(0.1)")[
        "diff"
    ] == pytest.approx(0.015)
