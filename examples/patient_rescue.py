"""Rescue for deep networks: a gate that waits, and asks the whole batch.

The gate `rescue` looks at one batch, and takes from each example what raises a unit. In a deep
plain network many units are off for one batch and on for the next, and the gradients of the
examples contradict each other: their negative parts add up to a push that the loss does not ask
for. Here a unit must be off for the last `patience` batches, and its gradient summed over the batch
must raise it. ``findings/deep_repair`` compares::

    nsrelu-bench train --depth 30 --act 'examples.patient_rescue:NetRescue(0.1, 100)'
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

#: What is passed on of the gradient (batch, units, ...) of units that are off.
Rule = Callable[[Tensor], Tensor]


def upward(grad: Tensor) -> Tensor:
    """Return what raises a unit, example by example: the rule of `rescue`."""
    return grad.clamp(max=0)


def net_upward(grad: Tensor) -> Tensor:
    """Return all of the gradient of units that it raises on the whole."""
    others = [axis for axis in range(grad.dim()) if axis != 1]
    return grad * (grad.sum(others, keepdim=True) < 0)


class Revive(Function):
    """ReLU; the backward pass adds a leak at chosen units."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, units: Tensor, rule: Rule, leak: float) -> Tensor:
        """Return max(x, 0)."""
        y = x.relu()
        ctx.save_for_backward(y, units)
        ctx.rule, ctx.leak = rule, leak
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Return ReLU's gradient, and of the chosen units what the rule leaves, times the leak."""
        y, units = ctx.saved_tensors
        on = torch.where(y > 0, grad, 0)
        return on + ctx.leak * units * ctx.rule(grad), None, None, None


class PatientRescue(nn.Module):
    """ReLU whose leak passes upwards to units off for the last `patience` batches.

    With a patience of 1 it is ``rescue``.
    """

    rule = staticmethod(upward)

    def __init__(self, leak: float = 0.1, patience: int = 100) -> None:
        super().__init__()
        self.leak, self.patience = leak, patience
        self.register_buffer("batches_off", torch.zeros(0))
        self.batches_off: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x, 0) of an input (batch, units, ...)."""
        if not (self.training and torch.is_grad_enabled()):
            return x.relu()
        others = [axis for axis in range(x.dim()) if axis != 1]
        off = x.detach().amax(others, keepdim=True) <= 0
        if self.batches_off.shape != off.shape:
            self.batches_off = torch.zeros_like(off, dtype=torch.float32)
        self.batches_off = (self.batches_off + 1) * off
        return Revive.apply(x, self.batches_off >= self.patience, self.rule, self.leak)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        self.batches_off = state[f"{prefix}batches_off"].clone()
        super()._load_from_state_dict(state, prefix, *args)


class NetRescue(PatientRescue):
    """As PatientRescue, but only where the sum over the batch raises the unit; then all of it."""

    rule = staticmethod(net_upward)
