from typing import Any

import pytest
import torch
from helpers.tiny_runs import tiny
from torch import nn

from nsrelu_bench.config import RunConfig
from nsrelu_bench.data import load_dataset
from nsrelu_bench.training import run
from nsrelu_bench.training.optimizers import make_optimizer
from nsrelu_bench.training.redo import reset_dormant_units
from nsrelu_bench.training.steps import build_network


def trained(**settings: Any) -> tuple[RunConfig, nn.Module, torch.optim.Optimizer]:
    """Return a network after one step, whose units 1 and 3 of the first layer are off for all."""
    config = tiny(**{"optimizer": "adam", "width": 4, "act": "relu"} | settings)
    data = load_dataset(config)
    network = build_network(config, data)
    optimizer = make_optimizer(list(network.parameters()), config)
    network(data.inputs(data.train.images[:64])).square().sum().backward()
    optimizer.step()
    first = first_layer(network)
    with torch.no_grad():
        first.bias[[1, 3]] = -1e6
    return config, network, optimizer


def first_layer(network: nn.Module) -> Any:
    return next(m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d))


@pytest.mark.parametrize("settings", [{"model": "mlp"}, {"model": "cnn", "depth": 3}])
def test_dormant_units_get_new_weights_in_and_none_out(settings: dict[str, Any]) -> None:
    config, network, optimizer = trained(**settings)
    layers = [m for m in network.children() if isinstance(m, nn.Linear | nn.Conv2d)]
    before = [layer.weight.clone() for layer in layers]
    remembered = optimizer.state[layers[0].weight]["exp_avg"].clone()
    reset_dormant_units(network, optimizer, load_dataset(config), config, step=1)
    first, second = layers[:2]
    for unit in (1, 3):
        assert not torch.equal(first.weight[unit], before[0][unit])
        assert first.bias[unit] == 0
        assert not second.weight[:, unit].any()
        assert not optimizer.state[first.weight]["exp_avg"][unit].any()
        assert not optimizer.state[second.weight]["exp_avg_sq"][:, unit].any()
    kept = [unit for unit in (0, 2) if torch.equal(first.weight[unit], before[0][unit])]
    assert kept, "a unit that is on was reset"
    for unit in kept:
        assert torch.equal(optimizer.state[first.weight]["exp_avg"][unit], remembered[unit])
    assert network.training


def test_random_units_depend_only_on_seed_and_step() -> None:
    def drawn(seed: int, step: int) -> torch.Tensor:
        config, network, optimizer = trained()
        config = config.model_copy(update={"seed": seed})
        reset_dormant_units(network, optimizer, load_dataset(config), config, step)
        return first_layer(network).weight[1].detach().clone()

    assert torch.equal(drawn(0, 5), drawn(0, 5))
    assert not torch.equal(drawn(0, 5), drawn(0, 6))
    assert not torch.equal(drawn(0, 5), drawn(1, 5))


def test_a_network_without_dormant_units_is_unchanged() -> None:
    config = tiny(optimizer="adam", act="leaky_relu(1)")
    data = load_dataset(config)
    network = build_network(config, data)
    before = [parameter.clone() for parameter in network.parameters()]
    optimizer = make_optimizer(list(network.parameters()), config)
    reset_dormant_units(network, optimizer, data, config, 1)
    assert all(map(torch.equal, before, network.parameters()))


def test_resets_lower_the_number_of_dead_units_in_a_run() -> None:
    settings = {"act": "relu", "optimizer": "adam", "lr": 0.03, "width": 32, "epochs": 3}
    *_, without = run(tiny(**settings))
    *_, reset = run(tiny(**settings, redo=10))
    assert reset.metrics["dead_units"] < without.metrics["dead_units"] / 2
