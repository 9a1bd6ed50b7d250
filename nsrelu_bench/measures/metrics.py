"""The measures as pure functions: update gathers sums of one batch, compute divides.

`pre` is the input of an activation site, `post` its output. All tensors here are `(N, U)` or
`(N, U, ...)`: N examples, U units, and the positions of a convolution or a sequence. A unit is
observed once for every example and position. Sums of two batches are added with `+`, so no
result depends on how the probe set was cut: counts not at all, the rest up to float rounding.

Every compute function takes the sums of one site, or those of all sites of a network: fractions
and counts are then over all of them, norms are combined as L2, and the indices that describe a
layer (the two sparsities, the effective rank) are averaged over the sites that have one. It
answers None, never 0, when there is no site or a value in one is not finite.

docs/metrics.md has for each measure the formula, a worked example and the traps.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property, reduce
from operator import add
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from nsrelu_bench.config import MEASURES as SITE_MEASURES
from nsrelu_bench.errors import UsageError

DORMANT_TAU = 0.025

# Elements worked on at a time: their temporaries stay in the cache and off the page table, which
# makes the sums over a convolution's output several times faster.
_PIECE = 2**18

S = TypeVar("S", bound="Sums")


@dataclass(frozen=True)
class Sums:
    """What the batches so far add up to; `+` joins those of two batches."""

    nonfinite: int  # how many held an infinity or a NaN

    def __add__(self, other: Self) -> Self:
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        sums: list[Any] = [None if a is None else a + b for a, b in pairs]
        return type(self)(*sums)


@dataclass(frozen=True)
class PreSums(Sums):
    """Of the input of a site."""

    observations: int  # examples x positions
    nonpositive: Tensor  # (U,) int64


@dataclass(frozen=True)
class PostSums(Sums):
    """Of the output of a site."""

    observations: int
    zeros: Tensor  # (U,) int64
    magnitude: Tensor  # (U,) sum of abs(post)
    square: Tensor  # (U,) sum of post^2
    population: Tensor  # () sum of the population sparsity over `responses`
    responses: Tensor  # () int64: observations in which some unit is not 0
    gram: Tensor | None  # (U, U) float64: sum over examples of post post^T, averaged over positions

    @property
    def units(self) -> int:
        """U."""
        return len(self.zeros)

    @cached_property
    def singular_values(self) -> Tensor:
        """Of the `(examples, U)` matrix; what is below the accuracy of the Gram matrix is 0."""
        if self.gram is None:
            raise ValueError("the sums were gathered with gram=False: there is no effective rank")
        eigenvalues = torch.linalg.eigvalsh(self.gram)
        floor = eigenvalues.amax() * self.units * torch.finfo(eigenvalues.dtype).eps
        return torch.where(eigenvalues > floor, eigenvalues, 0).clamp(min=0).sqrt()


@dataclass(frozen=True)
class GradSums(Sums):
    """Of the loss gradient at the input of a site."""

    magnitude: Tensor  # (U,) sum of abs(gradient): 0 only if every one of them is 0
    square: Tensor  # () float64


@dataclass(frozen=True)
class WeightSums(Sums):
    """Of the gradient of some parameters that training follows, g, and of the true one, t."""

    parameters: int
    square: float  # g . g
    true_square: float  # t . t
    product: float  # g . t
    opposite: int  # parameters in which g and t have opposite signs


# Update: one batch to sums ------------------------------------------------------------------


def pre_update(pre: Tensor) -> PreSums:
    """Gather the sums of one batch of `pre`, shaped (N, U) or (N, U, ...)."""
    return reduce(add, map(_pre_piece, _pieces(pre)))


def post_update(post: Tensor, gram: bool = True) -> PostSums:
    """Gather the sums of one batch of `post`, shaped (N, U) or (N, U, ...).

    With `gram=False` the Gram matrix is left out, and with it the effective rank.
    """
    return reduce(add, (_post_piece(piece, gram) for piece in _pieces(post)))


def grad_update(gradient: Tensor) -> GradSums:
    """Gather the sums of one batch of the loss gradient at `pre`, (N, U) or (N, U, ...)."""
    return reduce(add, map(_grad_piece, _pieces(gradient)))


def weight_update(gradient: Tensor, true_gradient: Tensor | None = None) -> WeightSums:
    """Compare a parameter's gradient with its true one, of the same shape; None: they are equal.

    Both are those of the whole probe set: a cosine, unlike a gradient, is no sum over batches.
    """
    g = gradient.detach().double().flatten()
    square = float(g @ g)
    if true_gradient is None:
        return WeightSums(not math.isfinite(square), g.numel(), square, square, square, 0)
    t = true_gradient.detach().double().flatten()
    true_square = float(t @ t)
    nonfinite = not (math.isfinite(square) and math.isfinite(true_square))
    opposite = int(torch.count_nonzero(g.sign() * t.sign() < 0))
    return WeightSums(nonfinite, g.numel(), square, true_square, float(g @ t), opposite)


def all_finite(values: Tensor) -> bool:
    """Tell whether no value is infinite or NaN; the sum tells it faster, if it is finite."""
    return math.isfinite(values.detach().sum()) or bool(values.isfinite().all())


def _pieces(values: Tensor) -> Iterator[Tensor]:
    """Cut values into some of shape (n, U, positions).

    Raises:
        UsageError: There are no values.
    """
    if not values.numel():
        raise UsageError(f"there is nothing to measure in values of shape {tuple(values.shape)}")
    x = values.detach().reshape(*values.shape[:2], -1)
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    rows = max(1, _PIECE // x[0].numel()) if x.device.type == "cpu" else len(x)
    yield from torch.split(x, rows)


def _pre_piece(x: Tensor) -> PreSums:
    examples, _, positions = x.shape
    return PreSums(not all_finite(x), examples * positions, _count(torch.le, x))


def _post_piece(x: Tensor, gram: bool) -> PostSums:
    examples, units, positions = x.shape
    responses, magnitude, nonfinite = _responses(x)
    squares = responses.square()
    row_square = squares.sum(1)
    responds = row_square > 0
    sparsity = _treves_rolls(responses.sum(1), row_square, units)
    rows = (x.mean(2) if positions > 1 else x.squeeze(2)).double() if gram else x
    return PostSums(
        nonfinite=nonfinite,
        observations=examples * positions,
        zeros=_count(torch.eq, x),
        magnitude=magnitude,
        square=squares.sum((0, 2)).double(),
        population=torch.where(responds, sparsity, 0).sum(dtype=torch.float64),
        responses=torch.count_nonzero(responds),
        gram=rows.T @ rows if gram else None,
    )


def _grad_piece(x: Tensor) -> GradSums:
    responses, magnitude, nonfinite = _responses(x)
    return GradSums(nonfinite, magnitude, responses.square().sum().double())


def _responses(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return abs(x), its sum per unit, and 1 if that is not finite.

    In float32 squares overflow above 1e19 and vanish below 1e-23, where a network about to
    diverge, or a gradient 50 layers down, gets to; such values are returned in float64.
    """
    responses = x.abs()
    magnitude = responses.sum((0, 2)).double()
    mean = float(magnitude.sum()) / x.numel()
    if 1e-12 < mean < 1e12 or mean == 0 or x.dtype == torch.float64:
        return responses, magnitude, not math.isfinite(mean)
    return _responses(x.double())


def _count(compare: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Count per unit where `compare(x, 0)`, as floats: summing booleans is ten times slower."""
    # Above 2^24 float32 has no odd whole numbers.
    dtype = torch.float64 if x.shape[0] * x.shape[2] > 2**24 else x.dtype
    return compare(x, 0, out=torch.empty_like(x)).sum((0, 2), dtype=dtype).long()


def _treves_rolls(total: Tensor, square: Tensor, n: int) -> Tensor:
    """Return (1 - mean(r)^2 / mean(r^2)) / (1 - 1/n) of n responses; NaN where undefined."""
    if n == 1:
        return torch.full_like(total, math.nan)
    return ((1 - total.square() / (n * square)) / (1 - 1 / n)).clamp(0, 1)


# Compute: sums to measures ------------------------------------------------------------------


def zero_fraction(*sites: PostSums) -> float | None:
    """Return the fraction of `post` that is exactly 0 (L0 sparsity), in [0, 1]."""
    if not _usable(sites):
        return None
    zeros = sum(int(s.zeros.sum()) for s in sites)
    return zeros / sum(s.observations * s.units for s in sites)


def negative_fraction(*sites: PreSums) -> float | None:
    """Return the fraction of `pre` <= 0, in [0, 1]; unlike zero_fraction it fits LeakyReLU."""
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


def dormant_mask(site: PostSums, tau: float = DORMANT_TAU) -> Tensor:
    """Return which units, (U,) bool, have at most tau times the layer's mean of mean abs(post).

    Source: Sokar et al. 2023, arXiv:2302.12902, definition 3.1. In a layer of zeros all are.
    """
    return site.magnitude <= tau * site.magnitude.mean()


def dormant_units(*sites: PostSums) -> int | None:
    """Count the tau-dormant units, tau 0.025. Source: Sokar et al. 2023, arXiv:2302.12902."""
    return _count_units(dormant_mask, sites)


def lifetime_sparsity(*sites: PostSums) -> float | None:
    """Return the Treves-Rolls index over a unit's observations, averaged over units, in [0, 1].

    0: the same response to all; 1: a response to one only. The response is abs(post), for the
    index of signed ones leaves [0, 1]. Dead units have none and are left out.

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
    """Whether there are sums, and all of them of finite values."""
    bad = [site.nonfinite for site in sites]
    return bool(bad) and not any(bad)


def _count_units(mask: Callable[[S], Tensor], sites: tuple[S, ...]) -> int | None:
    return sum(int(mask(site).sum()) for site in sites) if _usable(sites) else None


def _mean(index: Callable[[PostSums], float], sites: tuple[PostSums, ...]) -> float | None:
    """Average over the sites that have an index; one that is not defined is NaN."""
    if not _usable(sites):
        return None
    values = [value for site in sites if not math.isnan(value := index(site))]
    return sum(values) / len(values) if values else None


def _lifetime(site: PostSums) -> float:
    sparsity = _treves_rolls(site.magnitude, site.square, site.observations)
    return float(sparsity[site.square > 0].mean())


def _population(site: PostSums) -> float:
    return float(site.population / site.responses)


def _effective_rank(site: PostSums) -> float:
    values = site.singular_values
    if not values.any():
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


@dataclass(frozen=True)
class DeadUnitHistory:
    """Which units of a layer, (U,) bool, are dead, have ever been, and came back from it."""

    dead: Tensor
    ever_dead: Tensor
    recovered: Tensor

    @classmethod
    def first(cls, dead: Tensor) -> Self:
        """Begin with which units are dead at the first measurement."""
        return cls(dead, dead, torch.zeros_like(dead))

    def then(self, dead: Tensor) -> Self:
        """Go on with which units are dead at the next one."""
        return type(self)(dead, self.ever_dead | dead, self.recovered | (self.ever_dead & ~dead))


def died_units(before: DeadUnitHistory, now: DeadUnitHistory) -> int:
    """Count the units alive at the last measurement and dead now."""
    return int((now.dead & ~before.dead).sum())


def revived_units(before: DeadUnitHistory, now: DeadUnitHistory) -> int:
    """Count the units dead at the last measurement and alive now."""
    return int((before.dead & ~now.dead).sum())


#: What can be measured, by name.
MEASURES = {
    "loss": "mean cross-entropy on the probe set",
    "accuracy": "fraction of the probe set that is classified right",
    **SITE_MEASURES,
}
