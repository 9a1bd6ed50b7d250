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
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.config import RunConfig
from nsrelu_bench.data import Dataset, Split, augment_batch, load_dataset
from nsrelu_bench.errors import BenchError, error_reason
from nsrelu_bench.measures import DeadUnitHistory, Measurement, measure, pre_quantiles
from nsrelu_bench.models import build_model
from nsrelu_bench.training.ensemble import Alone, Stack

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
    for _, epoch in _train([config], [checkpoint]):
        yield epoch


class Together:
    """Makes the runs of one configuration with `stack`: its seeds, trained as one.

    `run` gives each its epochs, as if it were made by itself; the first that asks for an epoch
    computes it for all. All runs are to be given before any epoch is asked for, and all have taken
    an epoch before the next is asked for. Only runs that go on from the same epoch are trained as
    one. What raises in training, raises for each.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[RunConfig, Mapping[str, Any] | None]] = []
        self._trained: dict[int | None, Iterator[tuple[int, Epoch]]] = {}
        self._ready: dict[int, deque[Epoch]] = {}
        self._errors: dict[int | None, tuple[Exception, TracebackType | None]] = {}

    def run(
        self, config: RunConfig, checkpoint: Mapping[str, Any] | None = None
    ) -> Iterator[Epoch]:
        """Enter a run; returns its epochs, as `run` does."""
        self._runs.append((config, checkpoint))
        return self._epochs(len(self._runs) - 1)

    def _epochs(self, number: int) -> Iterator[Epoch]:
        after = _epoch_of(self._runs[number][1])
        if after not in self._trained:
            members = [n for n, (_, state) in enumerate(self._runs) if _epoch_of(state) == after]
            self._ready |= {member: deque() for member in members}
            configs, checkpoints = zip(*(self._runs[member] for member in members), strict=True)
            trained = _train(configs, checkpoints)
            self._trained[after] = ((members[index], epoch) for index, epoch in trained)
        config, _ = self._runs[number]
        try:
            while True:
                while not self._ready[number]:
                    self._advance(after)
                epoch = self._ready[number].popleft()
                yield epoch
                # The others go on: a run that has ended must not ask for more.
                if epoch.diverged_step is not None:
                    return
                if epoch.metrics["epoch"] == config.total_epochs:
                    return
        finally:
            del self._ready[number]

    def _advance(self, after: int | None) -> None:
        """Take what was trained next, for the run that it is of."""
        if after in self._errors:
            error, traceback = self._errors[after]
            raise error.with_traceback(traceback)
        try:
            member, epoch = next(self._trained[after])
        except Exception as error:
            self._errors[after] = error, error.__traceback__
            raise
        if member in self._ready:
            self._ready[member].append(epoch)


def _epoch_of(checkpoint: Mapping[str, Any] | None) -> int | None:
    return None if checkpoint is None else checkpoint["epoch"]


@dataclass(frozen=True)
class _Task:
    """What is learnt, and the probe set of it."""

    data: Dataset
    inputs: Tensor
    labels: Tensor


def _probed(data: Dataset, size: int) -> _Task:
    probe = data.probe(size)
    return _Task(data, data.inputs(probe.images), probe.labels)


@dataclass
class _Run:
    """One of the runs that are trained together, and what it was measured to be."""

    config: RunConfig
    measured: Measurement | None = None
    seen: Measurement | None = None  # between epochs
    between: list[Row] = field(default_factory=list)
    diverged: bool = False
    task: _Task = field(init=False)

    def take(self, network: nn.Module, previous: Measurement | None) -> Measurement:
        """Measure the network."""
        measures = ("loss", "accuracy", *self.config.measured)
        inputs, labels = self.task.inputs, self.task.labels
        return measure(network, inputs, labels, measures=measures, previous=previous)


def _train(
    configs: Sequence[RunConfig], checkpoints: Sequence[Mapping[str, Any] | None]
) -> Iterator[tuple[int, Epoch]]:
    """Train runs as one, which may differ in their seeds; yields the epochs of all in turn.

    The checkpoints are of the same epoch, or there is none.
    """
    config, *_ = configs
    data = load_dataset(config)
    if config.batch_norm and (config.batch_size == 1 or len(data.train) % config.batch_size == 1):
        raise BenchError(
            f"batch_norm: needs two examples a batch, and {len(data.train)} examples by batch_size"
            f" {config.batch_size} leave one alone; change batch_size or train_size"
        )
    networks = []
    for one in configs:
        with _isolated(one, "weights"):
            networks.append(build_model(one, data.shape, data.classes))
    states = [state for state in checkpoints if state is not None]
    for network, state in zip(networks, states, strict=False):
        network.load_state_dict(state["model"])
    networks, data = _place(networks, data, config.device)
    net: Alone | Stack
    if config.stack:
        net = Stack(networks)
        net.check(networks, data.inputs(data.train.images[:2]))
    else:
        net = Alone(networks[0], compiled=config.compile)
    optimizer = _optimizer(net.parameters(), config)
    step, first = 0, 0
    if states:
        optimizer.load_state_dict(net.state_of([state["optimizer"] for state in states]))
        step, first = states[0]["step"], states[0]["epoch"] + 1
    members = [_Run(one) for one in configs]
    for member, state in zip(members, states, strict=False):
        member.measured, member.seen = _of_lives(state["measured"]), _of_lives(state["seen"])
    del networks, states, checkpoints  # what they hold may be large
    steps = math.ceil(len(data.train) / config.batch_size) * config.total_epochs
    # The first task is the same for all: its probe set, which may be large, is there once.
    same = _probed(data, config.probe_size)
    for epoch in range(first, config.total_epochs + 1):
        alive = [(number, member) for number, member in enumerate(members) if not member.diverged]
        if not alive:
            return
        task = (max(epoch, 1) - 1) // config.epochs
        if epoch == first or (epoch - 1) % config.epochs == 0:
            for member in members:
                member.task = same
                if task:
                    permuted = _permuted(data, member.config.seed, task)
                    member.task = _probed(permuted, config.probe_size)
        with _isolated(config, f"noise/{epoch}"):
            began, rate = time.perf_counter(), config.lr
            losses: list[Tensor] = []
            batches = (_batches(member.task.data, member.config, epoch) for member in members)
            for batch in zip(*batches, strict=True) if epoch else ():
                rate = _set_lr(optimizer, config, step / steps)
                images, labels = (net.join(part) for part in zip(*batch, strict=True))
                losses.append(
                    _train_step(net, optimizer, data.inputs(images), labels, config.precision)
                )
                step += 1
                if config.probe_every and step % config.probe_every == 0:
                    for number, member in alive:
                        member.seen = member.take(net.network(number), member.seen)
                        values = _of_train(member.seen.totals)
                        member.between.append({"epoch": epoch, "step": step, **values})
            lost = torch.stack(losses).view(len(losses), -1).cpu() if losses else None  # waits
            train_s = (time.perf_counter() - began) / len(alive)
            place: Row = {"epoch": epoch, "step": step, "task": task + 1, "lr": rate}
            ended = []
            for number, member in alive:
                mine = None if lost is None else lost[:, number]
                record = _measured(member, net.network(number), place, train_s, mine)
                ended.append((number, record))
        for number, record in ended:
            keep = partial(_checkpoint, members[number], net, optimizer, number, place)
            yield number, replace(record, checkpoint=keep)


def _measured(
    run: _Run, network: nn.Module, place: Row, train_s: float, losses: Tensor | None
) -> Epoch:
    """Measure a run at the end of an epoch; `losses` (T,) are those of its steps."""
    clock = [time.perf_counter()]
    epoch, step = place["epoch"], place["step"]
    diverged_step = _first_non_finite(network, losses, step)
    run.measured = run.take(network, run.measured)
    if diverged_step is None and not run.measured.finite:
        diverged_step = step
    clock.append(time.perf_counter())

    metrics = dict(place)
    layers = [{"epoch": epoch, **layer} for layer in run.measured.layers]
    if diverged_step is None:
        metrics |= _of_train(run.measured.totals)
        data = run.task.data
        for name, split in (("val", data.val), ("test", data.test)):
            loss, accuracy = _evaluate(network, data, split)
            metrics |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
    else:  # a diverged network has no numbers, even where some can be computed
        layers = [{key: row[key] for key in ("epoch", "layer", "units")} for row in layers]
    clock.append(time.perf_counter())
    run.diverged = diverged_step is not None
    between, run.between = run.between, []
    last = epoch == run.config.total_epochs and not run.diverged and run.config.measured
    return Epoch(
        metrics,
        layers,
        _timing(epoch, train_s, clock),
        diverged_step,
        between,
        pre_quantiles(network, run.task.inputs) if last else [],
    )


def _checkpoint(
    run: _Run, net: Alone | Stack, optimizer: torch.optim.Optimizer, number: int, place: Row
) -> Row:
    """What decides all that comes after an epoch; the random streams begin anew in each."""
    return {
        "epoch": place["epoch"],
        "step": place["step"],
        "model": net.network(number).state_dict(),
        "optimizer": net.part_of(optimizer.state_dict(), number),
        "measured": _lives_of(run.measured),
        "seen": _lives_of(run.seen),
    }


def _lives_of(measurement: Measurement | None) -> Row | None:
    if measurement is None:
        return None
    return {name: asdict(history) for name, history in measurement.histories.items()}


def _of_lives(saved: Mapping[str, Any] | None) -> Measurement | None:
    """The part of a measurement that the next one needs."""
    if saved is None:
        return None
    return Measurement(
        {}, [], True, {name: DeadUnitHistory(**history) for name, history in saved.items()}
    )


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
    net: Alone | Stack,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    precision: str = "fp32",
) -> Tensor:
    """Take one step; return the loss, still on the device, so that nothing waits for it."""
    loss = net.loss(inputs, labels, precision)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss.sum())
    optimizer.step()
    return loss.detach()


def _batches(data: Dataset, config: RunConfig, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut the training split, in the epoch's order, into batches of images; the last is smaller."""
    order, chance = (_generator(config.seed, f"{name}/{epoch}") for name in ("batches", "augment"))
    split = data.train
    shuffled = split[torch.randperm(len(split), generator=order).to(split.labels.device)]
    parts = (torch.split(t, config.batch_size) for t in (shuffled.images, shuffled.labels))
    for images, labels in zip(*parts, strict=True):
        if config.augment != "none":
            images = augment_batch(images, config.augment, data.mean, chance)
        yield images, labels


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
def _first_non_finite(network: nn.Module, losses: Tensor | None, step: int) -> int | None:
    """Find the step, counted from 1, at which the loss or the weights stopped being finite.

    Args:
        network: As it is after the step.
        losses: Of the last steps, (T,); None if there was none.
        step: The last of them.
    """
    if losses is not None:
        bad = ~losses.isfinite()
        if bad.any():
            return step - len(losses) + int(bad.int().argmax()) + 1
    finite = all(bool(parameter.isfinite().all()) for parameter in network.parameters())
    return None if finite else step


def _optimizer(parameters: list[nn.Parameter], config: RunConfig) -> torch.optim.Optimizer:
    # Fused: up to 1.3 times the speed of the default for Adam on the CPU, and as deterministic.
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum or 0, **shared)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, **shared)


def _set_lr(optimizer: torch.optim.Optimizer, config: RunConfig, progress: float) -> float:
    """Set the learning rate for the step at `progress`, from 0 to 1, of the run; return it."""
    rate = config.lr
    if config.schedule == "cosine":
        rate *= (1 + math.cos(math.pi * progress)) / 2
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _place(
    networks: list[nn.Module], data: Dataset, device: str
) -> tuple[list[nn.Module], Dataset]:
    """Put networks and the whole data set on the device; convolutions like channels last."""
    convolutional = any(isinstance(module, nn.Conv2d) for module in networks[0].modules())
    memory_format = torch.channels_last if convolutional else torch.contiguous_format
    try:
        placed = [net.to(device).to(memory_format=memory_format) for net in networks]
        return placed, data.to(device, memory_format)
    except (AssertionError, RuntimeError) as error:
        reason = error_reason(error)
        raise BenchError(f"device: {device!r} can't be used here ({reason})") from error


def _timing(epoch: int, train_s: float, clock: list[float]) -> Row:
    measure_s, evaluate_s = (after - before for before, after in itertools.pairwise(clock))
    total = {"epoch": epoch, "time_s": train_s + clock[-1] - clock[0]}
    return total | {"train_s": train_s, "measure_s": measure_s, "evaluate_s": evaluate_s}


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
