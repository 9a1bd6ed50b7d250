"""Statistics against values by hand, scipy, and slow versions of themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nsrelu_bench.compare.statistics import (
    clopper_pearson,
    cohen_dz,
    holm,
    interquartile_mean,
    least_p,
    mcnemar_p,
    probability_of_improvement,
    score_distribution,
    sign_flip_p,
    t_half_width,
)


def test_the_t_interval_is_scipys() -> None:
    values = np.array([0.91, 0.95, 0.90, 0.97, 0.92])
    half = t_half_width(np.array([values.std(ddof=1)]), np.array([5]))[0]
    low, high = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    assert values.mean() - half == pytest.approx(low)
    assert values.mean() + half == pytest.approx(high)


def test_one_value_has_no_interval() -> None:
    assert np.isnan(t_half_width(np.array([np.nan]), np.array([1]))).all()


def test_the_t_interval_of_five_seeds_covers_95_percent() -> None:
    values = np.random.default_rng(1).normal(size=(4000, 5))
    half = t_half_width(values.std(axis=1, ddof=1), np.full(4000, 5))
    covers = np.abs(values.mean(axis=1)) <= half
    assert 0.94 < covers.mean() < 0.96


def test_sign_flip_p_counts_the_flips_that_are_as_extreme() -> None:
    # 1 + 2 + 3 = 6 is reached by +++ and ---, 2 of 8; of 1 + 2 - 3 = 0 all are as extreme.
    assert sign_flip_p(np.array([[1.0, 2, 3], [1, 2, -3]])) == pytest.approx([0.25, 1])


@pytest.mark.parametrize(("n", "least"), [(5, 0.0625), (6, 0.03125), (10, 2 / 1024)])
def test_sign_flip_p_can_not_go_below_2_over_2_to_the_n(n: int, least: float) -> None:
    p = sign_flip_p(np.linspace(1, 2, n)[None])
    assert p == pytest.approx([least])
    assert least_p(n) == pytest.approx(least)


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e6])
def test_sign_flip_p_does_not_depend_on_the_scale(scale: float) -> None:
    differences = np.array([[1.0, 2, 3, -1], [1, 2, 3, 4]])
    assert sign_flip_p(scale * differences) == pytest.approx(sign_flip_p(differences))


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=8), st.sampled_from([359, 1000, 3500]))
@settings(max_examples=60, deadline=None)
def test_rounding_does_not_break_the_ties_of_accuracies(steps: list[int], size: int) -> None:
    base = 0.9
    differences = np.array([(base + step / size) - base for step in steps])
    flips = np.array(np.meshgrid(*[[-1, 1]] * len(steps))).reshape(len(steps), -1)
    expected = np.mean(np.abs(np.array(steps) @ flips) >= abs(sum(steps)))
    assert sign_flip_p(differences[None])[0] == pytest.approx(expected)


def test_sign_flip_p_with_many_pairs_is_drawn_and_repeatable() -> None:
    differences = np.random.default_rng(0).normal(0.5, 1, size=(3, 20))
    first = sign_flip_p(differences)
    assert np.array_equal(first, sign_flip_p(differences))
    assert first == pytest.approx(stats.ttest_1samp(differences, 0, axis=1).pvalue, abs=0.03)


def test_a_single_pair_has_no_p() -> None:
    assert np.isnan(sign_flip_p(np.array([[1.0]]))).all()


def test_holm_by_hand() -> None:
    # Sorted 0.01 0.03 0.04, times 3 2 1, never falling; NaN is no test.
    adjusted = holm(np.array([0.04, np.nan, 0.01, 0.03]))
    assert adjusted == pytest.approx([0.06, np.nan, 0.03, 0.06], nan_ok=True)
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1, 1])
    assert holm(np.array([])).shape == (0,)


def test_effect_size_is_empty_where_differences_do_not_vary() -> None:
    d = cohen_dz(np.array([1.0, 0, 0.01]), np.array([2.0, 0, 1e-18]))
    assert d == pytest.approx([0.5, np.nan, np.nan], nan_ok=True)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (1, 1)])
def test_clopper_pearson_is_scipys_exact_interval(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    low, high = clopper_pearson(np.array([k]), np.array([n]))
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high))


def test_no_run_gives_no_share() -> None:
    assert np.isnan(clopper_pearson([0], [0])).all()


def test_mcnemar_is_the_binomial_test_of_discordant_pairs() -> None:
    expected = [stats.binomtest(1, 8).pvalue, stats.binomtest(6, 6).pvalue, 1, 1]
    assert mcnemar_p([1, 6, 0, 2], [7, 0, 0, 2]) == pytest.approx(expected)


def test_mcnemar_is_the_sign_flip_test_of_who_failed() -> None:
    differences = np.array([[1, 1, 1, 1, 1, 1, -1, 0, 0, 0.0]])
    assert mcnemar_p([6], [1]) == pytest.approx(sign_flip_p(differences))


def test_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert interquartile_mean(np.array([0, 1, 2, 3, 4, 5, 6, 100.0])) == pytest.approx(3.5)
    assert np.isnan(interquartile_mean(np.array([])))


def test_ties_count_half_and_widen_the_interval() -> None:
    p, low, high = probability_of_improvement(np.array([1, 2, 0, -1.0]))
    assert p == pytest.approx(2.5 / 4)
    assert low == pytest.approx(clopper_pearson([2], [4])[0][0])
    assert high == pytest.approx(clopper_pearson([3], [4])[1][0])
    assert np.isnan(probability_of_improvement(np.array([]))).all()


def test_score_distribution_is_the_share_above_each_score() -> None:
    scores, shares = score_distribution(np.array([0.9, 0.1, 0.9, 0.95]))
    assert scores.tolist() == [0.1, 0.9, 0.95]
    assert shares == pytest.approx([0.75, 0.25, 0])
