"""All measures of a classifier on a probe set, without changing its training."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench.activations import has_own_gradient, true_gradients
from nsrelu_bench.config import SITE_MEASURES
from nsrelu_bench.errors import UsageError
from nsrelu_bench.measures import metrics
from nsrelu_bench.measures.isolation import run_eagerly, uncompiled, undisturbed
from nsrelu_bench.measures.metrics import MEASURES, DeadUnitHistory
from nsrelu_bench.measures.own import OwnMeasure
from nsrelu_bench.measures.probe import ActivationProbe
from nsrelu_bench.measures.sites import (
    GRADIENT_MEASURES,
    PROBE_MEASURES,
    SURROGATE_MEASURES,
    WEIGHT_GRADIENT_MEASURES,
    Row,
    Site,
    check_measures,
    site_rows,
    site_values,
)
from nsrelu_bench.measures.sums import all_finite, weight_update
from nsrelu_bench.measures.unit_axes import Axis

Batch = tuple[Tensor, Tensor]

#: What the probe measures; gradients of the weights come from `_run`, of all parameters.
PROBED = PROBE_MEASURES.keys() - WEIGHT_GRADIENT_MEASURES

LAYER_COLUMNS = ("layer", "units", *SITE_MEASURES)


@dataclass(frozen=True)
class Measurement:
    """The result of `measure`; a measure without a value, or not asked for, is None.

    Attributes:
        totals: The measures of the whole network, by name; all None if it is not finite.
        layers: One row per site: its name as `layer`, its `units`, and the measures of a site.
        finite: Whether the loss, the logits, all weights and all values at the sites are finite.
        histories: Which units of each layer are and were dead, for the next measurement.
    """

    totals: dict[str, float | int | None]
    layers: list[Row]
    finite: bool
    histories: dict[str, DeadUnitHistory] = field(repr=False, compare=False)


def measure(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 250,
    measures: Collection[str | OwnMeasure] = tuple(MEASURES),
    previous: Measurement | None = None,
    unit_axis: Axis | Mapping[str, Axis] | None = None,
) -> Measurement:
    """Measure a classifier on a probe set, with the mean cross-entropy as loss, in eval mode.

    The model is left as it was: weights, gradients, batch-norm statistics, training flags, and
    the state of the random number generators. Training continues with the same bits.

    Args:
        model: Returns logits (N, classes).
        images: The input (N, ...), normalised.
        labels: The classes, (N,) int64.
        batch_size: Examples per pass; changes time and memory, not the result.
        measures: Names of `MEASURES`, whose costs are in docs/metrics.md, or of the user's own.
        previous: The measurement before this one, to count units that died or came back.
        unit_axis: The axis of a site's values that holds the units, as for `ActivationProbe`.

    Raises:
        UsageError: A measure is unknown, there are no examples or not as many labels, or
            `previous` is of another model.
        BenchError: The model has no activation module, or a site can't be measured.
    """
    batches = _split(images, labels, batch_size)
    wanted, own = check_measures(measures, MEASURES)
    model = uncompiled(model)
    probe = _WholeProbe(model, None, [*(wanted & PROBED), *own.values()], unit_axis)
    at_sites = wanted - {"loss", "accuracy"}
    taken = wanted - SURROGATE_MEASURES if has_own_gradient(model) else wanted
    parameters = [p for p in model.parameters() if p.requires_grad and taken & GRADIENT_MEASURES]
    with undisturbed(model), run_eagerly():
        with probe if at_sites else nullcontext():
            result = _run(model, batches, parameters)
        with true_gradients(model) as untied:
            again = untied and taken & SURROGATE_MEASURES
            true = _run(model, batches, parameters).gradients if again else [None] * len(parameters)

    sites = probe.sites
    finite = result.finite and not any(site.nonfinite for site in sites.values())
    weights = dict(zip(parameters, map(weight_update, result.gradients, true), strict=True))
    histories = _histories(sites, previous) if finite and at_sites else {}
    layers, totals = site_rows(sites, weights, taken, own, finite), {}
    if finite:
        totals = site_values(sites.values(), weights.values(), model.parameters(), taken, own)
        totals |= {"loss": result.loss, "accuracy": result.accuracy}
        totals |= _count_changes(histories, previous)
        for row in layers:
            row |= _count_changes({row["layer"]: histories[row["layer"]]}, previous)
    return Measurement(
        totals=_choose(totals, (*MEASURES, *own), wanted),
        layers=[_choose(row, (*LAYER_COLUMNS, *own), wanted) for row in layers],
        finite=finite,
        histories=histories,
    )


def _split(images: Tensor, labels: Tensor, batch_size: int) -> list[Batch]:
    if not 0 < len(images) == len(labels):
        raise UsageError(
            f"a probe set needs one label per image, got {len(labels)} labels for {len(images)}"
        )
    parts = torch.split(images, batch_size), torch.split(labels, batch_size)
    return list(zip(*parts, strict=True))


def _choose(row: Row, columns: Iterable[str], wanted: Collection[str]) -> Row:
    """Return a row with all columns, measures that are not wanted or not there as None."""
    kept = {*wanted, "layer", "units"}
    return {name: row.get(name) if name in kept else None for name in columns}


class _WholeProbe(ActivationProbe):
    """A probe that sums each batch by itself, so that the bits depend only on `batch_size`."""

    POOLED = 0


@dataclass(frozen=True)
class _Result:
    """The result of running the probe set."""

    loss: float
    accuracy: float
    gradients: Sequence[Tensor]
    finite: bool


def _run(model: nn.Module, batches: list[Batch], parameters: list[nn.Parameter]) -> _Result:
    """Run the probe set forward and, if there are parameters, back to them."""
    examples = sum(len(labels) for _, labels in batches)
    loss, correct, finite = 0.0, 0, all(map(all_finite, model.parameters()))
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
            finite = finite and all_finite(logits)
    return _Result(loss, correct / examples, gradients, finite and math.isfinite(loss))


def _histories(sites: dict[str, Site], previous: Measurement | None) -> dict[str, DeadUnitHistory]:
    dead = {name: metrics.dead_mask(site.post) for name, site in sites.items()}
    if previous is None or not previous.histories:
        return {name: DeadUnitHistory.first(mask) for name, mask in dead.items()}
    before = {name: len(history.dead) for name, history in previous.histories.items()}
    if before != {name: len(mask) for name, mask in dead.items()}:
        raise UsageError(f"previous: measured another model, with the layers {', '.join(before)}")
    return {name: previous.histories[name].then(mask) for name, mask in dead.items()}


def _count_changes(histories: dict[str, DeadUnitHistory], previous: Measurement | None) -> Row:
    counts: Row = {
        "ever_dead_units": sum(int(history.ever_dead.sum()) for history in histories.values()),
        "recovered_units": sum(int(history.recovered.sum()) for history in histories.values()),
    }
    if previous is not None and previous.histories:
        pairs = [(previous.histories[name], history) for name, history in histories.items()]
        counts["died_units"] = sum(metrics.died_units(*pair) for pair in pairs)
        counts["revived_units"] = sum(metrics.revived_units(*pair) for pair in pairs)
    return counts
