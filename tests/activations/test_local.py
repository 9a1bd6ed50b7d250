"""Local layers: where the activation is off, the gradient stays in the unit's own weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nsrelu_bench.activations import LocalConv2d, LocalLinear, build, true_gradients
from nsrelu_bench.errors import UsageError

LOCAL_ACTS = ["nsrelu(0.3)", "rescue(0.3)", "net_rescue(0.3)", "up(0.3)", "relu/bsilu"]
CONVOLUTION_SETTINGS = [
    {},
    {"stride": 2, "padding": 1},
    {"groups": 2, "dilation": 2},
    {"bias": False},
]
LAYERS = [
    (lambda **_: (nn.Linear(5, 4), LocalLinear(5, 4)), (7, 5)),
    (lambda **_: (nn.Linear(5, 4, bias=False), LocalLinear(5, 4, bias=False)), (7, 5)),
    (lambda **_: (nn.Linear(5, 4), LocalLinear(5, 4)), (2, 3, 5)),
    *(
        (lambda s=s, **_: (nn.Conv2d(2, 4, 3, **s), LocalConv2d(2, 4, 3, **s)), (3, 2, 6, 6))
        for s in CONVOLUTION_SETTINGS
    ),
]
every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS)


def pair(make, shape):
    """Return a layer with a dead unit, its local form, an input and a gradient at the output.

    The gradient is below 0 on the whole, so that every gate but "down" lets the leak pass.
    """
    torch.manual_seed(0)
    layer, local = (module.double() for module in make())
    with torch.no_grad():
        layer.weight[0].abs_().neg_()
        if layer.bias is not None:
            layer.bias[0] = -1
    local.load_state_dict(layer.state_dict())
    x = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    return layer, local, x, torch.randn_like(layer(x)) - 1


def gradients(layer, activation, x, grad):
    """Return the gradients of input, weights and bias."""
    return torch.autograd.grad(activation(layer(x)), [x, *layer.parameters()], grad)


def activation(text, shape):
    return build(text, unit_axis=-1 if len(shape) < 4 else 1)


@pytest.mark.parametrize("text", LOCAL_ACTS)
@every_layer
def test_weights_get_the_surrogate_and_inputs_what_is_on(make, shape, text):
    layer, local, x, grad = pair(make, shape)
    act = activation(text, shape)
    expected = gradients(layer, act, x, grad)
    on = (layer(x) > 0).double()
    (below,) = torch.autograd.grad(
        layer(x), x, on * torch.autograd.grad(act(pre := layer(x)), pre, grad)[0]
    )
    assert torch.equal(local(x), layer(x))
    found = gradients(local, act, x, grad)
    assert torch.allclose(found[0], below, atol=1e-12)
    assert all(map(torch.allclose, found[1:], expected[1:]))
    assert not torch.allclose(found[0], expected[0])
    if text == "nsrelu(0.3)":  # what is passed on of it is the true gradient
        assert torch.allclose(found[0], gradients(layer, nn.ReLU(), x, grad)[0], atol=1e-12)


@every_layer
def test_true_gradients_are_those_of_the_plain_layer(make, shape):
    layer, local, x, grad = pair(make, shape)
    model = nn.Sequential(local, activation("rescue(0.3)", shape))
    with true_gradients(model):
        found = torch.autograd.grad(model(x), [x, *model.parameters()], grad)
    assert all(map(torch.allclose, found, gradients(layer, nn.ReLU(), x, grad)))


@pytest.mark.slow
@every_layer
def test_local_layers_work_compiled_stacked_and_twice(make, shape):
    _, local, x, grad = pair(make, shape)
    model = nn.Sequential(local, activation("nsrelu(0.3)", shape))
    expected = torch.autograd.grad(model(x), [x, *model.parameters()], grad)

    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(x), [x, *model.parameters()], grad)
    assert all(map(torch.allclose, found, expected))

    def loss(x, grad):
        return (model(x) * grad).sum()

    for_each = torch.func.vmap(torch.func.grad(loss))
    both = for_each(torch.stack([x, x.flip(0)]), torch.stack([grad, grad.flip(0)]))
    assert torch.allclose(both[0], expected[0])
    assert torch.allclose(both[1], expected[0].flip(0))

    weight = local.weight
    (first,) = torch.autograd.grad(model(x).square().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    assert second.isfinite().all()
    assert second.any()


@every_layer
def test_local_layers_train_under_autocast(make, shape):
    _, local, x, _ = pair(make, shape)
    local.float()
    x = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = activation("nsrelu(0.3)", shape)(local(x))
    y.float().sum().backward()
    assert x.grad.dtype == local.weight.grad.dtype == torch.float32


def test_an_input_that_needs_no_gradient_gets_none():
    layer, x = LocalLinear(3, 2), torch.ones(4, 3)
    F.relu(layer(x)).sum().backward()
    assert layer.weight.grad is not None
    layer.weight.requires_grad_(False)
    x.requires_grad_()
    F.relu(layer(x)).sum().backward()
    assert x.grad is not None


def test_an_activation_in_place_needs_the_output():
    model = nn.Sequential(LocalLinear(3, 2), build("nsrelu", inplace=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(torch.ones(4, 3, requires_grad=True)).sum().backward()


def test_local_layers_are_their_plain_ones_in_names_and_copies():
    torch.manual_seed(0)
    plain = nn.Linear(3, 2)
    torch.manual_seed(0)
    local = LocalLinear(3, 2)
    assert all(map(torch.equal, plain.state_dict().values(), local.state_dict().values()))
    assert plain.state_dict().keys() == local.state_dict().keys()
    assert repr(copy.deepcopy(local)) == "LocalLinear(in_features=3, out_features=2, bias=True)"


@pytest.mark.parametrize("settings", [{"padding": "same"}, {"padding_mode": "reflect"}])
def test_paddings_that_are_not_offered_are_refused(settings):
    with pytest.raises(UsageError, match=r"^LocalConv2d takes a number of zeros as padding, got "):
        LocalConv2d(1, 2, 3, **settings)
