"""The parts of training: data, network, tasks, batches, and one step."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.activations import NSReLU
from nsrelu_bench.config import RunConfig
from nsrelu_bench.data import Dataset, augment_batch, load_dataset
from nsrelu_bench.errors import BenchError, error_reason
from nsrelu_bench.models import build_model
from nsrelu_bench.training.random_streams import generator, isolated

#: Returns logits: a network, compiled or not, or several as one.
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """The data of a task, and its probe set: inputs (P, C, H, W), labels (P,)."""

    data: Dataset
    probe_inputs: Tensor
    probe_labels: Tensor


def load_data(config: RunConfig) -> Dataset:
    """Load a run's data set.

    Raises:
        BenchError: It can't be loaded, or batch norm would get a batch of one example.
    """
    data = load_dataset(config)
    if config.batch_norm and (config.batch_size == 1 or len(data.train) % config.batch_size == 1):
        raise BenchError(
            f"batch_norm: needs two examples per batch, and {len(data.train)} examples by"
            f" batch_size {config.batch_size} leave one alone; change batch_size or train_size"
        )
    return data


def build_network(config: RunConfig, data: Dataset) -> nn.Module:
    """Build a run's model with the weights that its seed decides."""
    with isolated(config, "weights"):
        network = build_model(config, data.shape, data.classes)
    if config.replicate:
        perturb_weights(network, generator(config.seed, f"rounding/{config.replicate}"))
    return network


@torch.no_grad()
def perturb_weights(network: nn.Module, random: torch.Generator) -> None:
    """Change each parameter by one unit in its last place, up or down at random.

    The spread over such replicates is what rounding alone contributes to a run's numbers, for
    example on another processor or with another version.
    """
    for parameter in network.parameters():
        up = torch.rand(parameter.shape, generator=random) < 0.5
        away = torch.where(up, torch.inf, -torch.inf).to(parameter.dtype)
        parameter.copy_(torch.nextafter(parameter, away))


def to_device(
    networks: list[nn.Module], data: Dataset, device: str, channels_last: bool = True
) -> Dataset:
    """Move networks, in place, and the whole data set; convolutions run channels-last if wanted.

    Raises:
        BenchError: The device can't be used.
    """
    convolutional = any(isinstance(module, nn.Conv2d) for module in networks[0].modules())
    channels_last = channels_last and convolutional
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    try:
        for network in networks:
            network.to(device).to(memory_format=memory_format)
        return data.to(device, memory_format)
    except (AssertionError, RuntimeError) as error:
        reason = error_reason(error)
        raise BenchError(f"device: {device!r} can't be used here ({reason})") from error


def total_steps(config: RunConfig, data: Dataset) -> int:
    """Return the number of steps of a whole run."""
    return math.ceil(len(data.train) / config.batch_size) * config.total_epochs


def make_task(data: Dataset, config: RunConfig, epoch: int) -> Task:
    """Return an epoch's task: the first is the data itself, later ones permute its pixels."""
    number = task_number(config, epoch)
    if number > 1:
        data = permute_pixels(data, config.seed, number - 1)
    probe = data.part_of_train(config.probe_size)
    return Task(data, data.inputs(probe.images), probe.labels)


def task_number(config: RunConfig, epoch: int) -> int:
    """Return the number of an epoch's task, from 1; epoch 0 belongs to the first."""
    return (max(epoch, 1) - 1) // config.epochs + 1


def starts_task(config: RunConfig, epoch: int) -> bool:
    """Return whether a new task begins with an epoch."""
    return epoch > 1 and (epoch - 1) % config.epochs == 0


def permute_pixels(data: Dataset, seed: int, permutation: int) -> Dataset:
    """Return the data set with the pixels of all images in one new order."""
    _, height, width = data.shape
    order = torch.randperm(height * width, generator=generator(seed, f"task/{permutation}"))
    train, val, test = (
        replace(split, images=split.images.flatten(2)[..., order].view_as(split.images))
        for split in (data.train, data.val, data.test)
    )
    return replace(data, train=train, val=val, test=test)


def batches(data: Dataset, config: RunConfig, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an epoch: images (N, C, H, W) as stored, labels (N,)."""
    order = generator(config.seed, f"batches/{epoch}")
    augmentation = generator(config.seed, f"augment/{epoch}")
    split = data.train
    shuffled = split[torch.randperm(len(split), generator=order).to(split.labels.device)]
    parts = (torch.split(t, config.batch_size) for t in (shuffled.images, shuffled.labels))
    for images, labels in zip(*parts, strict=True):
        if config.augment != "none":
            images = augment_batch(images, config.augment, data.mean, augmentation)
        yield images, labels


def set_leak(network: nn.Module, config: RunConfig, progress: float) -> None:
    """Set the leak of all sites, where it has a schedule; `progress` is in [0, 1]."""
    if config.leak_schedule == "constant":
        return
    leak = (config.activation.leak or 0.0) * (1 - progress)
    for module in network.modules():
        if isinstance(module, NSReLU):
            module.leak = leak
        elif isinstance(module, nn.LeakyReLU):
            module.negative_slope = leak


def train_step(
    forward: Forward,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    precision: str,
    clip_norm: float = 0.0,
) -> Tensor:
    """Take one step, and return the loss from before it.

    Args:
        forward: Gives logits (N, classes), or (K, N, classes) of an ensemble of K networks.
        optimizer: Changes the parameters.
        inputs: Of the batch, normalised: (N, ...), or (K, N, ...).
        labels: Its classes: (N,), or (K, N).
        precision: "fp32", or "bf16" for a forward pass in mixed precision.
        clip_norm: The largest L2 norm of the gradient of all parameters; 0 sets no limit.

    Returns:
        Mean cross-entropy, a number or (K,), left on the device: nothing waits for its value.
    """
    mixed = precision == "bf16"
    with torch.autocast(inputs.device.type, torch.bfloat16) if mixed else nullcontext():
        logits = forward(inputs)
    cross_entropy = torch.vmap(F.cross_entropy) if labels.dim() > 1 else F.cross_entropy
    loss: Tensor = cross_entropy(logits.float(), labels)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss.sum())
    if clip_norm:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()
    return loss.detach()
