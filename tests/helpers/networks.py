"""Small networks for the tests of measures, and comparisons of what was measured."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

N, FEATURES, CLASSES = 40, 6, 3


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
            value = pytest.approx(value, rel=rel, abs=1e-6, nan_ok=True)
        assert found[name] == value, name


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


def norm(*gradients: Tensor):
    """The L2 norm of some gradients together, to compare with."""
    return pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item())
