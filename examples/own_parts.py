"""One part of your own of each kind (docs/own_parts.md).

``nsrelu-bench train --dataset examples.own_parts:rings --model examples.own_parts:two_layers
--act 'examples.own_parts:Swish(0.5)' --optimizer examples.own_parts:Sign --lr 0.001
--schedule examples.own_parts:warm_up --measures all,examples.own_parts:Kurtosis``
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn


def softsign(x: Tensor, scale: float = 1.0) -> Tensor:
    """An activation without parameters: x / (1 + |x| / scale)."""
    return x / (1 + x.abs() / scale)


class Swish(nn.Module):
    """An activation that learns: x times the sigmoid of beta x."""

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(beta))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of x."""
        return x * torch.sigmoid(self.beta * x)


class Sign(torch.optim.Optimizer):
    """An optimizer: steps of one size, against the sign of the averaged gradient."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                mean = state.setdefault("mean", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 0.1)
                parameter.sub_(group["lr"] * mean.sign())


def warm_up(step: int, steps: int) -> float:
    """A schedule: up from 0 in the first tenth, then straight down to 0."""
    progress = (step + 1) / steps
    return min(progress / 0.1, (1 - progress) / 0.9)


class Kurtosis:
    """A measure: how heavy the tails of the inputs are; 3 for a normal distribution."""

    def update(self, pre: Tensor, post: Tensor) -> Tensor:  # noqa: ARG002
        """Return the sums of the powers of the inputs."""
        x = pre.double()
        return torch.stack([torch.ones_like(x).sum(), *(x.pow(k).sum() for k in (1, 2, 3, 4))])

    def compute(self, *sums: Tensor) -> float | None:
        """Return the kurtosis over one or several sites."""
        count, *powers = torch.stack(sums).sum(0).tolist()
        a, b, c, d = (power / count for power in powers)
        variance = b - a**2
        if variance <= 0:
            return None
        return float((d - 4 * a * c + 6 * a**2 * b - 3 * a**4) / variance**2)


def rings(data_dir: Path) -> dict[str, tuple[Tensor, Tensor]]:  # noqa: ARG001
    """A data set: points of the plane in two rings; no file is read."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(1200) % 2
    angles = 2 * torch.pi * torch.rand(1200, generator=random)
    radii = 1 + labels + 0.2 * torch.randn(1200, generator=random)
    points = radii[:, None] * torch.stack([angles.cos(), angles.sin()], 1)
    return {"train": (points[:900], labels[:900]), "test": (points[900:], labels[900:])}


def two_layers(
    activation: Callable[[], nn.Module], shape: tuple[int, int, int], classes: int
) -> nn.Module:
    """A model: two hidden layers of 32 units."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, 32),
        activation(),
        nn.Linear(32, 32),
        activation(),
        nn.Linear(32, classes),
    )
