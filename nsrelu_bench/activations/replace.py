"""Changing the activations of a model that somebody else wrote."""

import ast
import copy
import inspect
import textwrap
import warnings
from collections.abc import Callable, Iterator

from torch import nn

from nsrelu_bench.activations.modules import MODULES, Surrogate
from nsrelu_bench.errors import BenchError


def swap_activations(
    model: nn.Module,
    old: type[nn.Module] | tuple[type[nn.Module], ...],
    new: nn.Module | Callable[[], nn.Module],
    *,
    inplace: bool = False,
    report: Callable[[str], object] | None = None,
) -> nn.Module:
    """Replace every activation of the type `old`, and return the model; a copy unless `inplace`.

        swap_activations(torchvision.models.resnet18(), nn.ReLU, NSReLU(0.1), report=print)

    Each site gets a copy of `new`, or what calling it gives; a module that stands at several
    places is replaced by one. Weights and the state dict stay as they are if activations have
    none. Functional calls, such as F.relu, are found in the source where there is one, told by a
    warning, and stay as they are; so do fused ones, such as that of nn.RNN.

    Args:
        model: Any module; it need not be traceable.
        old: The type, or types, of the modules to replace; subclasses count.
        new: The activation to put there.
        inplace: Change `model` itself.
        report: Is called with one line that names what was replaced by what.

    Raises:
        BenchError: There is no such module in the model.
    """
    olds = old if isinstance(old, tuple) else (old,)
    kind = " or ".join(type_.__name__ for type_ in olds)
    if not any(isinstance(module, olds) for module in model.modules()):
        found = "; it has functional calls, which can't be swapped" if _calls(model, olds) else ""
        raise BenchError(f"no {kind} in {type(model).__name__}{found}")
    if not inplace:
        model = copy.deepcopy(model)
    made: dict[nn.Module, nn.Module] = {}
    swapped = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, olds):
            if module not in made:
                made[module] = copy.deepcopy(new) if isinstance(new, nn.Module) else new()
                made[module].train(module.training)
            if not name:
                model = made[module]
                break
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, made[module])
            swapped.append(name)
    if report is not None:
        count = f"{len(made)} {kind} by {next(iter(made.values()))}"
        report(f"replaced {count}{': ' if swapped else ''}{', '.join(swapped)}")
    if calls := _calls(model, olds):
        warnings.warn(
            f"functional calls are left as they are, where swap_activations can't reach them:"
            f" {', '.join(calls)}",
            stacklevel=2,
        )
    return model


def _calls(model: nn.Module, olds: tuple[type[nn.Module], ...]) -> list[str]:
    """Name the modules that use the function of a type of `olds`, as "layer (Block): relu"."""
    names = {name for name, module in MODULES.items() if module in olds}
    names |= {f"{name}_" for name in names}
    calls = []
    for path, module in model.named_modules():
        if isinstance(module, (Surrogate, *olds)):
            continue
        used = {*_used_in_source(type(module)), *_used_as_attribute(module)} & names
        place = f"{path} ({type(module).__name__})" if path else type(module).__name__
        calls += [f"{place}: {name}" for name in sorted(used)]
    return calls


def _used_in_source(cls: type[nn.Module]) -> frozenset[str]:
    """Return the names that the methods of a class use, as `relu` of F.relu, x.relu() or relu."""
    used = set()
    for _, method in inspect.getmembers(cls, inspect.isfunction):
        if method.__module__.startswith("torch.nn."):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
        except (OSError, SyntaxError):
            continue  # written in a session, or generated: nothing to read
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                used.add(node.id)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
                used.add(node.attr)
    return frozenset(used)


def _used_as_attribute(module: nn.Module) -> Iterator[str]:
    """Give the names of the functions that a module has as attributes, as nn.Transformer's."""
    return (value.__name__ for value in vars(module).values() if inspect.isroutine(value))
