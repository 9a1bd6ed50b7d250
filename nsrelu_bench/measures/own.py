"""A measure of the user's own, by ``package.module:name``: a class with `update` and `compute`.

``update(pre, post)`` returns the sums over one batch at one site, a tensor or whatever adds up with
`+`; ``compute(*sums)`` makes a number of the sums of one or several sites. docs/own_parts.md has an
example.
"""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from nsrelu_bench.config import is_own
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.plugins import blame, load_plugin


def load_measures(measures: "Iterable[str | OwnMeasure]") -> "list[str | OwnMeasure]":
    """Return measures by name, those of the user's own as what they name.

    Loaded once and measured often: a file that is edited meanwhile does not matter.

    Raises:
        UsageError: A measure of the user's is not there, or lacks a method.
        BenchError: It can't be imported or made.
    """
    return [OwnMeasure(m) if isinstance(m, str) and is_own(m) else m for m in measures]


class OwnMeasure:
    """A user's measure, by ``package.module:name``.

    Raises:
        UsageError: There is no such class, or it lacks a method.
        BenchError: It can't be imported or made.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        make = load_plugin("measures", name)
        for method in ("update", "compute"):
            if not callable(getattr(make, method, None)):
                raise UsageError(
                    f"measures: {name} must be a class with the methods update and compute,"
                    f" and has no {method}"
                )
        with blame("measures", name):
            self._measure: Any = make()

    def update(self, sums: Any, pre: Tensor, post: Tensor) -> Any:
        """Return the sums with those of one more batch: input and output (N, U, ...) of a site."""
        with torch.no_grad(), blame("measures", self.name):
            found = self._measure.update(pre, post)
            return found if sums is None else sums + found

    def compute(self, sums: list[Any]) -> float | int | None:
        """Return the measure of some sites, None where it has no value."""
        with torch.no_grad(), blame("measures", self.name):
            value = self._measure.compute(*sums)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, Integral):
            return int(value)
        if isinstance(value, Real):
            return float(value) if math.isfinite(value) else None
        if value is None:
            return None
        raise BenchError(
            f"measures: {self.name} must compute a number or None, got {type(value).__name__}"
        )
