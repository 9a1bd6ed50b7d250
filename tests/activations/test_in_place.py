import math

import pytest
import torch
import torch.nn.functional as F
from helpers.activations import every_leak, kept_storages
from helpers.tiny_runs import tiny
from torch import nn

from nsrelu_bench import models
from nsrelu_bench.activations import (
    NSReLU,
    build,
    nsrelu,
    nsrelu_,
)
from nsrelu_bench.config import activation_spec as labels
from nsrelu_bench.models import build_model
from nsrelu_bench.training.loop import run


@every_leak
def test_in_place_overwrites_its_input_and_keeps_the_gradient(leak):
    x = torch.tensor([-1.0, -0.0, 0.0, 2.0, -math.inf, math.inf], requires_grad=True)
    copied = x.clone()
    y = NSReLU(leak, inplace=True)(copied)
    assert y.data_ptr() == copied.data_ptr()
    assert torch.equal(y, F.relu(x))
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad, torch.where(x > 0, 1.0, leak))


def test_in_place_refuses_a_leaf_and_leaves_it_as_it_was():
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        nsrelu_(x)
    assert x.tolist() == [-1, 2]


def test_in_place_raises_for_a_saved_input():
    x = torch.ones(2, requires_grad=True).exp()  # exp's backward needs its result
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nsrelu_(x).sum().backward()


def test_in_place_on_a_view_reaches_the_base():
    x = torch.tensor([[-1.0, 2.0], [3.0, -4.0]], requires_grad=True)
    base = x.clone()
    nsrelu_(base[0])
    base.sum().backward()
    assert base.tolist() == [[0, 2], [3, -4]]
    assert torch.equal(x.grad, torch.tensor([[0.1, 1.0], [1.0, 1.0]]))


@pytest.mark.parametrize(
    ("activation", "tensors_a_site"),
    [
        (lambda: nn.ReLU(), 1),
        (lambda: nn.ReLU(inplace=True), 1),
        (lambda: NSReLU(inplace=True), 1),
        (lambda: NSReLU(impl="function"), 1),
        (lambda: NSReLU(0), 1),
        (lambda: NSReLU(), 2),
        (lambda: nn.LeakyReLU(0.1), 2),
    ],
    ids=["relu", "relu_", "in place", "function", "leak 0", "native", "leaky_relu"],
)
def test_in_place_keeps_as_little_for_the_backward_as_relu(activation, tensors_a_site):
    layers = [layer for _ in range(3) for layer in (nn.Linear(8, 8), activation())]
    model = nn.Sequential(*layers, nn.Linear(8, 8))
    assert kept_storages(model, torch.ones(4, 8)) == 1 + 3 * tensors_a_site


SETTINGS_IN_PLACE = [
    {"act": "relu"},
    {"act": "leaky_relu(0.1)"},
    {"act": "leaky_relu(0)"},
    {"act": "nsrelu(0.1)", "batch_norm": True},
    {"act": "nsrelu(0.01)", "model": "cnn", "dropout": 0.2},
    {"act": "nsrelu(1)", "model": "cnn", "batch_norm": True},
]


def sites(model):
    return [module for name, module in model.named_modules() if name.startswith("act")]


def epochs(**settings):
    return [(epoch.metrics, epoch.layers) for epoch in run(tiny(**settings))]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS_IN_PLACE, ids=str)
def test_a_run_in_place_has_the_numbers_of_one_out_of_place(settings, monkeypatch):
    # Of the probe too: it must see the pre-activation, which is overwritten.
    in_place = epochs(**settings)
    used = []

    def out_of_place(label, impl="native", inplace=False, unit_axis=None):
        used.append(inplace)
        return build(label, impl, unit_axis=unit_axis)

    monkeypatch.setattr(models, "build", out_of_place)
    plain = epochs(**settings)
    assert all(used)
    assert used
    assert in_place == plain
    assert 0 < plain[-1][0]["negative_fraction"] < 1
    assert plain[-1][0]["pre_grad_norm"] > 0


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("act", labels.ACTIVATION_NAMES)
def test_models_overwrite_where_it_changes_no_number(act, name):
    model = build_model(tiny(act=act, model=name), (1, 8, 8), 10)
    expected = act in ("relu", "leaky_relu", "nsrelu", "ste", *labels.GATES)
    assert [getattr(site, "inplace", False) for site in sites(model)] == [expected] * 2


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_models_keep_as_much_for_every_activation_as_for_relu(name):
    kept = {}
    for act in ("relu", "leaky_relu", "nsrelu"):
        model = build_model(tiny(act=act, model=name), (1, 8, 8), 10)
        kept[act] = kept_storages(model, torch.randn(4, 1, 8, 8))
    assert kept["relu"] == kept["leaky_relu"] == kept["nsrelu"]


@pytest.mark.parametrize(
    ("form", "node", "result", "slope"),
    [
        (lambda x: F.leaky_relu_(x, 0.1), "LeakyReluBackward1", True, 0.1),
        (lambda x: nsrelu_(x, 0.1), "LeakyReluBackward1", True, 0.1),
        (lambda x: nsrelu(x, 0.1), "LeakyReluBackward0", False, 0.1),
        (lambda x: F.relu_(x), "ReluBackward0", True, 0),
    ],
    ids=["leaky_relu_", "nsrelu_", "nsrelu", "relu_"],
)
def test_autograd_saves_what_the_forms_rely_on(form, node, result, slope):
    # In place the result, of which only "> 0" is read; out of place the input. A version of
    # PyTorch that saved another tensor would make the gradients wrong, or the memory larger.
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    y = form(x + 0)
    assert y.grad_fn.name() == node
    saved = y.grad_fn._saved_result if result else y.grad_fn._saved_self
    assert (saved.data_ptr() == y.data_ptr()) == result
    assert not hasattr(y.grad_fn, "_saved_self" if result else "_saved_result")
    # Of the result the sign alone is read: other values above 0 give the same gradient.
    (before,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    saved.data.mul_(2)
    (after,) = torch.autograd.grad(y.sum(), x)
    assert before.tolist() == pytest.approx([slope, slope, 1])
    assert torch.equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize("act", [*labels.ACTIVATION_NAMES, "relu/rrelu", "relu/bsilu"])
def test_every_activation_trains_and_again_to_the_same_bits(act):
    once, again = (epochs(act=act, epochs=1, train_size=200, probe_size=50) for _ in range(2))
    assert once == again
    before, after = (metrics["train_loss"] for metrics, _ in once)
    assert after != before
