"""The probe on models that others wrote: it changes nothing, and agrees with a slow oracle."""

import doctest
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
from helpers.site_oracle import row_of, watch
from torch import Tensor, nn

from nsrelu_bench.measures.probe import ActivationProbe
from nsrelu_bench.measures.sites import ACTIVATIONS, PROBE_MEASURES

#: The table of the models, with the sites and units of each.
PAGE = Path(__file__).parents[2] / "docs" / "probe.md"


def classifier(name: str, size: int = 32) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
    def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
        return torchvision.models.get_model(name, num_classes=5), (torch.randn(2, 3, size, size),)

    return make


def segmenter(name: str) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
    def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
        model = torchvision.models.get_model(name, weights_backbone=None, num_classes=5)
        return model, (torch.randn(1, 3, 32, 32),)

    return make


def small_vit() -> tuple[nn.Module, tuple[Tensor, ...]]:
    settings = {"num_layers": 3, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 40, "num_classes": 5}
    model = torchvision.models.VisionTransformer(32, 8, **settings)
    return model, (torch.randn(2, 3, 32, 32),)


def small_swin(block: object) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
    def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
        settings = {"block": block} if block else {}
        model = torchvision.models.SwinTransformer(
            [4, 4], 12, [2, 2], [2, 4], [4, 4], num_classes=5, **settings
        )
        return model, (torch.randn(2, 3, 48, 48),)

    return make


def small_convnext() -> tuple[nn.Module, tuple[Tensor, ...]]:
    config = torchvision.models.convnext.CNBlockConfig
    model = torchvision.models.ConvNeXt([config(12, 20, 2), config(20, None, 2)], num_classes=5)
    return model, (torch.randn(2, 3, 48, 48),)


def small_maxvit() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = torchvision.models.MaxVit((56, 56), 16, 7, [16, 32], [1, 2], 8, 0.0, num_classes=5)
    return model, (torch.randn(2, 3, 56, 56),)


def small_mvit() -> tuple[nn.Module, tuple[Tensor, ...]]:
    config = torchvision.models.video.mvit.MSBlockConfig
    blocks = [config(1, 8, 8, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]) for _ in range(2)]
    model = torchvision.models.video.MViT(
        (32, 32), 8, blocks, False, True, False, False, num_classes=5
    )
    return model, (torch.randn(1, 3, 8, 32, 32),)


def video() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return torchvision.models.get_model("r3d_18", num_classes=5), (torch.randn(1, 3, 2, 16, 16),)


def flow() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = torchvision.models.get_model("raft_small")
    return model, tuple(torch.randn(1, 3, 128, 128) for _ in range(2))


def transformer(**settings) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
    def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
        model = nn.Transformer(
            12, 3, 2, 2, 20, activation=nn.ReLU(), batch_first=True, dropout=0.0, **settings
        )
        return model, (torch.randn(3, 7, 12), torch.randn(3, 5, 12))

    return make


def encoder() -> tuple[nn.Module, tuple[Tensor, ...]]:
    layer = nn.TransformerEncoderLayer(12, 2, 20, activation=nn.GELU(), batch_first=True)
    return nn.TransformerEncoder(layer, 3), (torch.randn(3, 7, 12),)


class Recurrent(nn.Module):
    """A recurrent layer, with an activation and a head for every step."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(6, 9, batch_first=True)
        self.act, self.head = nn.Tanh(), nn.Sequential(nn.Linear(9, 11), nn.ReLU())

    def forward(self, x):
        return self.head(self.act(self.layer(x)[0]))


class Cells(nn.Module):
    """A cell that is called for every step, each time followed by the same activation."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.act, self.head = nn.GRUCell(6, 9), nn.ReLU(), nn.Linear(9, 2)

    def forward(self, x):
        state = x.new_zeros(len(x), 9)
        for t in range(x.shape[1]):
            state = self.act(self.cell(x[:, t], state))
        return self.head(state)


class UNet(nn.Module):
    """Convolutions down and up, with a shortcut that is joined to the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ELU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 9, 3, padding=1), nn.SiLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(9, 6, 2, 2), nn.InstanceNorm2d(6), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(12, 4, 1), nn.PReLU(4))

    def forward(self, x):
        x = self.down(x)
        return self.last(torch.cat([x, self.up(self.deep(x))], 1))


def sequence(*modules: nn.Module, shape: tuple[int, ...]) -> Callable:
    return lambda: (nn.Sequential(*modules), (torch.randn(shape),))


MODELS_OF_OTHERS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    **{
        f"torchvision {name}": classifier(name)
        for name in (
            *("squeezenet1_1", "resnet18", "densenet121", "mobilenet_v2", "mobilenet_v3_small"),
            *("shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0", "regnet_y_400mf"),
        )
    },
    "torchvision vgg11_bn, features": lambda: (
        torchvision.models.get_model("vgg11_bn", num_classes=5, init_weights=False).features,
        (torch.randn(2, 3, 32, 32),),
    ),
    "torchvision VisionTransformer": small_vit,
    "torchvision ConvNeXt": small_convnext,
    "torchvision SwinTransformer": small_swin(None),
    "torchvision SwinTransformer, version 2": small_swin(
        torchvision.models.swin_transformer.SwinTransformerBlockV2
    ),
    "torchvision MaxVit": small_maxvit,
    "torchvision MViT": small_mvit,
    "torchvision lraspp_mobilenet_v3_large": segmenter("lraspp_mobilenet_v3_large"),
    "torchvision fcn_resnet50": segmenter("fcn_resnet50"),
    "torchvision r3d_18": video,
    "torchvision raft_small": flow,
    "nn.Transformer": transformer(),
    "nn.Transformer, norm first": transformer(norm_first=True),
    "nn.TransformerEncoder": encoder,
    "nn.RNN": lambda: (Recurrent(nn.RNN), (torch.randn(4, 5, 6),)),
    "nn.LSTM": lambda: (Recurrent(nn.LSTM), (torch.randn(4, 9, 6),)),
    "nn.GRU": lambda: (Recurrent(nn.GRU), (torch.randn(4, 11, 6),)),
    "nn.GRUCell": lambda: (Cells(), (torch.randn(4, 3, 6),)),
    "U-Net": lambda: (UNet(), (torch.randn(2, 3, 8, 8),)),
    "nn.Conv3d": sequence(
        nn.Conv3d(2, 5, 3),
        nn.BatchNorm3d(5),
        nn.Softplus(),
        nn.Conv3d(5, 4, 1),
        nn.ReLU(),
        shape=(2, 2, 5, 5, 5),
    ),
    "nn.Conv1d, dilated": sequence(
        nn.Conv1d(4, 7, 3, padding=2, dilation=2),
        nn.Hardswish(),
        nn.Conv1d(7, 7, 1),
        nn.ReLU(),
        shape=(3, 4, 7),
    ),
    "nn.ConvTranspose3d": sequence(
        nn.Linear(4, 6),
        nn.LeakyReLU(),
        nn.Unflatten(1, (6, 1, 1, 1)),
        nn.ConvTranspose3d(6, 5, 2),
        nn.Mish(),
        shape=(3, 4),
    ),
    "nn.Linear on tokens": sequence(
        nn.Linear(4, 7), nn.CELU(), nn.LayerNorm(7), nn.Linear(7, 7), nn.Sigmoid(), shape=(3, 7, 4)
    ),
    "nn.Linear on boards": sequence(
        nn.Linear(4, 6), nn.SELU(), nn.Linear(6, 5), nn.Softsign(), shape=(2, 6, 5, 4)
    ),
}
SLOW = ("torchvision",)


def outputs_of(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [
        t
        for part in (result.values() if isinstance(result, dict) else result)
        for t in outputs_of(part)
    ]


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Run a model forward and back; return its outputs and the gradients of its parameters."""
    model.zero_grad(set_to_none=True)
    outputs = outputs_of(model(*inputs))
    sum(output.float().square().mean() for output in outputs).backward()
    return [o.detach() for o in outputs], [p.grad for p in model.parameters()]


def same(one: list[Tensor | None], other: list[Tensor | None]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith(SLOW) else ())
        for name in MODELS_OF_OTHERS
    ],
)
def test_the_probe_agrees_with_an_oracle(name):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="enable_nested_tensor is True")
        model, inputs = MODELS_OF_OTHERS[name]()
    model.eval()
    buffers = [buffer.clone() for buffer in model.buffers()]
    state = torch.get_rng_state()
    expected = run(model, inputs)
    # The sites may be thousands of units wide, where an effective rank takes seconds.
    measures = set(PROBE_MEASURES) - {"effective_rank"}
    with ActivationProbe(model, measures=measures) as probe:
        found = run(model, inputs)
    assert all(map(same, found, expected))
    assert same(list(model.buffers()), buffers)
    assert torch.equal(torch.get_rng_state(), state)
    oracle = {
        layer: row_of(seen)
        for layer, seen in watch(model, ACTIVATIONS, lambda: run(model, inputs)).items()
    }
    frame = probe.frame().set_index("layer")
    assert list(frame.index) == list(oracle)
    for layer, row in oracle.items():
        for measure, value in row.items():
            got = None if pd.isna(frame[measure][layer]) else frame[measure][layer]
            agrees = got == (value if value is None else pytest.approx(value, rel=2e-5, abs=1e-9))
            assert agrees, (layer, measure, got, value)
    assert f"| {name} | {len(oracle)} | {frame['units'].sum()} |" in table()


def table() -> list[str]:
    """The rows of the table in the documentation."""
    text = PAGE.read_text(encoding="utf-8")
    part = text.partition("<!-- models: ")[2].partition("<!-- end -->")[0]
    return [line for line in part.splitlines() if line.startswith("| ")][1:]


def test_the_examples_of_the_page_are_right():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted > 15
    assert result.failed == 0


def test_the_table_has_every_model():
    rows = [row.split(" | ")[0].removeprefix("| ") for row in table()]
    assert rows == list(MODELS_OF_OTHERS)
