"""Measure a run after each epoch: its `Monitor` returns an `Epoch`."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.config import RunConfig
from nsrelu_bench.data import Dataset, Split
from nsrelu_bench.measures import (
    DeadUnitHistory,
    Measurement,
    load_measures,
    measure,
    pre_quantiles,
)
from nsrelu_bench.training.gradient_watch import GradientWatch
from nsrelu_bench.training.steps import Task, task_number

Row = dict[str, Any]

#: A loss of this many times that of guessing has exploded. Usable networks with large logits have
#: been seen at 1.2 times, collapsed ones from 35 times on.
EXPLODED = 10

#: Images per forward pass of an evaluation.
EVAL_BATCH = 1000


@dataclass(frozen=True)
class Epoch:
    """The measurements after an epoch; epoch 0 is before the first step.

    Attributes:
        metrics: The row of metrics.csv; a measure without a value is None.
        layers: The rows of layers.csv, one per activation site.
        timing: The row of timing.csv, in seconds.
        diverged_step: The step, from 1, at which loss or weights stopped being finite.
        steps: The rows of steps.csv, measured between epochs.
        quantiles: The rows of quantiles.csv, after the last epoch.
        checkpoint: Returns what `run` needs to resume from here, as tensors and plain values; call
            it before the next epoch starts.
    """

    metrics: Row
    layers: list[Row]
    timing: Row
    diverged_step: int | None = None
    steps: list[Row] = field(default_factory=list)
    quantiles: list[Row] = field(default_factory=list)
    checkpoint: Callable[[], Row] = dict


class Monitor:
    """Measures one run, and keeps what later measurements need of earlier ones.

    `saved` is its `state` in a checkpoint, to resume from. `between_s` is the time that
    `after_step` has taken since the last `end_epoch`, in seconds.
    """

    def __init__(self, config: RunConfig, saved: Mapping[str, Any] | None = None) -> None:
        saved = saved or {}
        self._config = config
        self._measures = load_measures(("loss", "accuracy", *config.measured))
        self._after_epochs = _restore(saved.get("after_epochs"))
        self._between = _restore(saved.get("between"))
        self._best_val_accuracy: float = saved.get("best_val_accuracy", 0.0)
        self._steps: list[Row] = []
        self.between_s = 0.0
        self.watch = GradientWatch(saved.get("gradient_lost_step"))

    def state(self) -> Row:
        """Return what a checkpoint keeps, as tensors and plain values."""
        return {
            "after_epochs": _histories(self._after_epochs),
            "between": _histories(self._between),
            "best_val_accuracy": self._best_val_accuracy,
            "gradient_lost_step": self.watch.lost_step,
        }

    def due(self, step: int) -> bool:
        """Return whether there is anything to do `after_step`."""
        return self.watch.due(step) or self._probe_due(step)

    def _probe_due(self, step: int) -> bool:
        every = self._config.probe_every
        return bool(every) and step % every == 0

    def after_step(
        self, network: nn.Module, inputs: Tensor, labels: Tensor, task: Task, epoch: int, step: int
    ) -> None:
        """Compare the gradients, and take measures, whichever is `due` at this step.

        The gradients are those of the network after the step on its batch, inputs (N, ...) and
        labels (N,); the measures are taken on the probe set of the task.
        """
        labels[:1].cpu()  # waits for the device: the time of the steps is not counted here
        started = time.perf_counter()
        if self.watch.due(step):
            self.watch.compare(network, inputs, labels, step)
        if self._probe_due(step):
            self._between = self._measure(network, task, self._between)
            values = _of_training_split(self._between.totals)
            self._steps.append({"epoch": epoch, "step": step, **values})
        self.between_s += time.perf_counter() - started

    def end_epoch(
        self, network: nn.Module, task: Task, at: Row, losses: Tensor | None, train_s: float
    ) -> Epoch:
        """Measure a network at the end of an epoch, on the probe set and the splits of a task.

        `at` is the `position` of the run. `losses` are those of the epoch's steps (T,), None before
        the first, and `train_s` the seconds that these took, without `after_step`.
        """
        began = time.perf_counter()
        epoch, step = at["epoch"], at["step"]
        diverged_step = first_non_finite(network, losses, step)
        self._after_epochs = measured = self._measure(network, task, self._after_epochs)
        if diverged_step is None and not measured.finite:
            diverged_step = step
        measured_at = time.perf_counter()

        layers = [{"epoch": epoch, **layer} for layer in measured.layers]
        if diverged_step is None:
            if epoch:
                self.watch.note(layers, step)
            metrics = at | _of_training_split(measured.totals)
            for name, split in (("val", task.data.val), ("test", task.data.test)):
                loss, accuracy = evaluate(network, task.data, split)
                metrics |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
            self._note_best(metrics)
            metrics["collapsed"] = self._collapsed(metrics, task)
        else:  # of a diverged network no numbers are recorded, even where some are finite
            metrics = dict(at)
            layers = [{key: row[key] for key in ("epoch", "layer", "units")} for row in layers]
        metrics["gradient_lost_step"] = self.watch.lost_step
        evaluate_s = time.perf_counter() - measured_at

        steps, self._steps = self._steps, []
        last = epoch == self._config.total_epochs and diverged_step is None
        quantiles = (
            pre_quantiles(network, task.probe_inputs) if last and self._config.measured else []
        )
        measure_s, self.between_s = measured_at - began + self.between_s, 0.0
        spent = {"train_s": train_s, "measure_s": measure_s, "evaluate_s": evaluate_s}
        timing = {"epoch": epoch, "time_s": sum(spent.values()), **spent}
        return Epoch(metrics, layers, timing, diverged_step, steps, quantiles)

    def _measure(self, network: nn.Module, task: Task, previous: Measurement | None) -> Measurement:
        probe = task.probe_inputs, task.probe_labels
        return measure(network, *probe, measures=self._measures, previous=previous)

    def _note_best(self, metrics: Mapping[str, Any]) -> None:
        """Remember the best validation accuracy so far, of a network that was trained."""
        if metrics["epoch"]:
            accuracy = metrics["val_accuracy"] or 0.0
            self._best_val_accuracy = max(accuracy, self._best_val_accuracy)

    def _collapsed(self, metrics: Mapping[str, Any], task: Task) -> int:
        """Return 1 for a network that has unlearned, or learned nothing, and 0 otherwise.

        It has collapsed if, after the first step, its validation accuracy is at most the share of
        the most frequent class, or less than half of the best so far, or if its loss on the probe
        set, a part of the training split, is at least `EXPLODED` times that of guessing by the
        shares of classes.
        """
        if metrics["epoch"] == 0:
            return 0
        accuracy = metrics["val_accuracy"] or 0.0
        chance = _class_shares(task.data.val.labels).max().item()
        shares = _class_shares(task.probe_labels)
        guessing = -(shares * shares.log()).sum().item()
        only_class = len(shares) == 1  # guessing is right, and there is nothing to learn
        no_better = accuracy <= chance or metrics["train_loss"] >= EXPLODED * guessing
        return int(accuracy < self._best_val_accuracy / 2 or (no_better and not only_class))


def _class_shares(labels: Tensor) -> Tensor:
    """Return the share of each class that is there, in float64, to compare with accuracies."""
    _, counts = torch.unique(labels, return_counts=True)
    shares: Tensor = counts.double() / len(labels)
    return shares


def position(config: RunConfig, epoch: int, step: int, lr: float) -> Row:
    """Return the columns of metrics.csv for the position of a run; `lr` of its last step."""
    return {"epoch": epoch, "step": step, "task": task_number(config, epoch), "lr": lr}


@torch.no_grad()
def evaluate(network: nn.Module, data: Dataset, split: Split) -> tuple[float | None, float | None]:
    """Return mean loss and accuracy on a split, in eval mode; None if a logit is not finite."""
    network.eval()
    parts = torch.split(split.images, EVAL_BATCH)
    logits = torch.cat([network(data.inputs(part)) for part in parts])
    network.train()
    if not logits.isfinite().all():
        return None, None
    loss = F.cross_entropy(logits.double(), split.labels)
    accuracy = (logits.argmax(1) == split.labels).double().mean()
    return loss.item(), accuracy.item()


@torch.no_grad()
def first_non_finite(network: nn.Module, losses: Tensor | None, step: int) -> int | None:
    """Return the step, from 1, at which the loss or the weights stopped being finite, or None.

    `losses` are those of the last steps (T,), up to number `step`; None if there was no step.
    """
    if losses is not None:
        bad = ~losses.isfinite()
        if bad.any():
            return step - len(losses) + int(bad.int().argmax()) + 1
    finite = all(bool(parameter.isfinite().all()) for parameter in network.parameters())
    return None if finite else step


def _of_training_split(totals: Row) -> Row:
    """Rename loss and accuracy: the probe set is a part of the training split."""
    names = {"loss": "train_loss", "accuracy": "train_accuracy"}
    return {names.get(name, name): value for name, value in totals.items()}


def _histories(measurement: Measurement | None) -> Row | None:
    """Return the part of a measurement that the next one needs, as tensors."""
    if measurement is None:
        return None
    return {name: asdict(history) for name, history in measurement.histories.items()}


def _restore(saved: Mapping[str, Any] | None) -> Measurement | None:
    if saved is None:
        return None
    histories = {name: DeadUnitHistory(**history) for name, history in saved.items()}
    return Measurement({}, [], True, histories)
