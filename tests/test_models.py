import itertools
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.activations import LocalConv2d, LocalLinear, NSReLU
from nsrelu_bench.config.registry import FIXED_DEPTH
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.measures.measurement import measure
from nsrelu_bench.models import INITS, MODELS, RAI_DEVIATION, build_model, initialise
from nsrelu_bench.tools.born_dead import born_dead
from nsrelu_bench.training.loop import run

IMAGE_SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8)]
SITES = {"mlp": 4, "deep_narrow": 4, "cnn": 4, "vgg11": 8, "vgg16": 13, "resnet18": 17}


def build(seed: int = 0, shape: tuple[int, int, int] = (1, 28, 28), **settings: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(RunConfig(**settings), shape, 10)


def sites(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name.startswith("act")]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# The models -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", IMAGE_SHAPES)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_every_shape(
    name: str, batch_norm: bool, shape: tuple[int, int, int]
) -> None:
    model = build(model=name, batch_norm=batch_norm, dropout=0.1, width=4, shape=shape)
    assert model(torch.randn(5, *shape)).shape == (5, 10)


@pytest.mark.parametrize("name", MODELS)
def test_every_site_is_its_own_module_in_order(name: str) -> None:
    depth = {} if name in FIXED_DEPTH else {"depth": 4}
    model = build(model=name, width=4, **depth)
    called: list[str] = []
    for site in sites(model):
        model.get_submodule(site).register_forward_hook(lambda *_, site=site: called.append(site))
    model(torch.randn(2, 1, 28, 28))
    assert called == sites(model) == [f"act{i + 1}" for i in range(SITES[name])]
    assert len({id(model.get_submodule(site)) for site in called}) == SITES[name]


def vgg_parameters(*channels: int) -> int:
    """Count by hand: 3x3 convolutions with bias from one to the next, and the head."""
    pairs = itertools.pairwise(channels[:-1])
    return sum((9 * a + 1) * b for a, b in pairs) + (channels[-2] + 1) * channels[-1]


VGG11 = (64, 128, 256, 256, 512, 512, 512, 512)
VGG16 = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@pytest.mark.parametrize(
    ("name", "batch_norm", "shape", "expected"),
    [
        ("mlp", False, (1, 28, 28), 784 * 128 + 128 + 2 * (128 * 128 + 128) + 128 * 10 + 10),
        ("mlp", True, (1, 28, 28), 784 * 128 + 128 + 2 * (128 * 128 + 128) + 1290 + 3 * 256),
        ("deep_narrow", False, (1, 28, 28), 785 * 16 + 19 * 17 * 16 + 170),
        ("cnn", False, (1, 28, 28), 16 * 9 + 16 + 32 * 16 * 9 + 32 + 64 * 32 * 9 + 64 + 640 + 10),
        ("cnn", False, (3, 32, 32), 16 * 27 + 16 + 32 * 16 * 9 + 32 + 64 * 32 * 9 + 64 + 640 + 10),
        ("vgg11", False, (3, 32, 32), vgg_parameters(3, *VGG11, 10)),
        ("vgg11", True, (3, 32, 32), 9_231_114),  # kuangliu/pytorch-cifar's VGG('VGG11')
        ("vgg16", False, (3, 32, 32), vgg_parameters(3, *VGG16, 10)),
        ("vgg16", True, (3, 32, 32), 14_728_266),  # its VGG('VGG16')
        ("resnet18", True, (3, 32, 32), 11_173_962),  # its ResNet18()
        ("resnet18", False, (3, 32, 32), 11_173_962 - 4800),  # 1 bias for 2 of the norm: 4,800
    ],
)
def test_parameter_counts(
    name: str, batch_norm: bool, shape: tuple[int, int, int], expected: int
) -> None:
    assert parameters(build(model=name, batch_norm=batch_norm, shape=shape)) == expected


def test_the_table_of_the_models_page_is_true() -> None:
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    table = {
        cells[0].strip("` "): [cell.strip().replace(",", "") for cell in cells]
        for cells in (line.strip("|").split("|") for line in page.splitlines() if "|" in line)
    }
    for name in MODELS:
        config = RunConfig(model=name)
        plain, normed = (build(model=name, batch_norm=b, shape=(3, 32, 32)) for b in (False, True))
        width, depth, n_sites, *counts = table[name][2:7]
        assert [int(width), int(depth)] == [config.width, config.depth]
        assert int(n_sites) == len(sites(plain))
        assert [int(count) for count in counts] == [parameters(plain), parameters(normed)]


def test_vgg_halves_the_image_five_times_down_to_one_pixel() -> None:
    for shape, pools in (((3, 32, 32), 5), ((1, 28, 28), 4), ((1, 8, 8), 3), ((1, 64, 64), 5)):
        model = build(model="vgg16", width=2, shape=shape)
        assert sum(isinstance(module, nn.MaxPool2d) for module in model.modules()) == pools


def reference_resnet(model: nn.Module, images: Tensor, batch_norm: bool) -> Tensor:
    """Compute ResNet-18 from its weights, written out with functions."""
    weights = dict(model.named_parameters())

    def convolve(name: str, norm: str, values: Tensor, stride: int = 1) -> Tensor:
        side = weights[f"{name}.weight"].shape[-1]
        bias = weights.get(f"{name}.bias")
        values = F.conv2d(values, weights[f"{name}.weight"], bias, stride, padding=side // 2)
        if not batch_norm:
            return values
        scale, shift = weights[f"{norm}.weight"], weights[f"{norm}.bias"]
        return F.batch_norm(values, None, None, scale, shift, training=True)

    values = convolve("conv1", "norm1", images).relu()
    for block in range(8):
        first, last = f"{2 * block + 2}", f"{2 * block + 3}"
        stride = 2 if block in (2, 4, 6) else 1
        branch = convolve(f"conv{first}", f"norm{first}", values, stride).relu()
        branch = convolve(f"conv{last}", f"norm{last}", branch)
        if stride == 2:
            values = convolve(f"shortcut{last}.0", f"shortcut{last}.1", values, stride)
        values = (values + branch / (1 if batch_norm else math.sqrt(8))).relu()
    return F.linear(values.mean((2, 3)), weights["head.weight"], weights["head.bias"])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_resnet18_is_the_published_one(batch_norm: bool) -> None:
    model = build(model="resnet18", act="relu", batch_norm=batch_norm, width=4, shape=(3, 16, 16))
    images = torch.randn(6, 3, 16, 16)
    expected = reference_resnet(model, images, batch_norm)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("act", ["relu", "leaky_relu", "nsrelu"])
@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
def test_working_in_place_changes_no_gradient(name: str, act: str) -> None:
    model = build(model=name, act=act, width=4, shape=(1, 8, 8), batch_norm=True)
    images = torch.randn(6, 1, 8, 8)
    gradients = []
    for inplace in (True, False):
        for site in sites(model):
            module: Any = model.get_submodule(site)
            assert hasattr(module, "inplace")
            module.inplace = inplace
        gradients.append(torch.autograd.grad(model(images).logsumexp(1).sum(), model.parameters()))
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize(("name", "expected"), [("vgg16", 13), ("resnet18", 8), ("mlp", 3)])
def test_dropout_is_at_its_documented_places(name: str, expected: int) -> None:
    model, without = (build(model=name, width=4, dropout=p) for p in (0.25, 0.0))
    assert not any(isinstance(module, nn.Dropout) for module in without.modules())
    used: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda drop, *_: used.append(drop.p))
    model(torch.randn(2, 1, 28, 28))
    assert used == [0.25] * expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch_norm"), [("resnet18", False), ("resnet18", True), ("vgg16", True)]
)
def test_deep_convolutional_models_learn(name: str, batch_norm: bool) -> None:
    model = build(model=name, width=8, shape=(1, 8, 8), batch_norm=batch_norm)
    images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(32) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(40):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert loss.item() < 0.2


@pytest.mark.parametrize("init", ["he", "rai"])
def test_signals_keep_their_size_in_resnet18_without_norm(init: str) -> None:
    model = build(model="resnet18", width=16, init=init, shape=(3, 16, 16))
    sizes: dict[str, float] = {}
    for site in sites(model)[::2]:

        def keep(_: nn.Module, __: object, output: Tensor, site: str = site) -> None:
            sizes[site] = output.pow(2).mean().item()

        model.get_submodule(site).register_forward_hook(keep)
    model(torch.randn(8, 3, 16, 16))
    assert 0.1 < sizes["act17"] / sizes["act1"] < 10


@pytest.mark.slow
@pytest.mark.parametrize("act", ["relu", "nsrelu", "relu/gelu"])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_a_model_waits_for_no_value(name: str, act: str) -> None:
    # Tensors on `meta` have none: what asks for one, and would make a GPU wait, fails there.
    model = build(model=name, act=act, width=4, batch_norm=True, dropout=0.1).to("meta")
    images, labels = torch.empty(8, 1, 28, 28, device="meta"), torch.empty(8, device="meta").long()
    torch.autograd.backward(F.cross_entropy(model(images), labels))
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


# What the probe makes of them -------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [False, True])
def test_layer_measures_of_resnet18_are_of_feeding_weights(
    batch_norm: bool,
) -> None:
    shape, labels = (3, 16, 16), torch.arange(40) % 10
    model, tied = (
        build(model="resnet18", act=act, width=4, shape=shape, batch_norm=batch_norm).eval()
        for act in ("nsrelu(0.3)", "relu")
    )
    images = torch.randn(40, *shape)
    rows = measure(model, images, labels, batch_size=16).layers
    assert [row["layer"] for row in rows] == sites(model)
    for each in (model, tied):
        F.cross_entropy(each(images), labels).backward()
    for row in rows:
        number = row["layer"].removeprefix("act")
        names = [f"conv{number}.weight", f"shortcut{number}.0.weight"]
        followed, true = (
            torch.cat([p.grad.flatten() for name, p in each.named_parameters() if name in names])
            for each in (model, tied)
        )
        assert row["grad_norm"] == pytest.approx(followed.norm().item(), rel=1e-3), number
        cosine = F.cosine_similarity(followed, true, dim=0).item()
        assert row["surrogate_cosine"] == pytest.approx(cosine, abs=1e-4), number
    assert rows[0]["surrogate_cosine"] < 0.999


# Initialisation ---------------------------------------------------------------------------


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", MODELS)
def test_two_activations_with_one_seed_start_equal(name: str, init: str) -> None:
    settings = {"model": name, "init": init, "width": 4}
    one, other = (build(act=act, **settings) for act in ("relu", "nsrelu(0.3)"))
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    unlike = build(seed=1, **settings)
    assert not torch.equal(next(one.parameters()), next(unlike.parameters()))


def test_he_initialisation_has_relus_variance_and_zero_biases() -> None:
    model = build(width=512, depth=2)
    linear = model.get_submodule("linear2")
    assert isinstance(linear, nn.Linear)
    assert linear.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert not linear.bias.any()


def test_default_initialisation_is_pytorchs() -> None:
    model = build(init="default", depth=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = nn.Linear(784, 128)
    assert torch.equal(model.get_submodule("linear1").weight, expected.weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda bias: nn.Linear(24, 6000, bias=bias),
        lambda bias: nn.Conv2d(6, 6000, (2, 2), bias=bias),
        lambda bias: nn.Conv1d(12, 6000, 2, bias=bias),
    ],
    ids=["linear", "conv2d", "conv1d"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_rai_draws_one_value_per_unit_from_beta(make: Callable[[bool], Any], bias: bool) -> None:
    layer = make(bias)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        initialise(layer, "rai")
    entries = layer.weight.detach().flatten(1)
    if bias:
        entries = torch.cat([entries, layer.bias.detach()[:, None]], 1)
    n = 24 + bias
    variance = RAI_DEVIATION**2 / 24  # of the normal, whose fan-in leaves the bias out
    # Beta(2, 1) has mean 2/3 and second moment 1/2; each entry is it with probability 1/n.
    assert entries.mean().item() == pytest.approx(2 / 3 / n, abs=0.002)
    assert entries[entries < 0].pow(2).mean().item() == pytest.approx(variance, rel=0.015)
    second = (0.5 + (n - 1) * variance) / n
    assert entries.pow(2).mean().item() == pytest.approx(second, rel=0.02)
    # 0.6 is 5 deviations of the normal: what lies above is the Beta's 1 - 0.36, wherever it is.
    assert (entries > 0.6).float().sum(1).max() == 1
    assert (entries > 0.6).float().mean(0).tolist() == pytest.approx([0.64 / n] * n, abs=0.008)
    assert entries.max() < 1


def test_rais_deviation_solves_the_equation_of_its_source() -> None:
    left = RAI_DEVIATION**2 / 2 + 2 * RAI_DEVIATION * (2 / 3) / math.sqrt(2 * math.pi) + 1 / 2
    assert left == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("width", [2, 3])
def test_rai_makes_deep_narrow_networks_die_less_often(width: int) -> None:
    inputs = torch.linspace(-math.sqrt(3), math.sqrt(3), 51)[:, None]

    @torch.no_grad()
    def share_dead(init: str, trials: int) -> float:
        dead = 0
        for _ in range(trials):
            sizes = [1] + [width] * 9
            layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
            network = nn.Sequential(*(m for layer in layers for m in (layer, nn.ReLU())))
            initialise(network, init)
            dead += not network(inputs).any()
        return dead / trials

    with torch.random.fork_rng():
        torch.manual_seed(0)
        he, rai = share_dead("he", 300), share_dead("rai", 300)
    assert he == pytest.approx(born_dead(width, 10, trials=5000).probability, abs=0.08)
    # The source trains 10 layers of width 2: 92 % and 94 % collapse with He's, 29 % and 33 % with
    # this, networks that die later counted.
    assert rai < 0.1


# The user's own ---------------------------------------------------------------------------

OWN_MODELS = """
    from torch import nn

    not_a_function = 3

    def net(activation, shape, classes):
        channels, height, width = shape
        return nn.Sequential(
            nn.Flatten(), nn.Linear(channels * height * width, 6), activation(),
            nn.LazyLinear(6), activation(), nn.Linear(6, classes),
        )

    def sulks(activation, shape, classes):
        raise ValueError("no such\\nluck")

    def number(activation, shape, classes):
        return 3

    def silent(activation, shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes), nn.ReLU())

    class Narrow(nn.Module):
        def __init__(self, activation, shape, classes):
            super().__init__()
            self.act = activation()

        def forward(self, images):
            raise ValueError("9 pixels, please")

    def many(activation, shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), activation())

    class Pair(nn.Module):
        def __init__(self, activation, shape, classes):
            super().__init__()
            self.act = activation()

        def forward(self, images):
            return images, images
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the user's modules, which is the current one."""
    (tmp_path / "their_nets").mkdir()
    (tmp_path / "their_nets" / "small.py").write_text(dedent(OWN_MODELS))
    (tmp_path / "broken_net.py").write_text("import torch\nfrom nowhere_at_all import net\n")
    (tmp_path / "leaving_net.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("their_nets", "broken_net", "leaving_net", "gated_net"):
            del sys.modules[name]


def test_a_users_model_comes_from_the_current_folder(own: Path) -> None:
    settings: dict[str, Any] = {"model": "their_nets.small:net", "shape": (1, 8, 8)}
    relu, nsrelu = (build(act=act, **settings) for act in ("relu", "nsrelu(0.3)"))
    assert [type(module).__name__ for module in nsrelu.children()][2] == "NSReLU"
    assert nsrelu.training
    assert not nsrelu.get_submodule("2").inplace  # their model may need the input again
    assert nsrelu.get_submodule("2") is not nsrelu.get_submodule("4")
    for a, b in zip(relu.parameters(), nsrelu.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not nsrelu.get_submodule("1").bias.any()
    assert not nsrelu.get_submodule("3").bias.any()  # lazy, and shaped before it is drawn
    assert build(init="default", **settings).get_submodule("1").bias.any()


def test_a_users_model_gets_local_if_it_takes_it(own: Path) -> None:
    with pytest.raises(UsageError) as error:
        build(model="their_nets.small:net", shape=(1, 8, 8), local=True)
    assert str(error.value) == (
        "local: their_nets.small:net does not offer it; its factory must take local=..., which says"
        " whether to use LocalLinear and LocalConv2d before activations (docs/models.md)"
    )
    shutil.copy(Path(__file__).parents[1] / "examples" / "gated_net.py", own)
    settings: dict[str, Any] = {"model": "gated_net:wide_net", "shape": (1, 8, 8)}
    for act in ("rescue(0.1)", "nsrelu(0.1)", "relu"):
        model = build(act=act, local=True, **settings)
        local = act != "relu"  # of relu nothing passes below 0 anyway
        assert isinstance(model.get_submodule("0"), LocalConv2d) == local
        assert isinstance(model.get_submodule("4"), LocalLinear) == local


@pytest.mark.parametrize("name", ["mlp", "deep_narrow", "cnn", "vgg11"])
def test_local_models_have_the_weights_and_names_of_the_others(name: str) -> None:
    settings: dict[str, Any] = {"model": name, "width": 4, "shape": (1, 8, 8)}
    local, plain = (build(act="rescue(0.1)", local=local, **settings) for local in (True, False))
    kinds = [type(m) for m in local.modules() if isinstance(m, (LocalLinear, LocalConv2d))]
    sites = [m for m in local.modules() if isinstance(m, NSReLU)]
    assert len(kinds) == len(sites)
    assert all((m.unit_axis, m.inplace) == (1, False) for m in sites)
    assert local.state_dict().keys() == plain.state_dict().keys()
    for one, other in zip(local.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_users_model_is_not_imported_before_it_is_used(own: Path) -> None:
    RunConfig(model="their_nets.small:net")
    assert "their_nets" not in sys.modules


@pytest.mark.parametrize(
    ("name", "kind", "line"),
    [
        (
            "their_net.small:net",
            UsageError,
            "model: no module 'their_net' in {here} or among the installed packages",
        ),
        (
            "their_nets.large:net",
            UsageError,
            "model: no module 'their_nets.large' in {here} or among the installed packages",
        ),
        (
            "broken_net:net",
            BenchError,
            "model: broken_net can't be imported: ModuleNotFoundError: No module named"
            " 'nowhere_at_all'",
        ),
        ("leaving_net:net", BenchError, "model: leaving_net can't be imported: SystemExit: 3"),
        (
            "their_nets.small:nett",
            UsageError,
            "model: module 'their_nets.small' ({here}/their_nets/small.py) has no 'nett'",
        ),
        (
            "their_nets.small:not_a_function",
            UsageError,
            "model: their_nets.small:not_a_function must be a function, got int"
            " ({here}/their_nets/small.py)",
        ),
        (
            "their_nets.small:sulks",
            BenchError,
            "model: their_nets.small:sulks failed: ValueError: no such luck",
        ),
        (
            "their_nets.small:number",
            BenchError,
            "model: their_nets.small:number must return a torch.nn.Module, got int",
        ),
        (
            "their_nets.small:silent",
            BenchError,
            "model: their_nets.small:silent returned a model without an activation; it must call"
            " the first argument once for every site",
        ),
        (
            "their_nets.small:Narrow",
            BenchError,
            "model: their_nets.small:Narrow can't take images of shape (2, 1, 8, 8): ValueError:"
            " 9 pixels, please",
        ),
        (
            "their_nets.small:many",
            BenchError,
            "model: their_nets.small:many must give logits of shape (2, 10) for images of shape"
            " (2, 1, 8, 8), got (2, 4)",
        ),
        (
            "their_nets.small:Pair",
            BenchError,
            "model: their_nets.small:Pair must give logits of shape (2, 10) for images of shape"
            " (2, 1, 8, 8), got tuple",
        ),
    ],
)
def test_an_error_in_a_users_model_is_one_line(
    own: Path, name: str, kind: type[BenchError], line: str
) -> None:
    with pytest.raises(BenchError) as error:
        build(model=name, shape=(1, 8, 8))
    assert str(error.value) == line.format(here=own)
    assert type(error.value) is kind


def test_the_models_page_has_an_example_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    (example,) = re.findall(r"as (\w+)\.py -->\n```python\n(.*?)```", page, re.DOTALL)
    (command,) = re.findall(r"nsrelu-bench train --model (\S+) --act '(\S+)'", page)
    (tmp_path / f"{example[0]}.py").write_text(example[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    try:
        *_, last = run(
            RunConfig(model=command[0], act=command[1], dataset="digits", epochs=4, probe_size=200)
        )
    finally:
        sys.modules.pop(example[0], None)
    assert [row["layer"] for row in last.layers] == ["1", "4"]
    assert last.metrics["test_accuracy"] > 0.8
