"""Activations whose backward pass is not their forward's own, as functions and modules."""

from nsrelu_bench.activations.functional import (
    IMPLS,
    FWBWMismatch,
    from_derivative,
    multiplication_trick,
    nsrelu,
    nsrelu_,
    surrogate,
)
from nsrelu_bench.activations.local import LocalConv2d, LocalLinear
from nsrelu_bench.activations.modules import (
    NSReLU,
    Surrogate,
    build,
    has_own_gradient,
    true_gradients,
)
from nsrelu_bench.activations.named_functions import DTYPES
from nsrelu_bench.activations.own import OwnActivation
from nsrelu_bench.activations.swap import swap_activations

__all__ = [
    "DTYPES",
    "IMPLS",
    "FWBWMismatch",
    "LocalConv2d",
    "LocalLinear",
    "NSReLU",
    "OwnActivation",
    "Surrogate",
    "build",
    "from_derivative",
    "has_own_gradient",
    "multiplication_trick",
    "nsrelu",
    "nsrelu_",
    "surrogate",
    "swap_activations",
    "true_gradients",
]
