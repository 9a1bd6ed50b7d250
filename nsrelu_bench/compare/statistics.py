"""Statistics over seeds, as pure functions."""

import math

import numpy as np
import numpy.typing as npt
from scipy import special  # scipy.stats takes longer to import than `compare` to answer

Array = npt.NDArray[np.float64]

#: An adjusted p value below this is significant.
ALPHA = 0.05

#: The probability with which a test should show a real difference.
POWER = 0.8

#: With fewer pairs a two-sided sign-flip test can't fall below `ALPHA`: 2 / 2^5 is 0.0625.
LEAST_SEEDS = 6

#: With fewer values there is no t interval; the values are shown instead.
LEAST_VALUES = 5


def t_half_width(sd: Array, n: Array, confidence: float = 0.95) -> Array:
    """Return the half-width of the t interval of a mean, NaN where n < 2.

    `sd` (K,) is the sample standard deviation (n - 1) of `n` (K,) values.

    Source: Student 1908; with five values it covers 95 %, where a percentile bootstrap covers 83 %.
    """
    n = np.where(np.asarray(n) > 1, n, np.nan)
    quantile = special.stdtrit(n - 1, (1 + confidence) / 2)
    return np.asarray(quantile * sd / np.sqrt(n), dtype=float)


def holm(p: Array) -> Array:
    """Return the p values (K,) adjusted for their number; NaN values don't count and stay NaN.

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
    low = np.where(successes > 0, special.betaincinv(successes, failures + 1, tail), 0.0)
    high = np.where(failures > 0, special.betainccinv(successes + 1, failures, tail), 1.0)
    seen = n > 0
    return np.where(seen, low, np.nan), np.where(seen, high, np.nan)


def mcnemar_p(only_first: npt.ArrayLike, only_second: npt.ArrayLike) -> Array:
    """Return the exact two-sided p of pairs of which one side alone has a property, as (K,).

    `only_first` and `only_second` (K,) count the discordant pairs; without any, p is 1.

    Source: McNemar 1947; exact: binomial with probability 1/2.
    """
    first, second = np.asarray(only_first), np.asarray(only_second)
    fewer, more = np.minimum(first, second), np.maximum(first, second)
    p = 2 * special.betainc(more, fewer + 1, 0.5)  # P(X <= fewer)
    return np.asarray(np.minimum(p, 1.0), dtype=float)


def interquartile_mean(values: Array) -> float:
    """Return the mean of the middle half of the values (n,), without a quarter at each end.

    Source: Agarwal et al. 2021, section 4.3.
    """
    if not len(values):
        return math.nan
    first, last = len(values) // 4, len(values) - len(values) // 4 - 1
    return float(np.partition(values, (first, last))[first : last + 1].mean())


def probability_of_improvement(
    differences: Array, confidence: float = 0.95
) -> tuple[Array, Array, Array]:
    """Return P(A > B) of paired differences A - B (..., n), and the ends of its interval, as (...).

    NaN is no pair, and a tie counts half. The interval is Clopper and Pearson's; ties count as
    losses for its lower end and as wins for its upper end, so it is exact without ties and wider
    with them.

    Source: Agarwal et al. 2021, section 4.3; Bouthillier et al. 2021, section 4.1 (paired).
    """
    n, wins = np.isfinite(differences).sum(axis=-1), (differences > 0).sum(axis=-1)
    ties = (differences == 0).sum(axis=-1)
    low, _ = clopper_pearson(wins, n, confidence)
    _, high = clopper_pearson(wins + ties, n, confidence)
    return (wins + ties / 2) / np.where(n > 0, n, np.nan), low, high


def score_distribution(values: Array) -> tuple[Array, Array]:
    """Return the distinct final scores of runs (n,), sorted, and the share of runs above each.

    Both are (m,). The shares are steps: `shares[i]` of the runs are above every threshold from
    `scores[i]` up to the next score. All runs are above a threshold below `scores[0]`.

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


def seeds_needed(
    difference: Array | float,
    sd: Array,
    margin: Array | float,
    *,
    tests: int = 1,
    power: float = POWER,
) -> Array:
    """Return about how many seeds show a result with that power, rounded up, as (K,).

    `difference` is the true mean of the paired differences, `sd` (K,) their standard deviation. The
    result is a difference or equivalence within `margin`, whichever needs fewer seeds; NaN
    means no margin. Each of `tests` tests has the level `ALPHA` / tests. Infinite where neither
    can be shown, NaN where `sd` is NaN.

    Source: Guenther 1981 (difference); Schuirmann 1987 (equivalence).
    """
    difference = np.abs(difference)
    two, one = -special.ndtri(ALPHA / tests / 2), -special.ndtri(ALPHA / tests)
    beta, half_beta = -special.ndtri(1 - power), -special.ndtri((1 - power) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        differs = ((two + beta) * sd / difference) ** 2 + two**2 / 2
        room = np.where(margin > difference, margin - difference, 0)
        # Both bounds matter where the difference is near 0, only the nearer one elsewhere.
        equal = np.maximum((one + beta) * sd / room, (one + half_beta) * sd / margin) ** 2
        equal = np.where(room > 0, equal + one**2 / 2, np.inf)
    needed = np.fmin(np.where(difference > 0, differs, np.inf), equal)
    return np.asarray(np.where(np.isnan(sd), np.nan, np.ceil(np.maximum(needed, LEAST_SEEDS))))


def variance_components(values: Array, seeds: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return the variance of values (n,) between seeds, and that between replicates of a seed.

    Values with the same entry in `seeds` (n,) differ only in rounding. One-way random effects by
    analysis of variance; a negative estimate counts as 0. NaN unless there are several seeds and
    some seed has several values.

    Source: Searle, Casella and McCulloch 1992, section 3.6.
    """
    _, index, counts = np.unique(seeds, return_inverse=True, return_counts=True)
    n, groups = len(values), len(counts)
    if groups < 2 or n == groups:
        return math.nan, math.nan
    means = np.bincount(index, values) / counts
    within = float(((values - means[index]) ** 2).sum() / (n - groups))
    between = float((counts * (means - values.mean()) ** 2).sum() / (groups - 1))
    size = (n - (counts**2).sum() / n) / (groups - 1)
    return max((between - within) / size, 0.0), within
