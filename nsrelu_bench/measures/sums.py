"""The sums over one batch that the measures are computed from; `+` joins those of batches.

`pre` is the input of an activation site, `post` its output. All tensors here are `(N, U)` or
`(N, U, ...)`: N examples, U units, and the positions of a convolution or a sequence. A unit is
observed once for every example and position. No sum depends on how the probe set was cut into
batches: counts not at all, the rest up to float rounding.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property, reduce
from operator import add
from typing import Any, Self

import torch
from torch import Tensor

from nsrelu_bench.errors import UsageError

# Elements processed at a time, in one buffer of that size: it stays in the cache, which makes the
# sums over a convolution's output several times faster.
PIECE = 2**18
# On a GPU only to bound the memory of the temporaries.
DEVICE_PIECE = 2**24


@dataclass(frozen=True)
class Sums:
    """The sums of the batches so far; `+` joins those of two batches."""

    nonfinite: int  # number of batches with an infinity or a NaN

    def __add__(self, other: Self) -> Self:
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        sums: list[Any] = [None if a is None or b is None else a + b for a, b in pairs]
        return type(self)(*sums)


@dataclass(frozen=True)
class PreSums(Sums):
    """Sums over the input of a site."""

    observations: int  # examples x positions
    nonpositive: Tensor  # (U,) int64
    square: float  # sum of pre^2
    highest: Tensor | None  # (U,) greatest pre, inf where it is above 0; None: it is for all units

    def __add__(self, other: Self) -> Self:
        both = super().__add__(other)
        if self.highest is None or other.highest is None:
            return both
        return replace(both, highest=torch.maximum(self.highest, other.highest))


@dataclass(frozen=True)
class ResponseSums(Sums):
    """Sums over the size of the output of a site."""

    magnitude: Tensor  # (U,) sum of abs(post)
    square: Tensor  # (U,) sum of post^2
    population: Tensor  # () sum of the population sparsity over `responses`
    responses: Tensor  # () int64: observations in which some unit is not 0


@dataclass(frozen=True)
class PostSums(Sums):
    """Sums over the output of a site."""

    observations: int
    zeros: Tensor  # (U,) int64
    response: ResponseSums | None
    gram: Tensor | None  # (U, U) float64: sum over examples of post post^T, averaged over positions

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.zeros)

    @cached_property
    def singular_values(self) -> Tensor:
        """Singular values of the `(examples, U)` matrix; 0 below the Gram matrix's accuracy."""
        if self.gram is None:
            raise ValueError("the sums were gathered with gram=False: there is no effective rank")
        eigenvalues = torch.linalg.eigvalsh(self.gram)
        floor = eigenvalues.amax() * self.units * torch.finfo(eigenvalues.dtype).eps
        return torch.where(eigenvalues > floor, eigenvalues, 0).clamp(min=0).sqrt()


@dataclass(frozen=True)
class GradSums(Sums):
    """Sums over the loss gradient at the input of a site."""

    magnitude: Tensor  # (U,) sum of abs(gradient): 0 only if every one of them is 0
    square: Tensor  # () float64


@dataclass(frozen=True)
class ExtraSums(Sums):
    """Sums over what a surrogate adds to the true gradient at the input of a site."""

    up: float  # sum of squares where descent on it raises the input
    down: float  # where descent on it lowers the input
    true_square: float


@dataclass(frozen=True)
class WeightSums(Sums):
    """Sums over the gradient of some parameters that training follows, g, and the true one, t."""

    parameters: int
    square: float  # g . g
    true_square: float  # t . t
    product: float  # g . t
    opposite: int  # parameters in which g and t have opposite signs


@dataclass(frozen=True)
class ParameterSums(Sums):
    """Sums over the values of some parameters."""

    square: float


def pre_update(pre: Tensor) -> PreSums:
    """Gather the sums of one batch of `pre`, shaped (N, U) or (N, U, ...)."""
    return reduce(add, (_pre_piece(*piece) for piece in _pieces(pre)))


def post_update(post: Tensor, gram: bool = True, response: bool = True) -> PostSums:
    """Gather the sums of one batch of `post`, shaped (N, U) or (N, U, ...).

    With `gram=False` the Gram matrix is left out, and with it the effective rank; with
    `response=False` all that needs more than counts of zeros.
    """
    return reduce(add, (_post_piece(*piece, gram, response) for piece in _pieces(post)))


def grad_update(gradient: Tensor) -> GradSums:
    """Gather the sums of one batch of the loss gradient at `pre`, (N, U) or (N, U, ...)."""
    return reduce(add, (_grad_piece(*piece) for piece in _pieces(gradient)))


def extra_update(gradient: Tensor, true_gradient: Tensor) -> ExtraSums:
    """Compare what a site passes on to `pre` with what its true gradient would pass on.

    Both are of the same loss gradient at `post`, shaped alike; the extra gradient is their
    difference.
    """
    extra = gradient.detach() - true_gradient.detach()
    up, down = square_of(extra.clamp(max=0)), square_of(extra.clamp_(min=0))
    true = square_of(true_gradient)
    return ExtraSums(not all(map(math.isfinite, (up, down, true))), up, down, true)


def weight_update(gradient: Tensor, true_gradient: Tensor | None = None) -> WeightSums:
    """Compare a parameter's gradient with its true one, of the same shape; None: they are equal.

    Both must be of the whole probe set: a cosine, unlike a gradient, does not add up over batches.
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


def parameter_update(parameter: Tensor) -> ParameterSums:
    """Gather the sums of a parameter's values."""
    square = square_of(parameter)
    return ParameterSums(not math.isfinite(square), square)


def all_finite(values: Tensor) -> bool:
    """Return whether no value is infinite or NaN."""
    # The sum is faster, and decides wherever it is finite itself.
    return math.isfinite(values.detach().sum()) or bool(values.isfinite().all())


def square_of(values: Tensor) -> float:
    """Return the sum of squares, accurate also where float32 squares overflow or vanish."""
    x = values.detach()
    norm = float(torch.linalg.vector_norm(x))
    if not 1e-12 < norm < 1e12:
        norm = float(torch.linalg.vector_norm(x, dtype=torch.float64))
    return norm * norm


def treves_rolls(total: Tensor, square: Tensor, n: int) -> Tensor:
    """Return (1 - mean(r)^2 / mean(r^2)) / (1 - 1/n) of n responses; NaN where undefined."""
    if n == 1:
        return torch.full_like(total, math.nan)
    return ((1 - total.square() / (n * square)) / (1 - 1 / n)).clamp(0, 1)


def _pieces(values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut values into pieces of shape (n, U, positions), each with room for results of its shape.

    Raises:
        UsageError: There are no values.
    """
    if not values.numel():
        raise UsageError(f"there is nothing to measure in values of shape {tuple(values.shape)}")
    x = values.detach().reshape(*values.shape[:2], -1)
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    piece = PIECE if x.is_cpu else DEVICE_PIECE
    rows = max(1, piece // x[0].numel())
    room = torch.empty_like(x[:rows])
    for part in torch.split(x, rows):
        yield part, room[: len(part)]


def _pre_piece(x: Tensor, room: Tensor) -> PreSums:
    examples, _, positions = x.shape
    observations, square = examples * positions, square_of(x)
    nonpositive = _count(torch.le, x, room)
    highest = None
    if int(nonpositive.max()) == observations:
        submerged = nonpositive == observations
        highest = torch.full_like(x[0, :, 0], math.inf)
        highest[submerged] = x[:, submerged].amax((0, 2))
    nonfinite = not (math.isfinite(square) or all_finite(x))
    return PreSums(nonfinite, observations, nonpositive, square, highest)


def _post_piece(x: Tensor, room: Tensor, gram: bool, response: bool) -> PostSums:
    examples, _, positions = x.shape
    sums = _response_piece(x, room) if response else None
    nonfinite = sums.nonfinite if sums else not all_finite(x)
    rows = (x.mean(2) if positions > 1 else x.squeeze(2)).double() if gram else x
    return PostSums(
        nonfinite=nonfinite,
        observations=examples * positions,
        zeros=_count(torch.eq, x, room),
        response=sums,
        gram=_gram(rows) if gram else None,
    )


def _gram(x: Tensor) -> Tensor:
    """Return x^T x; of many rows only what is on one side of the diagonal is computed."""
    if len(x) < 512:
        return x.T @ x
    gram, start = x.new_empty(x.shape[1], x.shape[1]), 0
    for part in x.chunk(4, 1):
        end = start + part.shape[1]
        torch.mm(part.T, x[:, start:], out=gram[start:end, start:])
        gram[end:, start:end] = gram[start:end, end:].T
        start = end
    return gram


def _response_piece(x: Tensor, room: Tensor) -> ResponseSums:
    response, magnitude, nonfinite = _magnitude(x, room)
    row = response.sum(1)
    squares = response.square_()
    row_square = squares.sum(1)
    responds = row_square > 0
    sparsity = treves_rolls(row, row_square, x.shape[1])
    return ResponseSums(
        nonfinite=nonfinite,
        magnitude=magnitude,
        square=squares.sum((0, 2)).double(),
        population=torch.where(responds, sparsity, 0).sum(dtype=torch.float64),
        responses=torch.count_nonzero(responds),
    )


def _grad_piece(x: Tensor, room: Tensor) -> GradSums:
    response, magnitude, nonfinite = _magnitude(x, room)
    return GradSums(nonfinite, magnitude, response.square_().sum().double())


def _magnitude(x: Tensor, room: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return abs(x), its sum per unit, and 1 if that is not finite.

    In float32 squares overflow above 1e19 and vanish below 1e-23. A network about to diverge, or
    a gradient 50 layers down, has such values; they are returned in float64.
    """
    response = torch.abs(x, out=room)
    magnitude = response.sum((0, 2)).double()
    mean = float(magnitude.sum()) / x.numel()
    if 1e-12 < mean < 1e12 or mean == 0 or x.dtype == torch.float64:
        return response, magnitude, not math.isfinite(mean)
    return _magnitude(x.double(), room.double())


def _count(compare: Callable[..., Tensor], x: Tensor, room: Tensor) -> Tensor:
    """Count per unit where `compare(x, 0)`, as floats: summing booleans is ten times slower."""
    # Above 2^24 float32 has no odd whole numbers.
    dtype = torch.float64 if x.shape[0] * x.shape[2] > 2**24 else x.dtype
    return compare(x, 0, out=room).sum((0, 2), dtype=dtype).long()
