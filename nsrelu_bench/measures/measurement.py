"""All measures of a classifier on a probe set, without changing its training."""

import math
import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat, starmap
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.activations import true_gradients
from nsrelu_bench.errors import UsageError
from nsrelu_bench.measures import metrics
from nsrelu_bench.measures.metrics import (
    MEASURES,
    DeadUnitHistory,
)
from nsrelu_bench.measures.probe import (
    ACTIVATIONS,
    GRADIENT_MEASURES,
    SITE_MEASURES,
    SURROGATE_MEASURES,
    ActivationProbe,
    Row,
    Site,
    check_measures,
    find_sites,
    first_tensor,
    run_eagerly,
    site_rows,
    site_values,
    uncompiled,
)

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Measurement:
    """What `measure` found; a measure that has no value or was not asked for is None.

    Attributes:
        totals: The measures of the whole network, by name; all None if it is not finite.
        layers: One row a site: its name as `layer`, its `units`, and the measures of a site.
        finite: Whether the loss, the logits, all weights and all values at the sites are finite.
        lives: By layer, which units are dead and have been: what the next measurement needs.
    """

    totals: dict[str, float | int | None]
    layers: list[Row]
    finite: bool
    lives: dict[str, DeadUnitHistory] = field(repr=False, compare=False)


def measure(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 250,
    measures: Collection[str] = tuple(MEASURES),
    previous: Measurement | None = None,
) -> Measurement:
    """Measure a classifier on a probe set, with the mean cross-entropy as loss, in eval mode.

    The model is left as it was: weights, gradients, batch-norm statistics, training flags, and
    the state of the random number generators. Training goes on with the same bits.

    Args:
        model: Gives logits (N, classes).
        images: Its input (N, ...), normalised.
        labels: The classes, (N,) int64.
        batch_size: Examples a pass: decides time and memory, not the result.
        measures: Names of `MEASURES`; docs/metrics.md says what each costs.
        previous: The measurement before this one, for the lives of units.

    Raises:
        UsageError: A measure is unknown, there are no examples or not as many labels, or
            `previous` is of another model.
        BenchError: The model has no activation module, or a site can't be measured.
    """
    if not 0 < len(images) == len(labels):
        raise UsageError(
            f"a probe set needs one label an image, got {len(labels)} labels for {len(images)}"
        )
    wanted = check_measures(measures, MEASURES)
    model = uncompiled(model)
    probe = ActivationProbe(model, measures=wanted & SITE_MEASURES.keys() - {"grad_norm"})
    at_sites = wanted - {"loss", "accuracy"}
    parameters = [p for p in model.parameters() if p.requires_grad and wanted & GRADIENT_MEASURES]
    parts = torch.split(images, batch_size), torch.split(labels, batch_size)
    batches: list[Batch] = list(zip(*parts, strict=True))
    with _undisturbed(model), run_eagerly():
        with probe if at_sites else nullcontext():
            passed = _run(model, batches, parameters)
        true = _true_gradients(model, batches, parameters) if wanted & SURROGATE_MEASURES else []

    finite = passed.finite and not any(site.nonfinite for site in probe.sites.values())
    pairs = zip(passed.gradients, true or repeat(None), strict=False)
    weights = dict(zip(parameters, starmap(metrics.weight_update, pairs), strict=True))
    lives = _lives(probe.sites, previous) if finite and at_sites else {}

    layers = site_rows(probe.sites, weights, wanted, finite)
    totals: Row = {}
    if finite:
        totals = {"loss": passed.loss, "accuracy": passed.accuracy}
        totals |= site_values(probe.sites.values(), weights.values(), wanted)
        totals |= _count_lives(lives, previous)
        for row in layers:
            row |= _count_lives({row["layer"]: lives[row["layer"]]}, previous)
    of_layer = ("layer", "units", *(name for name in MEASURES if name not in ("loss", "accuracy")))
    kept = wanted | {"layer", "units"}
    return Measurement(
        totals={name: totals.get(name) if name in kept else None for name in MEASURES},
        layers=[{n: row.get(n) if n in kept else None for n in of_layer} for row in layers],
        finite=finite,
        lives=lives,
    )


#: Of how many values at a site `pre_quantiles` takes quantiles, and how many of these.
SAMPLE, QUANTILES = 2**17, 200


@torch.no_grad()
def pre_quantiles(model: nn.Module, images: Tensor, *, batch_size: int = 250) -> list[Row]:
    """Return what a histogram of `pre` needs: evenly spaced quantiles of it at each site.

    Rows of `layer`, `quantile` in (0, 1) and `value`; none of a site that is not finite. Over all
    values of the images (N, ...), in eval mode, or, where these are more than 2^17, every n-th.
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

    with _undisturbed(model), run_eagerly(), ExitStack() as hooks:
        for name, module in sites.items():
            hook = module.register_forward_pre_hook(partial(keep, name), with_kwargs=True)
            hooks.callback(hook.remove)
        for part in torch.split(images, batch_size):
            model(part)

    at = (torch.arange(QUANTILES, dtype=torch.float32, device=images.device) + 0.5) / QUANTILES
    rows = []
    for name, parts in seen.items():
        values = torch.cat([*parts, at[:0]])
        if values.numel() and metrics.all_finite(values):
            found = zip(at.tolist(), torch.quantile(values, at).tolist(), strict=True)
            rows += [{"layer": name, "quantile": q, "value": value} for q, value in found]
    return rows


@dataclass(frozen=True)
class _Pass:
    """What running the probe set gave."""

    loss: float
    accuracy: float
    gradients: Sequence[Tensor]
    finite: bool


def _run(model: nn.Module, batches: list[Batch], parameters: list[nn.Parameter]) -> _Pass:
    """Run the probe set forward and, if there are parameters, back to them."""
    examples = sum(len(labels) for _, labels in batches)
    loss, correct, finite = 0.0, 0, all(map(metrics.all_finite, model.parameters()))
    gradients: Sequence[Tensor] = []
    with torch.set_grad_enabled(bool(parameters)):
        for images, labels in batches:
            logits = model(images)
            part = F.cross_entropy(logits, labels, reduction="sum") / examples
            if parameters:
                found = torch.autograd.grad(part, parameters, materialize_grads=True)
                gradients = list(map(torch.add, gradients, found)) if gradients else found
            loss += part.item()
            correct += int((logits.argmax(1) == labels).sum())
            finite = finite and metrics.all_finite(logits)
    return _Pass(loss, correct / examples, gradients, finite and math.isfinite(loss))


def _true_gradients(
    model: nn.Module, batches: list[Batch], parameters: list[nn.Parameter]
) -> Sequence[Tensor]:
    """Run it again with the gradient of the function that is computed; none if that is the same."""
    with true_gradients(model) as untied:
        return _run(model, batches, parameters).gradients if untied else []


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put all modules in eval mode; give back their modes and the random number generators'."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            for module, _ in modes:
                module.training = False  # not .eval(): a model may do more in it than set this
            yield
        finally:
            for module, training in modes:
                module.training = training
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _lives(sites: dict[str, Site], previous: Measurement | None) -> dict[str, DeadUnitHistory]:
    dead = {name: metrics.dead_mask(site.post) for name, site in sites.items() if site.post}
    if previous is None or not previous.lives:
        return {name: DeadUnitHistory.first(mask) for name, mask in dead.items()}
    then = {name: len(lives.dead) for name, lives in previous.lives.items()}
    if then != {name: len(mask) for name, mask in dead.items()}:
        raise UsageError(f"previous: measured another model, with the layers {', '.join(then)}")
    return {name: previous.lives[name].then(mask) for name, mask in dead.items()}


def _count_lives(lives: dict[str, DeadUnitHistory], previous: Measurement | None) -> Row:
    counts: Row = {
        "ever_dead_units": sum(int(life.ever_dead.sum()) for life in lives.values()),
        "recovered_units": sum(int(life.recovered.sum()) for life in lives.values()),
    }
    if previous is not None and previous.lives:
        pairs = [(previous.lives[name], life) for name, life in lives.items()]
        counts["died_units"] = sum(metrics.died_units(*pair) for pair in pairs)
        counts["revived_units"] = sum(metrics.revived_units(*pair) for pair in pairs)
    return counts
