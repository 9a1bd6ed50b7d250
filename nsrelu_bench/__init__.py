"""Sparsity and gradients in rectifier networks.

The public names are loaded on first use, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsrelu_bench.activations import NSReLU as NSReLU
    from nsrelu_bench.activations import Surrogate as Surrogate
    from nsrelu_bench.activations import from_derivative as from_derivative
    from nsrelu_bench.activations import nsrelu as nsrelu
    from nsrelu_bench.activations import surrogate as surrogate
    from nsrelu_bench.activations import swap_activations as swap_activations
    from nsrelu_bench.config import RunConfig as RunConfig
    from nsrelu_bench.measures import ActivationProbe as ActivationProbe
    from nsrelu_bench.measures import measure as measure
    from nsrelu_bench.records import load as load
    from nsrelu_bench.training import run as run

    __version__: str

_ROOMS = {
    "ActivationProbe": "measures",
    "NSReLU": "activations",
    "RunConfig": "config",
    "Surrogate": "activations",
    "from_derivative": "activations",
    "load": "records",
    "measure": "measures",
    "nsrelu": "activations",
    "run": "training",
    "surrogate": "activations",
    "swap_activations": "activations",
}

__all__ = list(_ROOMS)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("nsrelu-bench")
    if name not in _ROOMS:
        raise AttributeError(f"module 'nsrelu_bench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nsrelu_bench.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_ROOMS]
