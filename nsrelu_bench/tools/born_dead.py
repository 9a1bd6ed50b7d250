"""Estimate how likely a ReLU network is dead before the first step, in NumPy."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from nsrelu_bench.errors import UsageError

#: Number of weights of a layer that are in memory at once, over all trials.
CHUNK = 2**20


@dataclass(frozen=True)
class BornDead:
    """How many of `trials` networks of a width and depth were dead at initialisation."""

    width: int
    depth: int
    trials: int
    dead: int

    @property
    def probability(self) -> float:
        """The share of the networks that were dead."""
        return self.dead / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the probability, Wilson's, which makes sense at 0 and 1 too."""
        interval = stats.binomtest(self.dead, self.trials).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)


def born_dead(width: int, depth: int, *, trials: int = 20_000, seed: int = 0) -> BornDead:
    """Count by Monte Carlo the networks that give the same output for every input.

    One input, zero biases, symmetric weights (normal; their scale does not matter). On either side
    of 0 the network is a positive multiple of its value at +1 or -1: it is dead for all inputs
    if some layer is off at both. NSReLU has the same forward function, so it is born dead equally
    often, with any gate. The first step differs: ReLU's gradient is 0 there, and with gate
    "rescue", "up" or "dead" such a unit can be raised.

    Args:
        width: ReLU units per hidden layer.
        depth: Layers with weights, the output layer among them, as the source counts: there are
            depth - 1 hidden layers. (`RunConfig.depth` counts hidden layers.)
        trials: Networks.
        seed: Decides the weights.

    Raises:
        UsageError: There is no hidden layer, no unit or no trial.

    Source:
        Lu, Shin, Su & Karniadakis 2019, "Dying ReLU and initialization", theorem 3.1.
    """
    given = {"width": (width, 1), "depth": (depth, 2), "trials": (trials, 1), "seed": (seed, 0)}
    for name, (value, least) in given.items():
        if value < least:
            raise UsageError(f"{name}: must be at least {least}, got {value}")
    generator = np.random.default_rng([seed, width, depth])
    dead = 0
    left = trials
    while left:
        count = min(left, max(1, CHUNK // width**2))
        left -= count
        # (count, width, 2): the hidden layer's values at the inputs +1 and -1.
        hidden = generator.standard_normal((count, width, 1)) * np.array([1.0, -1.0])
        for _ in range(depth - 2):
            weights = generator.standard_normal((count, width, width)) / np.sqrt(width)
            hidden = weights @ np.maximum(hidden, 0)
        dead += int((hidden <= 0).all(axis=(1, 2)).sum())
    return BornDead(width, depth, trials, dead)
