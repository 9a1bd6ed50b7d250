"""Quantiles of the pre-activations, from which histograms are drawn."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nsrelu_bench.measures.isolation import run_eagerly, uncompiled, undisturbed
from nsrelu_bench.measures.sites import ACTIVATIONS, Row, find_sites, first_tensor
from nsrelu_bench.measures.sums import all_finite

#: Number of values per site that `pre_quantiles` draws where there are at least twice as many,
#: number of quantiles, and the seed of the draw.
SAMPLE, QUANTILES, SEED = 2**17, 200, 0


@torch.no_grad()
def pre_quantiles(model: nn.Module, images: Tensor, *, batch_size: int = 250) -> list[Row]:
    """Return evenly spaced quantiles of `pre` at each site, for a histogram.

    The rows have `layer`, `quantile` in (0, 1) and `value`; a site that is not finite has none.
    They are over all values of the images (N, ...) in eval mode or, of 2^18 values and more, over
    2^17 drawn at random, the same in each process. The model is left as it was.

    Raises:
        BenchError: The model has no activation module.
    """
    model = uncompiled(model)
    sites = find_sites(model, ACTIVATIONS)
    draws = {name: _Draw(len(images)) for name in sites}
    seen: dict[str, list[Tensor]] = {name: [] for name in sites}

    def keep(examples: int, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: Row) -> None:
        values = first_tensor((*args, *kwargs.values()), name).detach().flatten()
        seen[name].append(draws[name].take(values, examples).float().clone())

    with undisturbed(model), run_eagerly():
        for part in torch.split(images, batch_size):
            with ExitStack() as hooks:
                for name, module in sites.items():
                    look = partial(keep, len(part), name)
                    hook = module.register_forward_pre_hook(look, with_kwargs=True)
                    hooks.callback(hook.remove)
                model(part)

    at = (torch.arange(QUANTILES, dtype=torch.float32) + 0.5) / QUANTILES
    rows = []
    for name, parts in seen.items():
        values = torch.cat([*parts, torch.empty(0, device=images.device)]).cpu()
        if values.numel() and all_finite(values):
            found = zip(at.tolist(), _quantiles(values, at).tolist(), strict=True)
            rows += [{"layer": name, "quantile": q, "value": value} for q, value in found]
    return rows


def _quantiles(values: Tensor, at: Tensor) -> Tensor:
    """Return the values of torch.quantile in a third of the time: NumPy sorts faster."""
    ordered = torch.from_numpy(np.sort(values.numpy())) + 0.0  # no -0.0, whose order is chance
    ranks = at.double() * (len(ordered) - 1)
    below, above = ranks.long(), ranks.ceil().long()
    return torch.lerp(ordered[below], ordered[above], (ranks - below).float())


class _Draw:
    """Draws from the values of a site, which come batch by batch, for `examples` in all.

    All values are cut into `SAMPLE` stretches of one length, and one of each is drawn. Taking every
    n-th would count the edges of images more or less often than the rest, where n and their width
    have a common factor.
    """

    def __init__(self, examples: int) -> None:
        self._examples = examples
        self._places: Tensor | None = None  # of what is drawn, in order; None: all
        self._passed = -1  # values before this batch; -1: none has come

    def take(self, values: Tensor, examples: int) -> Tensor:
        """Return what is drawn of the values of a batch."""
        if self._passed < 0:
            self._passed = 0
            total = values.numel() * self._examples // examples
            if total >= 2 * SAMPLE:
                generator = torch.Generator().manual_seed(SEED)
                drawn = torch.rand(SAMPLE, dtype=torch.float64, generator=generator)
                drawn = (torch.arange(SAMPLE, dtype=torch.float64) + drawn) * (total / SAMPLE)
                self._places = drawn.long()
        first, self._passed = self._passed, self._passed + values.numel()
        if self._places is None:
            return values
        bounds = torch.tensor([first, self._passed])
        start, end = torch.searchsorted(self._places, bounds).tolist()
        return values[(self._places[start:end] - first).to(values.device)]
