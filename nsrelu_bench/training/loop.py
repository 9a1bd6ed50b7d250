"""One run, from its configuration to its last epoch."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from nsrelu_bench.config import RunConfig
from nsrelu_bench.training.ensemble import run_ensemble
from nsrelu_bench.training.epoch import Epoch, Monitor, Row, position
from nsrelu_bench.training.optimizers import make_optimizer, make_schedule, set_learning_rate
from nsrelu_bench.training.random_streams import isolated
from nsrelu_bench.training.redo import reset_dormant_units
from nsrelu_bench.training.steps import (
    batches,
    build_network,
    load_data,
    make_task,
    set_leak,
    starts_task,
    to_device,
    total_steps,
    train_step,
)


def run(config: RunConfig, checkpoint: Mapping[str, Any] | None = None) -> Iterator[Epoch]:
    """Train, and yield an `Epoch` before the first step and after every epoch.

    A run whose loss or weights stop being finite ends with an epoch that has a `diverged_step`.
    The same configuration gives the same bits in any process; a run that is resumed from a
    checkpoint gives those of one that was never stopped.

    Args:
        config: What to run.
        checkpoint: Resume after the epoch whose `checkpoint` returned this.

    Raises:
        BenchError: The data set, the model or the device can't be had.
    """
    if config.stack:  # a stacked run trains as an ensemble, even alone
        yield from (epochs[0] for epochs in run_ensemble([config], [checkpoint]))
        return
    data = load_data(config)
    network = build_network(config, data)
    if checkpoint:
        network.load_state_dict(checkpoint["model"])
    data = to_device([network], data, config.device)
    optimizer = make_optimizer(list(network.parameters()), config)
    schedule = make_schedule(config)
    forward = torch.compile(network) if config.compile else network
    monitor = Monitor(config, checkpoint and checkpoint["monitor"])
    first, step, steps = 0, 0, total_steps(config, data)
    if checkpoint:
        optimizer.load_state_dict(checkpoint["optimizer"])
        first, step = checkpoint["epoch"] + 1, checkpoint["step"]
    del checkpoint  # what it holds may be large
    task = make_task(data, config, first)

    for epoch in range(first, config.total_epochs + 1):
        if starts_task(config, epoch):
            task = make_task(data, config, epoch)
        with isolated(config, f"noise/{epoch}"):
            started, rate, losses = time.perf_counter(), config.lr, []
            for images, labels in batches(task.data, config, epoch) if epoch else ():
                rate = set_learning_rate(optimizer, config.lr, schedule(step, steps))
                set_leak(network, config, step / steps)
                inputs = data.inputs(images)
                loss = train_step(
                    forward, optimizer, inputs, labels, config.precision, config.clip_norm
                )
                losses.append(loss)
                step += 1
                if config.redo and step % config.redo == 0:
                    reset_dormant_units(network, optimizer, task.data, config, step)
                if monitor.due(step):
                    monitor.after_step(network, inputs, labels, task, epoch, step)
            # To the CPU: this waits for the device, so that `train_s` includes its work.
            epoch_losses = torch.stack(losses).cpu() if losses else None
            train_s = time.perf_counter() - started - monitor.between_s
            set_leak(network, config, step / steps)
            at = position(config, epoch, step, rate)
            record = monitor.end_epoch(network, task, at, epoch_losses, train_s)
        yield replace(record, checkpoint=partial(_state, network, optimizer, monitor, at))
        if record.diverged_step is not None:
            return


def _state(network: nn.Module, optimizer: torch.optim.Optimizer, monitor: Monitor, at: Row) -> Row:
    """Return what a checkpoint must hold: no random state, as each epoch seeds its own."""
    return {
        "epoch": at["epoch"],
        "step": at["step"],
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "monitor": monitor.state(),
    }
