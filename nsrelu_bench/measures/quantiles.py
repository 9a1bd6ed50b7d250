"""Quantiles of the pre-activations, from which histograms are drawn."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nsrelu_bench.measures.isolation import run_eagerly, uncompiled, undisturbed
from nsrelu_bench.measures.sites import ACTIVATIONS, Row, find_sites, first_tensor
from nsrelu_bench.measures.sums import all_finite

#: Number of values per site that `pre_quantiles` looks at, and number of quantiles.
SAMPLE, QUANTILES = 2**17, 200


@torch.no_grad()
def pre_quantiles(model: nn.Module, images: Tensor, *, batch_size: int = 250) -> list[Row]:
    """Return evenly spaced quantiles of `pre` at each site, for a histogram.

    The rows have `layer`, `quantile` in (0, 1) and `value`; a site that is not finite has none.
    They are over all values of the images (N, ...) in eval mode, or every n-th of more than 2^17.
    The model is left as it was.

    Raises:
        BenchError: The model has no activation module.
    """
    model = uncompiled(model)
    sites = find_sites(model, ACTIVATIONS)
    seen: dict[str, list[Tensor]] = {name: [] for name in sites}

    def keep(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: Row) -> None:
        values = first_tensor((*args, *kwargs.values()), name).detach().flatten()
        stride = max(1, len(images) * values.numel() // (SAMPLE * batch_size))
        seen[name].append(values[::stride].float().clone())

    with undisturbed(model), run_eagerly(), ExitStack() as hooks:
        for name, module in sites.items():
            hook = module.register_forward_pre_hook(partial(keep, name), with_kwargs=True)
            hooks.callback(hook.remove)
        for part in torch.split(images, batch_size):
            model(part)

    at = (torch.arange(QUANTILES, dtype=torch.float32, device=images.device) + 0.5) / QUANTILES
    rows = []
    for name, parts in seen.items():
        values = torch.cat([*parts, at[:0]])
        if values.numel() and all_finite(values):
            found = zip(at.tolist(), torch.quantile(values, at).tolist(), strict=True)
            rows += [{"layer": name, "quantile": q, "value": value} for q, value in found]
    return rows
