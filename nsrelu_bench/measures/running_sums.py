"""Sums over many passes: small batches are pooled, and several backward passes add up."""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Generic, TypeVar
from weakref import ref

import torch
from torch import Tensor

from nsrelu_bench.measures.sums import Sums

S = TypeVar("S", bound=Sums)


class RunningSums(Generic[S]):
    """The sums of one site over passes; `add` takes what `gather` gave.

    A handful of operations on a small batch take longer than what they compute. On the CPU the
    values (N, U, ...) of batches up to the size `pooled` are therefore kept and summed together,
    eight times as many at most.
    """

    def __init__(self, update: Callable[[Tensor], S], pooled: int) -> None:
        self._update, self._pooled = update, pooled
        self._waiting: list[Tensor] = []
        self._count = 0  # of values that wait
        self._sums: S | None = None

    def gather(self, values: Tensor) -> Tensor | S:
        """Return what `add` takes of a batch: its sums, or if it is small a copy of it."""
        if 0 < values.numel() <= self._pooled and values.is_cpu:
            return values.detach().clone()
        return self._update(values)

    def add(self, gathered: Tensor | S) -> None:
        """Add a batch."""
        if not isinstance(gathered, Tensor):
            self._join(gathered)
            return
        if self._waiting and self._waiting[0].shape[1:] != gathered.shape[1:]:
            self._flush()
        self._waiting.append(gathered)
        self._count += gathered.numel()
        if self._count >= 8 * self._pooled:
            self._flush()

    @property
    def sums(self) -> S | None:
        """The sums of all batches so far; None before the first one."""
        self._flush()
        return self._sums

    def _flush(self) -> None:
        if self._waiting:
            self._join(self._update(torch.cat(self._waiting)))
            self._waiting, self._count = [], 0

    def _join(self, sums: S) -> None:
        self._sums = sums if self._sums is None else self._sums + sums


class Total:
    """Tensors that the backward passes over one forward pass add up to, as in `.grad`.

    It lives as long as the graph: afterwards there can be no further backward pass, and the sums
    are all that is needed.
    """

    def __init__(self) -> None:
        self.tensors: tuple[Tensor, ...] = ()

    def add(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Add the tensors of one backward pass; return the totals."""
        self.tensors = tuple(map(torch.add, self.tensors, tensors)) if self.tensors else tensors
        return self.tensors


class PassSums(Generic[S]):
    """The sums of one pass, which change as long as its `Total` lives."""

    def __init__(self, total: Total) -> None:
        self.sums: S | None = None
        self._total = ref(total)

    @property
    def final(self) -> bool:
        """Whether no backward pass can change the sums any more."""
        return self._total() is None


class GradientSums(Generic[S]):
    """The sums of all passes at one site."""

    def __init__(self) -> None:
        self._open: list[PassSums[S]] = []
        self._closed: S | None = None

    def add(self, passed: PassSums[S]) -> None:
        """Add a pass, whose backward passes may come later."""
        for done in [one for one in self._open if one.final]:
            self._open.remove(done)
            if done.sums is not None:
                self._closed = done.sums if self._closed is None else self._closed + done.sums
        self._open.append(passed)

    @property
    def sums(self) -> S | None:
        """The sums of all backward passes so far; None if there was none."""
        every = [self._closed, *(passed.sums for passed in self._open)]
        there = [sums for sums in every if sums is not None]
        return reduce(add, there) if there else None
