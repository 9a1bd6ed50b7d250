"""Models with one activation module per site, named act1, act2, ... in the order of the data.

docs/models.md describes each, and how to use a model of your own.
"""

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nsrelu_bench.activations import LocalConv2d, LocalLinear, OwnActivation, Surrogate, build
from nsrelu_bench.config import RunConfig
from nsrelu_bench.errors import BenchError, UsageError, describe_error, lookup
from nsrelu_bench.plugins import blame, load_plugin

MakeActivation = Callable[..., nn.Module]
Mixing = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
Shape = tuple[int, int, int]
Layers = OrderedDict[str, nn.Module]


def build_model(config: RunConfig, shape: Shape, classes: int) -> nn.Module:
    """Build a run's model, with weights drawn from torch's global generator.

    The weights do not depend on the activation: two activations with one seed start equal.

    Args:
        config: Names the model, its size and its activation.
        shape: Channels, height and width of an image.
        classes: The number of logits.

    Raises:
        BenchError: The model is the user's own, and can't be imported, made or used.
    """
    if ":" in config.model:
        model = _own_model(config, shape, classes)
    else:
        # In place where values and gradients are the same: it keeps one tensor. A local layer needs
        # its output in the backward. Units are on axis 1, be they features or channels.
        activation = partial(
            build, config.activation, config.impl, inplace=not config.local, unit_axis=1
        )
        model = lookup(MODELS, config.model, "model")(config, shape, classes, activation)
    initialise(model, config.init)
    if config.activation.forward.own or config.activation.backward.own:
        _try_activation(model, config.act, shape)
    return model


def mlp(config: RunConfig, shape: Shape, classes: int, activation: MakeActivation) -> nn.Module:
    """Fully connected: `depth` hidden layers of `width` units."""
    channels, height, width = shape
    features = channels * height * width
    linear = LocalLinear if config.local else nn.Linear
    layers: Layers = OrderedDict(flatten=nn.Flatten())
    for site in range(1, config.depth + 1):
        layers[f"linear{site}"] = linear(features, config.width)
        features = config.width
        _add_site(layers, site, config, nn.BatchNorm1d(features), activation())
    layers["head"] = nn.Linear(features, classes)
    return nn.Sequential(layers)


def cnn(config: RunConfig, shape: Shape, classes: int, activation: MakeActivation) -> nn.Module:
    """Convolutional: `depth` 3x3 convolutions from `width` channels, doubled at each halving.

    Every convolution but the last is followed by a 2x2 max pooling while the image is at least
    4 pixels wide, the last by the mean over all positions.
    """
    channels, *sides = shape
    side = min(sides)
    features = config.width
    conv2d = LocalConv2d if config.local else nn.Conv2d
    layers: Layers = OrderedDict()
    for site in range(1, config.depth + 1):
        layers[f"conv{site}"] = conv2d(channels, features, 3, padding=1)
        channels = features
        _add_site(layers, site, config, nn.BatchNorm2d(channels), activation())
        if site < config.depth and side >= 4:
            layers[f"pool{site}"] = nn.MaxPool2d(2)
            side //= 2
            features *= 2
    return nn.Sequential(layers | _mean_and_head(channels, classes))


def vgg(
    config: RunConfig,
    shape: Shape,
    classes: int,
    activation: MakeActivation,
    stages: tuple[int, ...],
) -> nn.Module:
    """VGG for small images: 3x3 convolutions in stages, `width` channels in the first.

    A stage has twice the channels of the one before, at most 8 times `width`, and ends with a 2x2
    max pooling while the image is at least 2 pixels wide. One linear head in place of ImageNet's
    three layers of 4096, 4096 and 1000.

    Source:
        Simonyan & Zisserman 2015, "Very deep convolutional networks", table 1.
    """
    channels, *sides = shape
    side, site = min(sides), 0
    conv2d = LocalConv2d if config.local else nn.Conv2d
    layers: Layers = OrderedDict()
    for stage, convolutions in enumerate(stages):
        features = config.width * min(2**stage, 8)
        for _ in range(convolutions):
            site += 1
            layers[f"conv{site}"] = conv2d(channels, features, 3, padding=1)
            channels = features
            _add_site(layers, site, config, nn.BatchNorm2d(channels), activation())
        if side >= 2:
            layers[f"pool{site}"] = nn.MaxPool2d(2)
            side //= 2
    return nn.Sequential(layers | _mean_and_head(channels, classes))


def _add_site(
    layers: Layers,
    site: int,
    config: RunConfig,
    batch_norm: nn.BatchNorm1d | nn.BatchNorm2d,
    activation: nn.Module,
) -> None:
    if config.batch_norm:
        layers[f"norm{site}"] = batch_norm
    elif config.layer_norm:  # over all channels and positions of an example
        layers[f"norm{site}"] = nn.GroupNorm(1, batch_norm.num_features)
    layers[f"act{site}"] = activation
    if config.dropout:
        layers[f"drop{site}"] = nn.Dropout(config.dropout)


def _mean_and_head(channels: int, classes: int) -> Layers:
    """Return the end of a convolutional model: the mean over all positions, and a linear layer."""
    return OrderedDict(pool=_Mean(), head=nn.Linear(channels, classes))


class _Mean(nn.Module):
    """The mean over all positions, with the bits of `nn.AdaptiveAvgPool2d(1)`; can be stacked."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class ResNet18(nn.Module):
    """ResNet-18 for small images: a 3x3 stem without pooling, then 8 basic blocks.

    A block computes act(shortcut(x) + conv(act(conv(x)))): the activation after the sum is a site
    of its own. Blocks have `width` channels, doubled at each of three halvings, where the shortcut
    is a 1x1 convolution. Dropout is between the two convolutions of a block.

    Without batch norm, where the sums would grow with every block, each branch is multiplied by
    1/sqrt(8), the root of the number of blocks, and convolutions have a bias.

    Source:
        He, Zhang, Ren & Sun 2016, "Deep residual learning", sections 3.3 and 4.2. Zagoruyko &
        Komodakis 2016, "Wide residual networks", for the dropout. Zhang, Yu, Yi, Chen & Liu 2019,
        "Stabilize deep ResNet with a sharp scaling factor", for the factor.
    """

    blocks = 8

    def __init__(
        self, config: RunConfig, shape: Shape, classes: int, activation: MakeActivation
    ) -> None:
        super().__init__()
        self.branch_scale = 1.0 if config.batch_norm else self.blocks**-0.5
        channels = config.width
        self._add_convolution(1, config, shape[0], channels, activation)
        for block in range(self.blocks):
            site, stride = 2 * block + 2, 2 if block in (2, 4, 6) else 1
            features = channels * stride
            self._add_convolution(site, config, channels, features, activation, stride)
            drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
            self.add_module(f"drop{site}", drop)
            shortcut = (
                nn.Identity()
                if stride == 1
                else nn.Sequential(*_convolution(config, channels, features, 1, stride))
            )
            self.add_module(f"shortcut{site + 1}", shortcut)
            self._add_convolution(site + 1, config, features, features, activation)
            channels = features
        for name, module in _mean_and_head(channels, classes).items():
            self.add_module(name, module)

    def _add_convolution(
        self,
        site: int,
        config: RunConfig,
        channels: int,
        features: int,
        activation: MakeActivation,
        stride: int = 1,
    ) -> None:
        convolution, norm = _convolution(config, channels, features, 3, stride)
        self.add_module(f"conv{site}", convolution)
        self.add_module(f"norm{site}", norm)
        self.add_module(f"act{site}", activation())

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, C, H, W)."""
        values = self._pass("conv1 norm1 act1", images)
        for site in range(2, 2 * self.blocks + 2, 2):
            last = site + 1
            branch = self._pass(f"conv{site} norm{site} act{site} drop{site}", values)
            branch = self._pass(f"conv{last} norm{last}", branch)
            shortcut = self._pass(f"shortcut{last}", values)
            values = self._pass(f"act{last}", shortcut.add(branch, alpha=self.branch_scale))
        return self._pass("pool head", values)

    def _pass(self, names: str, values: Tensor) -> Tensor:
        for name in names.split():
            values = getattr(self, name)(values)
        return values


def _convolution(
    config: RunConfig, channels: int, features: int, side: int, stride: int
) -> tuple[nn.Conv2d, nn.Module]:
    """Return a convolution and its batch norm, which has the bias in its place."""
    bias = not config.batch_norm
    convolution = nn.Conv2d(channels, features, side, stride, padding=side // 2, bias=bias)
    return convolution, nn.BatchNorm2d(features) if config.batch_norm else nn.Identity()


def _own_model(config: RunConfig, shape: Shape, classes: int) -> nn.Module:
    """Build the user's own model, as ``factory(activation, shape, classes)``, and try it."""
    factory = load_plugin("model", config.model)
    local = {"local": True} if config.local else {}
    if local and "local" not in _parameter_names(factory):
        raise UsageError(
            f"local: {config.model} does not offer it; its factory must take local=..., which says"
            " whether to use LocalLinear and LocalConv2d before activations (docs/models.md)"
        )
    built: set[nn.Module] = set()

    def activation(unit_axis: int | None = None) -> nn.Module:
        # Not in place: the user's model may need the input again.
        built.add(module := build(config.activation, config.impl, unit_axis=unit_axis))
        return module

    with blame("model", config.model):
        model = factory(activation, shape, classes, **local)
    if not isinstance(model, nn.Module):
        raise BenchError(
            f"model: {config.model} must return a torch.nn.Module, got {type(model).__name__}"
        )
    if built.isdisjoint(model.modules()):
        raise BenchError(
            f"model: {config.model} returned a model without an activation;"
            " it must call the first argument once for every site"
        )
    _try(model, config.model, shape, classes)
    return model


def _parameter_names(factory: Callable[..., Any]) -> Collection[str]:
    try:
        return inspect.signature(factory).parameters
    except ValueError:  # a built-in that has none to show
        return ()


def _try(model: nn.Module, name: str, shape: Shape, classes: int) -> None:
    """Run two images through the user's model, which gives lazy layers their shapes too."""
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, *shape))
    except Exception as error:
        raise BenchError(
            f"model: {name} can't take images of shape {(2, *shape)}: {describe_error(error)}"
        ) from error
    model.train()
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (2, classes):
        raise BenchError(
            f"model: {name} must give logits of shape {(2, classes)} for images of shape"
            f" {(2, *shape)}, got {found}"
        )


def _try_activation(model: nn.Module, act: str, shape: Shape) -> None:
    """Run two images through a model and back, and look at each site of the user's activation.

    That gives its lazy parameters their shapes too.

    Raises:
        BenchError: It fails, gives what is not finite, or has no gradient.
    """

    def look(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0].isfinite().all() and not output.isfinite().all():
            raise BenchError(f"act: {act} gave values that are not finite for finite ones")
        if not output.requires_grad:
            raise BenchError(f"act: {act} gives no gradient: it must compute with tensors alone")

    kinds = (OwnActivation, Surrogate)
    sites = [module for module in model.modules() if isinstance(module, kinds)]
    hooks = [site.register_forward_hook(look) for site in sites]
    model.eval()
    images = torch.linspace(-2, 2, 2 * math.prod(shape)).reshape(2, *shape)
    with blame("act", act):
        model(images).sum().backward()
    model.train()
    model.zero_grad(set_to_none=True)
    for hook in hooks:
        hook.remove()


def initialise(model: nn.Module, init: str) -> None:
    """Draw new weights and biases for linear layers and convolutions.

    Those inside of an activation of the user's stay as they are.

    Raises:
        UsageError: There is no such initialisation.
    """
    draw = lookup(INITS, init, "init")
    sites = [module for module in model.modules() if isinstance(module, OwnActivation)]
    inside = {module for site in sites for module in site.modules()}
    for module in model.modules():
        if draw is not None and isinstance(module, Mixing) and module not in inside:
            draw(module)


def _he(layer: Mixing) -> None:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    _zero_bias(layer)


def _xavier(layer: Mixing) -> None:
    nn.init.xavier_uniform_(layer.weight)
    _zero_bias(layer)


def _zero_bias(layer: Mixing) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


#: The deviation of a weight times the root of the fan-in: the positive root of
#: s^2 / 2 + 2 s E[P] / sqrt(2 pi) + E[P^2] = 1 with E[P] = 2/3 and E[P^2] = 1/2 of Beta(2, 1), so
#: that the second moment of the activations does not grow with depth.
RAI_DEVIATION = 0.6007


@torch.no_grad()
def _rai(layer: Mixing) -> None:
    """Draw the weights and the bias of each unit together, and make a random one of them positive.

    That one is from Beta(2, 1), the others from N(0, 0.6007^2 / fan-in). A unit of a convolution
    is a channel; the source has only linear layers.
    """
    units, fan_in = len(layer.weight), layer.weight[0].numel()
    entries = torch.randn(units, fan_in + (layer.bias is not None)) * RAI_DEVIATION / fan_in**0.5
    chosen = torch.randint(entries.shape[1], (units, 1))
    entries.scatter_(1, chosen, torch.rand(units, 1).sqrt())  # the root of a uniform: Beta(2, 1)
    layer.weight.copy_(entries[:, :fan_in].view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(entries[:, fan_in])


#: Initialisations by name. He et al. 2015, eq. 10, with ReLU's gain whatever the activation, so
#: that activations are compared from the same weights; Glorot & Bengio 2010, eq. 16; the model's
#: own, as PyTorch's; Lu, Shin, Su & Karniadakis 2019, section 4, with the code of its appendix.
INITS: dict[str, Callable[[Mixing], None] | None] = {
    "he": _he,
    "xavier": _xavier,
    "default": None,
    "rai": _rai,
}

#: Models by name.
MODELS: dict[str, Callable[[RunConfig, Shape, int, MakeActivation], nn.Module]] = {
    "mlp": mlp,
    "deep_narrow": mlp,
    "cnn": cnn,
    "vgg11": partial(vgg, stages=(1, 1, 2, 2, 2)),
    "vgg16": partial(vgg, stages=(2, 2, 3, 3, 3)),
    "resnet18": ResNet18,
}
