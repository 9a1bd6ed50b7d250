"""Models with one activation module a site, named act1, act2, ... in the order of the data."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import nn

from nsrelu_bench import activations
from nsrelu_bench.config import RunConfig
from nsrelu_bench.errors import lookup

MakeActivation = Callable[[], nn.Module]
Layers = OrderedDict[str, nn.Module]


def build_model(config: RunConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a run's model, with weights drawn from torch's global generator.

    The weights do not depend on the activation: two activations with one seed start equal.

    Args:
        config: Names the model, its size and its activation.
        shape: Channels, height and width of an image.
        classes: The number of logits.
    """
    factory = lookup(MODELS, config.model, "model")
    # In place, all that can: their values and gradients are the same, and they keep one tensor.
    activation = partial(activations.build, config.label, config.impl, inplace=True)
    model = factory(config, shape, classes, activation)
    initialise(model, config.init)
    return model


def mlp(
    config: RunConfig, shape: tuple[int, int, int], classes: int, activation: MakeActivation
) -> nn.Module:
    """Fully connected: `depth` hidden layers of `width` units."""
    channels, height, width = shape
    features = channels * height * width
    layers: Layers = OrderedDict(flatten=nn.Flatten())
    for site in range(1, config.depth + 1):
        layers[f"linear{site}"] = nn.Linear(features, config.width)
        features = config.width
        _add_site(layers, site, config, nn.BatchNorm1d(features), activation())
    layers["head"] = nn.Linear(features, classes)
    return nn.Sequential(layers)


def cnn(
    config: RunConfig, shape: tuple[int, int, int], classes: int, activation: MakeActivation
) -> nn.Module:
    """Convolutional: `depth` 3x3 convolutions from `width` channels, doubled at each halving.

    Every convolution but the last is followed by a 2x2 max pooling while the image is at least
    4 pixels wide, the last by the mean over all positions.
    """
    channels, *sides = shape
    side = min(sides)
    features = config.width
    layers: Layers = OrderedDict()
    for site in range(1, config.depth + 1):
        layers[f"conv{site}"] = nn.Conv2d(channels, features, 3, padding=1)
        channels = features
        _add_site(layers, site, config, nn.BatchNorm2d(channels), activation())
        if site < config.depth and side >= 4:
            layers[f"pool{site}"] = nn.MaxPool2d(2)
            side //= 2
            features *= 2
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)


def _add_site(
    layers: Layers, site: int, config: RunConfig, norm: nn.Module, activation: nn.Module
) -> None:
    if config.batch_norm:
        layers[f"norm{site}"] = norm
    layers[f"act{site}"] = activation
    if config.dropout:
        layers[f"drop{site}"] = nn.Dropout(config.dropout)


def initialise(model: nn.Module, init: str) -> None:
    """Draw the weights of linear layers and convolutions anew, biases zero.

    Raises:
        UsageError: There is no such initialisation.
    """
    draw = lookup(INITS, init, "init")
    for module in model.modules():
        if draw is not None and isinstance(module, nn.Linear | nn.Conv2d):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


#: Initialisations by name. He et al. 2015, eq. 10, with ReLU's gain whatever the activation, so
#: that activations are compared from the same weights; Glorot & Bengio 2010, eq. 16; PyTorch's.
INITS: dict[str, Callable[..., object] | None] = {
    "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
    "default": None,
}

#: Models by name.
MODELS: dict[str, Callable[[RunConfig, tuple[int, int, int], int, MakeActivation], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
}
