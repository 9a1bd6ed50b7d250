"""Statistics against values by hand, scipy, and slow versions of themselves."""

import numpy as np
import pytest
from scipy import stats

from nsrelu_bench.compare.sign_flips import sign_flip_p
from nsrelu_bench.compare.statistics import (
    clopper_pearson,
    cohen_dz,
    holm,
    interquartile_mean,
    mcnemar_p,
    probability_of_improvement,
    score_distribution,
    seeds_needed,
    t_half_width,
    variance_components,
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


@pytest.mark.parametrize("tests", [1, 10])
@pytest.mark.parametrize("effect", [0.2, 0.5, 1.0, 1.5])
def test_the_seeds_needed_give_the_power_of_a_t_test(effect: float, tests: int) -> None:
    def power(n: int) -> float:
        critical = stats.t.isf(0.025 / tests, n - 1)
        return float(stats.nct.sf(critical, n - 1, effect * n**0.5))

    (n,) = seeds_needed(np.array([-effect]), np.ones(1), np.array([np.nan]), tests=tests)
    assert power(int(n)) > 0.79
    assert power(int(n) - 2) < 0.8 or n == 6


@pytest.mark.parametrize(("difference", "margin"), [(0.0, 1.0), (0.3, 1.0), (0.0, 0.5)])
def test_the_seeds_needed_show_equivalence(difference: float, margin: float) -> None:
    (n,) = seeds_needed(np.array([difference]), np.ones(1), np.array([margin]))
    values = np.random.default_rng(0).normal(difference, 1, size=(4000, int(n)))
    error = t_half_width(values.std(axis=1, ddof=1), np.full(4000, n), 0.90)
    assert 0.75 < (np.abs(values.mean(axis=1)) + error < margin).mean() < 0.88


def test_what_can_not_be_shown_needs_no_number_of_seeds() -> None:
    zero, sd, none = np.zeros(1), np.ones(1), np.array([np.nan])
    assert np.isinf(seeds_needed(zero, sd, none)).all()
    assert np.isnan(seeds_needed(zero, none, sd)).all()
    assert seeds_needed(sd, zero, none) == [6]  # nothing varies: what sign flips need


def test_variances_of_seeds_and_replicates_are_separated() -> None:
    random = np.random.default_rng(0)
    seeds = np.repeat(np.arange(4000), 3)
    values = random.normal(0, 2, 4000)[seeds] + random.normal(0, 0.5, 12_000)
    assert variance_components(values, seeds) == pytest.approx((4, 0.25), rel=0.06)
    unequal = np.arange(12_000) % 5 != 0
    found = variance_components(values[unequal], seeds[unequal])
    assert found == pytest.approx((4, 0.25), rel=0.06)


def test_without_replicates_there_is_no_variance_of_rounding() -> None:
    assert np.isnan(variance_components(np.arange(5.0), np.arange(5))).all()
    assert np.isnan(variance_components(np.arange(5.0), np.zeros(5, dtype=int))).all()
