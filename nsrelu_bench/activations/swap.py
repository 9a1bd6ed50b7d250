"""Replace the activations of any model."""

import copy
import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.activations.functional_calls import functional_calls, kept_modules
from nsrelu_bench.activations.modules import Surrogate
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

    Each site gets a copy of `new`, or what calling it returns; a module that is used in several
    places is replaced by one module. The new module takes over the mode, the hooks and, where it
    can, `inplace` of the old one. A function that a module has as an attribute, as
    nn.TransformerEncoderLayer has F.relu, is replaced too. Weights and the state dict stay the
    same if the activations have none.

    What can't be replaced stays, with a warning that names it: calls in the source, such as
    F.relu(x); activations inside of fused and scripted modules, such as nn.RNN; old modules that
    functions keep.

    Args:
        model: Any module; it need not be traceable.
        old: The type, or types, of the modules to replace; subclasses count.
        new: The activation to use instead.
        inplace: Change `model` itself.
        report: Called with one line that names what was replaced by what.

    Raises:
        BenchError: There is no such module in the model.
    """
    olds = old if isinstance(old, tuple) else (old,)
    swap = _Swap(olds, new)
    model = swap.run(model if inplace else _copy_of(model))
    kind = " or ".join(type_.__name__ for type_ in olds)
    names = function_names(olds)
    calls = functional_calls(model, names, (Surrogate, *olds))
    if not swap.made:
        found = "; it has functional calls, which can't be swapped" if calls else ""
        raise BenchError(f"no {kind} in {type(model).__name__}{found}")
    if report is not None:
        count = f"{len(swap.made)} {kind} by {swap.made[0]}"
        report(f"replaced {count}{': ' if swap.places else ''}{', '.join(swap.places)}")
    for what, where in (
        ("functional calls are left as they are, where swap_activations can't reach them", calls),
        ("functions keep old modules", kept_modules(model, set(swap.replaced))),
        ("activations no longer overwrite their input, and code may read it", swap.lost_inplace),
    ):
        if where:
            warnings.warn(f"{what}: {', '.join(where)}", stacklevel=2)
    return model


def function_names(olds: tuple[type[nn.Module], ...]) -> set[str]:
    """Return the names of the functions of some types of modules, such as `relu`, and `relu_`."""
    own = {"LeakyReLU": "leaky_relu"}
    names = {own.get(old.__name__, old.__name__.lower()) for old in olds}
    return {form for name in names if hasattr(F, name) for form in (name, f"{name}_")}


class _Swap:
    """One exchange of activations in a model."""

    def __init__(
        self, olds: tuple[type[nn.Module], ...], new: nn.Module | Callable[[], nn.Module]
    ) -> None:
        self._olds, self._new = olds, new
        spaces = (F, torch, Tensor)
        found = (getattr(s, n, None) for s in spaces for n in function_names(olds))
        self._functions = [function for function in found if function is not None]
        self.replaced: dict[nn.Module, nn.Module] = {}
        self.made: list[nn.Module] = []
        self.places: list[str] = []
        self.lost_inplace: list[str] = []

    def run(self, model: nn.Module) -> nn.Module:
        """Replace all; return the model, or what replaces it as a whole."""
        if isinstance(model, self._olds):
            return self._exchange(model, type(model).__name__)
        for path, module in list(model.named_modules(remove_duplicate=False)):
            if isinstance(module, self._olds):
                parent, _, attribute = path.rpartition(".")
                setattr(model.get_submodule(parent), attribute, self._exchange(module, path))
                self.places.append(path)
        for path, module in list(model.named_modules()):
            if module not in self.made and not isinstance(module, Surrogate):
                self._exchange_attributes(module, f"{path}." if path else "")
        for module in model.modules():
            _match_fast_path(module)
        return model

    def _exchange_attributes(self, module: nn.Module, prefix: str) -> None:
        """Replace what a module holds in other attributes: functions, and modules in lists."""
        for attribute, value in list(vars(module).items()):
            place = prefix + attribute
            if any(value is function for function in self._functions):
                setattr(module, attribute, self._make())
                self.places.append(place)
            elif attribute not in _OWN:
                count = len(self.places)
                changed = self._exchange_inside(value, place, depth=0)
                if len(self.places) > count:
                    vars(module)[attribute] = changed

    def _exchange_inside(self, value: Any, place: str, depth: int) -> Any:
        """Return a value with the old modules in it replaced; lists and dicts are changed."""
        inside = functools.partial(self._exchange_inside, depth=depth + 1)
        if isinstance(value, self._olds):
            self.places.append(place)
            return self._exchange(value, place)
        if isinstance(value, types.MethodType) and isinstance(value.__self__, self._olds):
            self.places.append(place)
            return getattr(self._exchange(value.__self__, place), value.__name__)
        if depth > _DEPTH:
            return value
        if isinstance(value, list):
            value[:] = [inside(item, f"{place}[{i}]") for i, item in enumerate(value)]
        elif isinstance(value, dict):
            value.update({key: inside(item, f"{place}[{key!r}]") for key, item in value.items()})
        elif type(value) is tuple:
            return tuple(inside(item, f"{place}[{i}]") for i, item in enumerate(value))
        elif isinstance(value, functools.partial):
            given = {key: inside(item, place) for key, item in value.keywords.items()}
            args = inside(value.args, place)
            return functools.partial(inside(value.func, place), *args, **given)
        return value

    def _exchange(self, module: nn.Module, place: str) -> nn.Module:
        """Return what replaces a module, the same each time."""
        if module not in self.replaced:
            fresh = self.replaced[module] = self._make()
            _take_over(fresh, module)
            if _is_inplace(module) and not _is_inplace(fresh):
                self.lost_inplace.append(place)
        return self.replaced[module]

    def _make(self) -> nn.Module:
        new = self._new
        self.made.append(copy.deepcopy(new) if isinstance(new, nn.Module) else new())
        return self.made[-1]


#: How deep containers are searched for modules.
_DEPTH = 4

#: Attributes that every module has.
_OWN = frozenset(vars(nn.Module()))


def _copy_of(model: nn.Module) -> nn.Module:
    """Copy a model, and undo what PyTorch changes when it copies.

    A copy of a traced module is in training mode. A copy of nn.TransformerDecoderLayer calls F.relu
    whatever module is its activation: its `__setstate__` does not look for it among the modules.
    """
    copied = copy.deepcopy(model)
    originals = dict(model.named_modules(remove_duplicate=False))
    named = list(copied.named_modules(remove_duplicate=False))
    pairs = [(originals[name], module) for name, module in named if name in originals]
    for before, after in pairs:
        if after.training != before.training:
            after.train(before.training)
        for name in vars(after).keys() & (after._modules.keys() - vars(before).keys()):
            del vars(after)[name]
    for before, after in pairs:  # again: train() of a parent has set its children too
        after.training = before.training
    return copied


def _take_over(new: nn.Module, old: nn.Module) -> None:
    """Give a module the mode, the hooks and, if it can, `inplace` of the one that it replaces."""
    new.train(old.training)
    works_in_place = getattr(new, "impl", "native") == "native"
    if _is_inplace(old) and getattr(new, "inplace", None) is False and works_in_place:
        new.inplace = True  # type: ignore[assignment]
    for name, hooks in vars(old).items():
        if "hooks" in name and hooks:
            # The very dict, from which handles remove their hooks.
            hooks.update(vars(new)[name])
            vars(new)[name] = hooks
    if old._is_full_backward_hook is not None:
        new._is_full_backward_hook = old._is_full_backward_hook


def _is_inplace(module: nn.Module) -> bool:
    return getattr(module, "inplace", False) is True


def _match_fast_path(module: nn.Module) -> None:
    """Update what PyTorch has recorded of a transformer's activation for its fast path.

    The fast path computes ReLU or GELU itself, and is taken if one of them is recorded.
    """
    if isinstance(module, nn.TransformerEncoderLayer):
        kinds = ((nn.ReLU, F.relu), (nn.GELU, F.gelu))
        matches = [
            isinstance(module.activation, kind) or module.activation is function
            for kind, function in kinds
        ]
        module.activation_relu_or_gelu = 1 + matches.index(True) if any(matches) else 0
    elif isinstance(module, nn.TransformerEncoder):
        flags = [getattr(layer, "activation_relu_or_gelu", 1) for layer in module.layers]
        module.use_nested_tensor = bool(getattr(module, "use_nested_tensor", False) and all(flags))
