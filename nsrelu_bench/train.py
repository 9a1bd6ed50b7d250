"""One run: build the model, train it, measure it after every epoch.

All that is random comes from three streams that the seed decides, each by itself: the initial
weights, the order of the batches, and the noise of the model (dropout). Nothing else in the
process sees them, and they see nothing else: a run gives the same bits in any process.
"""

import hashlib
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.config import RunConfig
from nsrelu_bench.data import Dataset, Split, load_dataset
from nsrelu_bench.errors import BenchError
from nsrelu_bench.models import build_model
from nsrelu_bench.probe import measure, pre_quantiles

Row = dict[str, Any]

EVAL_BATCH = 1000


@dataclass(frozen=True)
class Epoch:
    """What was measured after an epoch; epoch 0 stands before the first step.

    `metrics` has the columns of metrics.csv, `layers` a row a site with those of layers.csv,
    `timing` the seconds of timing.csv, `steps` the rows of steps.csv, and of the last epoch
    `quantiles` those of quantiles.csv. No value: None.
    """

    metrics: Row
    layers: list[Row]
    timing: Row
    diverged_step: int | None = None
    steps: list[Row] = field(default_factory=list)
    quantiles: list[Row] = field(default_factory=list)


def run(config: RunConfig) -> Iterator[Epoch]:
    """Train, and yield a record an epoch; the last one has a `diverged_step` if it diverged.

    Raises:
        BenchError: The data set or the device can't be had.
    """
    weights, noise = (_generator(config.seed, name).get_state() for name in ("weights", "noise"))
    order = _generator(config.seed, "batches")
    data = load_dataset(config)
    if config.batch_norm and (config.batch_size == 1 or len(data.train) % config.batch_size == 1):
        raise BenchError(
            f"batch_norm: needs two examples a batch, and {len(data.train)} examples by batch_size"
            f" {config.batch_size} leave one alone; change batch_size or train_size"
        )
    with _isolated(config.threads, weights):
        model = build_model(config, data.shape, data.classes)
    model, data = _place(model, data, config.device)
    optimizer = _optimizer(model, config)
    probe = data.probe(config.probe_size)
    inputs = data.inputs(probe.images)

    take = partial(
        measure, model, inputs, probe.labels, measures=("loss", "accuracy", *config.measured)
    )
    measured = seen = None
    step, steps = 0, math.ceil(len(data.train) / config.batch_size) * config.epochs
    for epoch in range(config.epochs + 1):
        with _isolated(config.threads, noise):
            clock = [time.perf_counter()]
            losses: list[Tensor] = []
            between: list[Row] = []
            for images, labels in _batches(data.train, config.batch_size, order) if epoch else ():
                rate = _set_lr(optimizer, config, step / steps)
                losses.append(_train_step(model, optimizer, data.inputs(images), labels))
                step += 1
                if config.probe_every and step % config.probe_every == 0:
                    seen = take(previous=seen)
                    between.append({"epoch": epoch, "step": step, **_of_train(seen.totals)})
            diverged_step = _first_non_finite(model, losses, step)
            clock.append(time.perf_counter())

            measured = take(previous=measured)
            if diverged_step is None and not measured.finite:
                diverged_step = step
            clock.append(time.perf_counter())

            metrics: Row = {"epoch": epoch, "step": step, "lr": rate if epoch else config.lr}
            layers = [{"epoch": epoch, **layer} for layer in measured.layers]
            if diverged_step is None:
                metrics |= _of_train(measured.totals)
                for name, split in (("val", data.val), ("test", data.test)):
                    loss, accuracy = _evaluate(model, data, split)
                    metrics |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
            else:  # a diverged network has no numbers, even where some can be computed
                layers = [{key: row[key] for key in ("epoch", "layer", "units")} for row in layers]
            clock.append(time.perf_counter())
            last = epoch == config.epochs and diverged_step is None and config.measured
            quantiles = pre_quantiles(model, inputs) if last else []
        yield Epoch(metrics, layers, _timing(epoch, clock), diverged_step, between, quantiles)
        if diverged_step is not None:
            return


def _of_train(totals: Row) -> Row:
    """Name the loss and accuracy on the probe set, a part of the training split, as such."""
    names = {"loss": "train_loss", "accuracy": "train_accuracy"}
    return {names.get(name, name): value for name, value in totals.items()}


def _train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor
) -> Tensor:
    """Take one step; return the loss, still on the device, so that nothing waits for it."""
    loss = F.cross_entropy(model(inputs), labels)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.detach()


def _batches(
    split: Split, batch_size: int, order: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut the split, in a new random order, into batches; the last may be smaller."""
    shuffled = split[torch.randperm(len(split), generator=order).to(split.labels.device)]
    return zip(
        *(torch.split(t, batch_size) for t in (shuffled.images, shuffled.labels)), strict=True
    )


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
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


@contextmanager
def _isolated(threads: int, state: Tensor) -> Iterator[None]:
    """Compute with so many threads, drawing from `state`; leave the process as it was.

    `state` is that of the global generator, which dropout and PyTorch's own initialisations
    draw from; it is brought up to date on leaving.
    """
    before = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    try:
        yield
    finally:
        state.copy_(torch.get_rng_state())
        torch.set_num_threads(before[0])
        torch.set_rng_state(before[1])
