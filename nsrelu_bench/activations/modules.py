"""Activation modules, built from a spec."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from nsrelu_bench.activations.functional import (
    IMPLS,
    Elementwise,
    apply_pair,
    check_gate,
    check_gate_impl,
    nsrelu_,
    resolve_pair,
)
from nsrelu_bench.activations.gates import check_unit_axis, gated_nsrelu
from nsrelu_bench.activations.named_functions import check_dtype
from nsrelu_bench.activations.own import OwnActivation, own_module
from nsrelu_bench.config import (
    FUNCTION_PARAMETERS,
    ActivationSpec,
    FunctionSpec,
    check_parameter,
    format_number,
    parse_activation,
)
from nsrelu_bench.errors import UsageError, lookup


class Surrogate(nn.Module):
    """An activation with the values of `forward` and the gradient of `backward` (`surrogate`).

    Raises:
        UsageError: A name or a parameter is wrong, or there is no such `impl`.
    """

    # While set, the module computes the same values with the forward's own gradient. It is an
    # attribute of the class, shadowed on instances by `true_gradients`, so that no state_dict and
    # no pickle carries it.
    true_gradient = False

    def __init__(
        self,
        forward: str | FunctionSpec | Elementwise = "relu",
        backward: str | FunctionSpec | Elementwise | None = None,
        impl: str = "native",
        gate: str | None = None,
        unit_axis: int | None = None,
    ) -> None:
        super().__init__()
        lookup(IMPLS, impl, "implementation")
        *self.pair, self.gate = resolve_pair(forward, backward, gate)
        check_gate_impl(self.gate, impl)
        self.impl = impl
        self.unit_axis = check_unit_axis(unit_axis)

    @property
    def tied(self) -> bool:
        """Whether the backward is the forward's own."""
        return self.pair[0] == self.pair[1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, of the same shape."""
        if isinstance(x, Proxy):
            return _as_node(self, x)
        forward, backward = self.pair
        if self.true_gradient:
            backward = forward
        return apply_pair(x, forward, backward, self.impl, self.training, self.gate, self.unit_axis)

    def extra_repr(self) -> str:
        """Show the pair, and each setting that is not its default."""
        forward, backward = (getattr(part, "__name__", part) for part in self.pair)
        impl = "" if self.impl == "native" else f", impl={self.impl!r}"
        return f"forward={forward}, backward={backward}{impl}{self._gate_repr()}"

    def _gate_repr(self) -> str:
        if self.gate == "always":
            return ""
        axis = "" if self.unit_axis is None else f", unit_axis={self.unit_axis}"
        return f", gate={self.gate!r}{axis}"


class NSReLU(Surrogate):
    """ReLU with the gradient of leaky ReLU (`nsrelu`); 0 at 0, slope `leak` there.

    `gate` says where the leak passes; "dead", "rescue" and "net_rescue" need `unit_axis`, the axis
    of the units in the input, unless that has two dimensions. With `inplace` the input is
    overwritten, as by nn.ReLU, and training keeps one tensor fewer.

    Raises:
        UsageError: An argument is unknown or out of range, or they don't go together.
    """

    def __init__(
        self,
        leak: float = 0.1,
        impl: str = "native",
        inplace: bool = False,
        gate: str = "always",
        unit_axis: int | None = None,
    ) -> None:
        leak = check_parameter("leak", leak)
        check_gate(gate, impl, leak)
        super().__init__(
            FunctionSpec("relu"), FunctionSpec("leaky_relu", (leak,)), impl, gate, unit_axis
        )
        if inplace and impl != "native":
            raise UsageError(f"inplace needs implementation 'native', got {impl!r}")
        self.leak = leak
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, of the same shape."""
        if isinstance(x, Proxy):
            return _as_node(self, x)
        check_dtype(x)
        if self.true_gradient:
            return F.relu(x, inplace=self.inplace)
        if self.gate == "always":
            return nsrelu_(x, self.leak) if self.inplace else IMPLS[self.impl](x, self.leak)
        return gated_nsrelu(x, self.leak, self.gate, self.unit_axis, inplace=self.inplace)

    def extra_repr(self) -> str:
        """Show the leak and the implementation, and each setting that is not its default."""
        inplace = ", inplace=True" if self.inplace else ""
        return f"leak={format_number(self.leak)}, impl={self.impl!r}{inplace}{self._gate_repr()}"


def _as_node(module: Surrogate, x: Proxy) -> Tensor:
    """Return the node that calls a module, as torch.fx makes it for PyTorch's own activations."""
    tracer: Any = x.tracer
    node: Tensor = tracer.create_proxy("call_module", tracer.path_of_module(module), (x,), {})
    return node


def build(
    spec: ActivationSpec | str,
    impl: str = "native",
    inplace: bool = False,
    unit_axis: int | None = None,
) -> nn.Module:
    """Return a new module of an activation: PyTorch's own where there is one for a tied pair.

    `impl` says how an untied pair without a gate is computed. `inplace` allows the input to be
    overwritten, which happens only where it changes no bit of values or gradients. `unit_axis` is
    the axis of the units, for gates.

    Raises:
        UsageError: The activation or the `impl` is unknown.
        BenchError: A user's own can't be made.
    """
    spec = parse_activation(spec) if isinstance(spec, str) else spec
    lookup(IMPLS, impl, "implementation")
    if spec.tied and spec.forward.own:
        own = own_module(spec.forward, unit_axis)
        return own or Surrogate(spec.forward, unit_axis=unit_axis)
    if spec.tied:
        name = spec.forward.name
        settings = {"inplace": True} if inplace and name in IN_PLACE else {}
        return MODULES[name](*spec.forward.parameters, **settings)
    impl = impl if spec.uses_impl else "native"
    if (spec.forward.name, spec.backward.name) == ("relu", "leaky_relu"):
        (leak,) = spec.backward.parameters
        return NSReLU(leak, impl, inplace and impl == "native", spec.gate, unit_axis)
    return Surrogate(spec.forward, spec.backward, impl, spec.gate, unit_axis)


@contextmanager
def true_gradients(model: nn.Module) -> Iterator[int]:
    """Let the untied activations of `model` use their forward's own gradient while this is open.

    Values stay the same. Yields the number of modules that are switched; 0 if all are tied.
    """
    untied = [m for m in model.modules() if isinstance(m, Surrogate) and not m.tied]
    switched = [m for m in untied if not m.true_gradient]  # not those of an outer context
    try:
        for module in switched:
            module.true_gradient = True
        yield len(untied)
    finally:
        for module in switched:
            vars(module).pop("true_gradient", None)


def has_own_gradient(model: nn.Module) -> bool:
    """Return whether a model has a function or a module of the user's own as an activation.

    Its gradient may be the derivative of what it computes, or that of another function.
    """
    return any(
        isinstance(m, OwnActivation)
        or (isinstance(m, Surrogate) and m.tied and not isinstance(m.pair[0], FunctionSpec))
        for m in model.modules()
    )


def _own(name: str) -> Callable[..., nn.Module]:
    """Return a constructor for the module of a function that has none in PyTorch."""
    defaults = tuple(FUNCTION_PARAMETERS[name].values())
    return lambda *parameters: Surrogate(FunctionSpec(name, parameters or defaults))


#: A module of every function of `config.FUNCTION_PARAMETERS`.
MODULES: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "identity": _own("identity"),
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "prelu": lambda leak=0.25: nn.PReLU(init=leak),
    "rrelu": nn.RReLU,
    "bsilu": _own("bsilu"),
    "nelu": _own("nelu"),
    "helu": _own("helu"),
}

# Those that give the same bits in place. elu and selu round their gradient differently in place;
# the others keep a copy of the input.
IN_PLACE = ("relu", "leaky_relu")
