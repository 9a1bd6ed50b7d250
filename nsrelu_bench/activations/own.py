"""An activation of the user's own, by ``package.module:name``: a function or a module.

A function takes a tensor and returns one of the same shape. A module is a class derived from
torch.nn.Module, of which each site gets an object of its own, with parameters of its own;
docs/own_parts.md describes both.
"""

from collections.abc import Callable
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from nsrelu_bench.activations.named_functions import check_dtype
from nsrelu_bench.config import FunctionSpec
from nsrelu_bench.errors import BenchError, UsageError, describe_error
from nsrelu_bench.plugins import blame, load_plugin


class OwnFunction:
    """A user's function with its parameters, as a function of the input alone.

    Raises:
        UsageError: There is no such function, or it is a module.
        BenchError: Its module can't be imported.
    """

    def __init__(self, spec: FunctionSpec) -> None:
        function = load_plugin("act", spec.name)
        if _is_module(function, spec.name):
            raise UsageError(
                f"act: {spec.name} is a module, and makes no pair with another function;"
                f" build('{spec}') makes one"
            )
        self.spec, self._function = spec, function
        self.__name__ = str(spec)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the function of `x`, of the same shape."""
        return _checked(self.spec, lambda x: self._function(x, *self.spec.parameters), x)


class OwnActivation(nn.Module):
    """One site of a user's module; what is inside is no site. A probe reads its `unit_axis`."""

    def __init__(self, spec: FunctionSpec, module: nn.Module, unit_axis: int | None = None) -> None:
        super().__init__()
        self.spec, self.module, self.unit_axis = spec, module, unit_axis

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, of the same shape."""
        check_dtype(x)
        return _checked(self.spec, self.module, x)

    def extra_repr(self) -> str:
        """Name the activation."""
        return str(self.spec)


def load_own(
    part: FunctionSpec | Callable[[Tensor], Tensor],
) -> FunctionSpec | Callable[[Tensor], Tensor]:
    """Return a user's function in place of its name, anything else as it is."""
    return OwnFunction(part) if isinstance(part, FunctionSpec) and part.own else part


def own_module(spec: FunctionSpec, unit_axis: int | None = None) -> OwnActivation | None:
    """Return a new module of a user's activation; None if it is a function.

    Random numbers that the module draws are not missing elsewhere: the weights of a model do not
    depend on its activation.

    Raises:
        UsageError: There is no such activation.
        BenchError: It can't be imported or made.
    """
    part = load_plugin("act", spec.name)
    if not _is_module(part, spec.name):
        return None
    with torch.random.fork_rng(devices=()), blame("act", str(spec)):
        return OwnActivation(spec, part(*spec.parameters), unit_axis)


def _is_module(part: object, name: str) -> TypeGuard[Callable[..., nn.Module]]:
    if isinstance(part, nn.Module):
        raise UsageError(
            f"act: {name} is a module that is made already, and no two sites may share one; name"
            f" its class, {type(part).__name__}"
        )
    return isinstance(part, type) and issubclass(part, nn.Module)


def _checked(spec: FunctionSpec, function: Callable[[Tensor], object], x: Tensor) -> Tensor:
    """Return a function of `x`, and check that it is what an activation may give."""
    if torch.compiler.is_compiling():
        return cast("Tensor", function(x))
    try:
        y = function(x)
    except Exception as error:
        if "vmap" in str(error):  # an ensemble says that it can't be computed stacked
            raise
        raise BenchError(f"act: {spec} failed: {describe_error(error)}") from error
    wanted = f"act: {spec} must return a tensor like its input, {_describe(x)}, got"
    if not isinstance(y, Tensor):
        raise BenchError(f"{wanted} {type(y).__name__}")
    mixed = torch.is_autocast_enabled(x.device.type) and y.is_floating_point()
    if y.shape != x.shape or (y.dtype != x.dtype and not mixed):
        raise BenchError(f"{wanted} {_describe(y)}")
    return y


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
