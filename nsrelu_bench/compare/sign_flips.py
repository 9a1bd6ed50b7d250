"""Permutation tests over sign flips of paired differences, and intervals that agree with them.

If an activation has no effect, the difference of each seed could equally have the opposite sign. A
test counts the sign flips that give at least the observed mean: all of them up to 13 seeds; with
more, a fixed random set, the same on every call.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from nsrelu_bench.compare.statistics import LEAST_SEEDS, Array

#: Up to this number of seeds all 2^n flips are counted; beyond it, `DRAWN` flips are drawn.
MAX_EXACT = 13
DRAWN = 9_999

#: Elements of the block of flips x tests that is in memory at once; it fits the processor's cache.
BLOCK = 250_000

#: Values this close, relative to the largest difference, are ties. Accuracies are multiples of 1/N,
#: and rounding must not break their ties.
TIE = 1e-9


def sign_flips(n: int) -> Array:
    """Return flips of n signs, (B, n) of -1 and 1; the first flips nothing, no one the first sign.

    The mirror image of a flip is left out: its mean has the same size. B is 2^(n - 1) up to
    `MAX_EXACT` signs, and `DRAWN` + 1 beyond.
    """
    if n <= MAX_EXACT:
        bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n - 1)[::-1] & 1
        return np.asarray(1.0 - 2 * np.pad(bits, ((0, 0), (1, 0))), dtype=float)
    signs = 1.0 - 2 * np.random.default_rng(0).integers(0, 2, size=(DRAWN + 1, n)).astype(float)
    signs[0], signs[:, 0] = 1, 1
    return signs


def least_p(pairs: int) -> float:
    """Return the smallest two-sided p that a sign-flip test of this many pairs can have."""
    return 1 / len(sign_flips(pairs)) if pairs else 1.0


def sign_flip_p(differences: Array, alternative: str = "two-sided") -> Array:
    """Return the sign-flip p of the mean of paired differences (K, n), as (K,).

    `alternative` is what the test can show: that the mean is not 0 ("two-sided") or that it is
    above 0 ("greater"). NaN for a single pair.

    Source: Fisher 1935, section 21.
    """
    count, n = differences.shape
    if n < 2:
        return np.full(count, np.nan)
    signs, scaled = sign_flips(n), _scale(differences)
    p = np.empty(count)
    for part in _blocks(count, len(signs)):
        sums = signs @ scaled[part].T
        seen = sums[0] - n * TIE
        if alternative == "greater":
            p[part] = ((sums >= seen).mean(axis=0) + (-sums >= seen).mean(axis=0)) / 2
        else:
            p[part] = (np.abs(sums) >= np.abs(sums[0]) - n * TIE).mean(axis=0)
    return p


def sign_flip_interval(differences: Array, confidence: float = 0.95) -> tuple[Array, Array]:
    """Return the ends (K,) of the interval of the mean of paired differences (K, n).

    It contains every shift d that the two-sided test does not reject: `sign_flip_p` of
    ``differences - d`` is at least 1 - confidence. So it contains 0 if and only if the p of the
    differences is at least that. Its ends are means of subsets of the differences: a flip's mean
    is as large as the observed one where the mean of the flipped differences is at most d. NaN if
    there are too few pairs to exclude anything, for 95 % fewer than 6.

    Source: Hartigan 1969 (typical values).
    """
    count, n = differences.shape
    signs = sign_flips(n) if n else np.ones((1, 0))
    place = int(np.ceil(round((1 - confidence) * len(signs), 9))) - 1
    low, high = np.full((2, count), np.nan)
    if place < 1 or n < 2:
        return low, high
    flipped = (signs[1:] < 0).astype(float)
    sizes = flipped.sum(axis=1, keepdims=True)
    for part in _blocks(count, 2 * len(signs)):
        some = differences[part].T
        sums = flipped @ some
        with np.errstate(divide="ignore", invalid="ignore"):  # a drawn flip may flip nothing
            means = np.vstack([sums / sizes, (some.sum(axis=0) - sums) / (n - sizes)])
        means = np.ascontiguousarray(means.T)
        for ends, order, empty in ((low, place - 1, -np.inf), (high, -place, np.inf)):
            filled = np.where(np.isnan(means), empty, means)
            filled.partition(order, axis=1)
            ends[part] = filled[:, order]
    # As in the test, what is 0 but for rounding is 0.
    tiny = TIE * np.abs(differences).max(axis=1)
    return np.where(np.abs(low) <= tiny, 0, low), np.where(np.abs(high) <= tiny, 0, high)


def step_down_p(differences: Array, alternative: str = "two-sided") -> Array:
    """Return the p values (K,) of K tests, adjusted for their number: step-down maxT.

    `differences` (K, n) has one column per seed, NaN where a test lacks that seed. All tests flip
    the sign of a seed together, so equal tests cost nothing, correlated ones little, and the
    smallest possible p is that of a single test. The probability that any true null hypothesis gets
    a p below alpha is at most alpha. Tests with fewer than `LEAST_SEEDS` pairs are left out: NaN.

    Source: Westfall and Young 1993, algorithm 4.1.
    """
    adjusted = np.full(len(differences), np.nan)
    there = np.isfinite(differences)
    tested = np.flatnonzero(there.sum(axis=1) >= LEAST_SEEDS)
    if not len(tested):
        return adjusted
    some = differences[tested][:, there[tested].any(axis=0)]
    pairs = np.isfinite(some).sum(axis=1)
    scaled = _scale(np.nan_to_num(some))
    norms = np.sqrt(pairs * (scaled**2).sum(axis=1))
    signs = sign_flips(some.shape[1])

    def statistic(flips: Array) -> Array:
        sums = flips @ scaled.T
        return _normal_score(
            np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 0), pairs
        )

    mirrors = (1, -1) if alternative == "greater" else (1,)
    seen = statistic(signs[:1])[0] if alternative == "greater" else np.abs(statistic(signs[:1])[0])
    order = np.argsort(seen, kind="stable")  # the least first: the running maximum grows upwards
    threshold = seen[order] - 1e-6 * np.abs(seen[order])
    counts = np.zeros(len(tested))
    for part in _blocks(len(signs), len(tested)):
        scores = statistic(signs[part])[:, order]
        for mirror in mirrors:
            sided = mirror * scores if alternative == "greater" else np.abs(scores)
            counts += (np.maximum.accumulate(sided, axis=1) >= threshold).sum(axis=0)
    p = counts / (len(mirrors) * len(signs))
    adjusted[tested[order[::-1]]] = np.maximum.accumulate(p[::-1])
    return adjusted


def _scale(differences: Array) -> Array:
    """Return differences (K, n) over the largest of each row; a row of zeros stays."""
    largest = np.abs(differences).max(axis=1, keepdims=True, initial=0)
    return differences / np.where(largest > 0, largest, 1)


def _normal_score(ratio: Array, pairs: npt.NDArray[np.int64]) -> Array:
    """Return t statistics as normal deviates, so that tests with other numbers of pairs compare.

    `ratio` (B, K) is sum / sqrt(n * sum of squares). t rises with it, since flips don't change the
    squares.

    Source: Wallace 1959 (bounds on normal approximations to Student's distribution).
    """
    degrees = pairs - 1
    factor = (8 * degrees + 1) / (8 * degrees + 3) * np.sqrt(degrees)
    score = np.maximum(1 - ratio**2, TIE)  # is 0 where all differences are equal
    for function in (np.log, np.negative, np.sqrt):
        function(score, out=score)
    return np.asarray(np.copysign(score * factor, ratio))


def _blocks(count: int, each: int) -> Iterator[slice]:
    """Cut `count` things of `each` elements into slices of at most `BLOCK` elements."""
    step = max(1, BLOCK // each)
    return (slice(start, start + step) for start in range(0, count, step))
