"""Which panels each figure has. `FIGURES` names them; `figures` draws them side by side.

A figure is planned from results whose runs are grouped once, by `group_results`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nsrelu_bench.compare import act_order, join_settings, name_groups, varying_settings
from nsrelu_bench.plot.panel_data import (
    MAX_LINES,
    MAX_PANELS,
    NothingToDrawError,
    cell_means,
    check_count,
    epoch_values,
    final_values,
    group_label,
    has_several_leaks,
    layer_grid,
    leak_families,
)
from nsrelu_bench.plot.panels import curves, gradient_depth, histogram, leak_curve, phase, tradeoff
from nsrelu_bench.plot.style import FRONT, HATCH, cross, linear_norm, log_norm
from nsrelu_bench.records import Results

#: The metrics of a figure; where settings vary, with a panel for each, only the first.
CURVES = ("test_accuracy", "train_loss", "zero_fraction", "dead_fraction")
UNIT_COUNTS = ("dead_units", "submerged_units", "dormant_units", "revived_units")
LEAK_CURVES = ("test_accuracy", "zero_fraction", "dead_fraction", "diverged_fraction")

#: Pairs of settings that make a phase diagram; the first pair that both vary is taken.
PHASE_AXES = (("leak", "lr"), ("depth", "width"), ("leak", "depth"), ("leak", "width"))


@dataclass(frozen=True)
class GroupedResults:
    """Results whose runs have been grouped.

    Attributes:
        groups: The runs as `name_groups` returns them.
        metrics: One row per run and epoch.
        layers: One row per run, epoch and layer.
        quantiles: Quantiles of the pre-activations by run and layer.
        varying: The settings, beside the activation, that vary.
    """

    groups: pd.DataFrame
    metrics: pd.DataFrame
    layers: pd.DataFrame
    quantiles: pd.DataFrame
    varying: Sequence[str]

    def facets(self, each: int = 1) -> list[tuple[str, pd.DataFrame]]:
        """Split the runs by the settings that vary, for `each` panels per setting.

        Raises:
            NothingToDrawError: That would be more panels than can be read.
        """
        parts = [(str(name), part) for name, part in self.groups.groupby("setting", sort=False)]
        check_count(len(parts) * each, MAX_PANELS, "panels")
        return parts


def group_results(results: Results) -> GroupedResults:
    """Group the runs of some results.

    Raises:
        BenchError: The runs can't be grouped.
    """
    groups = name_groups(results.runs, results.config_columns)
    varying = varying_settings(groups, results.config_columns)
    return GroupedResults(groups, results.metrics, results.layers, results.quantiles, varying)


@dataclass(frozen=True)
class FigureSpec:
    """The panels of a figure.

    Attributes:
        panels: The title of each, and a function that draws it when it is called with `ax`.
        legend: The grouped runs whose activations the legend names.
        marks: Makes further entries of the legend, once the style is known.
        dashes: Whether the legend shows the activations' lines, or their markers alone.
        columns: The most panels side by side.
        alike: Whether all show the same quantities, on axes that they share.
    """

    panels: Sequence[tuple[str, Callable[..., Axes]]]
    legend: pd.DataFrame | None = None
    marks: Callable[[], Sequence[Artist]] = tuple
    dashes: bool = True
    columns: int = 3
    alike: bool = True


def plan_curves(results: GroupedResults, metric: str | None = None) -> FigureSpec:
    """Losses, accuracy and sparsity over the epochs; one of them where settings vary."""
    metrics = CURVES[: None if len(results.facets()) == 1 else 1]
    return _plan_epochs(results, (metric,) if metric else metrics)


def plan_units(results: GroupedResults, metric: str | None = None) -> FigureSpec:
    """Dead, submerged, dormant and revived units over the epochs."""
    return _plan_epochs(results, (metric,) if metric else UNIT_COUNTS)


def plan_cosine(results: GroupedResults, metric: str | None = None) -> FigureSpec:
    """The cosine between the surrogate and the true gradient over the epochs."""
    metric = metric or "surrogate_cosine"
    values = epoch_values(results.groups, results.metrics, metric)["value"]
    if metric == "surrogate_cosine" and (values > 1 - 1e-9).all() and len(values):
        raise NothingToDrawError("every activation has its own gradient: all cosines are 1")
    return _plan_epochs(results, (metric,))


def _plan_epochs(results: GroupedResults, wanted: Sequence[str]) -> FigureSpec:
    """Plan a panel for each setting and metric that there is."""
    groups = results.groups
    metrics = [m for m in wanted if not epoch_values(groups, results.metrics, m).empty]
    if not metrics:
        raise NothingToDrawError(f"no run has {' or '.join(wanted)}")
    check_count(groups["line"].nunique(), MAX_LINES, "lines")
    if len(results.facets()) * len(metrics) > MAX_PANELS:
        metrics = metrics[:1]
    panels = [
        (setting, partial(curves, part, results.metrics, metric=metric))
        for setting, part in results.facets(len(metrics))
        for metric in metrics
    ]
    diverged = bool((groups["state"] == "diverged").any())
    return FigureSpec(
        panels,
        legend=groups,
        marks=lambda: [_diverged_entry()] if diverged else [],
        columns=2 if len(metrics) % 3 else 3,
        alike=len(metrics) == 1,
    )


def _diverged_entry() -> Line2D:
    mark = cross()
    width = mark["markeredgewidth"] / 2
    return Line2D([], [], color="0.3", lw=width, label="diverged run", **mark)


def plan_tradeoff(results: GroupedResults, metric: str | None = None) -> FigureSpec:
    """Accuracy against sparsity."""
    panels = [
        (setting, partial(tradeoff, part, y=metric or "test_accuracy"))
        for setting, part in results.facets()
    ]
    front = partial(Line2D, [], [], **FRONT)
    return FigureSpec(panels, legend=results.groups, marks=lambda: [front()], dashes=False)


def plan_gradient_depth(results: GroupedResults, metric: str | None = None) -> FigureSpec:
    """The gradient's norm by layer and epoch, a panel for each group."""
    metric, layers = metric or "grad_norm", results.layers
    parts = [part for _, part in results.groups.groupby("group", sort=False)]
    check_count(len(parts), MAX_PANELS, "panels")
    grids = [(part, layer_grid(part, layers, metric)) for part in parts]
    grids = [(part, grid) for part, grid in grids if not grid.empty]
    completed = [grid for part, grid in grids if (part["state"] == "completed").any()]
    # A gradient that explodes would flatten the others.
    norm = log_norm(completed or [grid for _, grid in grids])
    panels = [
        (group_label(part), partial(gradient_depth, part, layers, metric=metric, norm=norm))
        for part, _ in grids
    ]
    alike = len({(tuple(grid.index), grid.shape) for _, grid in grids}) == 1
    return FigureSpec(panels, alike=alike)


def plan_leak(results: GroupedResults, metric: str | None = None) -> FigureSpec:
    """Accuracy, sparsity, dead units and divergence over the leak."""
    groups = results.groups
    families = leak_families(groups)
    if not any(map(has_several_leaks, families.values())):
        raise NothingToDrawError("no activation has several leaks")
    wanted = (metric,) if metric else LEAK_CURVES[: None if len(results.facets()) == 1 else 1]
    metrics = [m for m in wanted if final_values(groups, m).notna().any()]
    if not metrics:
        raise NothingToDrawError(f"no run has {' or '.join(wanted)}")
    with_leak = groups[groups["run_id"].isin(pd.concat(families.values())["run_id"])]
    parts = [(name, part) for name, part in with_leak.groupby("setting", sort=False)]
    check_count(len(parts) * len(metrics), MAX_PANELS, "panels")
    panels = [
        (str(setting), partial(leak_curve, part, metric=metric))
        for setting, part in parts
        if any(map(has_several_leaks, leak_families(part).values()))
        for metric in metrics
    ]
    same = len({frozenset(part["act"]) for _, part in parts}) == 1
    return FigureSpec(panels, legend=with_leak, alike=same and len(metrics) == 1)


def plan_phase(results: GroupedResults, metric: str | None = None) -> FigureSpec:
    """A final metric over two settings, the first pair of `PHASE_AXES` that vary."""
    metric, groups = metric or "test_accuracy", results.groups
    by_leak = {
        name: part for name, part in leak_families(groups).items() if has_several_leaks(part)
    }
    axes = {*results.varying, *(["leak"] if by_leak else [])}
    pair = next((pair for pair in PHASE_AXES if axes.issuperset(pair)), None)
    if pair is None:
        raise NothingToDrawError(
            f"none of the pairs {', '.join(map(' x '.join, PHASE_AXES))} varies"
        )
    x, y = pair
    by_act = {str(act): part for act, part in groups.groupby("act")}
    named = by_leak if "leak" in pair else {a: by_act[a] for a in sorted(by_act, key=act_order)}
    parts = {}
    for name, part in named.items():
        texts = join_settings(part, [c for c in results.varying if c not in pair])
        for text, cell in part.groupby(pd.Series(texts, index=part.index), sort=False):
            parts[f"{name} {text}".strip()] = cell
    check_count(len(parts), MAX_PANELS, "panels")
    norm = linear_norm(cell_means(part, x, y, metric) for part in parts.values())
    panels = [
        (title, partial(phase, part, x=x, y=y, metric=metric, norm=norm))
        for title, part in parts.items()
    ]
    diverged = any((part["state"] == "diverged").any() for part in parts.values())
    entry = partial(Patch, **HATCH, label="div.: share of runs that diverged")
    return FigureSpec(panels, marks=lambda: [entry()] if diverged else [], columns=2, alike=False)


def plan_histogram(results: GroupedResults, metric: str | None = None) -> FigureSpec:
    """The distribution of the pre-activations at each site after the last epoch, over all seeds."""
    if metric is not None:
        raise NothingToDrawError("it has no other metric")
    if results.quantiles.empty:
        raise NothingToDrawError("no run has quantiles.csv")
    values = results.groups[["run_id", "line", "setting"]].merge(results.quantiles, on="run_id")
    panels = []
    for (setting, layer), part in values.groupby(["setting", "layer"], sort=False):
        arrays = {str(act): runs["value"] for act, runs in part.groupby("line", sort=False)}
        panels.append((f"{setting} {layer}".strip(), partial(histogram, arrays)))
    check_count(len(panels), MAX_PANELS, "panels")
    columns = min(3, values["layer"].nunique())
    return FigureSpec(panels, legend=results.groups, columns=columns, alike=False)


#: Every figure by the name of its file.
FIGURES: dict[str, Callable[[GroupedResults, str | None], FigureSpec]] = {
    "curves": plan_curves,
    "tradeoff": plan_tradeoff,
    "units": plan_units,
    "gradient_depth": plan_gradient_depth,
    "cosine": plan_cosine,
    "leak": plan_leak,
    "phase": plan_phase,
    "histogram": plan_histogram,
}
