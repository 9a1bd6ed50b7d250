"""The early warning: the gradient that a run follows no longer points like the true one.

Before a collapse, the surrogate gradient stops pointing where the loss falls. The first layer shows
this first: the errors of all later sites add up there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.activations import true_gradients
from nsrelu_bench.measures import undisturbed

#: A first layer's cosine below this is a lost gradient; docs/metrics.md says from which data.
LOST_BELOW = 0.7

#: Steps between two comparisons: each costs about as much as two steps.
WATCH_EVERY = 100


class GradientWatch:
    """Remembers the step at which the first layer's surrogate cosine first fell too low."""

    def __init__(self, lost_step: int | None = None) -> None:
        self.lost_step = lost_step

    def due(self, step: int) -> bool:
        """Return whether to compare after a step."""
        return self.lost_step is None and step % WATCH_EVERY == 0

    def compare(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: int) -> None:
        """Compare the two gradients on the batch of a step: inputs (N, ...), labels (N,)."""
        self._record(first_layer_cosine(network, inputs, labels), step)

    def note(self, layers: Sequence[Mapping[str, Any]], step: int) -> None:
        """Take the cosine that was measured on the probe set, if it was."""
        self._record(layers[0].get("surrogate_cosine") if layers else None, step)

    def _record(self, cosine: float | None, step: int) -> None:
        if self.lost_step is None and cosine is not None and cosine < LOST_BELOW:
            self.lost_step = step


def first_layer_cosine(network: nn.Module, inputs: Tensor, labels: Tensor) -> float | None:
    """Return the cosine of the followed and the true gradient of the first layer's weights.

    In eval mode, with the mean cross-entropy as loss; None if both are equal by construction, or if
    one is zero or not finite. The network, which gives logits (N, classes) of a batch of inputs
    (N, ...) and labels (N,), and all random number generators stay as they were.
    """
    weight = next((p for p in network.parameters() if p.requires_grad and p.dim() > 1), None)
    if weight is None:
        return None
    with undisturbed(network):
        with true_gradients(network) as untied:
            if not untied:
                return None
            true = _gradient(network, weight, inputs, labels)
        followed = _gradient(network, weight, inputs, labels)
    norms = followed.norm() * true.norm()
    cosine = ((followed * true).sum() / norms).item()
    return cosine if norms > 0 and torch.isfinite(norms) else None


def _gradient(network: nn.Module, weight: nn.Parameter, inputs: Tensor, labels: Tensor) -> Tensor:
    loss = F.cross_entropy(network(inputs), labels)
    (gradient,) = torch.autograd.grad(loss, weight, materialize_grads=True)
    return gradient.double()
