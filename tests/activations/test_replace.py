import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.functional import relu

from nsrelu_bench.activations.modules import NSReLU, Surrogate
from nsrelu_bench.activations.replace import swap_activations
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


class Clean(Functional):
    def forward(self, x):
        return self.relu(F.softmax(self.linear(x), dim=1))


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
        "replaced 9 ReLU by NSReLU(leak=0.1, impl='native'): relu, layer1.0.relu"
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


@pytest.mark.parametrize(
    ("make", "call"),
    [
        (Functional, "Functional: relu"),
        (Method, "Method: relu_"),
        (Imported, "Imported: relu"),
        (Helped, "Helped: relu"),
        (Kept, "Kept: relu"),
        (lambda: nn.Sequential(nn.ReLU(), Functional()), "1 (Functional): relu"),
        (
            lambda: nn.Sequential(nn.ReLU(), nn.TransformerEncoderLayer(4, 2)),
            "1 (TransformerEncoderLayer): relu",
        ),
    ],
)
def test_a_functional_call_is_warned_of_by_name(make, call):
    with pytest.warns(UserWarning, match="functional calls are left") as caught:
        swapped = swap_activations(make(), nn.ReLU, NSReLU())
    (warning,) = caught
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
