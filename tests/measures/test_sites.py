"""Which weights feed a site, and which axis of its values holds the units."""

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import norm
from torch import nn

from nsrelu_bench.measures.measurement import measure
from nsrelu_bench.measures.probe import ActivationProbe


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_units_are_features_of_tokens_and_channels():
    # Not in place: before PyTorch 2.15 what a linear layer gives of three dimensions is a view.
    tokens = nn.Sequential(nn.Linear(4, 7), nn.ReLU())
    with ActivationProbe(tokens) as probe:
        tokens(torch.randn(5, 3, 4)).sum().backward()
    row = probe.frame().iloc[0]
    assert row["units"] == 7
    assert row["pre_grad_norm"] > 0
    series = nn.Sequential(nn.Conv1d(4, 7, 1), nn.ReLU())
    with ActivationProbe(series) as probe:
        series(torch.randn(5, 4, 9))
    assert probe.frame()["units"][0] == 7


class Branches(nn.Module):
    """Two layers that run before either's activation does, and a site of both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(4, 5)
        self.act_a, self.act_b, self.act_sum = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.head = nn.Linear(15, 3)

    def forward(self, x):
        u, v = self.a(x), self.b(x)
        return self.head(torch.cat([self.act_a(u), self.act_b(v), self.act_sum(u + v)], 1))


@pytest.mark.parametrize("parts", [1, 3])
def test_a_site_has_the_weights_of_the_layers_that_feed_it(parts):
    model = Branches()
    images, labels = torch.randn(21, 4), torch.arange(21) % 3
    rows = {
        row["layer"]: row["grad_norm"]
        for row in measure(model, images, labels, batch_size=21 // parts).layers
    }
    F.cross_entropy(model(images), labels).backward()
    a, b = model.a.weight.grad, model.b.weight.grad
    assert rows == {"act_a": norm(a), "act_b": norm(b), "act_sum": norm(a, b)}


class Stream(nn.Module):
    """Pre-activation blocks, each of which adds to a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.act_one, self.act_two, self.act_head = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.norm, self.head = nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.one(self.act_one(self.norm(x)))
        x = x + self.two(self.act_two(x))
        return self.head(self.act_head(x))


def test_in_a_stream_the_last_block_feeds_a_site():
    model = Stream().eval()
    images, labels = torch.randn(20, 4), torch.arange(20) % 3
    rows = {row["layer"]: row["grad_norm"] for row in measure(model, images, labels).layers}
    F.cross_entropy(model(images), labels).backward()
    assert rows == {
        "act_one": norm(model.stem.weight.grad),
        "act_two": norm(model.one.weight.grad),
        "act_head": norm(model.two.weight.grad),
    }


def test_a_site_behind_a_site_has_the_same_weights():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.LeakyReLU(), nn.Linear(5, 3))
    images, labels = torch.randn(20, 4), torch.arange(20) % 3
    rows = measure(model, images, labels).layers
    F.cross_entropy(model(images), labels).backward()
    assert [row["grad_norm"] for row in rows] == [norm(model[0].weight.grad)] * 2


def test_a_site_behind_a_detach_has_no_weights():
    class Cut(Branches):
        def forward(self, x):
            return self.head(torch.cat([self.act_a(self.a(x).detach())] * 3, 1))

    rows = measure(Cut(), torch.randn(20, 4), torch.arange(20) % 3).layers
    assert [(row["layer"], row["grad_norm"]) for row in rows] == [("act_a", None)]


def test_a_pass_without_gradients_hides_no_weights():
    model = Branches()
    with ActivationProbe(model) as probe:
        with torch.no_grad():
            model(torch.randn(5, 4))
        model(torch.randn(5, 4)).sum().backward()
    assert probe.frame()["grad_norm"][0] == norm(model.a.weight.grad)
