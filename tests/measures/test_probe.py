"""The probe on models of all kinds, and `measure`, which must not leave a trace in training."""

import math
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.activations.functional import IMPLS
from nsrelu_bench.activations.modules import MODULES, NSReLU, Surrogate, build
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.measures import metrics
from nsrelu_bench.measures.measurement import measure, pre_quantiles
from nsrelu_bench.measures.metrics import MEASURES
from nsrelu_bench.measures.probe import ActivationProbe

N, FEATURES, CLASSES = 40, 6, 3


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def mlp(activation=nn.ReLU, width=8, depth=2) -> nn.Sequential:
    layers = OrderedDict()
    features = FEATURES
    for i in range(1, depth + 1):
        layers[f"linear{i}"], features = nn.Linear(features, width), width
        layers[f"act{i}"] = activation()
    return nn.Sequential(OrderedDict(layers, head=nn.Linear(features, CLASSES)))


def cnn(activation=nn.ReLU) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 4, 3, padding=1),
            norm1=nn.BatchNorm2d(4),
            act1=activation(),
            drop1=nn.Dropout2d(0.3),
            conv2=nn.Conv2d(4, 5, 3, stride=2),
            act2=activation(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            drop2=nn.Dropout(0.5),
            head=nn.Linear(5, CLASSES),
        )
    )


def batch(model, examples=N, seed=1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 6, 6) if isinstance(model[0], nn.Conv2d) else (FEATURES,)
    images = torch.randn(examples, *shape, generator=generator)
    return images, torch.randint(0, CLASSES, (examples,), generator=generator)


def backward(model, images, labels) -> None:
    F.cross_entropy(model(images), labels).backward()


def same(found, expected, rel=1e-4) -> None:
    """Two rows agree: numbers up to rounding, all else exactly."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            value = pytest.approx(value, rel=rel, abs=1e-6)
        assert found[name] == value, name


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
    }
    assert {name: found.totals[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    row = only(found.layers)
    assert (row["layer"], row["units"]) == ("act1", 8)
    assert row["grad_norm"] == pytest.approx(np.linalg.norm(followed[0]), rel=1e-5)
    assert row["surrogate_cosine"] == pytest.approx(cosine(followed[0], true[0]), rel=1e-5)
    assert row["sign_disagreement"] == (followed[0] * true[0] < 0).mean()
    assert 0 < found.totals["sign_disagreement"] < found.totals["surrogate_cosine"] < 0.999


@pytest.mark.parametrize("make", [mlp, cnn])
def test_measure_does_not_depend_on_the_batch_size(make):
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


def test_every_measure_has_a_place():
    model = cnn(lambda: NSReLU(0.1))
    first = measure(model, *batch(model))
    second = measure(model, *batch(model), previous=first)
    assert list(first.totals) == list(MEASURES)
    empty = {name for name, value in first.totals.items() if value is None}
    assert empty == {"died_units", "revived_units"}
    assert None not in second.totals.values()
    for row in second.layers:
        assert list(row) == ["layer", "units", *list(MEASURES)[2:]]
        assert None not in row.values()


@pytest.mark.parametrize("name", MEASURES)
def test_one_measure_alone_is_as_in_the_whole(name):
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
        assert values["sign_disagreement"] == 0


def test_a_deeper_layer_than_all_surrogates_follows_the_true_gradient():
    model = nn.Sequential(
        nn.Linear(FEATURES, 8), NSReLU(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES)
    )
    first, last = measure(model, *batch(model)).layers
    assert first["surrogate_cosine"] < 0.99
    assert last["surrogate_cosine"] == 1


# Lives of units ---------------------------------------------------------------------------


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


def test_a_dead_relu_unit_gets_no_gradient_and_a_dead_nsrelu_unit_does():
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


ACTIVATIONS = {
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
            last = measure(model, images, labels, batch_size=16, previous=last)

    for step in range(3):
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


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_training_has_the_same_bits_with_and_without_measuring(make, name):
    plain, plain_draws = train(make, ACTIVATIONS[name], probed=False)
    probed, probed_draws = train(make, ACTIVATIONS[name], probed=True)
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
    }


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


def test_an_activation_that_swallows_nan_does_not_hide_it():
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


def test_an_infinite_logit_empties_the_accuracy_though_the_loss_is_finite():
    class Masked(nn.Sequential):
        def forward(self, x):
            return super().forward(x).index_fill(1, torch.tensor([2]), -math.inf)

    model = Masked(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    found = measure(model, torch.randn(N, FEATURES), torch.zeros(N, dtype=torch.long))
    assert not found.finite
    assert found.totals["accuracy"] is None


def test_a_nan_weight_that_nothing_shows_is_not_finite():
    model = mlp()
    model.spare = nn.Parameter(torch.tensor([1.0, math.nan]))
    model.forward = lambda x: model.head(model.act1(model.linear1(x)))
    assert not measure(model, *batch(model)).finite


# The probe on any module ------------------------------------------------------------------


def traces(model: nn.Module) -> list[object]:
    """All hooks of a model, and the attributes of its modules."""
    hooks = [
        (name, kind, len(vars(module)[kind]))
        for name, module in model.named_modules()
        for kind in vars(module)
        if "hooks" in kind and vars(module)[kind] is not None
    ]
    attributes = [sorted(vars(module)) for module in model.modules()]
    return [hooks, attributes, [not p._backward_hooks for p in model.parameters()]]


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_left_behind(fail):
    model = cnn()
    before = traces(model)
    loss = None
    try:
        with ActivationProbe(model) as probe:
            assert traces(model) != before
            loss = F.cross_entropy(model(batch(model)[0]), batch(model)[1])
            if fail:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert traces(model) == before
    loss.backward()  # after it was closed
    frame = probe.frame()
    assert frame["zero_grad_units"].isna().all()
    assert len(frame) == 2


def test_frame_agrees_with_measure():
    model = cnn(lambda: NSReLU(0.1)).eval()
    images, labels = batch(model)
    with ActivationProbe(model) as probe:
        for part in range(0, N, 10):  # gradients add up, as in .grad
            chosen = slice(part, part + 10)
            loss = F.cross_entropy(model(images[chosen]), labels[chosen], reduction="sum")
            (loss / N).backward()
    expected = measure(model, images, labels).layers
    for row, other in zip(probe.frame().to_dict("records"), expected, strict=True):
        same(row, {name: other[name] for name in row})


@pytest.mark.parametrize("activation", [nn.ReLU, lambda inplace: NSReLU(0.1, inplace=inplace)])
def test_in_place_is_as_out_of_place(activation):
    frames = []
    for inplace in (False, True):
        torch.manual_seed(5)
        model = mlp(lambda inplace=inplace: activation(inplace=inplace))
        with ActivationProbe(model) as probe:
            backward(model, *batch(model))
        frames.append(probe.frame())
    assert frames[0].equals(frames[1])
    assert (frames[0]["pre_grad_norm"] > 0).all()
    assert (frames[0]["negative_fraction"] > 0).all()


class Strange(nn.Module):
    """One activation at two sites, one with a tuple as output, one nested, one called by name."""

    class Pair(nn.Module):
        def forward(self, x, *, scale):
            return (x * scale).relu(), "extra"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, 8), nn.Linear(8, 8)
        self.act = nn.ReLU()
        self.pair = self.Pair()
        self.block = nn.ModuleDict({"inner": nn.Sequential(nn.Linear(8, 5), nn.GELU())})
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x):
        x = self.act(self.first(x))
        x = self.act(input=self.second(x))
        x, _ = self.pair(x, scale=2.0)
        return self.head(self.block["inner"](x))


def test_a_strange_model():
    model = Strange()
    images, labels = torch.randn(N, FEATURES), torch.randint(0, CLASSES, (N,))
    with ActivationProbe(model, sites=[nn.ReLU, "pair", nn.GELU]) as probe:
        backward(model, images[:30], labels[:30])
        model(images[30:])
    frame = probe.frame().set_index("layer")
    assert list(frame.index) == ["act#1", "act#2", "pair", "block.inner.1"]
    assert list(frame["units"]) == [8, 8, 8, 5]
    first = model.first(images).relu()
    second = model.second(first).relu()
    assert frame["zero_fraction"]["act#1"] == (first == 0).double().mean()
    assert frame["zero_fraction"]["act#2"] == (second == 0).double().mean()
    assert frame["zero_fraction"]["pair"] == frame["zero_fraction"]["act#2"]
    norms = [layer.weight.grad.norm().item() for layer in (model.first, model.second)]
    assert list(frame["grad_norm"][:2]) == pytest.approx(norms)


def test_what_is_inside_a_site_is_no_site():
    model = nn.Sequential(
        OrderedDict(
            linear=nn.Linear(FEATURES, 4),
            act=nn.Sequential(nn.ReLU(), nn.Dropout(0.5)),
            last=nn.ReLU(),
        )
    )
    with ActivationProbe(model, sites=["act", nn.ReLU]) as probe:
        model(torch.randn(N, FEATURES))
    assert list(probe.frame()["layer"]) == ["act", "last"]


@pytest.mark.parametrize(("measures", "graph"), [(["loss", "dead_units"], False), (MEASURES, True)])
def test_a_graph_is_built_only_for_gradients(measures, graph):
    model = mlp()
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    measure(model, *batch(model), measures=measures)
    assert seen == [graph]


def test_a_pass_that_fails_does_not_count():
    model = mlp()
    images, _ = batch(model)
    with ActivationProbe(model) as probe:
        model(images)
        model.head.weight.data = model.head.weight.data[:, :3]
        with pytest.raises(RuntimeError):
            model(torch.full_like(images, 100))
        model.act1(torch.zeros(3, 8))  # nor does a call of a part
    row = probe.frame().iloc[0]
    assert row["zero_fraction"] == (model.linear1(images) <= 0).double().mean()


def test_the_mode_is_left_alone():
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    images = torch.randn(N, FEATURES) * 5 + 2
    zeros = []
    for training in (True, False):
        model.train(training)
        mean = model[1].running_mean.clone()
        with ActivationProbe(model) as probe:
            model(images)
        assert torch.equal(mean, model[1].running_mean) != training
        zeros.append(probe.frame()["zero_fraction"][0])
    assert zeros[0] != zeros[1]


def test_units_of_tokens_are_features_and_of_convolutions_channels():
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


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(FEATURES, 8), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.linear(x).view(-1, 2, 4)).flatten(1)


def test_an_overwritten_view_is_an_error_that_says_what_to_do():
    model = Flat()
    images = torch.randn(N, FEATURES)
    with ActivationProbe(model) as probe, pytest.raises(BenchError, match="inplace=False"):
        model(images)
    assert traces(model) == traces(Flat())
    with ActivationProbe(model, measures=["dead_units"]) as probe:
        model(images)
    model.act.inplace = False
    with ActivationProbe(model) as probe:
        model(images).sum().backward()
    assert probe.frame()["pre_grad_norm"][0] > 0


@pytest.mark.parametrize("way", ["wrapped", "inside", "in place"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_models_are_measured_and_stay_compiled(way):
    compilations = []

    def backend(graph, _):
        compilations.append(graph)
        return graph.forward

    model = mlp(lambda: NSReLU(0.1))
    images, labels = batch(model)
    expected = measure(model, images, labels)
    if way == "in place":
        model.compile(backend=backend)
        called = probed = model
    else:
        called = torch.compile(model, backend=backend)
        probed = called if way == "wrapped" else model
    called(images)
    compiled = len(compilations)
    assert compiled > 0
    with ActivationProbe(probed) as probe:
        backward(called, images, labels)
    assert list(probe.frame()["layer"]) == ["act1", "act2"]
    assert probe.frame()["zero_fraction"][0] == expected.layers[0]["zero_fraction"]
    assert probe.frame()["grad_norm"][1] == pytest.approx(expected.layers[1]["grad_norm"])
    assert measure(probed, images, labels) == expected
    called(images)
    assert len(compilations) == compiled


# Errors -----------------------------------------------------------------------------------


def test_errors_name_what_is_allowed():
    model = mlp()
    with pytest.raises(
        UsageError, match=r"unknown module 'act3'; did you mean 'act2'\? choose from: linear1"
    ):
        ActivationProbe(model, sites=["act3"])
    with pytest.raises(UsageError, match="unknown measure 'zeros'"):
        ActivationProbe(model, measures=["zeros"])
    with pytest.raises(UsageError, match="unknown measure 'surrogate_cosine'"):
        ActivationProbe(model, measures=["grad_norm", "surrogate_cosine"])
    with pytest.raises(UsageError, match="unknown measure 'rank'"):
        measure(model, *batch(model), measures=["rank"])
    with pytest.raises(BenchError, match=r"no activation modules in Linear: .* F\.relu"):
        ActivationProbe(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="3 labels for 40"):
        measure(model, batch(model)[0], torch.zeros(3, dtype=torch.long))
    with pytest.raises(UsageError, match="0 labels for 0"):
        measure(model, batch(model)[0][:0], torch.zeros(0, dtype=torch.long))
    with ActivationProbe(model) as probe:
        pass
    with pytest.raises(BenchError, match="saw no pass"):
        probe.frame()
    with ActivationProbe(model) as probe, pytest.raises(BenchError, match="open already"):
        probe.__enter__()
    with ActivationProbe(model), pytest.raises(BenchError, match=r"'act1' has values of shape"):
        model(torch.randn(FEATURES))


def test_an_activation_alone_is_a_model():
    with ActivationProbe(nn.ReLU()) as probe:
        probe._model(torch.tensor([[1.0, -1.0]]))
    assert probe.frame()[["layer", "zero_fraction"]].values.tolist() == [["ReLU", 0.5]]


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


def norm(*gradients):
    return pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item())


@pytest.mark.parametrize("parts", [1, 3])
def test_a_site_has_the_weights_of_the_layers_that_lead_to_it_whatever_ran_last(parts):
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


def test_in_a_stream_a_site_has_the_weights_of_the_last_block():
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


def test_a_site_that_is_fed_from_outside_of_the_graph_has_no_weights():
    class Cut(Branches):
        def forward(self, x):
            return self.head(torch.cat([self.act_a(self.a(x).detach())] * 3, 1))

    rows = measure(Cut(), torch.randn(20, 4), torch.arange(20) % 3).layers
    assert [(row["layer"], row["grad_norm"]) for row in rows] == [("act_a", None)]


def test_a_pass_without_gradients_before_another_hides_no_weights():
    model = Branches()
    with ActivationProbe(model) as probe:
        with torch.no_grad():
            model(torch.randn(5, 4))
        model(torch.randn(5, 4)).sum().backward()
    assert probe.frame()["grad_norm"][0] == norm(model.a.weight.grad)


def test_without_a_measure_at_the_sites_none_is_looked_at(monkeypatch):
    def never(*_):
        raise AssertionError("a site was measured")

    monkeypatch.setattr(metrics, "pre_update", never)
    model = Branches()
    found = measure(model, torch.randn(20, 4), torch.arange(20) % 3, measures=("loss", "accuracy"))
    assert found.finite
    assert found.layers == []
    assert found.totals["loss"] > 0


def test_quantiles_of_the_pre_activations_are_those_of_all_values():
    model = nn.Sequential(nn.Linear(4, 6), NSReLU(0.1, inplace=True), nn.Linear(6, 3), nn.ReLU())
    images = torch.randn(700, 4)
    rows = pre_quantiles(model, images, batch_size=300)
    pre = model[0](images).flatten().detach().numpy()
    first = [row for row in rows if row["layer"] == "1"]
    assert [row["layer"] for row in rows] == ["1"] * 200 + ["3"] * 200
    at = [row["quantile"] for row in first]
    assert at == pytest.approx([(i + 0.5) / 200 for i in range(200)], rel=1e-5)
    assert [row["value"] for row in first] == pytest.approx(np.quantile(pre, at), abs=1e-4)


def test_quantiles_of_many_values_are_of_a_part_and_of_infinite_ones_none():
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


def test_taking_quantiles_leaves_the_model_as_it_was():
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
