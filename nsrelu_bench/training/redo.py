"""ReDo: units that are dormant get new weights while the network trains.

Source:
    Sokar, Agarwal, Castro & Evci 2023, "The dormant neuron phenomenon in deep reinforcement
    learning", algorithm 1.
"""

import copy

import torch
from torch import Tensor, nn

from nsrelu_bench.config import RunConfig
from nsrelu_bench.data import Dataset
from nsrelu_bench.measures import DORMANT_TAU
from nsrelu_bench.models import initialise
from nsrelu_bench.training.random_streams import generator, isolated

#: Training images that the activations are averaged over.
EXAMPLES = 1000

Layer = nn.Linear | nn.Conv2d
Index = Tensor | tuple[slice, Tensor]


@torch.no_grad()
def reset_dormant_units(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Dataset,
    config: RunConfig,
    step: int,
) -> None:
    """Draw new weights into dormant units, and set those out of them to zero.

    The optimizer's state of these weights is set to zero too. The dormant units of all sites are
    found before anything is reset, on random training images. The network has its layers and
    activations one after another, and the number of the last step decides what is drawn.
    """
    random = generator(config.seed, f"redo/{step}")
    chosen = torch.randperm(len(data.train), generator=random)[:EXAMPLES]
    inputs = data.inputs(data.train.images[chosen.to(data.train.labels.device)])
    network.eval()
    dormant = _find_dormant(network, inputs)
    network.train()
    layers = [module for module in network.children() if isinstance(module, Layer)]
    with isolated(config, f"redo weights/{step}"):
        for units, layer in zip(dormant, layers, strict=False):
            fresh = copy.deepcopy(layer)
            fresh.reset_parameters()
            initialise(fresh, config.init)
            for old, new in zip(layer.parameters(), fresh.parameters(), strict=True):
                _replace(optimizer, old, units, new)
    for units, layer in zip(dormant, layers[1:], strict=True):
        weight = layer.weight
        _replace(optimizer, weight, (slice(None), units), torch.zeros_like(weight))


def _find_dormant(network: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Return which units of each site are dormant on some inputs: bool (units,) per site."""
    dormant = []
    values = inputs
    for name, module in network.named_children():
        values = module(values)
        if name.startswith("act"):
            response = values.abs().transpose(0, 1).flatten(1).mean(1)
            dormant.append(response <= DORMANT_TAU * response.mean())
    return dormant


def _replace(
    optimizer: torch.optim.Optimizer, parameter: Tensor, where: Index, new: Tensor
) -> None:
    """Replace entries of a parameter, and set the optimizer's state of them to zero."""
    parameter[where] = new[where]
    for kept in optimizer.state[parameter].values():
        if isinstance(kept, Tensor) and kept.shape == parameter.shape:
            kept[where] = 0
