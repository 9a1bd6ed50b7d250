"""A network of your own for every activation: gates that look at units, and --local.

``nsrelu-bench train --model examples.gated_net:wide_net --act 'rescue(0.1)' --local``
"""

from collections.abc import Callable

from torch import nn

from nsrelu_bench.activations import LocalConv2d, LocalLinear


def wide_net(
    activation: Callable[..., nn.Module],
    shape: tuple[int, int, int],
    classes: int,
    local: bool = False,
) -> nn.Module:
    """A convolution, whose units are channels on axis 1, and a linear layer."""
    conv2d = LocalConv2d if local else nn.Conv2d
    linear = LocalLinear if local else nn.Linear
    return nn.Sequential(
        conv2d(shape[0], 16, 3, stride=2, padding=1),
        activation(unit_axis=1),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        linear(256, 64),
        activation(),
        nn.Linear(64, classes),
    )
