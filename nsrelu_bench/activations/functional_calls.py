"""Find the activations of a model that `swap_activations` can't replace."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from types import CellType

import torch
from torch import nn


def functional_calls(
    model: nn.Module, names: set[str], without: tuple[type[nn.Module], ...]
) -> list[str]:
    """Name the modules that use a function such as "relu" or "relu_", as "layer (Block): relu"."""
    calls = []
    for path, module in model.named_modules():
        if isinstance(module, without):
            continue
        used = {*_used_in_source(type(module)), *_used_inside(module), *_used_as_item(module)}
        kind = getattr(module, "original_name", type(module).__name__)
        place = f"{path} ({kind})" if path else kind
        calls += [f"{place}: {name}" for name in sorted(used & names)]
    return calls


def kept_modules(model: nn.Module, old: set[nn.Module]) -> list[str]:
    """Name the attributes of modules that are functions with an old module in their closure."""
    return [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        for cell in value.__closure__ or ()
        if _content(cell) in old
    ]


def _content(cell: CellType) -> nn.Module | None:
    try:
        content = cell.cell_contents
    except ValueError:  # of a variable that has no value yet
        return None
    return content if isinstance(content, nn.Module) else None


def _used_in_source(cls: type[nn.Module]) -> frozenset[str]:
    """Return the names that the methods of a class use, as `relu` of F.relu, x.relu() or relu."""
    used: set[str] = set()
    if issubclass(cls, torch.fx.GraphModule):
        return frozenset()  # its source is made from its graph
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        # What __init__ names it may keep as an attribute, which is looked at by itself.
        if name == "__init__" or (method.__module__ or "").startswith("torch.nn."):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
        except (OSError, SyntaxError):
            continue  # written in a session, or generated: nothing to read
        nodes = list(ast.walk(tree))
        names = [node for node in nodes if isinstance(node, ast.Name)]
        assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        used |= {node.id for node in names} - assigned
        attributes = (node for node in nodes if isinstance(node, ast.Attribute))
        used |= {node.attr for node in attributes if ast.unparse(node.value) != "self"}
    return frozenset(used)


def _used_inside(module: nn.Module) -> Iterator[str]:
    """Yield the names of activations that a module of PyTorch computes internally."""
    if isinstance(module, nn.RNN | nn.RNNCell):
        yield str(module.nonlinearity)
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        yield from ("tanh", "sigmoid")
    elif isinstance(module, nn.GLU):
        yield "sigmoid"
    elif isinstance(module, torch.jit.ScriptModule):
        yield str(module.original_name).lower()
    elif type(module).__module__.startswith("torch.ao.") and not isinstance(module, nn.Sequential):
        # Fused, as the quantised ConvReLU2d; fused modules of floats have the activation inside.
        name = type(module).__name__.lower()
        yield from (end for end in ("relu", "relu6") if end in name)
    elif isinstance(module, torch.fx.GraphModule):
        for node in module.graph.nodes:
            if node.op in ("call_function", "call_method"):
                yield str(getattr(node.target, "__name__", node.target))


def _used_as_item(module: nn.Module) -> Iterator[str]:
    """Yield the names of functions that a module has as attributes or in containers."""
    waiting = [value for name, value in vars(module).items() if name not in vars(nn.Module())]
    for _ in range(1000):
        if not waiting:
            return
        value = waiting.pop()
        if inspect.isroutine(value):
            yield value.__name__
            if inspect.isfunction(value) and not value.__module__.startswith("torch."):
                yield from value.__code__.co_names
        elif isinstance(value, functools.partial):
            waiting.append(value.func)
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
