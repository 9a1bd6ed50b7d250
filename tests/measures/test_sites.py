"""Which weights feed a site, and which axis of its values holds the units."""

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import norm
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.checkpoint import checkpoint

from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.measures.measurement import measure
from nsrelu_bench.measures.probe import ActivationProbe

B, T, H = 3, 5, 2  # examples, tokens, heads


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Site(nn.Module):
    """A model with one site, whose forward is a function of it and the input."""

    def __init__(self, function: Callable, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.function(self, x)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def gated(m: Site, x: Tensor) -> Tensor:
    a, b = m.up(x).chunk(2, -1)
    return m.act(a) * b


def windows(m: Site, x: Tensor) -> Tensor:
    parts = m.up(x).view(B, 2, 2, 2, 2, 6).permute(0, 1, 3, 2, 4, 5)
    return m.act(parts.reshape(-1, 4, 6))


def written(m: Site, x: Tensor) -> Tensor:
    out = torch.zeros(B, T, 6)
    out[:, :2] = m.up(x[:, :2])
    for t in range(2, T):
        out[:, t] = m.up(x[:, t])
    return m.act(out)


def linear(width: int) -> dict[str, nn.Module]:
    return {"up": nn.Linear(4, width)}


# A model, the shape of its input, and the number of units. Lengths agree with widths on purpose.
LAYOUTS: dict[str, tuple[Site, tuple[int, ...], int]] = {
    "tokens": (Site(lambda m, x: m.act(m.up(x)), **linear(7)), (B, T, 4), 7),
    "as wide as long": (Site(lambda m, x: m.act(m.up(x)), **linear(T)), (B, T, 4), T),
    "gated": (Site(gated, **linear(14)), (B, T, 4), 7),
    "gated, as wide as long": (Site(gated, **linear(2 * T)), (B, T, 4), T),
    "gated convolution": (
        Site(lambda m, x: m.act(m.up(x).chunk(2, 1)[0]), up=nn.Conv1d(4, 14, 1)),
        (B, 4, T),
        7,
    ),
    "GLU": (Site(lambda m, x: m.act(F.glu(m.up(x))), **linear(14)), (B, T, 4), 7),
    "lstm": (
        Site(lambda m, x: m.act(m.up(x)[0]), up=nn.LSTM(4, T, 2, batch_first=True)),
        (B, T, 4),
        T,
    ),
    "two directions": (
        Site(lambda m, x: m.act(m.up(x)[0]), up=nn.LSTM(4, 7, bidirectional=True)),
        (T, B, 4),
        14,
    ),
    "gru": (Site(lambda m, x: m.act(m.up(x)[0]), up=nn.GRU(4, T, batch_first=True)), (B, T, 4), T),
    "rnn": (Site(lambda m, x: m.act(m.up(x)[0]), up=nn.RNN(4, 7, batch_first=True)), (B, T, 4), 7),
    "cell": (Site(lambda m, x: m.act(m.up(x)[0]), up=nn.LSTMCell(4, 7)), (B, 4), 7),
    "conv1d": (Site(lambda m, x: m.act(m.up(x)), up=nn.Conv1d(4, T, 1)), (B, 4, T), T),
    "conv1d, transposed": (
        Site(lambda m, x: m.act(m.up(x).transpose(1, 2)), up=nn.Conv1d(4, 6, 1)),
        (B, 4, T),
        6,
    ),
    "heads": (
        Site(lambda m, x: m.act(m.up(x).view(B, T, H, 7).transpose(1, 2)), **linear(14)),
        (B, T, 4),
        14,
    ),
    "windows": (Site(windows, **linear(6)), (B, 4, 4, 4), 6),
    "patches": (
        Site(lambda m, x: m.act(m.up(x).flatten(2).transpose(1, 2)), up=nn.Conv2d(1, 16, 3)),
        (B, 1, 6, 6),
        16,
    ),
    "channels last": (
        Site(lambda m, x: m.act(m.up(x.movedim(1, -1))), **linear(7)),
        (B, 4, T, T),
        7,
    ),
    "view and batch norm": (
        Site(
            lambda m, x: m.act(m.norm(m.up(x).view(-1, 6, 3, 3))),
            norm=nn.BatchNorm2d(6),
            **linear(54),
        ),
        (B, 4),
        6,
    ),
    "view alone": (Site(lambda m, x: m.act(m.up(x).view(-1, 6, 3, 3)), **linear(54)), (B, 4), 54),
    "flattened": (
        Site(lambda m, x: m.act(m.up(x).flatten(1)), up=nn.Conv2d(1, 4, 3)),
        (B, 1, 6, 6),
        64,
    ),
    "norm of two axes": (
        Site(lambda m, x: m.act(m.norm(m.up(x))), up=nn.Conv1d(4, 6, 1), norm=nn.LayerNorm([6, T])),
        (B, 4, T),
        6,
    ),
    "instance norm": (
        Site(lambda m, x: m.act(m.norm(m.up(x))), up=nn.Conv2d(4, 6, 1), norm=nn.InstanceNorm2d(6)),
        (B, 4, T, T),
        6,
    ),
    "group norm": (
        Site(lambda m, x: m.act(m.norm(m.up(x))), up=nn.Conv2d(4, 6, 1), norm=nn.GroupNorm(2, 6)),
        (B, 4, T, T),
        6,
    ),
    "batch norm first": (
        Site(lambda m, x: m.act(m.norm(x)), norm=nn.BatchNorm2d(4)),
        (B, 4, T, T),
        4,
    ),
    "layer norm first": (Site(lambda m, x: m.act(m.norm(x)), norm=nn.LayerNorm(4)), (B, T, 4), 4),
    "transposed convolution": (
        Site(lambda m, x: m.act(m.up(x)), up=nn.ConvTranspose2d(4, 8, 2)),
        (B, 4, T, T),
        8,
    ),
    "bilinear": (Site(lambda m, x: m.act(m.up(x, x)), up=nn.Bilinear(4, 4, 6)), (B, T, 4), 6),
    "own layer": (Site(lambda m, x: m.act(x @ m.w), w=weight(4, T)), (B, T, 4), T),
    "from the left": (Site(lambda m, x: m.act(m.w @ x), w=weight(T, 4)), (B, 4, T), T),
    "einsum": (
        Site(lambda m, x: m.act(torch.einsum("btf,gf->bgt", x, m.w)), w=weight(T, 4)),
        (B, T, 4),
        T,
    ),
    "spectral norm": (
        Site(lambda m, x: m.act(m.up(x)), up=parametrizations.spectral_norm(nn.Linear(4, T))),
        (B, T, 4),
        T,
    ),
    "spectral norm by hooks": (
        Site(lambda m, x: m.act(m.up(x)), up=spectral_norm(nn.Linear(4, T))),
        (B, T, 4),
        T,
    ),
    "weight norm": (
        Site(lambda m, x: m.act(m.up(x)), up=parametrizations.weight_norm(nn.Conv1d(4, T, 1))),
        (B, 4, T),
        T,
    ),
    "neighbours": (
        Site(lambda m, x: m.act(torch.softmax(x @ x.mT, -1) @ m.up(x)), **linear(T)),
        (B, T, 4),
        T,
    ),
    "mixer": (Site(lambda m, x: m.act(m.up(x.mT)), up=nn.Linear(T, 6)), (B, T, 4), 6),
    "residual": (Site(lambda m, x: m.act(x + m.up(x)), **linear(4)), (B, T, 4), 4),
    "noise as input": (
        Site(lambda m, _: m.act(m.up(torch.randn(B, T, 4))), **linear(7)),
        (B, T, 4),
        7,
    ),
    "learned input": (
        Site(lambda m, _: m.act(m.up(m.w)), w=weight(B, T, 4), **linear(7)),
        (B, T, 4),
        7,
    ),
    "written in parts": (Site(written, **linear(6)), (B, T, 4), 6),
    "attention": (
        Site(
            lambda m, x: m.act(m.up(x, x, x)[0]),
            up=nn.MultiheadAttention(4, 2, batch_first=True),
        ),
        (B, T, 4),
        4,
    ),
    "embedding": (
        Site(lambda m, x: m.act(m.up(x[..., 0].long().abs())), up=nn.Embedding(9, 6)),
        (B, T, 4),
        6,
    ),
    "pooled": (Site(lambda m, x: m.act(m.up(x).mean(1)), **linear(7)), (B, T, 4), 7),
    "stacked": (Site(lambda m, x: m.act(torch.stack([m.up(x)] * 2, 1)), **linear(7)), (B, T, 4), 7),
    "masked": (Site(lambda m, x: m.act(m.up(x)[:, [0, 2]]), **linear(7)), (B, T, 4), 7),
    "detached": (Site(lambda m, x: m.act(m.up(x).detach()), **linear(7)), (B, T, 4), 7),
    "shuffled pixels": (
        Site(lambda m, x: m.act(F.pixel_shuffle(m.up(x), 2)), up=nn.Conv2d(4, 8, 1)),
        (B, 4, 2, 2),
        2,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_units_are_found_whatever_moves_their_axis(name):
    model, shape, units = LAYOUTS[name]
    x = torch.randn(shape)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            torch.manual_seed(3)
            expected = model.eval()(x)
            with ActivationProbe(model) as probe:
                for _ in range(3):  # the first is followed, the others use what was found
                    torch.manual_seed(3)
                    assert torch.equal(model(x), expected), mode
        assert [site.post.units for site in probe.sites.values()] == [units], mode


attend = F.scaled_dot_product_attention
UNCERTAIN = {
    "input": Site(lambda m, x: m.act(x)),
    "attention": Site(
        lambda m, x: m.act(F.scaled_dot_product_attention(x, x, m.up(x))), **linear(4)
    ),
    "sorted": Site(lambda m, x: m.act(m.up(x).sort(-1)[0]), **linear(4)),
    "merged": Site(lambda m, x: m.act(m.up(x).view(B, -1, 2).mT), **linear(4)),
    "one unit": Site(lambda m, x: m.act(m.up(x).squeeze(-1)), **linear(1)),
}


@pytest.mark.parametrize("name", UNCERTAIN)
def test_what_is_not_certain_is_refused_in_one_line(name):
    model, x = UNCERTAIN[name], torch.randn(B, T, 4)
    with ActivationProbe(model), pytest.raises(BenchError) as caught:
        model(x)
    assert re.fullmatch(
        r"site 'act' has values of shape \([\d, ]+\), and it is not certain which axis holds the"
        r" units: pass unit_axis with its number, or a mapping such as \{'act': -1\}",
        str(caught.value),
    )
    with ActivationProbe(model, unit_axis=-1) as probe:
        model(x)
    assert probe.frame()["units"][0] > 0


def test_units_need_an_axis_behind_that_of_the_examples():
    for model, shape in (
        (nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU()), (4, 3, 3)),
        (Site(lambda m, x: m.act(m.up(x).permute(2, 0, 1)), **linear(6)), (B, T, 4)),
    ):
        with ActivationProbe(model), pytest.raises(BenchError, match="units on the first axis"):
            model(torch.randn(shape))


@pytest.mark.parametrize(
    ("axis", "units"), [(1, 4), (-1, 7), (2, 5), ((1, 3), 28), ((-1, -2, 1), 140), ({"act": -1}, 7)]
)
def test_the_axis_of_the_units_can_be_named(axis, units):
    model, x = Site(lambda m, x: m.act(x)), torch.randn(B, 4, 5, 7, requires_grad=True)
    with ActivationProbe(model, unit_axis=axis) as probe:
        model(x).square().sum().backward()
    row = probe.frame().iloc[0]
    assert row["units"] == units
    assert row["negative_fraction"] == (x <= 0).double().mean()
    axes = axis["act"] if isinstance(axis, dict) else axis
    axes = {a % 4 for a in (axes if isinstance(axes, tuple) else (axes,))}
    others = [a for a in range(4) if a not in axes]
    dead = (model.act(x) == 0).permute(*others, *axes).flatten(len(others)).flatten(0, -2).all(0)
    assert row["dead_units"] == dead.sum()
    assert row["zero_grad_units"] == dead.sum()


def test_a_module_can_name_its_own_axis():
    model = Site(lambda m, x: m.act(x))
    model.act.unit_axis = 2
    with ActivationProbe(model) as probe:
        model(torch.randn(B, 4, 5, 7))
    assert probe.frame()["units"][0] == 5
    with ActivationProbe(model, unit_axis=3) as probe:
        model(torch.randn(B, 4, 5, 7))
    assert probe.frame()["units"][0] == 7


@pytest.mark.parametrize(
    ("axis", "error", "message"),
    [
        ("last", UsageError, "unit_axis: must be a whole number or a tuple of them, got 'last'"),
        (True, UsageError, "unit_axis: must be a whole number or a tuple of them, got True"),
        ((), UsageError, r"unit_axis: must be a whole number or a tuple of them, got \(\)"),
        ({"act": 1.5}, UsageError, "unit_axis: must be a whole number or a tuple of them, got 1.5"),
        ({"acd": 1}, UsageError, "unknown site 'acd'; did you mean 'act'?"),
        (0, BenchError, "unit_axis: must be from 1 to 2, or from -2 to -1, for the values of site"),
        ((1, -2), BenchError, r"of site 'act' of shape \(3, 5, 4\), got 1, -2"),
        (3, BenchError, r"of site 'act' of shape \(3, 5, 4\), got 3"),
    ],
)
def test_a_wrong_axis_is_one_line(axis, error, message):
    model = Site(lambda m, x: m.act(x))
    with pytest.raises(error, match=message), ActivationProbe(model, unit_axis=axis):
        model(torch.randn(B, T, 4))


def test_calls_of_one_module_can_have_different_axes():
    model = Site(lambda m, x: m.act(m.act(x).mT))
    with ActivationProbe(model, unit_axis={"act#1": 1, "act#2": -1}) as probe:
        model(torch.randn(B, T, 4))
    assert probe.frame()["units"].tolist() == [T, T]


def test_measure_takes_the_axis_too():
    model = Site(lambda m, x: m.head(m.act(x).mean(1)), head=nn.Linear(4, 3))
    images, labels = torch.randn(9, T, 4), torch.arange(9) % 3
    with pytest.raises(BenchError, match="not certain which axis"):
        measure(model, images, labels)
    assert measure(model, images, labels, unit_axis=1).layers[0]["units"] == T


def test_a_pass_with_other_axes_than_the_first_is_refused():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    with ActivationProbe(model) as probe:
        model(torch.randn(B, 4))
        with pytest.raises(BenchError, match="not certain which axis"):
            model(torch.randn(B, T, 4))
        model(torch.randn(B + 1, 4))
    assert probe.frame()["units"].tolist() == [6]


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


# Gradients of the weights -----------------------------------------------------------------


class Checkpointed(nn.Module):
    """Four layers, the second and third of them recomputed in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(4))
        self.reentrant = reentrant

    def forward(self, x):
        x = self.layers[0](x)
        inner = nn.Sequential(*self.layers[1:3])
        x = checkpoint(inner, x, use_reentrant=self.reentrant)
        return self.layers[3](x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_after_a_checkpoint_a_site_has_its_own_layer(reentrant):
    model, x = Checkpointed(reentrant), torch.randn(9, 6)
    with ActivationProbe(model) as probe:
        model(x).square().sum().backward()
    gradients = [norm(layer[0].weight.grad) for layer in model.layers]
    assert probe.frame()["grad_norm"].tolist() == gradients
    # A re-entrant checkpoint runs without a graph at first: there is no gradient at these inputs.
    missing = probe.frame()["pre_grad_norm"].isna().tolist()
    assert missing == [False, reentrant, reentrant, False]


def test_a_function_behind_a_checkpoint_has_the_weights_inside():
    model = Site(
        lambda m, x: m.act(checkpoint(m.inner, m.up(x), use_reentrant=True)),
        up=nn.Linear(4, 6),
        inner=nn.Sequential(nn.Linear(6, 5), nn.Tanh()),
    )
    with ActivationProbe(model, sites=["act"]) as probe:
        model(torch.randn(9, 4)).square().sum().backward()
    assert probe.frame()["grad_norm"][0] == norm(model.inner[0].weight.grad)


@pytest.mark.parametrize(
    "between",
    [
        nn.LayerNorm([5, 3]),
        nn.BatchNorm1d(5),
        nn.GroupNorm(1, 5),
        nn.InstanceNorm1d(5, affine=True),
        nn.PReLU(5),
        nn.RMSNorm([5, 3]),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_normalisation_is_not_the_layer_that_feeds(between):
    model = nn.Sequential(nn.Conv1d(4, 5, 1), between, nn.ReLU(), nn.Flatten(), nn.Linear(15, 2))
    with ActivationProbe(model, sites=["2"]) as probe:
        model(torch.randn(7, 4, 3)).square().sum().backward()
    row = probe.frame().iloc[0]
    assert row["units"] == 5
    assert row["grad_norm"] == norm(model[0].weight.grad)
    assert row["weight_norm"] == pytest.approx(model[0].weight.norm().item())
