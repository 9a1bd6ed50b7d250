"""The probe on models of all kinds: what it sees, and that it leaves nothing behind."""

import json
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import CLASSES, FEATURES, N, backward, batch, cnn, mlp, norm, same, traces
from torch import nn

from nsrelu_bench.activations.modules import NSReLU
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.measures import probe as probe_module
from nsrelu_bench.measures.measurement import measure
from nsrelu_bench.measures.metrics import MEASURES
from nsrelu_bench.measures.probe import ActivationProbe
from nsrelu_bench.measures.sites import GRADIENT_MEASURES, PROBE_MEASURES


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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


def test_the_mode_is_kept():
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


class Viewed(nn.Module):
    """An activation of a view."""

    def __init__(self, view, inplace) -> None:
        super().__init__()
        self.linear, self.view, self.act = nn.Linear(FEATURES, 8), view, nn.ReLU(inplace)

    def forward(self, x):
        return self.act(self.view(self.linear(x) * 1))


VIEWS = {
    "whole": lambda x: x.view(-1, 2, 4),
    "moved": lambda x: x.view(-1, 2, 4).transpose(1, 2),
    "half": lambda x: x[:, 2:6],
    "every second": lambda x: x[:, ::2].unflatten(1, (2, 2)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_an_overwritten_view_has_the_gradient_at_its_input(view):
    frames = []
    for inplace in (False, True):
        torch.manual_seed(2)
        model = Viewed(VIEWS[view], inplace)
        with ActivationProbe(model) as probe:
            model(torch.randn(N, FEATURES)).square().sum().backward()
        frames.append(probe.frame())
    assert frames[0].equals(frames[1])
    assert frames[0]["pre_grad_norm"][0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wrapped", "inside", "in place"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_models_stay_compiled(way):
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


# Backward passes --------------------------------------------------------------------------


class Forces(nn.Module):
    """A model that differentiates in its own forward, as for forces and gradient penalties."""

    def __init__(self, create_graph: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Softplus(), nn.Linear(8, 1))
        self.create_graph = create_graph

    def forward(self, x):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            energy = self.net(x).sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=self.create_graph)
        return force


def test_a_backward_pass_inside_of_forward_does_not_count():
    model, x = Forces(), torch.randn(6, 3)
    with ActivationProbe(model) as probe:
        forces = model(x)
    assert probe.frame()["pre_grad_norm"].isna().all()
    with ActivationProbe(model) as probe:
        assert torch.equal(model(x), forces)
        model(x).square().sum().backward()  # through it: of the second of the passes
    pre = model.net[0](x)
    pre.requires_grad_()
    pre.retain_grad()
    weight = model.net[2].weight * torch.sigmoid(pre)  # of softplus
    (weight @ model.net[0].weight).square().sum().backward()
    assert probe.frame()["pre_grad_norm"][0] == norm(pre.grad)
    with torch.no_grad(), ActivationProbe(model) as probe:
        model(x)


def test_a_backward_pass_through_a_failed_pass_is_harmless():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x, keep):
            keep.append(self.inner(x).sum())
            raise KeyError("stop")

    model, keep = Failing(), []
    with ActivationProbe(model) as probe:
        with pytest.raises(KeyError, match="stop"):
            model(torch.randn(4, FEATURES), keep)
        keep[0].backward()
    with pytest.raises(BenchError, match="saw no pass"):
        probe.frame()


def test_two_backward_passes_over_one_forward_add_up():
    model = mlp(lambda: NSReLU(0.1), depth=1)
    images, _ = batch(model)
    pre = model.linear1(images)
    pre.retain_grad()
    first, second = model.head(model.act1(pre)).square().sum(0)[:2]
    (first - 0.9 * second).backward()
    expected, weights = pre.grad, model.linear1.weight.grad
    model.zero_grad()
    extra = torch.where(pre <= 0, expected, 0)
    with ActivationProbe(model) as probe:
        first, second = model(images).square().sum(0)[:2]
        first.backward(retain_graph=True)
        (-0.9 * second).backward()
        model(images)  # a pass without any
    row = probe.frame().iloc[0]
    assert row["pre_grad_norm"] == norm(expected)
    assert row["grad_norm"] == norm(weights)
    assert row["extra_grad_up"] == norm(extra.clamp(max=0))
    assert row["zero_grad_units"] == (expected == 0).all(0).sum()


def test_backward_passes_of_different_passes_add_as_batches():
    model = mlp()
    images, labels = batch(model)
    squares = []
    with ActivationProbe(model) as probe:
        losses = []
        for part, target in zip(images.split(9), labels.split(9), strict=True):
            losses.append(F.cross_entropy(model(part), target))
        for loss in reversed(losses):  # all graphs live, and the last comes first
            loss.backward()
    for part, target in zip(images.split(9), labels.split(9), strict=True):
        pre = model.linear1(part)
        pre.retain_grad()
        F.cross_entropy(model[1:](pre), target).backward()
        squares.append(pre.grad.square().sum())
    assert probe.frame()["pre_grad_norm"][0] == pytest.approx(sum(squares).sqrt().item())


def test_gradients_live_no_longer_than_their_graphs():
    model = mlp()
    images, labels = batch(model)
    with ActivationProbe(model) as probe:
        for _ in range(5):
            backward(model, images, labels)
        record = probe._records["act1", 1]
        assert [len(gradients._open) for gradients in (record.grad, record.extra)] == [1, 1]


def test_batched_gradients_do_not_count_and_break_nothing():
    model = mlp()
    images, _ = batch(model)
    with ActivationProbe(model) as probe:
        logits = model(images).sum(0)
        torch.autograd.grad(logits, model.linear1.weight, torch.eye(3), is_grads_batched=True)
    assert probe.frame()["pre_grad_norm"].isna().all()


def test_a_functional_gradient_has_no_extra_measures():
    model = mlp(lambda: NSReLU(0.1))
    images, _ = batch(model)
    weights = dict(model.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (images,)).square().sum()

    expected = torch.func.grad(loss)(weights)
    with ActivationProbe(model) as probe:
        found = torch.func.grad(loss)(weights)
    assert all(torch.equal(found[name], expected[name]) for name in weights)
    table = probe.frame()
    assert table["extra_grad_up"].isna().all()
    with ActivationProbe(model) as ordinary:
        loss(weights).backward()
    assert table["pre_grad_norm"].tolist() == ordinary.frame()["pre_grad_norm"].tolist()


def test_a_site_under_vmap_is_refused():
    model = mlp()
    model.forward = lambda x: torch.vmap(lambda one: model.act1(model.linear1(one)))(x)
    with ActivationProbe(model), pytest.raises(BenchError, match="'act1' runs under vmap"):
        model(torch.randn(4, FEATURES))


@pytest.mark.parametrize("activation", [nn.ReLU, lambda: NSReLU(0.1)])
def test_gradients_of_each_example_are_refused(activation):
    model = mlp(activation)
    images, _ = batch(model)
    weights = dict(model.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))
    with ActivationProbe(model), pytest.raises(BenchError, match="runs under vmap"):
        each(weights, images)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_no_mode_behind(kind):
    class Failing(nn.Sequential):
        def forward(self, x):
            super().forward(x)
            raise kind

    model = Failing(nn.Linear(4, 4), nn.ReLU())
    with ActivationProbe(model), pytest.raises(kind):
        model(torch.randn(3, 4))
    assert torch._C._len_torch_dispatch_stack() == 0
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_model_that_calls_itself_is_one_pass():
    class Tree(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.act = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x, depth=2):
            x = self.act(self.linear(x))
            return self(x, depth - 1) if depth else x

    model = Tree()
    with ActivationProbe(model) as probe:
        model(torch.randn(3, 4)).sum().backward()
    assert probe.frame()["layer"].tolist() == ["act#1", "act#2", "act#3"]
    assert torch._C._len_torch_dispatch_stack() == 0


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_transformers_have_their_sites_in_evaluation_too():
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(3, 5, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
        with ActivationProbe(model) as probe:
            found = model(x, src_key_padding_mask=padding)
    assert probe.frame()["layer"].tolist() == ["layers.0.activation", "layers.1.activation"]
    assert torch.allclose(found[~padding], expected[~padding], atol=1e-6)


def test_small_batches_pooled_give_what_large_ones_do():
    model = mlp(lambda: NSReLU(0.1))
    images, _ = batch(model, 100)
    frames = []
    for cut in (1, 7, 100):
        with ActivationProbe(model) as probe:
            for part in images.split(cut):
                model(part).square().sum().backward()
            half = probe.frame()  # looking changes nothing
        frames.append(probe.frame())
        assert frames[-1].equals(half)
    for frame in frames[1:]:
        for row, expected in zip(*(f.to_dict("records") for f in (frame, frames[0])), strict=True):
            same(row, expected)


def peak_memory(run, folder) -> int:
    """The most memory in bytes that a function holds beyond what there was."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        run()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    held = [e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]"]
    return max(held) - held[0]


@pytest.mark.slow
@pytest.mark.parametrize("inplace", [False, True])
def test_a_probe_holds_less_than_one_more_activation(tmp_path, inplace):
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(inplace))
    images = torch.randn(8, 3, 96, 96)
    activation = model(images).nbytes
    expected = peak_memory(lambda: model(images), tmp_path)
    with ActivationProbe(model, measures=set(PROBE_MEASURES) - GRADIENT_MEASURES):
        model(images)
        assert peak_memory(lambda: model(images), tmp_path) - expected < activation


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


def test_a_single_activation_is_a_model():
    with ActivationProbe(nn.ReLU()) as probe:
        probe._model(torch.tensor([[1.0, -1.0]]))
    assert probe.frame()[["layer", "zero_fraction"]].values.tolist() == [["ReLU", 0.5]]


def test_measuring_only_the_loss_needs_no_site(monkeypatch):
    def never(*_):
        raise AssertionError("a site was measured")

    monkeypatch.setattr(probe_module, "pre_update", never)
    model = mlp()
    found = measure(model, *batch(model), measures=("loss", "accuracy"))
    assert found.finite
    assert found.layers == []
    assert found.totals["loss"] > 0
