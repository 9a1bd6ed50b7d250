"""Two networks of about 300 parameters for MNIST: examples of your own models (docs/models.md).

``nsrelu-bench train --dataset mnist --model examples.tiny_nets:pooled_mlp --act 'nsrelu(0.1)'``
"""

from collections.abc import Callable

from torch import nn


def pooled_mlp(
    activation: Callable[[], nn.Module], shape: tuple[int, int, int], classes: int
) -> nn.Module:
    """Return an average of 4x4 pixels and a layer of 11 units; 307 parameters for 10 classes."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * shape[0], 11),
        activation(),
        nn.Linear(11, classes),
    )


def small_cnn(
    activation: Callable[[], nn.Module], shape: tuple[int, int, int], classes: int
) -> nn.Module:
    """Return two convolutions of 3 and 4 channels, pooled to 2x2; 312 parameters for 10 classes."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 3, 3, padding=1),
        activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding=1),
        activation(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, classes),
    )
