"""Activation modules, built from a spec."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.activations.functional import (
    IMPLS,
    Elementwise,
    apply_pair,
    check_dtype,
    nsrelu_,
    resolve_pair,
)
from nsrelu_bench.config import FUNCTIONS as PARAMETERS
from nsrelu_bench.config import (
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
        forward: str | Elementwise = "relu",
        backward: str | Elementwise | None = None,
        impl: str = "native",
    ) -> None:
        super().__init__()
        lookup(IMPLS, impl, "implementation")
        self.pair = resolve_pair(forward, backward)
        self.impl = impl

    @property
    def tied(self) -> bool:
        """Whether the backward is the forward's own."""
        return self.pair[0] == self.pair[1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, of the same shape."""
        forward, backward = self.pair
        if self.true_gradient:
            backward = forward
        return apply_pair(x, forward, backward, self.impl, self.training)

    def extra_repr(self) -> str:
        """Name the pair, and how it is computed if not as usual."""
        forward, backward = (getattr(part, "__name__", part) for part in self.pair)
        impl = "" if self.impl == "native" else f", impl={self.impl!r}"
        return f"forward={forward}, backward={backward}{impl}"


class NSReLU(Surrogate):
    """ReLU with the gradient of leaky ReLU (`nsrelu`); 0 at 0, slope `leak` there.

    With `inplace` the input is overwritten, as nn.ReLU does it, and training keeps one tensor
    fewer.

    Raises:
        UsageError: `leak` is not from 0 to 1, there is no such `impl`, or it can't work in place.
    """

    def __init__(self, leak: float = 0.1, impl: str = "native", inplace: bool = False) -> None:
        leak = check_parameter("leak", leak)
        super().__init__("relu", f"leaky_relu({format_number(leak)})", impl)
        if inplace and impl != "native":
            raise UsageError(f"inplace needs implementation 'native', got {impl!r}")
        self.leak = leak
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, of the same shape."""
        check_dtype(x)
        if self.true_gradient:
            return F.relu(x, inplace=self.inplace)
        if self.inplace:
            return nsrelu_(x, self.leak)
        return IMPLS[self.impl](x, self.leak)

    def extra_repr(self) -> str:
        """Name the leak and how it is computed."""
        inplace = ", inplace=True" if self.inplace else ""
        return f"leak={format_number(self.leak)}, impl={self.impl!r}{inplace}"


def build(label: ActivationSpec | str, impl: str = "native", inplace: bool = False) -> nn.Module:
    """Make a new module of an activation: PyTorch's own where there is one and the passes are tied.

    `impl` says how an untied pair is computed. `inplace` allows the input to be overwritten, and
    only those do it whose values and gradients stay the same, bit for bit.

    Raises:
        UsageError: The label or the `impl` is unknown.
    """
    label = parse_activation(label) if isinstance(label, str) else label
    lookup(IMPLS, impl, "implementation")
    if label.gated:
        raise UsageError(f"gate: can't be computed yet, got {label}")
    if label.tied:
        name = label.forward.name
        module = MODULES[name]
        settings = {"inplace": True} if inplace and name in IN_PLACE else {}
        return module(*label.forward.parameters, **settings)
    if (label.forward.name, label.backward.name) == ("relu", "leaky_relu"):
        leak = label.backward.values["leak"]
        return NSReLU(leak, impl, inplace=inplace and impl == "native")
    return Surrogate(str(label.forward), str(label.backward), impl)


@contextmanager
def true_gradients(model: nn.Module) -> Iterator[int]:
    """Let the untied activations of `model` use their forward's own gradient while this is open.

    Values stay the same. Gives the number of modules switched; 0 says that all are tied.
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


def _own(name: str) -> Callable[..., nn.Module]:
    """Return what makes the module of a function that PyTorch has none of."""

    def make(*parameters: float) -> nn.Module:
        return Surrogate(str(FunctionSpec(name, parameters or tuple(PARAMETERS[name].values()))))

    return make


#: A module of every function of `config.FUNCTIONS`.
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

# Those that may overwrite their input without a bit of difference. elu and selu could, but their
# gradient in place is rounded otherwise; the others keep a copy of the input when in place.
IN_PLACE = ("relu", "leaky_relu")
