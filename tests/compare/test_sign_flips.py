"""Sign-flip tests, adjusted and not, and their intervals, against scipy and slow versions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nsrelu_bench.compare.sign_flips import (
    least_p,
    sign_flip_interval,
    sign_flip_p,
    step_down_p,
)
from nsrelu_bench.compare.statistics import holm


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


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_sign_flip_p_is_scipys(alternative: str) -> None:
    differences = np.random.default_rng(1).normal(0.3, 1, size=(4, 9))
    for row, p in zip(differences, sign_flip_p(differences, alternative), strict=True):
        expected = stats.permutation_test(
            (row,), np.mean, permutation_type="samples", alternative=alternative, n_resamples=1e9
        )
        assert p == pytest.approx(expected.pvalue)


# Intervals.

steps = st.lists(st.integers(-6, 6), min_size=2, max_size=9)


@given(steps, st.sampled_from([1.0, 1 / 359, 1 / 1000]))
@settings(max_examples=200, deadline=None)
def test_an_interval_and_its_p_never_contradict(numbers: list[int], unit: float) -> None:
    differences = (0.9 + np.array([numbers]) * unit) - 0.9
    (low,), (high,) = sign_flip_interval(differences)
    (p,) = sign_flip_p(differences)
    if len(numbers) < 6:
        assert np.isnan([low, high]).all()
    else:
        assert low <= differences.mean() <= high
    assert (p < 0.05) == (low > 0 or high < 0)


def test_the_interval_holds_the_shifts_that_are_not_rejected() -> None:
    differences = np.random.default_rng(2).normal(1, 1, size=(1, 10))
    (low,), (high,) = sign_flip_interval(differences)
    inside, outside = np.array([low + 1e-6, high - 1e-6]), np.array([low - 1e-6, high + 1e-6])
    assert (sign_flip_p(differences - inside[:, None]) >= 0.05).all()
    assert (sign_flip_p(differences - outside[:, None]) < 0.05).all()


def test_an_interval_of_many_pairs_agrees_with_its_p() -> None:
    differences = np.random.default_rng(3).normal(0.45, 1, size=(40, 20))
    low, high = sign_flip_interval(differences)
    assert np.array_equal(sign_flip_p(differences) < 0.05, (low > 0) | (high < 0))
    half = stats.t.ppf(0.975, 19) * differences.std(axis=1, ddof=1) / 20**0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)


def test_intervals_cover_the_mean_in_95_percent() -> None:
    differences = np.random.default_rng(4).normal(size=(2000, 8))
    low, high = sign_flip_interval(differences)
    assert 0.94 < ((low <= 0) & (high >= 0)).mean() < 0.97


# Adjusted for many tests.


def slow_step_down(differences: np.ndarray) -> list[float]:
    """Step-down maxT as the book says it: t statistics, every flip, one test after another."""
    tests, n = differences.shape

    def statistics(signs: tuple[int, ...]) -> list[float]:
        found = []
        for row in differences:
            flipped = [s * d for s, d in zip(signs, row, strict=True)]
            spread = np.std(flipped, ddof=1) / n**0.5
            found.append(abs(np.mean(flipped)) / spread)
        return found

    seen = statistics((1,) * n)
    ranked = sorted(range(tests), key=lambda k: -seen[k])
    every = [statistics(signs) for signs in itertools.product((1, -1), repeat=n)]
    adjusted, previous = [0.0] * tests, 0.0
    for place, k in enumerate(ranked):
        left = ranked[place:]
        extreme = sum(max(flip[j] for j in left) >= seen[k] - 1e-9 for flip in every)
        previous = max(previous, extreme / len(every))
        adjusted[k] = previous
    return adjusted


@pytest.mark.parametrize("seed", range(4))
def test_step_down_p_is_that_of_a_slow_version(seed: int) -> None:
    shift = np.array([2, 1, 0.5, 0, 0])[:, None]
    differences = np.random.default_rng(seed).normal(size=(5, 7)) + shift
    assert step_down_p(differences) == pytest.approx(slow_step_down(differences))


def test_one_test_is_not_adjusted() -> None:
    differences = np.random.default_rng(0).normal(0.5, 1, size=(1, 8))
    for alternative in ("two-sided", "greater"):
        expected = sign_flip_p(differences, alternative)
        assert step_down_p(differences, alternative) == pytest.approx(expected)


def test_equal_tests_cost_nothing() -> None:
    differences = np.random.default_rng(0).normal(1, 1, size=(1, 8))
    scaled = differences * np.array([[1], [-3], [1e-4], [1]])
    assert step_down_p(scaled) == pytest.approx(np.full(4, sign_flip_p(differences)[0]))


@pytest.mark.parametrize("tests", [2, 50])
def test_the_least_p_does_not_grow_with_the_number_of_tests(tests: int) -> None:
    differences = np.random.default_rng(0).normal(size=(tests, 10))
    differences[0] = 10 + differences[0] / 10
    assert step_down_p(differences)[0] == pytest.approx(2 / 2**10)


def test_tests_of_too_few_pairs_take_no_part() -> None:
    differences = np.random.default_rng(0).normal(2, 1, size=(3, 8))
    alone = step_down_p(differences[:2])
    differences[2, 5:] = np.nan
    assert step_down_p(differences) == pytest.approx([*alone, np.nan], nan_ok=True)


def test_tests_may_lack_seeds() -> None:
    differences = np.random.default_rng(0).normal(3, 1, size=(2, 9))
    differences[0, 7:] = np.nan
    raw = [sign_flip_p(row[np.isfinite(row)][None])[0] for row in differences]
    adjusted = step_down_p(differences)
    assert (adjusted >= np.array(raw) - 1e-12).all()
    assert (adjusted < 0.05).all()


def test_what_never_differs_has_p_1() -> None:
    differences = np.zeros((2, 8))
    differences[1] = 1
    assert step_down_p(differences) == pytest.approx([1, 2 / 256])


def correlated(random: np.random.Generator, groups: int, metrics: int, n: int) -> np.ndarray:
    """Differences of groups from one baseline (groups * metrics, n), in metrics that correlate."""
    common = random.normal(size=(groups + 1, 1, n))
    runs = 0.95 * common + (1 - 0.95**2) ** 0.5 * random.normal(size=(groups + 1, metrics, n))
    return (runs[1:] - runs[:1]).reshape(groups * metrics, n)


def test_family_wise_error_is_held_with_more_power_than_holm() -> None:
    random, trials = np.random.default_rng(0), 400
    false, found = 0, {"step down": 0, "holm": 0}
    for _ in range(trials):
        differences = correlated(random, groups=3, metrics=4, n=9)
        false += (step_down_p(differences) < 0.05).any()
        differences[:4] += 1.6  # one group differs, in all metrics; the others' tests stay null
        adjusted = step_down_p(differences)
        false += (adjusted[4:] < 0.05).any()
        found["step down"] += (adjusted[:4] < 0.05).sum()
        found["holm"] += (holm(sign_flip_p(differences))[:4] < 0.05).sum()
    bound = 0.05 + 3 * (0.05 * 0.95 / (2 * trials)) ** 0.5
    assert false / (2 * trials) <= bound
    assert found["step down"] > 1.2 * found["holm"]
