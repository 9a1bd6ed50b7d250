"""The quantiles of the pre-activations."""

import numpy as np
import pytest
import torch
from torch import nn

from nsrelu_bench.activations.modules import NSReLU
from nsrelu_bench.measures.quantiles import pre_quantiles


def test_quantiles_are_those_of_all_values():
    model = nn.Sequential(nn.Linear(4, 6), NSReLU(0.1, inplace=True), nn.Linear(6, 3), nn.ReLU())
    images = torch.randn(700, 4)
    rows = pre_quantiles(model, images, batch_size=300)
    pre = model[0](images).flatten().detach().numpy()
    first = [row for row in rows if row["layer"] == "1"]
    assert [row["layer"] for row in rows] == ["1"] * 200 + ["3"] * 200
    at = [row["quantile"] for row in first]
    assert at == pytest.approx([(i + 0.5) / 200 for i in range(200)], rel=1e-5)
    assert [row["value"] for row in first] == pytest.approx(np.quantile(pre, at), abs=1e-4)


def test_quantiles_of_many_values_are_of_a_part():
    model = nn.Sequential(nn.Linear(1, 2000, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.linspace(-1, 1, 2000)[:, None])
    rows = pre_quantiles(model, torch.ones(500, 1))
    assert [row["value"] for row in rows] == pytest.approx(
        [2 * row["quantile"] - 1 for row in rows], abs=0.02
    )
    with torch.no_grad():
        model[0].weight[3] = float("inf")
    assert pre_quantiles(model, torch.ones(500, 1)) == []


def test_quantiles_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(20, 4)
    state = torch.get_rng_state()
    pre_quantiles(model, images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
