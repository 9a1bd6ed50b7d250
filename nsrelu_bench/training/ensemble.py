"""Several seeds of one configuration, trained as one network.

An `Ensemble` holds the weights of its networks in one tensor per parameter and computes all of
them at once, each on its own batch. They share only operations: each has the gradients that it
would have alone, up to the rounding of sums in another order.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from nsrelu_bench.config import RunConfig
from nsrelu_bench.data import Dataset
from nsrelu_bench.errors import BenchError, error_reason
from nsrelu_bench.training.epoch import Epoch, Monitor, Row, position
from nsrelu_bench.training.optimizers import make_optimizer, make_schedule, set_learning_rate
from nsrelu_bench.training.random_streams import isolated
from nsrelu_bench.training.steps import (
    Task,
    batches,
    build_network,
    load_data,
    make_task,
    starts_task,
    task_number,
    to_device,
    total_steps,
    train_step,
)

State = dict[str, Any]


class Ensemble:
    """K networks of the same architecture, in training mode, that are trained together.

    Each gives logits (N, classes); the first is used to compute all of them.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._template = networks[0]
        # Copies: what is computed with the template must not change the ensemble.
        self._weights, self._buffers = stack_module_state(list(networks))

    @torch.no_grad()
    def check(self, networks: Sequence[nn.Module], inputs: Tensor) -> None:
        """Compare the ensemble with each network by itself, on a few inputs (N, ...).

        Raises:
            BenchError: The networks differ in more than their parameters and buffers.
        """
        for network in networks:
            network.eval()
        together = self.forward(torch.stack([inputs] * len(networks)))
        for network, logits in zip(networks, together, strict=True):
            if not torch.allclose(network(inputs), logits, rtol=1e-3, atol=1e-3, equal_nan=True):
                raise BenchError(
                    "stack: only parameters and buffers may depend on the seed, and this model's"
                    " networks differ in more: register the rest as buffers"
                )
        for network in networks:
            network.train()

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters, (K, ...) each."""
        return list(self._weights.values())

    @torch.no_grad()
    def network(self, index: int) -> nn.Module:
        """Return one of the networks as it is now, valid until the next call."""
        for stacked, own in (
            (self._weights, self._template.named_parameters()),
            (self._buffers, self._template.named_buffers()),
        ):
            for name, tensor in own:
                tensor.copy_(stacked[name][index])
        return self._template

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (K, N, classes) of inputs (K, N, ...), a batch per network.

        Raises:
            BenchError: The network can't be computed for several at once.
        """
        try:
            logits: Tensor = torch.vmap(self._logits)(self._weights, self._buffers, inputs)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            reason = error_reason(error)
            raise BenchError(f"stack: this model can't be computed stacked ({reason})") from error
        return logits

    def _logits(self, weights: State, buffers: State, inputs: Tensor) -> Tensor:
        logits: Tensor = functional_call(self._template, (weights, buffers), (inputs,))
        return logits


@dataclass
class Member:
    """One seed of an ensemble, and what it is learning."""

    index: int
    config: RunConfig
    monitor: Monitor
    task: Task


def run_ensemble(
    configs: Sequence[RunConfig], checkpoints: Sequence[Mapping[str, Any] | None]
) -> Iterator[dict[int, Epoch]]:
    """Train runs that differ in their seeds as one network.

    Yields, before the first step and after every epoch, the `Epoch` of each run by its index, as
    `run` does for one; without the runs that have diverged before. The `checkpoints` are all of the
    same epoch, or all None.

    Raises:
        BenchError: The data set, the model or the device can't be had, or the model can't be
            computed for several seeds at once.
    """
    config = configs[0]
    data = load_data(config)
    states = [checkpoint for checkpoint in checkpoints if checkpoint is not None]
    networks = [build_network(one, data) for one in configs]
    for network, state in zip(networks, states, strict=False):
        network.load_state_dict(state["model"])
    # On a GPU vmap can't compute the batch norm of channels-last images.
    data = to_device(networks, data, config.device, channels_last=config.device == "cpu")
    ensemble = Ensemble(networks)
    ensemble.check(networks, data.inputs(data.train.images[:2]))
    optimizer = make_optimizer(ensemble.parameters(), config)
    schedule = make_schedule(config)
    first, step, steps = 0, 0, total_steps(config, data)
    if states:
        optimizer.load_state_dict(_map_tensors([s["optimizer"] for s in states], torch.stack))
        first, step = states[0]["epoch"] + 1, states[0]["step"]
    members = active = _make_members(data, configs, states, first)
    del networks, states, checkpoints  # what they hold may be large

    for epoch in range(first, config.total_epochs + 1):
        if starts_task(config, epoch):
            for member, task in zip(members, _make_tasks(data, configs, epoch), strict=True):
                member.task = task
        with isolated(config, f"noise/{epoch}"):
            started, rate, losses = time.perf_counter(), config.lr, []
            for images, labels in _joint_batches(members, epoch) if epoch else ():
                rate = set_learning_rate(optimizer, config.lr, schedule(step, steps))
                inputs = data.inputs(images)
                losses.append(
                    train_step(ensemble.forward, optimizer, inputs, labels, config.precision)
                )
                step += 1
                _watch(ensemble, active, inputs, labels, epoch, step)
            finished = torch.stack(losses).cpu() if losses else None  # (T, K); waits
            spent = time.perf_counter() - started - sum(one.monitor.between_s for one in active)
            at = position(config, epoch, step, rate)
            ended = [
                (member, _end_epoch(ensemble, optimizer, member, at, finished, spent / len(active)))
                for member in active
            ]
        yield {member.index: record for member, record in ended}
        active = [member for member, record in ended if record.diverged_step is None]
        if not active:
            return


def _make_members(
    data: Dataset, configs: Sequence[RunConfig], states: Sequence[Mapping[str, Any]], epoch: int
) -> list[Member]:
    """Return the runs of an ensemble, each where its checkpoint left off, if there are any."""
    saved = [state["monitor"] for state in states] or [None] * len(configs)
    runs = zip(configs, saved, _make_tasks(data, configs, epoch), strict=True)
    return [Member(k, one, Monitor(one, state), task) for k, (one, state, task) in enumerate(runs)]


def _make_tasks(data: Dataset, configs: Sequence[RunConfig], epoch: int) -> list[Task]:
    """Return the task of each run in an epoch; the first task is the same one for all."""
    if task_number(configs[0], epoch) == 1:
        return [make_task(data, configs[0], epoch)] * len(configs)
    return [make_task(data, config, epoch) for config in configs]


def _joint_batches(members: Sequence[Member], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of all members: images (K, N, C, H, W) as stored, labels (K, N)."""
    streams = [batches(member.task.data, member.config, epoch) for member in members]
    for batch in zip(*streams, strict=True):
        images, labels = (torch.stack(part) for part in zip(*batch, strict=True))
        yield images, labels


def _watch(
    ensemble: Ensemble,
    members: Sequence[Member],
    inputs: Tensor,
    labels: Tensor,
    epoch: int,
    step: int,
) -> None:
    """Measure after a step the members for which it is due, each on its own batch."""
    for member in members:
        if member.monitor.due(step):
            batch = inputs[member.index], labels[member.index], member.task
            member.monitor.after_step(ensemble.network(member.index), *batch, epoch, step)


def _end_epoch(
    ensemble: Ensemble,
    optimizer: torch.optim.Optimizer,
    member: Member,
    at: Row,
    losses: Tensor | None,
    train_s: float,
) -> Epoch:
    own = None if losses is None else losses[:, member.index]
    network = ensemble.network(member.index)
    record = member.monitor.end_epoch(network, member.task, at, own, train_s)
    return replace(record, checkpoint=partial(_state, ensemble, optimizer, member, at))


def _state(ensemble: Ensemble, optimizer: torch.optim.Optimizer, member: Member, at: Row) -> Row:
    """Return one member's state as a single run saves it, with its part of the optimizer's."""
    whole = optimizer.state_dict()
    return {
        "epoch": at["epoch"],
        "step": at["step"],
        "model": ensemble.network(member.index).state_dict(),
        "optimizer": _map_tensors([whole], lambda tensors: tensors[0][member.index].clone()),
        "monitor": member.monitor.state(),
    }


def _map_tensors(states: Sequence[State], function: Callable[[list[Tensor]], Tensor]) -> State:
    """Combine the states of optimizers tensor by tensor; all have taken the same steps."""
    first = states[0]
    combined = {
        number: {
            name: function([state["state"][number][name] for state in states])
            if isinstance(value, Tensor) and name != "step"
            else value
            for name, value in values.items()
        }
        for number, values in first["state"].items()
    }
    return first | {"state": combined}
