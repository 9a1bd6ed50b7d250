"""`measure`: its values against NumPy, and that training has the same bits with and without it."""

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.gates import gated_gradient
from helpers.networks import CLASSES, FEATURES, N, backward, batch, cnn, mlp, same, traces
from torch import Tensor, nn

from nsrelu_bench.activations.functional import IMPLS
from nsrelu_bench.activations.local import LocalLinear
from nsrelu_bench.activations.modules import MODULES, NSReLU, Surrogate, build
from nsrelu_bench.config import GATES
from nsrelu_bench.errors import UsageError
from nsrelu_bench.measures.measurement import measure
from nsrelu_bench.measures.metrics import MEASURES
from nsrelu_bench.measures.probe import ActivationProbe


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def only(value):
    (value,) = value
    return value


# Values: against NumPy --------------------------------------------------------------------


def by_hand(model, images, labels, leak):
    """Two layers of weights, forward ReLU and backward slope `leak`, in NumPy and float64."""
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in model.parameters())
    x, n = images.double().numpy(), len(images)
    pre = x @ w1.T + b1
    post = np.maximum(pre, 0)
    logits = post @ w2.T + b2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    one_hot = np.eye(CLASSES)[labels.numpy()]
    d_logits = (p - one_hot) / n
    d_pre = d_logits @ w2 * np.where(pre > 0, 1, leak)
    gradients = [d_pre.T @ x, d_pre.sum(0), d_logits.T @ post, d_logits.sum(0)]
    loss = -np.log((p * one_hot).sum(1)).mean()
    accuracy = (logits.argmax(1) == labels.numpy()).mean()
    return loss, accuracy, pre, post, d_pre, gradients


def cosine(a, b):
    return a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("batch_size", [1, 7, N, 500])
@pytest.mark.parametrize("impl", IMPLS)
def test_measure_agrees_with_numpy(impl, batch_size):
    model = mlp(lambda: NSReLU(0.3, impl=impl), depth=1)
    images, labels = batch(model)
    found = measure(model, images, labels, batch_size=batch_size)
    loss, accuracy, pre, post, d_pre, followed = by_hand(model, images, labels, leak=0.3)
    *_, true = by_hand(model, images, labels, leak=0)
    whole, whole_true = (np.concatenate([g.ravel() for g in gs]) for gs in (followed, true))
    p = np.linalg.svd(post, compute_uv=False)
    p = p[p > 1e-9] / p.sum()
    expected = {
        "loss": loss,
        "accuracy": accuracy,
        "zero_fraction": (post == 0).mean(),
        "negative_fraction": (pre <= 0).mean(),
        "dead_units": (post == 0).all(0).sum(),
        "submerged_units": (pre <= 0).all(0).sum(),
        "effective_rank": np.exp(-(p * np.log(p)).sum()),
        "grad_norm": np.linalg.norm(whole),
        "pre_grad_norm": np.linalg.norm(d_pre),
        "zero_grad_units": 0,
        "surrogate_cosine": cosine(whole, whole_true),
        "sign_disagreement": (whole * whole_true < 0).mean(),
        "living_zero_fraction": (post[:, (post != 0).any(0)] == 0).mean(),
        "pre_rms": np.sqrt((pre**2).mean()),
        "weight_norm": math.sqrt(sum(p.detach().square().sum() for p in model.parameters())),
        "extra_grad_up": np.linalg.norm(d_pre[(pre <= 0) & (d_pre < 0)]),
        "extra_grad_down": np.linalg.norm(d_pre[(pre <= 0) & (d_pre > 0)]),
        "extra_grad_fraction": (d_pre[pre <= 0] ** 2).sum() / (d_pre**2).sum(),
    }
    assert {name: found.totals[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    row = only(found.layers)
    assert (row["layer"], row["units"]) == ("act1", 8)
    assert row["grad_norm"] == pytest.approx(np.linalg.norm(followed[0]), rel=1e-5)
    assert row["surrogate_cosine"] == pytest.approx(cosine(followed[0], true[0]), rel=1e-5)
    assert row["sign_disagreement"] == (followed[0] * true[0] < 0).mean()
    assert row["weight_norm"] == pytest.approx(model.linear1.weight.norm().item())
    assert 0 < found.totals["sign_disagreement"] < found.totals["surrogate_cosine"] < 0.999


@pytest.mark.parametrize("make", [mlp, cnn])
def test_the_batch_size_changes_no_measure(make):
    model = make(lambda: NSReLU(0.1))
    images, labels = batch(model)
    whole = measure(model, images, labels)
    for batch_size in (1, 3, 39):
        cut = measure(model, images, labels, batch_size=batch_size)
        same(cut.totals, whole.totals)
        for row, expected in zip(cut.layers, whole.layers, strict=True):
            same(row, expected)
            for name in ("zero_fraction", "dead_units", "zero_grad_units", "dormant_units"):
                assert row[name] == expected[name]


def test_every_measure_has_a_column():
    model = cnn(lambda: NSReLU(0.1))
    for layer in (model.norm1, model.conv2):
        layer.bias.data[0] = -100  # a submerged unit at each site
    first = measure(model, *batch(model))
    second = measure(model, *batch(model), previous=first)
    assert list(first.totals) == list(MEASURES)
    empty = {name for name, value in first.totals.items() if value is None}
    assert empty == {"died_units", "revived_units"}
    assert None not in second.totals.values()
    for row in second.layers:
        assert list(row) == ["layer", "units", *list(MEASURES)[2:]]
        assert None not in row.values()


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_a_single_measure_is_the_same_as_among_all(name):
    model = mlp(lambda: NSReLU(0.2))
    images, labels = batch(model)
    before = measure(model, images, labels)
    alone = measure(model, images, labels, measures=[name], previous=before)
    whole = measure(model, images, labels, previous=before)
    assert alone.totals == {n: whole.totals[n] if n == name else None for n in MEASURES}
    assert len(alone.layers) == (0 if name in ("loss", "accuracy") else 2)
    for row, expected in zip(alone.layers, whole.layers, strict=False):
        assert row == {n: v if n in ("layer", "units", name) else None for n, v in expected.items()}


@pytest.mark.parametrize("activation", [nn.ReLU, lambda: nn.LeakyReLU(0.1), lambda: NSReLU(0)])
def test_a_tied_pair_has_cosine_one(activation):
    model = mlp(activation)
    found = measure(model, *batch(model))
    for values in (found.totals, *found.layers):
        assert values["surrogate_cosine"] == 1
        for name in ("sign_disagreement", "extra_grad_up", "extra_grad_down"):
            assert values[name] == 0
        assert values["extra_grad_fraction"] == 0


def straight_through(x):
    """An activation of the user's own whose gradient is not its derivative."""
    return x + (x.relu() - x).detach()


COMPARED = ("surrogate_cosine", "sign_disagreement", "extra_grad_up", "extra_grad_fraction")


@pytest.mark.parametrize(
    "act", ["examples.patient_rescue:NetRescue", "examples.own_parts:softsign", straight_through]
)
def test_nothing_tells_whether_an_own_gradient_is_true(act):
    own = (lambda: build(act, unit_axis=1)) if isinstance(act, str) else (lambda: Surrogate(act))
    model = mlp(own)
    found = measure(model, *batch(model))
    for values in (found.totals, *found.layers):
        assert [values[name] for name in COMPARED] == [None] * len(COMPARED)
        assert values["grad_norm"] > 0
        assert values["pre_grad_norm"] > 0


def test_an_own_backward_is_compared_with_the_forwards_gradient():
    model = mlp(lambda: Surrogate("relu", straight_through))
    found = measure(model, *batch(model))
    assert 0 < found.totals["surrogate_cosine"] < 0.999
    assert all(row["extra_grad_fraction"] > 0 for row in found.layers)


def test_above_all_surrogates_the_cosine_is_one():
    model = nn.Sequential(
        nn.Linear(FEATURES, 8), NSReLU(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES)
    )
    first, last = measure(model, *batch(model)).layers
    assert first["surrogate_cosine"] < 0.99
    assert last["surrogate_cosine"] == 1


def finite_differences(f, x, h=1e-6):
    """The derivative of an elementwise function in float64."""
    return (f(x + h) - f(x - h)) / (2 * h)


@pytest.mark.parametrize(
    ("pair", "slope", "derivative"),
    [
        (("relu", "gelu"), F.gelu, lambda x: (x > 0).double()),
        (("relu", "silu"), F.silu, lambda x: (x > 0).double()),
        (("leaky_relu(0.1)", "relu"), F.relu, lambda x: torch.where(x > 0, 1.0, 0.1)),
        (("silu", "relu"), F.relu, lambda x: finite_differences(F.silu, x)),
    ],
)
def test_the_extra_gradient_is_the_difference_of_slopes(pair, slope, derivative):
    model = nn.Sequential(nn.Linear(5, 7), Surrogate(*pair), nn.Linear(7, 3)).double()
    images, labels = torch.randn(30, 5, dtype=torch.double), torch.arange(30) % 3
    found = measure(model, images, labels, batch_size=11).layers[0]
    pre = model[0](images).detach()
    post = model[1](pre).requires_grad_()
    F.cross_entropy(model[2](post), labels).backward()
    true = post.grad * derivative(pre)
    extra = post.grad * finite_differences(slope, pre) - true
    assert found["extra_grad_up"] == pytest.approx(extra.clamp(max=0).norm().item(), rel=1e-5)
    assert found["extra_grad_down"] == pytest.approx(extra.clamp(min=0).norm().item(), rel=1e-5)
    share = extra.square().sum() / (extra.square().sum() + true.square().sum())
    assert found["extra_grad_fraction"] == pytest.approx(share.item(), rel=1e-5)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("gate", GATES)
def test_gates_and_local_layers_have_their_measures(gate, inplace, local):
    torch.manual_seed(1)  # with it the batch raises a dead unit of each site on the whole
    layer = LocalLinear if local else nn.Linear
    model = nn.Sequential(
        *(layer(5, 7), NSReLU(0.5, inplace=inplace and not local, gate=gate)),
        *(layer(7, 6), NSReLU(0.5, gate=gate), nn.Linear(6, 3)),
    )
    model[0].bias.data[:2] = model[2].bias.data[0] = -50  # dead units
    images, labels = torch.randn(30, 5), torch.arange(30) % 3
    found = measure(model, images, labels)
    for index, row in zip((1, 3), found.layers, strict=True):
        pre = model[:index](images).detach()
        post = pre.relu().requires_grad_()
        F.cross_entropy(model[index + 1 :](post), labels).backward()
        g = post.grad
        gated = torch.from_numpy(gated_gradient(pre.numpy(), g.numpy(), 0.5, gate))
        extra = torch.where(pre <= 0, gated, 0)
        true = torch.where(pre > 0, g, 0)
        share = extra.square().sum() / (extra.square().sum() + true.square().sum())
        expected = {
            "units": (7, 6)[index // 2],
            "extra_grad_up": extra.clamp(max=0).norm().item(),
            "extra_grad_down": extra.clamp(min=0).norm().item(),
            "extra_grad_fraction": share.item(),
            "weight_norm": model[index - 1].weight.norm().item(),
        }
        assert {n: row[n] for n in expected} == pytest.approx(expected, rel=1e-4, abs=1e-9)
        assert row["surrogate_cosine"] < 1
        assert (row["extra_grad_up"] == 0) == (gate == "down")
        assert (row["extra_grad_down"] == 0) == (gate in ("up", "rescue"))


def test_a_surrogate_inside_another_module_has_no_extra_gradient():
    block = nn.Sequential(NSReLU(0.1), nn.Dropout(0.5))
    model = nn.Sequential(nn.Linear(4, 5), block, nn.Linear(5, 3), nn.ReLU())
    with ActivationProbe(model, sites=["1", "3"]) as probe:
        model(torch.randn(9, 4)).sum().backward()
    assert probe.frame()["extra_grad_fraction"].isna().tolist() == [True, False]


def test_the_extra_gradient_draws_no_random_numbers():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), Surrogate("relu", "rrelu"), nn.Linear(5, 3))
    images = torch.randn(9, 4)
    states = []
    for open_probe in (True, False):
        torch.manual_seed(2)
        with ActivationProbe(model) if open_probe else torch.enable_grad():
            model(images).sum().backward()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


# Histories of units ---------------------------------------------------------------------------


def sink(layer: nn.Linear, unit: int, bias: float = -1000.0) -> None:
    with torch.no_grad():
        layer.bias[unit] = bias


def test_a_unit_that_dies_and_comes_back():
    model = mlp(depth=1, width=4)
    with torch.no_grad():
        model.linear1.bias.fill_(3)  # all alive
    data = batch(model)
    states = []
    previous = None
    for unit, bias in [(0, -1000.0), (1, -1000.0), (0, 3.0), (0, -1000.0)]:
        sink(model.linear1, unit, bias)
        previous = measure(model, *data, previous=previous)
        names = ("dead_units", "died_units", "revived_units", "ever_dead_units", "recovered_units")
        states.append(tuple(previous.totals[name] for name in names))
        assert tuple(only(previous.layers)[name] for name in names) == states[-1]
        assert previous.totals["dead_fraction"] == states[-1][0] / 4
    assert states == [(1, None, None, 1, 0), (2, 1, 0, 2, 0), (1, 0, 1, 2, 1), (2, 1, 0, 2, 1)]


def test_a_dead_unit_gets_a_gradient_from_nsrelu_only():
    for activation, submerged, stuck in ((nn.ReLU, 1, 1), (lambda: NSReLU(0.1), 1, 0)):
        model = mlp(activation, depth=1)
        with torch.no_grad():
            model.linear1.bias.fill_(3)
        sink(model.linear1, 5)
        found = measure(model, *batch(model)).totals
        assert found["dead_units"] == 1
        assert found["submerged_units"] == submerged
        assert found["zero_grad_units"] == stuck
        assert found["dormant_units"] >= 1


def test_leaky_relu_has_no_dead_unit_but_a_submerged_one():
    model = mlp(lambda: nn.LeakyReLU(0.1), depth=1)
    sink(model.linear1, 2)
    found = measure(model, *batch(model)).totals
    assert (found["zero_fraction"], found["dead_units"], found["zero_grad_units"]) == (0, 0, 0)
    assert found["submerged_units"] >= 1
    assert found["negative_fraction"] > 1 / 8


def test_a_unit_can_be_dead_on_the_training_set_only():
    model = mlp(depth=1, width=2)
    with torch.no_grad():
        model.linear1.weight.zero_()
        model.linear1.weight[:, 0] = 1  # unit: x0 + bias
        model.linear1.bias.copy_(torch.tensor([1.0, -5.0]))
    train, labels = torch.rand(N, FEATURES), torch.zeros(N, dtype=torch.long)
    test = train + 10
    assert measure(model, train, labels).totals["dead_units"] == 1
    assert measure(model, test, labels).totals["dead_units"] == 0


def test_a_channel_lives_if_one_pixel_does():
    model = cnn()
    images, labels = batch(model)
    with torch.no_grad():
        for parameter in (model.norm1.weight, model.norm1.bias):
            parameter.zero_()
    assert measure(model, images, labels).layers[0]["dead_units"] == 4
    with torch.no_grad():
        peak = model.conv1(images)[:, 2].max()
        model.norm1.weight[2], model.norm1.bias[2] = 1, 1e-3 - peak
    first = measure(model, images, labels).layers[0]
    assert first["dead_units"] == 3
    assert first["zero_fraction"] > 0.99


def test_previous_must_be_of_the_same_model():
    small, large = mlp(width=4), mlp(width=5)
    with pytest.raises(UsageError, match="previous"):
        measure(large, *batch(large), previous=measure(small, *batch(small)))


# Measuring never changes training ---------------------------------------------------------


class Noisy(nn.ReLU):
    """Draws from every generator there is, also in eval mode."""

    def forward(self, x):
        scale = random.random() + np.random.rand()  # noqa: NPY002, S311
        return super().forward(x + scale * torch.randn_like(x))


MAKERS = {
    "noisy": Noisy,
    **{name: lambda name=name: MODULES[name]() for name in MODULES},
    **{f"nsrelu {impl}": lambda impl=impl: NSReLU(0.1, impl=impl) for impl in IMPLS},
    "nsrelu inplace": lambda: NSReLU(0.1, inplace=True),
    "relu inplace": lambda: nn.ReLU(inplace=True),
    "mirror": lambda: Surrogate("leaky_relu(0.1)", "relu"),
    "built": lambda: build("nsrelu(0.01)"),
    "rrelu": nn.RReLU,
    "prelu": nn.PReLU,
}


def train(make, activation, probed: bool) -> tuple[dict[str, Tensor], list[object]]:
    """Train some steps, measuring at every point of every step or never; return all there is."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    model = make(activation)
    images, labels = batch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    last = None

    def look():
        nonlocal last
        if probed:
            last = measure(model, images, labels, batch_size=24, previous=last)

    for step in range(2):
        look()
        picked = torch.randperm(N)[:16]
        loss = F.cross_entropy(model(images[picked]), labels[picked])
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        look()
        loss.backward()
        look()
        optimizer.step()
    state = {**model.state_dict(), **{f"{n}.grad": p.grad for n, p in model.named_parameters()}}
    draws = [torch.get_rng_state().tolist(), random.random(), np.random.rand()]  # noqa: NPY002, S311
    return state, draws


@pytest.mark.slow
@pytest.mark.parametrize("make", [mlp, pytest.param(cnn, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MAKERS)
def test_measuring_keeps_the_bits_of_training(make, name):
    plain, plain_draws = train(make, MAKERS[name], probed=False)
    probed, probed_draws = train(make, MAKERS[name], probed=True)
    assert plain.keys() == probed.keys()
    for key, value in plain.items():
        assert torch.equal(value, probed[key]), key
    assert plain_draws == probed_draws


def test_measuring_leaves_flags_gradients_and_grad_mode():
    model = cnn()
    model.norm1.eval()
    model.conv2.weight.requires_grad = False
    model.head.bias.grad = torch.ones(CLASSES)
    flags = [(m, m.training) for m in model.modules()]
    with torch.no_grad():
        found = measure(model, *batch(model))
        assert not torch.is_grad_enabled()
    assert [(m, m.training) for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert [p.grad is None for p in model.parameters()].count(False) == 1
    assert model.head.bias.grad.tolist() == [1] * CLASSES
    assert found.totals["grad_norm"] > 0
    assert found.layers[1]["grad_norm"] is None  # frozen
    assert found.layers[1]["pre_grad_norm"] > 0


def test_a_model_that_fails_is_left_as_it_was():
    model = cnn()
    images, labels = torch.randn(4, 3, 6, 6), torch.zeros(4, dtype=torch.long)
    before, state = traces(model), torch.get_rng_state()
    with pytest.raises(RuntimeError):
        measure(model, images, labels)  # 3 channels for 1
    assert traces(model) == before
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_gradients_has_no_gradient_measures():
    model = mlp(lambda: NSReLU(0.1)).requires_grad_(False)
    found = measure(model, *batch(model))
    empty = {name for name, value in found.totals.items() if value is None}
    assert empty == {
        *("died_units", "revived_units", "grad_norm", "pre_grad_norm", "zero_grad_units"),
        *("surrogate_cosine", "sign_disagreement"),
        *("extra_grad_up", "extra_grad_down", "extra_grad_fraction"),
    } | ({"submerged_depth"} - {name for name in found.totals if found.totals["submerged_units"]})


# Not finite -------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("activation", [nn.ReLU, lambda: NSReLU(0.1)])
@pytest.mark.parametrize("layer", ["linear1", "linear2", "head"])
def test_a_diverged_model_has_no_totals(activation, bad, layer):
    model = mlp(activation)
    getattr(model, layer).bias.data[0] = bad
    found = measure(model, *batch(model))
    assert not found.finite
    assert set(found.totals.values()) == {None}
    first, second = found.layers
    values = [first[name] for name in ("zero_fraction", "dead_units", "effective_rank")]
    assert (None in values) == (layer == "linear1")
    assert (second["dead_units"] is None) == (layer != "head")
    assert first["zero_grad_units"] is second["surrogate_cosine"] is None
    repaired = measure(mlp(activation), *batch(model), previous=found)
    assert repaired.totals["died_units"] is None


def test_a_nan_that_an_activation_swallows_is_seen():
    class Swallow(nn.ReLU):
        def forward(self, x):
            return torch.where(x > 0, x, 0)

    model = mlp(Swallow)
    model.linear1.weight.data[:] = math.nan
    found = measure(model, *batch(model))
    assert not found.finite
    for row in found.layers:
        assert {value for name, value in row.items() if name not in ("layer", "units")} == {None}
    with ActivationProbe(model) as probe:
        backward(model, *batch(model))
    assert probe.frame().drop(columns=["layer", "units"]).isna().all(axis=None)


def test_nan_logits_are_not_class_0():
    model = mlp()
    model.head.weight.data.fill_(math.nan)
    found = measure(model, batch(model)[0], torch.zeros(N, dtype=torch.long))
    assert found.totals["accuracy"] is None


def test_an_infinite_logit_empties_the_accuracy():
    class Masked(nn.Sequential):
        def forward(self, x):
            return super().forward(x).index_fill(1, torch.tensor([2]), -math.inf)

    model = Masked(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    found = measure(model, torch.randn(N, FEATURES), torch.zeros(N, dtype=torch.long))
    assert not found.finite
    assert found.totals["accuracy"] is None


def test_a_nan_in_an_unused_weight_is_seen():
    model = mlp()
    model.spare = nn.Parameter(torch.tensor([1.0, math.nan]))
    model.forward = lambda x: model.head(model.act1(model.linear1(x)))
    assert not measure(model, *batch(model)).finite
