import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import fx, nn
from torch.ao.nn.intrinsic import qat, quantized
from torch.nn.functional import relu
from torchvision.models.feature_extraction import create_feature_extractor

from nsrelu_bench.activations.modules import NSReLU, Surrogate
from nsrelu_bench.activations.swap import swap_activations
from nsrelu_bench.errors import BenchError


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.relu = nn.ReLU()

    def forward(self, x):
        return F.relu(self.linear(self.relu(x)))


class Method(Functional):
    def forward(self, x):
        return self.linear(self.relu(x)).relu_()


class Imported(Functional):
    def forward(self, x):
        if x.sum() > 0:  # can't be traced
            return relu(self.linear(self.relu(x)))
        return x


class Helped(Functional):
    def forward(self, x):
        return self.help(self.relu(x))

    def help(self, x):
        return torch.relu(x)


class Kept(Functional):
    def __init__(self):
        super().__init__()
        self.activation = F.relu

    def forward(self, x):
        return self.activation(self.linear(self.relu(x)))


class Held(Functional):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.relu(x)


class Clean(Functional):
    def forward(self, x):
        return self.relu(F.softmax(self.linear(x), dim=1))


QCONFIG = torch.ao.quantization.get_default_qat_qconfig("fbgemm")


def types(model):
    return [type(module) for module in model.modules()]


def test_a_resnet_keeps_weights_and_outputs():
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(num_classes=10).eval()
    state, lines = resnet.state_dict(), []
    swapped = swap_activations(resnet, nn.ReLU, NSReLU(0.1), report=lines.append)
    assert types(resnet).count(nn.ReLU) == types(swapped).count(NSReLU) == 9
    assert types(swapped).count(nn.ReLU) == 0
    (line,) = lines
    assert line.startswith(
        "replaced 9 ReLU by NSReLU(leak=0.1, impl='native', inplace=True): relu, layer1.0.relu"
    )
    assert len({id(m) for m in swapped.modules() if isinstance(m, NSReLU)}) == 9
    assert not any(module.training for module in swapped.modules())

    assert list(swapped.state_dict()) == list(state)
    resnet.load_state_dict(swapped.state_dict())
    swapped.load_state_dict(state)
    images = torch.randn(1, 3, 32, 32)
    gradients = []
    for model in (resnet, swapped):
        logits = model(images)
        gradients.append(torch.autograd.grad(logits.sum(), model.conv1.weight)[0])
        assert torch.equal(logits, resnet(images))
    assert not torch.equal(*gradients)


def test_only_in_place_changes_the_model_itself():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    copied = swap_activations(model, nn.ReLU, NSReLU())
    assert (type(model[1]), type(copied[1])) == (nn.ReLU, NSReLU)
    assert copied[0].weight is not model[0].weight
    assert swap_activations(model, nn.ReLU, NSReLU(), inplace=True) is model
    assert type(model[1]) is NSReLU


def test_a_shared_module_is_replaced_by_one():
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Sequential(shared), nn.ReLU())
    lines = []
    swapped = swap_activations(model, nn.ReLU, NSReLU(), report=lines.append)
    assert swapped[0] is swapped[1][0]
    assert swapped[0] is not swapped[2]
    assert lines == ["replaced 2 ReLU by NSReLU(leak=0.1, impl='native'): 0, 1.0, 2"]


def test_a_model_that_is_an_activation_is_replaced():
    model = nn.ReLU().eval()
    for inplace in (False, True):
        swapped = swap_activations(model, nn.ReLU, NSReLU(0.2), inplace=inplace)
        assert repr(swapped) == repr(NSReLU(0.2))
        assert not swapped.training


def test_several_types_are_swapped_by_a_factory():
    model = nn.Sequential(nn.ReLU(), nn.GELU(), nn.Tanh())
    made = iter(["relu/gelu", "relu/silu"])
    swapped = swap_activations(model, (nn.ReLU, nn.GELU), lambda: Surrogate(next(made)))
    assert types(swapped)[1:] == [Surrogate, Surrogate, nn.Tanh]
    assert "backward=silu" in repr(swapped[1])


def test_swapping_back_restores_the_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    there = swap_activations(model, nn.ReLU, NSReLU())
    assert repr(swap_activations(there, NSReLU, nn.ReLU())) == repr(model)


def behind_a_relu(module):
    return nn.Sequential(nn.ReLU(), module)


@pytest.mark.filterwarnings("ignore:.*(jit.script|quantized tensor creation):Warning")
@pytest.mark.parametrize(
    ("make", "call"),
    [
        (Functional, "Functional: relu"),
        (Method, "Method: relu_"),
        (Imported, "Imported: relu"),
        (Helped, "Helped: relu"),
        (lambda: nn.Sequential(nn.ReLU(), Functional()), "1 (Functional): relu"),
        (lambda: Held([F.relu, F.gelu]), "Held: relu"),
        (lambda: Held({"f": functools.partial(F.relu, inplace=True)}), "Held: relu"),
        (lambda: Held(lambda x: F.relu(x)), "Held: relu"),
        (lambda: behind_a_relu(nn.RNN(2, 2, nonlinearity="relu")), "1 (RNN): relu"),
        (
            lambda: nn.Sequential(nn.ReLU(), nn.RNNCell(2, 2, nonlinearity="relu")),
            "1 (RNNCell): relu",
        ),
        (lambda: behind_a_relu(torch.jit.script(nn.ReLU())), "1 (ReLU): relu"),
        (
            lambda: nn.Sequential(nn.ReLU(), qat.ConvReLU2d(2, 2, 1, qconfig=QCONFIG)),
            "1 (ConvReLU2d): relu",
        ),
        (lambda: behind_a_relu(quantized.LinearReLU(2, 2)), "1 (LinearReLU): relu"),
        (lambda: fx.symbolic_trace(Functional()), "GraphModule: relu"),
    ],
)
def test_a_functional_call_is_warned_of_by_name(make, call):
    with pytest.warns(UserWarning, match="functional calls are left") as caught:
        swapped = swap_activations(make(), nn.ReLU, NSReLU())
    (warning,) = (one for one in caught if "functional" in str(one.message))
    assert str(warning.message).endswith(f": {call}")
    assert warning.filename == __file__
    assert NSReLU in types(swapped)


def test_other_things_named_relu_are_no_calls():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swap_activations(Clean(), nn.ReLU, NSReLU())


def test_a_model_without_such_a_module_is_an_error():
    with pytest.raises(BenchError) as caught:
        swap_activations(nn.Linear(1, 1), nn.ReLU, NSReLU())
    assert str(caught.value) == "no ReLU in Linear"

    class Nothing(nn.Module):
        def forward(self, x):
            return F.relu(x)

    with pytest.raises(BenchError) as caught:
        swap_activations(Nothing(), (nn.ReLU, nn.ELU), NSReLU())
    assert str(caught.value) == (
        "no ReLU or ELU in Nothing; it has functional calls, which can't be swapped"
    )


# What holds an activation in other ways than as a module ----------------------------------


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_a_transformer_is_swapped_in_evaluation_too(name):
    # The fast path computes the activation by itself, where it is noted as ReLU or GELU.
    old = {"relu": nn.ReLU, "gelu": nn.GELU}[name]
    layers = [
        nn.TransformerEncoderLayer(8, 2, 16, activation=a, batch_first=True) for a in (name, old())
    ]
    for layer in layers:
        model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(3, 5, 8)
        swapped = swap_activations(model, old, nn.Tanh())
        padding = torch.zeros(3, 5, dtype=torch.bool)
        padding[0, 3:] = True
        for mask in (None, padding):
            slow = swapped(x, src_key_padding_mask=mask)[~padding]
            with torch.no_grad():
                fast = swapped(x, src_key_padding_mask=mask)[~padding]
                before = model(x, src_key_padding_mask=mask)[~padding]
            assert torch.allclose(fast, slow, atol=1e-6)
            assert not torch.allclose(before, slow, atol=1e-3)
        back = swap_activations(swapped, nn.Tanh, old())
        assert [one.activation_relu_or_gelu for one in back.layers] == [
            one.activation_relu_or_gelu for one in model.layers
        ]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize(
    "activation", [F.relu, nn.ReLU(), "relu"], ids=["function", "module", "name"]
)
def test_a_whole_transformer_is_swapped(activation):
    model = nn.Transformer(8, 2, 2, 2, 16, activation=activation, batch_first=True)
    swapped = swap_activations(model, nn.ReLU, NSReLU(0.1))
    assert types(swapped).count(NSReLU) == 4
    seen = []
    for module in swapped.modules():
        if isinstance(module, NSReLU):
            module.register_forward_hook(lambda *_: seen.append(1))
    swapped(torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    assert len(seen) == 4
    assert list(swapped.state_dict()) == list(model.state_dict())


def test_copying_a_decoder_does_not_change_its_activation():
    layer, x = (
        nn.TransformerDecoderLayer(8, 2, 16, activation=nn.GELU(), batch_first=True),
        torch.randn(2, 3, 8),
    )
    model = nn.Sequential(nn.ReLU(), layer).eval()
    model.forward = None
    swapped = swap_activations(model, nn.ReLU, NSReLU())
    assert torch.equal(swapped[1](x, x), layer(x, x))


def test_a_function_that_is_an_attribute_is_replaced():
    model = Kept()
    lines = []
    swapped = swap_activations(model, nn.ReLU, NSReLU(), report=lines.append)
    assert type(swapped.activation) is NSReLU
    assert model.activation is F.relu
    assert lines == ["replaced 2 ReLU by NSReLU(leak=0.1, impl='native'): relu, activation"]
    assert not torch.equal(gradient(model), gradient(swapped))


def gradient(model):
    torch.manual_seed(0)
    x = torch.randn(4, 2, requires_grad=True)
    model(x).sum().backward()
    return x.grad


HOLDERS = {
    "list": lambda old: [old, {"a": (old, 1)}],
    "method": lambda old: old.forward,
    "partial": lambda old: functools.partial(old.forward),
    "dict": lambda old: {"x": [old]},
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("holder", HOLDERS)
def test_what_a_list_or_a_method_holds_is_replaced(holder, inplace):
    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.act = nn.Linear(2, 2), nn.ReLU()
            self.held = HOLDERS[holder](self.act)

        def forward(self, x):
            value = self.held
            while not callable(value):
                value = next(iter(value.values() if isinstance(value, dict) else value))
            return value(self.linear(x))

    model = Holding()
    before = gradient(model)
    swapped = swap_activations(model, nn.ReLU, NSReLU(1.0), inplace=inplace)
    expected = (torch.ones(4, 2) @ swapped.linear.weight).detach()
    assert torch.allclose(gradient(swapped), expected)
    assert not torch.allclose(before, expected)
    if not inplace:
        assert torch.equal(gradient(model), before)


def test_a_function_that_keeps_an_old_module_is_warned_of():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    relu_ = model[1]
    model.inner = Held(lambda x: later(relu_(x)))
    with pytest.warns(UserWarning, match=r"^functions keep old modules: inner.value$"):
        swap_activations(model, nn.ReLU, NSReLU(), inplace=True)
    later = nn.Identity()  # until here it has no value


def test_hooks_still_run_and_can_be_removed():
    model, calls = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), []
    handles = [
        model[1].register_forward_hook(lambda *_: calls.append("forward")),
        model[1].register_forward_pre_hook(lambda *_, **__: calls.append("pre"), with_kwargs=True),
        model[1].register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    copied = swap_activations(model, nn.ReLU, NSReLU())
    swap_activations(model, nn.ReLU, NSReLU(), inplace=True)
    for one in (model, copied):
        calls.clear()
        one(torch.randn(3, 2)).sum().backward()
        assert calls == ["pre", "forward", "backward"]
    for handle in handles:
        handle.remove()
    calls.clear()
    model(torch.randn(3, 2)).sum().backward()
    assert not calls


class Overwriting(nn.Module):
    """A block that uses its input behind an activation that has overwritten it."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = x * 1
        return self.act(y) + y


@pytest.mark.parametrize("new", [NSReLU(0.1), nn.LeakyReLU(0.0), nn.ELU(1e-9)])
def test_inplace_is_handed_on(new):
    x = torch.randn(5, 4)
    swapped = swap_activations(Overwriting(), nn.ReLU, new)
    assert swapped.act.inplace
    assert torch.allclose(swapped(x), Overwriting()(x), atol=1e-6)
    assert not new.inplace


@pytest.mark.parametrize("new", [Surrogate("relu", "gelu"), nn.Softplus(), NSReLU(impl="function")])
def test_what_can_not_work_in_place_is_warned_of(new):
    model = nn.Sequential(nn.ReLU(), Overwriting())
    with pytest.warns(UserWarning, match=r"no longer overwrite their input, .*: 1\.act$"):
        swap_activations(model, nn.ReLU, new)


def test_traced_models_are_swapped():
    resnet = torchvision.models.resnet18(num_classes=3).eval()
    extractor = create_feature_extractor(resnet, ["layer1", "fc"])
    for model in (fx.symbolic_trace(resnet), extractor):
        swapped = swap_activations(model, nn.ReLU, NSReLU(0.1))
        assert types(swapped).count(NSReLU) == types(model).count(nn.ReLU) > 0
        x = torch.randn(1, 3, 32, 32)
        found, expected = swapped(x), model(x)
        assert torch.equal(*((o["fc"] if isinstance(o, dict) else o) for o in (found, expected)))


NEW = (NSReLU(0.1), NSReLU(0.1, impl="function"), Surrogate("relu", "gelu"), NSReLU(0.1, gate="up"))


@pytest.mark.filterwarnings("ignore:activations no longer overwrite:UserWarning")
@pytest.mark.parametrize("new", NEW, ids=["native", "function", "pair", "gate"])
def test_swapped_models_can_be_traced(new):
    resnet = torchvision.models.resnet18(num_classes=3).eval()
    swapped, x = swap_activations(resnet, nn.ReLU, new), torch.randn(1, 3, 32, 32)
    logits = swapped(x)
    logits.sum().backward()
    gradients = [parameter.grad for parameter in swapped.parameters()]
    swapped.zero_grad()
    for traced in (fx.symbolic_trace(swapped), create_feature_extractor(swapped, ["fc"]).eval()):
        found = traced(x)
        found = found["fc"] if isinstance(found, dict) else found
        assert torch.equal(found, logits)
        found.sum().backward()
        assert all(map(torch.equal, gradients, (p.grad for p in traced.parameters())))
        assert types(traced).count(type(new)) == 9
        traced.zero_grad()
