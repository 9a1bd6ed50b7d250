"""The measures as pure functions of the sums that `sums.py` gathers.

Every function takes the sums of one site, or those of all sites of a network: fractions and
counts are then over all of them, norms are combined as L2, and the indices that describe a layer
(the two sparsities, the effective rank) are averaged over the sites that have one. The result is
None, never 0, when there is no site or a value in one is not finite.

docs/metrics.md has for each measure the formula, a worked example and the traps.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Self, TypeVar

import torch
from torch import Tensor

from nsrelu_bench.config import SITE_MEASURES
from nsrelu_bench.measures.sums import (
    ExtraSums,
    GradSums,
    ParameterSums,
    PostSums,
    PreSums,
    ResponseSums,
    Sums,
    WeightSums,
    treves_rolls,
)

DORMANT_TAU = 0.025

S = TypeVar("S", bound=Sums)


def zero_fraction(*sites: PostSums) -> float | None:
    """Return the fraction of `post` that is exactly 0 (L0 sparsity), in [0, 1]."""
    if not _usable(sites):
        return None
    zeros = sum(int(s.zeros.sum()) for s in sites)
    return zeros / sum(s.observations * s.units for s in sites)


def living_zero_fraction(*sites: PostSums) -> float | None:
    """Return the fraction of `post` that is exactly 0 among units that are not dead, in [0, 1].

    None where all units are dead.
    """
    if not _usable(sites):
        return None
    living = [(s, ~dead_mask(s)) for s in sites]
    values = sum(s.observations * int(mask.sum()) for s, mask in living)
    return sum(int(s.zeros[mask].sum()) for s, mask in living) / values if values else None


def negative_fraction(*sites: PreSums) -> float | None:
    """Return the fraction of `pre` <= 0, in [0, 1]; it also compares LeakyReLU."""
    if not _usable(sites):
        return None
    nonpositive = sum(int(s.nonpositive.sum()) for s in sites)
    return nonpositive / sum(s.observations * len(s.nonpositive) for s in sites)


def dead_mask(site: PostSums) -> Tensor:
    """Return which units, (U,) bool, are 0 in every observation."""
    return site.zeros == site.observations


def dead_units(*sites: PostSums) -> int | None:
    """Count the units whose `post` is 0 for every example and position."""
    return _count_units(dead_mask, sites)


def dead_fraction(*sites: PostSums) -> float | None:
    """Return dead_units over the number of units, in [0, 1]."""
    dead = dead_units(*sites)
    return None if dead is None else dead / sum(s.units for s in sites)


def submerged_mask(site: PreSums) -> Tensor:
    """Return which units, (U,) bool, have `pre` <= 0 in every observation."""
    return site.nonpositive == site.observations


def submerged_units(*sites: PreSums) -> int | None:
    """Count the units whose `pre` is <= 0 for every example and position."""
    return _count_units(submerged_mask, sites)


def submerged_fraction(*sites: PreSums) -> float | None:
    """Return submerged_units over the number of units, in [0, 1]."""
    submerged = submerged_units(*sites)
    return None if submerged is None else submerged / sum(len(s.nonpositive) for s in sites)


def pre_rms(*sites: PreSums) -> float | None:
    """Return the root mean square of `pre`."""
    if not _usable(sites):
        return None
    values = sum(s.observations * len(s.nonpositive) for s in sites)
    return math.sqrt(sum(s.square for s in sites) / values)


def submerged_depth(*sites: PreSums) -> float | None:
    """Return how far below 0 the greatest `pre` of a submerged unit is, averaged over such units.

    In units of the site's `pre_rms`. None where there is no submerged unit.
    """
    if not _usable(sites):
        return None
    depths = [depth for s in sites for depth in _depths(s)]
    return sum(depths) / len(depths) if depths else None


def dormant_mask(site: PostSums, tau: float = DORMANT_TAU) -> Tensor:
    """Return which units, (U,) bool, have at most tau times the layer's mean of mean abs(post).

    Source: Sokar et al. 2023, arXiv:2302.12902, definition 3.1. In a layer of zeros all are.
    """
    magnitude = _response(site).magnitude
    return magnitude <= tau * magnitude.mean()


def dormant_units(*sites: PostSums) -> int | None:
    """Count the tau-dormant units, tau 0.025. Source: Sokar et al. 2023, arXiv:2302.12902."""
    return _count_units(dormant_mask, sites)


def lifetime_sparsity(*sites: PostSums) -> float | None:
    """Return the Treves-Rolls index over a unit's observations, averaged over units, in [0, 1].

    0: the same response to all; 1: a response to one only. The response is abs(post), because the
    index of signed ones leaves [0, 1]. Dead units have no index and are left out.

    Source: Vinje and Gallant 2000, Science 287; Willmore and Tolhurst 2001, Network 12.
    """
    return _mean(_lifetime, sites)


def population_sparsity(*sites: PostSums) -> float | None:
    """Return the Treves-Rolls index over the units of one observation, averaged, in [0, 1].

    0: all units respond alike; 1: one unit does. Observations in which none does are left out.

    Source: as for lifetime_sparsity.
    """
    return _mean(_population, sites)


def effective_rank(*sites: PostSums) -> float | None:
    """Return exp of the entropy of the normalised singular values of `post`, in [1, U]; 0 if all 0.

    The matrix is (examples, units), not centred; a convolution's response is averaged over the
    positions. It is computed from the Gram matrix in float64.

    Raises:
        ValueError: The sums were gathered with gram=False.

    Source: Roy and Vetterli 2007, EUSIPCO, definition 2.
    """
    return _mean(_effective_rank, sites)


def pre_grad_norm(*sites: GradSums) -> float | None:
    """Return the L2 norm of the loss gradient at `pre`."""
    return math.sqrt(sum(float(s.square) for s in sites)) if _usable(sites) else None


def zero_grad_mask(site: GradSums) -> Tensor:
    """Return which units, (U,) bool, have a gradient of exactly 0 in every observation."""
    return site.magnitude == 0


def zero_grad_units(*sites: GradSums) -> int | None:
    """Count the units whose gradient at `pre` is exactly 0 in every observation."""
    return _count_units(zero_grad_mask, sites)


def extra_grad_up(*sites: ExtraSums) -> float | None:
    """Return the L2 norm of the extra gradient at `pre` where descent on it raises `pre`.

    The extra gradient is what a site's backward passes on beyond its forward's own derivative.
    """
    return math.sqrt(sum(s.up for s in sites)) if _usable(sites) else None


def extra_grad_down(*sites: ExtraSums) -> float | None:
    """Return the L2 norm of the extra gradient at `pre` where descent on it lowers `pre`."""
    return math.sqrt(sum(s.down for s in sites)) if _usable(sites) else None


def extra_grad_fraction(*sites: ExtraSums) -> float | None:
    """Return the extra gradient's share of the squared norms, extra plus true, in [0, 1].

    None where both are 0.
    """
    if not _usable(sites):
        return None
    extra, true = sum(s.up + s.down for s in sites), sum(s.true_square for s in sites)
    return extra / (extra + true) if extra + true else None


def weight_norm(*parameters: ParameterSums) -> float | None:
    """Return the L2 norm of parameters."""
    return math.sqrt(sum(p.square for p in parameters)) if _usable(parameters) else None


def grad_norm(*weights: WeightSums) -> float | None:
    """Return the L2 norm of the gradient that training follows."""
    return math.sqrt(sum(w.square for w in weights)) if _usable(weights) else None


def surrogate_cosine(*weights: WeightSums) -> float | None:
    """Return the cosine between the gradient that training follows and the true one, in [-1, 1].

    Equal gradients have cosine 1, zeros too. None if exactly one of them is 0: no direction.
    """
    if not _usable(weights):
        return None
    both = reduce(add, weights)
    if both.square == both.true_square == both.product:
        return 1.0
    norms = math.sqrt(both.square) * math.sqrt(both.true_square)
    return max(-1.0, min(1.0, both.product / norms)) if norms else None


def sign_disagreement(*weights: WeightSums) -> float | None:
    """Return the fraction of all parameters whose two gradients have opposite signs, in [0, 1].

    A gradient of exactly 0 has no sign to disagree with.
    """
    if not _usable(weights):
        return None
    both = reduce(add, weights)
    return both.opposite / both.parameters


def _usable(sites: Iterable[Sums]) -> bool:
    """Return whether there are sums, all of finite values."""
    bad = [site.nonfinite for site in sites]
    return bool(bad) and not any(bad)


def _count_units(mask: Callable[[S], Tensor], sites: tuple[S, ...]) -> int | None:
    return sum(int(mask(site).sum()) for site in sites) if _usable(sites) else None


def _mean(index: Callable[[PostSums], float], sites: tuple[PostSums, ...]) -> float | None:
    """Average over the sites whose index is defined; one that is not is NaN."""
    if not _usable(sites):
        return None
    values = [value for site in sites if not math.isnan(value := index(site))]
    return sum(values) / len(values) if values else None


def _response(site: PostSums) -> ResponseSums:
    if site.response is None:
        raise ValueError("the sums were gathered with response=False: they have counts alone")
    return site.response


def _lifetime(site: PostSums) -> float:
    sums = _response(site)
    sparsity = treves_rolls(sums.magnitude, sums.square, site.observations)
    return float(sparsity[sums.square > 0].mean())


def _population(site: PostSums) -> float:
    sums = _response(site)
    return float(sums.population / sums.responses)


def _depths(site: PreSums) -> list[float]:
    """Return the depth of each submerged unit, in units of the site's `pre_rms`."""
    if site.highest is None:
        return []
    heights: list[float] = site.highest[submerged_mask(site)].tolist()
    rms = pre_rms(site)
    return [-height / rms if rms else 0.0 for height in heights]


def _effective_rank(site: PostSums) -> float:
    values = site.singular_values
    if not values.any():
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


@dataclass(frozen=True)
class DeadUnitHistory:
    """Which units of a layer, (U,) bool, are dead now, have ever been dead, and came back."""

    dead: Tensor
    ever_dead: Tensor
    recovered: Tensor

    @classmethod
    def first(cls, dead: Tensor) -> Self:
        """Start with the units that are dead at the first measurement."""
        return cls(dead, dead, torch.zeros_like(dead))

    def then(self, dead: Tensor) -> Self:
        """Add the units that are dead at the next measurement."""
        return type(self)(dead, self.ever_dead | dead, self.recovered | (self.ever_dead & ~dead))


def died_units(before: DeadUnitHistory, now: DeadUnitHistory) -> int:
    """Count the units alive at the last measurement and dead now."""
    return int((now.dead & ~before.dead).sum())


def revived_units(before: DeadUnitHistory, now: DeadUnitHistory) -> int:
    """Count the units dead at the last measurement and alive now."""
    return int((before.dead & ~now.dead).sum())


#: Every measure by name, with a description.
MEASURES = {
    "loss": "mean cross-entropy on the probe set",
    "accuracy": "fraction of the probe set that is classified correctly",
    **SITE_MEASURES,
}
