"""Statistics over seeds, as pure functions."""

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]

#: Below this a p value counts as a difference shown.
ALPHA = 0.05

#: Sign flips drawn where there are more than this many; up to 13 pairs all 2^n are enumerated.
MAX_FLIPS = 9_999


def t_half_width(sd: Array, n: Array, confidence: float = 0.95) -> Array:
    """Return the half-width of the t interval of a mean, NaN where n < 2.

    `sd` (K,) is the sample standard deviation (n - 1) of `n` (K,) values.

    Source: Student 1908; with five values it covers 95 %, where a percentile bootstrap covers 83 %.
    """
    n = np.where(np.asarray(n) > 1, n, np.nan)
    quantile = stats.t.ppf((1 + confidence) / 2, n - 1)
    return np.asarray(quantile * sd / np.sqrt(n), dtype=float)


def sign_flip_p(differences: Array) -> Array:
    """Return the two-sided sign-flip permutation p of paired differences (K, n), as (K,).

    Exact up to 13 pairs: all 2^n signs, so p is at least 2 / 2^n; NaN for a single pair. With
    more pairs 9,999 flips are drawn with a fixed seed. Means that differ by less than one part
    in 10^9 of the largest difference tie: accuracies are multiples of 1/N, and rounding must not
    break their ties.

    Source: Fisher 1935, section 21; `scipy.stats.permutation_test`.
    """
    count, n = differences.shape
    if n < 2:
        return np.full(count, np.nan)
    largest = np.abs(differences).max(axis=1, keepdims=True)
    scaled = differences / np.where(largest > 0, largest, 1)

    def mean(values: Array, axis: int = -1) -> Array:
        return np.asarray(values.mean(axis=axis)).round(9)

    result = stats.permutation_test(
        (scaled,),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=MAX_FLIPS,
        batch=max(1, 2_000_000 // scaled.size),
        axis=-1,
        rng=np.random.default_rng(0),
    )
    return np.asarray(result.pvalue, dtype=float)


def holm(p: Array) -> Array:
    """Return the p values (K,) adjusted for their number; NaN are left out and stay NaN.

    Source: Holm 1979, section 3.
    """
    p = np.asarray(p, dtype=float)
    adjusted = np.full_like(p, np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


def clopper_pearson(
    successes: npt.ArrayLike, n: npt.ArrayLike, confidence: float = 0.95
) -> tuple[Array, Array]:
    """Return the exact interval of a probability of which `successes` (K,) of `n` (K,) were seen.

    The ends are NaN where n is 0.

    Source: Clopper and Pearson 1934.
    """
    successes, n = np.asarray(successes, dtype=float), np.asarray(n, dtype=float)
    failures, tail = n - successes, (1 - confidence) / 2
    low = np.where(successes > 0, stats.beta.ppf(tail, successes, failures + 1), 0.0)
    high = np.where(failures > 0, stats.beta.isf(tail, successes + 1, failures), 1.0)
    seen = n > 0
    return np.where(seen, low, np.nan), np.where(seen, high, np.nan)


def mcnemar_p(only_first: npt.ArrayLike, only_second: npt.ArrayLike) -> Array:
    """Return the exact two-sided p of pairs of which one side alone has a property, as (K,).

    `only_first` and `only_second` (K,) count the discordant pairs; without any, p is 1.

    Source: McNemar 1947; exact: binomial with probability 1/2.
    """
    first, second = np.asarray(only_first), np.asarray(only_second)
    p = 2 * stats.binom.cdf(np.minimum(first, second), first + second, 0.5)
    return np.asarray(np.minimum(p, 1.0), dtype=float)


def interquartile_mean(values: Array) -> float:
    """Return the mean of the middle half of the values (n,): a quarter is cut off at each end.

    Source: Agarwal et al. 2021, section 4.3; `scipy.stats.trim_mean`.
    """
    return float(stats.trim_mean(values, 0.25)) if len(values) else math.nan


def probability_of_improvement(
    differences: Array, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return P(A > B) of paired differences A - B (n,), and the ends of its interval.

    A tie counts half. The interval is that of Clopper and Pearson, with ties as losses for its
    lower end and as wins for its upper end, so that it is exact without ties and wide with them.

    Source: Agarwal et al. 2021, section 4.3; Bouthillier et al. 2021, section 4.1 (paired).
    """
    n, wins = len(differences), int((differences > 0).sum())
    ties = int((differences == 0).sum())
    if not n:
        return math.nan, math.nan, math.nan
    low = float(clopper_pearson(wins, n, confidence)[0])
    high = float(clopper_pearson(wins + ties, n, confidence)[1])
    return (wins + ties / 2) / n, low, high


def score_distribution(values: Array) -> tuple[Array, Array]:
    """Return the share of runs above each score, of the final scores of runs (n,).

    The scores (m,) are sorted and distinct; the shares (m,) are steps: `shares[i]` of the runs
    are above every threshold from `scores[i]` up to the next score, and all below `scores[0]`.

    Source: Agarwal et al. 2021, section 4.2 (run-score distribution, a performance profile).
    """
    scores, counts = np.unique(values, return_counts=True)
    return scores, 1 - np.cumsum(counts) / max(len(values), 1)


def cohen_dz(mean: Array, sd: Array) -> Array:
    """Return the effect size of paired differences, mean / sd (K,); NaN where they don't vary.

    Source: Cohen 1988, section 2.3.5 (d_z); Lakens 2013, equation 6.
    """
    varies = sd > 1e-9 * np.abs(mean)
    return np.asarray(np.where(varies, mean / np.where(varies, sd, 1), np.nan))


def least_p(pairs: int) -> float:
    """Return the smallest two-sided p that a sign-flip test of so many pairs can have."""
    return min(1.0, 2.0 / 2.0**pairs)
