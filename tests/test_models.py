import pytest
import torch
from torch import nn

from nsrelu_bench.config import RunConfig
from nsrelu_bench.models import MODELS, build_model

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8)]


def build(
    seed: int = 0, shape: tuple[int, int, int] = (1, 28, 28), **settings: object
) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(RunConfig(**settings), shape, 10)


def sites(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name.startswith("act")]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_every_shape(
    name: str, batch_norm: bool, shape: tuple[int, int, int]
) -> None:
    model = build(model=name, batch_norm=batch_norm, dropout=0.1, width=4, shape=shape)
    assert model(torch.randn(5, *shape)).shape == (5, 10)


@pytest.mark.parametrize("name", MODELS)
def test_every_site_is_a_module_of_its_own(name: str) -> None:
    model = build(model=name, depth=4)
    modules = [model.get_submodule(site) for site in sites(model)]
    assert sites(model) == ["act1", "act2", "act3", "act4"]
    assert len({id(module) for module in modules}) == 4


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("mlp", (1, 28, 28), 784 * 128 + 128 + 2 * (128 * 128 + 128) + 128 * 10 + 10),
        ("cnn", (1, 28, 28), 16 * 9 + 16 + 32 * 16 * 9 + 32 + 64 * 32 * 9 + 64 + 640 + 10),
        ("cnn", (3, 32, 32), 16 * 27 + 16 + 32 * 16 * 9 + 32 + 64 * 32 * 9 + 64 + 640 + 10),
    ],
)
def test_parameter_counts(name: str, shape: tuple[int, int, int], expected: int) -> None:
    model = build(model=name, shape=shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("init", ["he", "xavier", "default"])
@pytest.mark.parametrize("name", MODELS)
def test_two_activations_with_one_seed_start_from_the_same_weights(name: str, init: str) -> None:
    one, other = (build(model=name, act=act, init=init) for act in ("relu", "nsrelu(0.3)"))
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    unlike = build(seed=1, model=name, init=init)
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
