"""Optimizers and schedules, also those of the user's own.

An optimizer takes the parameters and the learning rate. A schedule takes the number of steps so far
and of the whole run, and returns the factor of the learning rate; docs/own_parts.md has examples.
"""

import inspect
import io
import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import nn

from nsrelu_bench.config import RunConfig, is_own
from nsrelu_bench.errors import BenchError
from nsrelu_bench.plugins import blame, load_plugin

Schedule = Callable[[int, int], float]

#: Optimizers by name; each has a fused version.
OPTIMIZER_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
#: Schedules by name.
SCHEDULE_FACTORS: dict[str, Schedule] = {
    "constant": lambda *_: 1.0,
    "cosine": lambda step, steps: (1 + math.cos(math.pi * (step / steps))) / 2,
}


def make_optimizer(parameters: list[nn.Parameter], config: RunConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a run.

    Raises:
        BenchError: It is the user's own, and can't be imported, made or used.
    """
    if is_own(config.optimizer):
        return _own_optimizer(parameters, config)
    # Fused: up to 1.3 times the speed of the default for Adam on the CPU, and as deterministic.
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        shared["momentum"] = config.momentum or 0
    return _without_compiler(OPTIMIZER_CLASSES[config.optimizer])(parameters, **shared)


def _without_compiler(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return an optimizer that does not import PyTorch's compiler, which takes over a second.

    PyTorch wraps these methods to keep the compiler out of them, and imports it for that. Here it
    never sees them: only a model is compiled.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad", "step")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])})


def _own_optimizer(parameters: list[nn.Parameter], config: RunConfig) -> torch.optim.Optimizer:
    """Return the user's optimizer, after a step with one like it."""
    name = config.optimizer
    make = load_plugin("optimizer", name)
    with torch.random.fork_rng(devices=()), blame("optimizer", name):
        likeness = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
        trial = make(likeness, config.lr)
    if not isinstance(trial, torch.optim.Optimizer):
        raise BenchError(
            f"optimizer: {name} must return a torch.optim.Optimizer, got {type(trial).__name__}"
        )
    for parameter in likeness:
        parameter.grad = torch.ones_like(parameter)
    with torch.random.fork_rng(devices=()), blame("optimizer", name):
        trial.step()
    state = io.BytesIO()
    try:
        torch.save(trial.state_dict(), state)
        torch.load(io.BytesIO(state.getvalue()), weights_only=True)
    except Exception as error:
        raise BenchError(
            f"optimizer: {name} has a state that a checkpoint can't hold: only tensors and plain"
            f" values can be ({type(error).__name__})"
        ) from error
    with blame("optimizer", name):
        optimizer: torch.optim.Optimizer = make(parameters, config.lr)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group.get("lr", config.lr))
    optimizer.step = blame("optimizer", name)(optimizer.step)  # type: ignore[method-assign]
    return optimizer


def make_schedule(config: RunConfig) -> Schedule:
    """Return the schedule of a run.

    Raises:
        BenchError: It is the user's own, and can't be imported.
    """
    if is_own(config.schedule):
        return partial(_own_factor, config.schedule, load_plugin("schedule", config.schedule))
    return SCHEDULE_FACTORS[config.schedule]


def _own_factor(name: str, function: Callable[[int, int], object], step: int, steps: int) -> float:
    with blame("schedule", name):
        factor = function(step, steps)
    value = float(factor) if isinstance(factor, Real) else math.nan
    if not 0 <= value < math.inf:
        raise BenchError(
            f"schedule: {name} must return a number from 0, got {str(factor)[:40]!r} for step"
            f" {step} of {steps}"
        )
    return value


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float, factor: float) -> float:
    """Set and return the learning rate of a step: that of the run, times the schedule's factor.

    A group of parameters with a rate of its own keeps its share of it.
    """
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", rate) * factor
    return rate * factor
