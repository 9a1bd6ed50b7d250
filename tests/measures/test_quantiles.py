"""The quantiles of the pre-activations."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nsrelu_bench.activations.modules import NSReLU
from nsrelu_bench.measures import quantiles
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


class Identity(nn.ReLU):
    """A site whose input is the model's."""

    def forward(self, x):
        return x


def quantiles_of(values: Tensor, batch_size: int = 250) -> list[float]:
    return [row["value"] for row in pre_quantiles(Identity(), values, batch_size=batch_size)]


def test_quantiles_of_up_to_2_to_18_values_are_exact():
    values = torch.randn(2**10, 2**8 - 1)
    at = (torch.arange(200) + 0.5) / 200
    assert quantiles_of(values) == torch.quantile(values.flatten(), at).tolist()


def test_many_values_are_drawn_from_all_places_alike():
    # The borders of the images are 100, and 124 of 1024 values. Every 16th value, of which there
    # would be 2^17, takes the left border for half of all.
    images = torch.randn(512, 4, 32, 32)
    images[:, :, [0, -1]] = images[:, :, :, [0, -1]] = 100
    found = quantiles_of(images)
    exact = np.quantile(images.numpy(), (np.arange(200) + 0.5) / 200)
    assert np.mean(np.array(found) == 100) == pytest.approx(124 / 1024, abs=0.01)
    assert found[2:-28] == pytest.approx(exact[2:-28], abs=0.05)


def test_a_draw_depends_on_no_batch_and_no_seed():
    values = torch.randn(600, 1000)
    found = quantiles_of(values)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert quantiles_of(values, batch_size=77) == found
    assert torch.equal(torch.get_rng_state(), state)
    assert found != quantiles_of(values.flip(0))  # it is a draw


def test_a_draw_has_no_value_twice():
    values = torch.arange(3 * 2**17, dtype=torch.float64).view(-1, 2**10)
    draw = quantiles._Draw(len(values))
    drawn = torch.cat([draw.take(part.flatten(), len(part)) for part in values.split(100)])
    assert len(drawn) == len(drawn.unique()) == 2**17
    assert drawn.diff().min() >= 1


def test_values_that_are_not_finite_have_no_quantiles():
    values = torch.ones(500, 20)
    values[7, 3] = float("inf")
    assert quantiles_of(values) == []


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
