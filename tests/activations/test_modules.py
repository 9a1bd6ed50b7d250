import copy
import doctest
import io
import pickle
import re
from pathlib import Path

import pytest
import torch
from helpers.activations import value_and_gradient
from torch import nn

from nsrelu_bench.activations import (
    IMPLS,
    NSReLU,
    Surrogate,
    build,
    true_gradients,
)
from nsrelu_bench.config import activation_spec as labels

UNTIED = ["nsrelu(0.1)", "nsrelu(0)", "leaky_relu(0.2)/relu", "relu/bsilu", "ste"]


def network(text, **settings):
    torch.manual_seed(0)
    activations = [build(text, **settings) for _ in range(2)]
    return nn.Sequential(nn.Linear(4, 8), activations[0], nn.Linear(8, 8), activations[1])


def outputs_and_gradients(model):
    model.zero_grad()
    outputs = model(torch.linspace(-1, 1, 12).reshape(3, 4))
    outputs.square().sum().backward()
    return [outputs.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("settings", [{"impl": i} for i in IMPLS] + [{"inplace": True}], ids=str)
@pytest.mark.parametrize("text", UNTIED)
def test_true_gradients_are_those_of_the_tied_model(text, settings):
    model = network(text, **settings)
    before = outputs_and_gradients(model)
    tied = outputs_and_gradients(network(str(labels.parse_activation(text).forward)))
    with true_gradients(model) as switched:
        inside = outputs_and_gradients(model)
    assert switched == 2
    assert all(map(torch.equal, inside, tied))
    assert torch.allclose(before[0], inside[0], rtol=0, atol=1e-6)
    assert all(map(torch.equal, outputs_and_gradients(model), before))
    assert all(map(torch.equal, inside, before)) == (text == "nsrelu(0)")


@pytest.mark.parametrize("text", labels.FUNCTION_PARAMETERS)
def test_true_gradients_switch_nothing_where_all_is_tied(text):
    with true_gradients(network(text)) as switched:
        assert switched == 0


def test_true_gradients_stay_in_place():
    module, x = NSReLU(inplace=True), torch.tensor([-1.0, 2.0])
    with true_gradients(module):
        assert module(x).data_ptr() == x.data_ptr()
    assert x.tolist() == [0, 2]


def test_true_gradients_switch_a_module_used_twice_once():
    activation = NSReLU()
    with true_gradients(nn.Sequential(activation, nn.Sequential(activation))) as switched:
        assert switched == 1


def pickled(model):
    buffer = io.BytesIO()
    pickle.dump(model, buffer)
    return buffer.getvalue()


def fail_inside(model):
    state = list(model.state_dict())
    with true_gradients(model):
        assert list(model.state_dict()) == state
        raise ZeroDivisionError


@pytest.mark.parametrize("text", UNTIED)
def test_true_gradients_leave_no_trace_even_after_an_error(text):
    model = network(text)
    before, state = pickled(model), list(model.state_dict())
    with pytest.raises(ZeroDivisionError):
        fail_inside(model)
    assert pickled(model) == before
    assert list(model.state_dict()) == state
    assert not any(module.true_gradient for module in model if isinstance(module, Surrogate))


def test_true_gradients_nest():
    model = network("nsrelu")
    with true_gradients(model) as outer:
        inside = outputs_and_gradients(model)
        with true_gradients(model[1]) as inner:
            assert (outer, inner) == (2, 1)
        assert all(map(torch.equal, outputs_and_gradients(model), inside))


@pytest.mark.slow
def test_true_gradients_reach_a_model_that_is_compiled():
    model = network("nsrelu")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    plain = outputs_and_gradients(compiled)
    with true_gradients(compiled) as switched:
        inside = outputs_and_gradients(compiled)
        assert all(map(torch.allclose, inside, outputs_and_gradients(model)))
    assert switched == 2
    assert not torch.equal(plain[1], inside[1])
    assert all(map(torch.equal, outputs_and_gradients(compiled), plain))


@pytest.mark.parametrize("text", [*labels.FUNCTION_PARAMETERS, *UNTIED])
def test_a_copy_or_pickle_of_a_module_is_the_module(text):
    module = build(text).eval()
    x, grad = torch.linspace(-1, 1, 5), torch.ones(5)
    for twin in (copy.deepcopy(module), pickle.loads(pickled(module))):  # noqa: S301
        assert repr(twin) == repr(module)
        expected = value_and_gradient(module, x, grad)
        assert all(map(torch.equal, value_and_gradient(twin, x, grad), expected))
    assert bool(module.state_dict()) == (text in labels.LEARNABLE)


CARDS = Path(__file__).parents[2] / "docs" / "activations.md"


@pytest.mark.parametrize("name", labels.ACTIVATION_NAMES)
def test_every_named_activation_has_a_card_with_its_default(name):
    cards = dict(re.findall(r"^### (\S+)\n(.+?)(?=^###|\Z)", CARDS.read_text(), re.M | re.S))
    for parameter, default in labels.FUNCTION_PARAMETERS.get(name, {}).items():
        shown = {1 / 8: "1/8", 1 / 3: "1/3"}.get(default, f"{default:g}")
        assert re.search(rf"(?<![0-9.]){shown}(?![0-9])", cards[name]), (parameter, shown)
    assert len(cards[name]) > 50


@pytest.mark.slow
def test_the_examples_of_the_documentation_run():
    result = doctest.testfile(str(CARDS), module_relative=False)
    assert result.failed == 0
    assert result.attempted > 10
