"""What a training step is taken of: one network, or several of one form as one.

A `Stack` holds the weights of its networks in one tensor a parameter and computes all of them at
once, each on a batch of its own. They share operations and nothing else: each has the gradients
that it would have by itself, to the rounding of sums that are added in another order.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from nsrelu_bench.errors import BenchError, error_reason

State = dict[str, Any]


class Alone:
    """One network.

    Args:
        network: Gives logits (N, classes).
        compiled: Take steps of it compiled.
    """

    def __init__(self, network: nn.Module, *, compiled: bool = False) -> None:
        self._network = network
        self._forward: Callable[..., Any] = torch.compile(network) if compiled else network

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer changes."""
        return list(self._network.parameters())

    def network(self, _: int) -> nn.Module:
        """The network as it is now."""
        return self._network

    def join(self, batches: Sequence[Tensor]) -> Tensor:
        """Put the batches of all networks into one tensor."""
        return batches[0]

    def loss(self, inputs: Tensor, labels: Tensor, precision: str) -> Tensor:
        """Mean cross-entropy of a batch (N, ...): a number."""
        with _autocast(inputs, precision):
            logits = self._forward(inputs)
        return F.cross_entropy(logits.float(), labels)

    def part_of(self, state: State, _: int) -> State:
        """The part of one network in the optimizer's state."""
        return state

    def state_of(self, parts: Sequence[State]) -> State:
        """The optimizer's state that has these parts."""
        return parts[0]


class Stack:
    """Several networks of one form, in training mode, that are trained side by side.

    Args:
        networks: Each gives logits (N, classes); the first is used to compute all of them.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._form = networks[0]
        # A copy of its own: what is computed with the form must not change the stack.
        self._weights, self._buffers = stack_module_state(list(networks))

    @torch.no_grad()
    def check(self, networks: Sequence[nn.Module], inputs: Tensor) -> None:
        """Compare, on a few inputs, what the stack computes with what each network does by itself.

        Raises:
            BenchError: The networks differ in more than their parameters and buffers.
        """
        for network in networks:
            network.eval()
        together = self._compute(self.join([inputs] * len(networks)), "fp32")
        for network, logits in zip(networks, together, strict=True):
            if not torch.allclose(network(inputs), logits, rtol=1e-3, atol=1e-3, equal_nan=True):
                raise BenchError(
                    "stack: the networks differ in more than their parameters and buffers, and"
                    " would be taken for one another; register_buffer what the seed decides"
                )
        for network in networks:
            network.train()

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer changes: (K, ...) of K networks."""
        return list(self._weights.values())

    @torch.no_grad()
    def network(self, index: int) -> nn.Module:
        """One of the networks as it is now, until the next is asked for."""
        for held, own in (
            (self._weights, self._form.named_parameters()),
            (self._buffers, self._form.named_buffers()),
        ):
            for name, tensor in own:
                tensor.copy_(held[name][index])
        return self._form

    def join(self, batches: Sequence[Tensor]) -> Tensor:
        """Put the batches of all networks into one tensor."""
        return torch.stack(list(batches))

    def loss(self, inputs: Tensor, labels: Tensor, precision: str) -> Tensor:
        """Mean cross-entropy of each network's batch, of (K, N, ...): (K,).

        Raises:
            BenchError: The network does what can't be done for several at once.
        """
        return torch.vmap(F.cross_entropy)(self._compute(inputs, precision).float(), labels)

    def _compute(self, inputs: Tensor, precision: str) -> Tensor:
        try:
            with _autocast(inputs, precision):
                return torch.vmap(self._logits)(self._weights, self._buffers, inputs)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            reason = error_reason(error)
            raise BenchError(f"stack: this model can't be computed stacked ({reason})") from error

    def _logits(self, weights: State, buffers: State, inputs: Tensor) -> Tensor:
        logits: Tensor = functional_call(self._form, (weights, buffers), (inputs,))
        return logits

    def part_of(self, state: State, index: int) -> State:
        """The part of one network in the optimizer's state."""
        return _changed([state], lambda values: values[0][index].clone())

    def state_of(self, parts: Sequence[State]) -> State:
        """The optimizer's state that has these parts."""
        return _changed(parts, torch.stack)


def _changed(states: Sequence[State], change: Callable[[list[Tensor]], Tensor]) -> State:
    """Make one state of an optimizer of several by their tensors; all count the same steps."""
    first, *_ = states
    kept = {
        number: {
            name: change([state["state"][number][name] for state in states])
            if isinstance(value, Tensor) and name != "step"
            else value
            for name, value in values.items()
        }
        for number, values in first["state"].items()
    }
    return first | {"state": kept}


def _autocast(inputs: Tensor, precision: str) -> AbstractContextManager[object]:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(inputs.device.type, torch.bfloat16)
