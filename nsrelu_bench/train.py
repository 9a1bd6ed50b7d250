"""One run: build the model, train it, measure it after every epoch.

All that is random comes from streams that the seed decides, each by itself: the initial weights,
and for every epoch the order of the batches, the augmentation, and the noise of the model
(dropout). Nothing else in the process sees them, and they see nothing else: a run gives the same
bits in any process, and one that goes on from a checkpoint those of one that was never stopped.
"""

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.augment import augmented
from nsrelu_bench.config import RunConfig
from nsrelu_bench.data import Dataset, Split, load_dataset
from nsrelu_bench.errors import BenchError
from nsrelu_bench.metrics import Lives
from nsrelu_bench.models import build_model
from nsrelu_bench.probe import Measurement, measure, pre_quantiles

Row = dict[str, Any]

EVAL_BATCH = 1000


@dataclass(frozen=True)
class Epoch:
    """What was measured after an epoch; epoch 0 stands before the first step.

    `metrics` has the columns of metrics.csv, `layers` a row a site with those of layers.csv,
    `timing` the seconds of timing.csv, `steps` the rows of steps.csv, and of the last epoch
    `quantiles` those of quantiles.csv. No value: None. `checkpoint` gives what `run` needs to go
    on from here, tensors and plain values alone, until the next epoch is asked for.
    """

    metrics: Row
    layers: list[Row]
    timing: Row
    diverged_step: int | None = None
    steps: list[Row] = field(default_factory=list)
    quantiles: list[Row] = field(default_factory=list)
    checkpoint: Callable[[], Row] = dict


def run(config: RunConfig, checkpoint: Mapping[str, Any] | None = None) -> Iterator[Epoch]:
    """Train, and yield a record an epoch; the last one has a `diverged_step` if it diverged.

    Args:
        config: What to run.
        checkpoint: Go on behind the epoch that this was taken of, with the same bits.

    Raises:
        BenchError: The data set or the device can't be had.
    """
    data = load_dataset(config)
    if config.batch_norm and (config.batch_size == 1 or len(data.train) % config.batch_size == 1):
        raise BenchError(
            f"batch_norm: needs two examples a batch, and {len(data.train)} examples by batch_size"
            f" {config.batch_size} leave one alone; change batch_size or train_size"
        )
    with _isolated(config, "weights"):
        model = build_model(config, data.shape, data.classes)
    model, data = _place(model, data, config.device)
    optimizer = _optimizer(model, config)
    stepped: Callable[..., Any] = torch.compile(model) if config.compile else model

    take = partial(measure, measures=("loss", "accuracy", *config.measured))
    measured = seen = None
    step, first = 0, 0
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        measured, seen = (_of_lives(checkpoint[name]) for name in ("measured", "seen"))
        step, first = checkpoint["step"], checkpoint["epoch"] + 1
    epochs = config.total_epochs
    steps = math.ceil(len(data.train) / config.batch_size) * epochs
    for epoch in range(first, epochs + 1):
        task = (max(epoch, 1) - 1) // config.epochs
        if epoch == first or (epoch - 1) % config.epochs == 0:
            now = _permuted(data, config.seed, task) if task else data
            probe = now.probe(config.probe_size)
            inputs = now.inputs(probe.images)
        with _isolated(config, f"noise/{epoch}"):
            clock = [time.perf_counter()]
            losses: list[Tensor] = []
            between: list[Row] = []
            for images, labels in _batches(now, config, epoch) if epoch else ():
                rate = _set_lr(optimizer, config, step / steps)
                losses.append(_train_step(stepped, optimizer, images, labels, config.precision))
                step += 1
                if config.probe_every and step % config.probe_every == 0:
                    seen = take(model, inputs, probe.labels, previous=seen)
                    between.append({"epoch": epoch, "step": step, **_of_train(seen.totals)})
            diverged_step = _first_non_finite(model, losses, step)
            clock.append(time.perf_counter())

            measured = take(model, inputs, probe.labels, previous=measured)
            if diverged_step is None and not measured.finite:
                diverged_step = step
            clock.append(time.perf_counter())

            metrics: Row = {"epoch": epoch, "step": step, "task": task + 1}
            metrics["lr"] = rate if epoch else config.lr
            layers = [{"epoch": epoch, **layer} for layer in measured.layers]
            if diverged_step is None:
                metrics |= _of_train(measured.totals)
                for name, split in (("val", now.val), ("test", now.test)):
                    loss, accuracy = _evaluate(model, now, split)
                    metrics |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
            else:  # a diverged network has no numbers, even where some can be computed
                layers = [{key: row[key] for key in ("epoch", "layer", "units")} for row in layers]
            clock.append(time.perf_counter())
            last = epoch == epochs and diverged_step is None and config.measured
            quantiles = pre_quantiles(model, inputs) if last else []
        yield Epoch(
            metrics,
            layers,
            _timing(epoch, clock),
            diverged_step,
            between,
            quantiles,
            partial(_checkpoint, epoch, step, model, optimizer, measured, seen),
        )
        if diverged_step is not None:
            return


def _checkpoint(
    epoch: int,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    measured: Measurement | None,
    seen: Measurement | None,
) -> Row:
    """What decides all that comes after an epoch; the random streams begin anew in each."""
    return {
        "epoch": epoch,
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "measured": _lives_of(measured),
        "seen": _lives_of(seen),
    }


def _lives_of(measurement: Measurement | None) -> Row | None:
    if measurement is None:
        return None
    return {name: asdict(lives) for name, lives in measurement.lives.items()}


def _of_lives(saved: Mapping[str, Any] | None) -> Measurement | None:
    """The part of a measurement that the next one needs."""
    if saved is None:
        return None
    return Measurement({}, [], True, {name: Lives(**lives) for name, lives in saved.items()})


def _permuted(data: Dataset, seed: int, task: int) -> Dataset:
    """Make the data set of a later task: all its images with their pixels in one new order."""
    _, height, width = data.shape
    order = torch.randperm(height * width, generator=_generator(seed, f"task/{task}"))
    train, val, test = (
        replace(split, images=split.images.flatten(2)[..., order].view_as(split.images))
        for split in (data.train, data.val, data.test)
    )
    return replace(data, train=train, val=val, test=test)


def _of_train(totals: Row) -> Row:
    """Name the loss and accuracy on the probe set, a part of the training split, as such."""
    names = {"loss": "train_loss", "accuracy": "train_accuracy"}
    return {names.get(name, name): value for name, value in totals.items()}


def _train_step(
    model: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    precision: str = "fp32",
) -> Tensor:
    """Take one step; return the loss, still on the device, so that nothing waits for it."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(inputs)
    loss = F.cross_entropy(logits.float(), labels)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.detach()


def _batches(data: Dataset, config: RunConfig, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut the training split, in the epoch's order, into batches of inputs; the last is smaller."""
    order, chance = (_generator(config.seed, f"{name}/{epoch}") for name in ("batches", "augment"))
    split = data.train
    shuffled = split[torch.randperm(len(split), generator=order).to(split.labels.device)]
    parts = (torch.split(t, config.batch_size) for t in (shuffled.images, shuffled.labels))
    for images, labels in zip(*parts, strict=True):
        if config.augment != "none":
            images = augmented(images, config.augment, data.mean, chance)
        yield data.inputs(images), labels


@torch.no_grad()
def _evaluate(model: nn.Module, data: Dataset, split: Split) -> tuple[float | None, float | None]:
    """Mean loss and accuracy on a split, in eval mode; None where the logits are not finite."""
    model.eval()
    logits = torch.cat([model(data.inputs(part)) for part in torch.split(split.images, EVAL_BATCH)])
    model.train()
    if not logits.isfinite().all():
        return None, None
    loss = F.cross_entropy(logits.double(), split.labels)
    accuracy = (logits.argmax(1) == split.labels).double().mean()
    return loss.item(), accuracy.item()


@torch.no_grad()
def _first_non_finite(model: nn.Module, losses: list[Tensor], step: int) -> int | None:
    """Find the step, counted from 1, at which the loss or the weights stopped being finite."""
    if losses:
        bad = ~torch.stack(losses).isfinite()
        if bad.any():
            return step - len(losses) + int(bad.int().argmax()) + 1
    finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    return None if finite else step


def _optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    # Fused: up to 1.3 times the speed of the default for Adam on the CPU, and as deterministic.
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=config.momentum or 0, **shared)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(model.parameters(), **shared)


def _set_lr(optimizer: torch.optim.Optimizer, config: RunConfig, progress: float) -> float:
    """Set the learning rate for the step at `progress`, from 0 to 1, of the run; return it."""
    rate = config.lr
    if config.schedule == "cosine":
        rate *= (1 + math.cos(math.pi * progress)) / 2
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _place(model: nn.Module, data: Dataset, device: str) -> tuple[nn.Module, Dataset]:
    """Put the model and the whole data set on the device; convolutions like channels last."""
    convolutional = any(isinstance(module, nn.Conv2d) for module in model.modules())
    memory_format = torch.channels_last if convolutional else torch.contiguous_format
    try:
        model = model.to(device).to(memory_format=memory_format)
        return model, data.to(device, memory_format)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BenchError(f"device: {device!r} can't be used here ({reason})") from error


def _timing(epoch: int, clock: list[float]) -> Row:
    names = ("train_s", "measure_s", "evaluate_s")
    spent = [after - before for before, after in itertools.pairwise(clock)]
    total = {"epoch": epoch, "time_s": clock[-1] - clock[0]}
    return total | dict(zip(names, spent, strict=True))


def _generator(seed: int, stream: str) -> torch.Generator:
    """A generator for one use of the seed, independent of those for its other uses."""
    return torch.Generator().manual_seed(_seed(seed, stream))


def _seed(seed: int, stream: str) -> int:
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


@contextmanager
def _isolated(config: RunConfig, stream: str) -> Iterator[None]:
    """Compute with the run's threads, drawing from one stream; leave the process as it was.

    Dropout and PyTorch's own initialisations draw from the global generators.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    devices = range(torch.cuda.device_count()) if config.device == "cuda" else ()
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(_seed(config.seed, stream))
            yield
    finally:
        torch.set_num_threads(threads)
