"""A second, slow statement of what a probe sees: own hooks, whole tensors, NumPy and autograd."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.conv import _ConvNd


@dataclass
class Seen:
    """One call of an activation: all values as (units, observations), and the weights before it."""

    pre: np.ndarray
    post: np.ndarray
    weights: list[nn.Parameter]


def watch(model: nn.Module, types: tuple[type[nn.Module], ...], run: Callable) -> dict[str, Seen]:
    """Run a model whose layers are modules of torch.nn; return what its activations saw.

    The units are on the last axis if the layer that ran last is linear, else on the second. The
    weights are those to which autograd's graph leads back first, without those of earlier sites.
    """
    seen: list[tuple[str, Seen]] = []
    layer: list[nn.Module] = []
    origins: dict[Node, list[nn.Parameter]] = {}
    taken: set[Node] = set()
    before: list[Tensor] = []

    def ran(module: nn.Module, _: object, output: object) -> None:
        layer[:] = [module]
        while not isinstance(output, Tensor):
            output = output[0]
        if output.grad_fn is not None:
            named = module.named_parameters()
            origins[output.grad_fn] = [p for name, p in named if "bias" not in name]

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        before.append(args[0].detach().clone())
        near = nearest(args[0].grad_fn, origins)
        feeding = [node for node in near if node not in taken] or near
        taken.update(feeding)
        weights.append(list(dict.fromkeys(p for node in feeding for p in origins[node])))

    def leave(name: str, post: Tensor) -> None:
        axis = 1 if isinstance(layer[0], _ConvNd) else -1
        values = [v.movedim(axis, 0).flatten(1).numpy() for v in (before.pop(), post.detach())]
        seen.append((name, Seen(*values, weights.pop())))

    weights: list[list[nn.Parameter]] = []
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)):
            hooks.append(module.register_forward_hook(ran))
        if isinstance(module, types):
            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(lambda _, __, post, n=name: leave(n, post)))
    run()
    for hook in hooks:
        hook.remove()
    calls, count = Counter(name for name, _ in seen), Counter()
    found = {}
    for name, one in seen:
        count[name] += 1
        found[f"{name}#{count[name]}" if calls[name] > 1 else name] = one
    return found


def nearest(node: Node | None, origins: dict[Node, list[nn.Parameter]]) -> list[Node]:
    """Return those of `origins` that are met first on each way back from a node."""
    found, seen, waiting = [], set(), [node]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in origins:
            found.append(node)
        else:
            waiting += [before for before, _ in node.next_functions]
    return found


def row_of(seen: Seen) -> dict[str, float | int | None]:
    """Return some measures of a site by their definitions, after a backward pass."""
    gradients = [p.grad.double().flatten() for p in seen.weights if p.grad is not None]
    submerged = seen.pre.max(1) <= 0
    dead = (seen.post == 0).all(1)
    rms = np.sqrt((seen.pre.astype(np.float64) ** 2).mean())
    return {
        "units": len(seen.post),
        "zero_fraction": (seen.post == 0).mean(),
        "negative_fraction": (seen.pre <= 0).mean(),
        "dead_units": dead.sum(),
        "submerged_units": submerged.sum(),
        "living_zero_fraction": (seen.post[~dead] == 0).mean() if not dead.all() else None,
        "pre_rms": rms,
        "submerged_depth": -seen.pre[submerged].max(1).mean() / rms if submerged.any() else None,
        "grad_norm": torch.cat(gradients).norm().item() if gradients else None,
    }
