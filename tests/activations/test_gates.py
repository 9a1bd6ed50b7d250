"""NSReLU and other surrogates with a gate, against a slow definition and by their properties."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.activations import Clone, kept_storages, value_and_gradient
from helpers.gates import GATED, gated_gradient
from helpers.tiny_runs import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from torch import nn

from examples.patient_rescue import NetRescue
from nsrelu_bench.activations import (
    NSReLU,
    Surrogate,
    build,
    gates,
    nsrelu,
    nsrelu_,
    surrogate,
    swap_activations,
    true_gradients,
)
from nsrelu_bench.errors import UsageError
from nsrelu_bench.training.loop import run

every_gate = pytest.mark.parametrize("gate", GATED)
ON_UNITS = ("dead", "rescue", "net_rescue")
SHAPES_AND_AXES = {
    (6, 5): None,
    (2, 3, 4): -1,
    (3, 2, 4): 1,
    (2, 3, 2, 2): 1,
    (2, 2, 2, 3): -1,
    (5,): 0,
}


def examples(shape, axis, dtype=torch.float64):
    """Values with a unit that is off for all examples, one with a single example on, and zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x.select(axis, 0).abs_().neg_()
    x.select(axis, 1).abs_().neg_()
    if x.dim() > 1:
        x.select(axis, 1)[(0,) * (x.dim() - 1)] = 0.5
    x.view(-1)[-2:] = torch.tensor([0.0, -0.0])
    return x.to(dtype), torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def forms(gate, axis, leak=0.1):
    """Every way to compute NSReLU with a gate."""
    return {
        "function": lambda x: nsrelu(x, leak, gate=gate, unit_axis=axis),
        "in place": lambda x: nsrelu_(x.clone(), leak, gate, axis),
        "module": NSReLU(leak, gate=gate, unit_axis=axis),
        "module in place": nn.Sequential(
            Clone(), NSReLU(leak, inplace=True, gate=gate, unit_axis=axis)
        ),
        "pair": lambda x: surrogate(x, "relu", f"leaky_relu({leak})", gate=gate, unit_axis=axis),
        "general": lambda x: surrogate(
            x, "relu", lambda x: F.leaky_relu(x, leak), gate=gate, unit_axis=axis
        ),
        "transformed": torch.func.vmap(NSReLU(leak, gate=gate, unit_axis=axis)),
    }


def test_a_gate_without_a_rule_passes_nothing_in_silence():
    for compute in (gates.gated_nsrelu, gates.gated_surrogate):
        with pytest.raises(KeyError, match="sideways"):
            compute(torch.randn(3, 2), 0.1, "sideways")


@pytest.mark.parametrize("leak", [0.01, 0.1, 0.7, 1.0])
@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES.items(), ids=str)
@every_gate
def test_every_form_is_the_definition(gate, shape, axis, leak):
    known = 1 if axis is None else axis
    x, grad = examples(shape, known)
    expected = torch.from_numpy(gated_gradient(x.numpy(), grad.numpy(), leak, gate, known))
    for name, form in forms(gate, axis, leak).items():
        if name == "transformed":
            x, grad, expected = x[None], grad[None], expected[None]
        y, gradient = value_and_gradient(form, x, grad)
        assert torch.equal(y, x.relu()), name
        assert torch.equal(gradient, expected), name


@every_gate
def test_an_infinite_gradient_passes_or_is_stopped(gate):
    x, grad = examples((6, 5), 1)
    grad[:2] *= torch.inf
    expected = torch.from_numpy(gated_gradient(x.numpy(), grad.numpy(), 0.1, gate, 1))
    for name, form in forms(gate, None).items():
        if name == "transformed":
            x, grad, expected = x[None], grad[None], expected[None]
        _, gradient = value_and_gradient(form, x, grad)
        undefined = gradient.isnan()  # at units that the gates on units hold back (docs)
        assert torch.equal(torch.where(undefined, expected, gradient), expected), name
        held_back = (x > 0).any(-2, keepdim=True)
        if gate == "net_rescue":
            held_back |= ~(grad.sum(-2, keepdim=True) < 0)
        assert not (undefined & ~(grad.isinf() & held_back)).any(), name
        assert gate in ON_UNITS or not undefined.any(), name


# Of few digits: their sums are exact, also 0.
numbers = st.floats(-3, 3, allow_subnormal=False).map(lambda value: round(1024 * value) / 1024)
batches = st_numpy.arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=numbers
)


@given(batches, st.data(), st.sampled_from(GATED), st.sampled_from([0.1, 1.0]))
@settings(max_examples=60, deadline=None)
def test_any_batch_has_the_gradient_of_the_definition(x, data, gate, leak):
    grad = data.draw(st_numpy.arrays(np.float64, x.shape, elements=numbers))
    _, gradient = value_and_gradient(
        lambda x: nsrelu(x, leak, gate=gate), torch.from_numpy(x), torch.from_numpy(grad)
    )
    assert np.array_equal(gradient.numpy(), gated_gradient(x, grad, leak, gate))


@given(batches, st.data(), st.sampled_from(["up", "rescue"]))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("pair", ["nsrelu(0.1)", "relu/bsilu", "relu/nelu", "relu/silu"])
def test_up_and_rescue_never_lower_what_is_off(pair, x, data, gate):
    # Also where the slope of the surrogate is negative: B-SiLU's below -2.7, NeLU's everywhere.
    grad = data.draw(st_numpy.arrays(np.float64, x.shape, elements=numbers))
    module = build(f"{pair}@{gate}")
    _, gradient = value_and_gradient(module, torch.from_numpy(x), torch.from_numpy(grad))
    assert (gradient[torch.from_numpy(x) <= 0] <= 0).all()


@given(batches, st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("pair", ["nsrelu(0.1)", "relu/bsilu", "relu/nelu", "relu/silu"])
def test_net_rescue_raises_a_dead_unit_on_the_whole(pair, x, data):
    # Where the sums of both gradients ask for it: then it passes all of the surrogate's.
    x = torch.from_numpy(x)
    grad = torch.from_numpy(data.draw(st_numpy.arrays(np.float64, x.shape, elements=numbers)))
    _, ungated = value_and_gradient(build(pair), x, grad)
    _, gradient = value_and_gradient(build(f"{pair}@net_rescue"), x, grad)
    for unit in range(x.shape[1]):
        total, net = grad[:, unit].sum(), ungated[:, unit].sum()
        if (x[:, unit] > 0).any():
            expected = torch.where(x[:, unit] > 0, ungated[:, unit], 0)
        elif abs(net) > 1e-12 or total >= 0:  # otherwise the sign is that of rounding
            expected = ungated[:, unit] * ((total < 0) & (net < 0))
        else:
            continue
        assert torch.equal(gradient[:, unit], expected)


@pytest.mark.parametrize("shape", [(50, 40), (6, 20, 3, 4)], ids=str)
def test_net_rescue_is_the_activation_of_the_example(shape):
    x, grad = examples(shape, 1, torch.float32)  # the example has its leak in float32
    x[:, :15].abs_().neg_()  # dead units, about half of which the batch raises
    y, gradient = value_and_gradient(NSReLU(0.1, gate="net_rescue", unit_axis=1), x, grad)
    expected = value_and_gradient(NetRescue(0.1, 1), x, grad)
    assert torch.equal(y, expected[0])
    assert torch.equal(gradient, expected[1])
    passed = gradient.movedim(1, 0)[:15].flatten(1).any(1)
    assert 0 < passed.sum() < 15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_net_rescue_adds_halves_in_single_precision(dtype):
    # In half precision 4096 + 1 is 4096, and the 50 small gradients were lost.
    small = torch.tensor([[1.0, -1.0]]).repeat(50, 1)
    ends = torch.tensor([[4096.0, 4096.0]])
    x, grad = -torch.ones(52, 2, dtype=dtype), torch.cat([ends, small, -ends]).to(dtype)
    expected = torch.where(torch.tensor([False, True]), torch.tensor(0.1) * grad.float(), 0)
    for name, form in forms("net_rescue", None).items():
        x_, grad_ = (x[None], grad[None]) if name == "transformed" else (x, grad)
        _, gradient = value_and_gradient(form, x_, grad_)
        assert torch.equal(gradient.view(52, 2), expected.to(dtype)), name


def test_net_rescue_passes_nothing_where_the_sum_is_0():
    x, grad = -torch.ones(1, 2, 3), torch.tensor([[[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]])
    for name, form in forms("net_rescue", None).items():
        part = slice(None) if name == "transformed" else 0
        assert not value_and_gradient(form, x[part], grad[part])[1].any(), name


def test_the_sum_of_net_rescue_is_taken_before_the_leak():
    generator = torch.Generator().manual_seed(0)
    grad = torch.randint(-200, 201, (100, 4000), generator=generator).bfloat16() / 64
    raised = grad.double().sum(0) < 0
    rounded = (torch.tensor(0.1) * grad.float()).bfloat16().double().sum(0) < 0
    assert (raised != rounded).any()  # otherwise this would show nothing
    x = -torch.ones_like(grad)
    for name, form in forms("net_rescue", None).items():
        if name in ("pair", "general"):  # any surrogate's gradient: known only as it is rounded
            continue
        x_, grad_ = (x[None], grad[None]) if name == "transformed" else (x, grad)
        _, gradient = value_and_gradient(form, x_, grad_)
        assert torch.equal(gradient.view(grad.shape).any(0), raised), name


@given(batches, st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_up_is_the_projected_gradient(outputs, seed):
    # Of the loss, by finite differences, over outputs that can't fall below 0: where an output is
    # at 0 and the loss falls as it falls, the projected step stays.
    outputs = np.maximum(outputs, 0)
    target = np.random.default_rng(seed).normal(size=outputs.shape)

    def loss(y):
        return (np.sin(y - target) + 0.3 * (y - target) ** 2).sum()

    step, projected = 1e-6, np.zeros_like(outputs)
    for index in np.ndindex(*outputs.shape):
        raised, lowered = outputs.copy(), outputs.copy()
        raised[index] += step
        lowered[index] -= step
        projected[index] = -(loss(raised) - loss(lowered)) / (2 * step)
    stays = (outputs == 0) & (projected < 0)
    projected[stays] = 0

    x = torch.from_numpy(outputs).requires_grad_()
    y = nsrelu(x, 1.0, gate="up")
    shifted = y - torch.from_numpy(target)
    (shifted.sin() + 0.3 * shifted**2).sum().backward()
    assert np.allclose(-x.grad.numpy(), projected, atol=1e-6)


@pytest.mark.parametrize("backward", ["bsilu", "gelu", "nelu", "leaky_relu(0.3)", "identity"])
@every_gate
def test_any_surrogate_of_relu_can_be_gated(backward, gate):
    x, grad = examples((8, 5), 1)
    x[0, 2] = -4  # where the slope of B-SiLU is negative
    _, gradient = value_and_gradient(Surrogate("relu", backward, gate=gate), x, grad)
    _, ungated = value_and_gradient(Surrogate("relu", backward), x, grad)
    dead = (x <= 0).all(0, keepdim=True)
    lowers, raises = (grad > 0) & (ungated > 0), (grad < 0) & (ungated < 0)
    net = dead & (grad.sum(0, keepdim=True) < 0) & (ungated.sum(0, keepdim=True) < 0)
    passes = {"up": raises, "down": lowers, "dead": dead, "rescue": dead & raises}
    passes = (passes | {"net_rescue": net})[gate]
    assert torch.equal(gradient, torch.where((x > 0) | passes, ungated, 0))


def test_up_and_down_together_are_the_whole_leak():
    x, grad = examples((6, 5), 1)
    parts = [value_and_gradient(NSReLU(0.1, gate=gate), x, grad)[1] for gate in ("up", "down")]
    _, whole = value_and_gradient(NSReLU(0.1), x, grad)
    assert torch.equal(sum(parts) - torch.where(x > 0, grad, 0), whole)


@every_gate
def test_a_batch_of_one_example_has_its_own_dead_units(gate):
    # Each unit that is off is off for the whole batch: dead is always, the rescues are up.
    x, grad = examples((1, 50), 1)
    same = {"dead": "always", "rescue": "up", "net_rescue": "up"}.get(gate, gate)
    pairs = (value_and_gradient(NSReLU(0.1, gate=name), x, grad) for name in (gate, same))
    assert torch.equal(*(gradient for _, gradient in pairs))


@every_gate
def test_examples_under_vmap_are_batches_of_their_own(gate):
    x, grad = examples((4, 6, 5), 2)
    function = torch.func.grad(lambda x, g: (nsrelu(x, 0.1, gate=gate) * g).sum())
    expected = [gated_gradient(x[i].numpy(), grad[i].numpy(), 0.1, gate) for i in range(4)]
    assert np.array_equal(torch.func.vmap(function)(x, grad).numpy(), np.stack(expected))


@pytest.mark.parametrize("net", [False, True])
def test_a_rule_for_dead_units_may_lower_too(net, monkeypatch):
    """No gate has such a rule so far; both ways to compute one read it."""
    monkeypatch.setitem(gates.RULES, "sink", gates.Rule(-1, whole_units=True, net=net))
    x, grad = examples((6, 5), 1)
    grad = -grad  # whose sum at the dead unit is above 0
    sums = grad.sum(0, keepdim=True).expand_as(grad)
    dead = (x <= 0).all(0, keepdim=True)
    passes = dead & ((sums if net else grad) > 0)
    assert passes.any()
    expected = torch.where((x > 0) | passes, torch.where(x > 0, grad, 0.3 * grad), 0)
    x.requires_grad_()
    for y in (
        gates._relu_with_revival(x, 0.3, "sink", (0,), inplace=False),
        gates._gated_nsrelu(x, 0.3, "sink", (0,), False),
    ):
        assert torch.equal(torch.autograd.grad(y, x, grad)[0], expected)


@pytest.mark.parametrize("gate", ON_UNITS)
def test_the_backward_is_relus_own_where_all_units_are_on(gate):
    x = examples((6, 5), 1)[0].requires_grad_()
    assert nsrelu(x, 0.1, gate=gate).grad_fn.name() == "ReluBackward0"
    assert gates._highest_unless_all_on(x.detach().relu(), (0,)) is not None
    assert gates._highest_unless_all_on(x.detach().abs() + 1, (0,)) is None


def test_a_large_batch_is_searched_to_its_end():
    # The first rows are looked at first; a unit that is on in the last row only is not dead.
    x = torch.rand(4 * gates.SAMPLE // 8 + 1, 8) + 0.1
    x[:, :2] *= -1
    x[-1, 0] = 1.0
    _, gradient = value_and_gradient(NSReLU(0.1, gate="dead"), x, torch.ones_like(x))
    assert not gradient[:-1, 0].any()
    assert (gradient[:, 1] == torch.tensor(0.1)).all()
    _, gradient = value_and_gradient(NSReLU(0.1, gate="dead"), x.abs(), torch.ones_like(x))
    assert (gradient == 1).all()


@every_gate
def test_a_gated_activation_keeps_what_relu_keeps(gate):
    for inplace in (False, True):
        layers = []
        for _ in range(3):
            layers += [nn.Linear(8, 8), NSReLU(0.1, inplace=inplace, gate=gate)]
        assert kept_storages(nn.Sequential(*layers, nn.Linear(8, 8)), torch.ones(4, 8)) == 4


def test_in_place_on_a_view_and_on_a_leaf_is_as_for_relu():
    x = torch.tensor([[-1.0, 2.0], [-3.0, 4.0]], requires_grad=True)
    for gate in GATED:
        y = nsrelu_(x.clone()[1:], 0.1, gate)
        (gradient,) = torch.autograd.grad(y, x, torch.tensor([[-1.0, 1.0]]))
        first = 0.0 if gate == "down" else -0.1
        assert torch.equal(gradient, torch.tensor([[0.0, 0.0], [first, 1.0]]))
        with pytest.raises(RuntimeError, match="leaf Variable"):
            nsrelu_(x, 0.1, gate)


@every_gate
def test_true_gradients_open_no_gate(gate):
    x, grad = examples((6, 5), 1)
    for module in (build(f"{gate}(0.5)", inplace=True), build(f"relu/bsilu@{gate}")):
        with true_gradients(module) as switched:
            _, gradient = value_and_gradient(nn.Sequential(Clone(), module), x, grad)
        assert switched == 1
        assert torch.equal(gradient, torch.where(x > 0, grad, 0))


def test_swapped_modules_have_the_gate():
    model = swap_activations(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.ReLU, NSReLU(0.1, gate="up")
    )
    assert repr(model[1]) == "NSReLU(leak=0.1, impl='native', gate='up')"


def test_modules_name_their_gate():
    shown = "NSReLU(leak=0.1, impl='native', inplace=True, gate='dead', unit_axis=-1)"
    assert repr(NSReLU(inplace=True, gate="dead", unit_axis=-1)) == shown
    assert repr(build("rescue(0.2)", "detach")) == "NSReLU(leak=0.2, impl='native', gate='rescue')"
    shown = "Surrogate(forward=relu, backward=gelu, gate='up', unit_axis=1)"
    assert repr(build("relu/gelu@up", unit_axis=1)) == shown
    assert repr(Surrogate("relu/gelu", gate="up", unit_axis=1)) == shown
    assert repr(Surrogate("relu/gelu@up", unit_axis=1)) == shown


NO_AXIS = "needs unit_axis for an input of shape {}: 1 for the channels of a convolution, -1 for"
NEEDS_RELU = "needs a forward of relu with another backward that has a slope below 0, such as "
NOT_NATIVE = "gate 'up' needs implementation 'native', got 'detach'"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: nsrelu(x, gate="ups"), "unknown gate 'ups'; did you mean 'up'?"),
        (lambda x: nsrelu(x, 0, gate="up"), f"gate 'up' {NEEDS_RELU}nsrelu(0.1), got nsrelu(0)"),
        (lambda _: NSReLU(0, gate="up"), f"gate 'up' {NEEDS_RELU}nsrelu(0.1), got nsrelu(0)"),
        (lambda _: Surrogate("relu", gate="up"), f"gate 'up' {NEEDS_RELU}nsrelu(0.1), got relu"),
        (lambda _: Surrogate("gelu", "silu", gate="up"), f"gate 'up' {NEEDS_RELU}"),
        (lambda _: Surrogate(torch.sin, gate="up"), "gate 'up' needs a forward of relu, got sin"),
        (lambda _: Surrogate("ste", torch.sin), "forward must be one function, got the pair 'ste'"),
        (lambda _: NSReLU(0.1, "detach", gate="up"), NOT_NATIVE),
        (lambda x: surrogate(x, "relu/gelu@up", impl="detach"), NOT_NATIVE),
        (lambda _: NSReLU(unit_axis=True), "unit_axis must be a whole number, got True"),
        (lambda x: nsrelu(x, gate="dead"), f"gate 'dead' {NO_AXIS.format((2, 3, 4))}"),
        (lambda x: nsrelu(x, gate="dead", unit_axis=3), f"gate 'dead' {NO_AXIS.format((2, 3, 4))}"),
        (lambda x: NSReLU(gate="rescue")(x[0, 0]), f"gate 'rescue' {NO_AXIS.format((4,))}"),
    ],
)
def test_what_makes_no_sense_is_one_line(call, message):
    with pytest.raises(UsageError) as caught:
        call(torch.ones(2, 3, 4))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_gates_on_elements_take_any_shape():
    for gate in ("up", "down"):
        for shape in ((), (3,), (2, 3, 4), (0, 3)):
            assert nsrelu(torch.ones(shape, requires_grad=True), gate=gate).shape == shape
    for gate in ON_UNITS:
        x = torch.ones(0, 3, requires_grad=True)
        nsrelu(x, gate=gate).sum().backward()
        assert x.grad.shape == (0, 3)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@every_gate
def test_forward_mode_is_refused_in_one_line(gate):
    x = torch.ones(3, 2)
    with pytest.raises(NotImplementedError, match=r"^a gate reads the sign of the gradient: "):
        torch.func.jvp(NSReLU(gate=gate), (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError):
        NSReLU(gate=gate)(torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.slow
@every_gate
def test_gated_runs_train_and_measure(gate):
    for settings_ in ({}, {"model": "cnn"}, {"stack": True}):
        *_, last = run(tiny(act="nsrelu", gate=gate, epochs=1, train_size=200, **settings_))
        assert -1 <= last.metrics["surrogate_cosine"] <= 1
