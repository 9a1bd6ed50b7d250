"""Choose the panels of each figure; figures.py draws them side by side.

`PLANS` has a function for each figure. It takes grouped results, and the metrics to draw instead of
the figure's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from nsrelu_bench.compare import Baseline, act_order, label
from nsrelu_bench.plot import panels
from nsrelu_bench.plot.grouped_results import GroupedResults
from nsrelu_bench.plot.layout import diverged_cells, outcome_entries
from nsrelu_bench.plot.panel_data import (
    LOG_METRICS,
    MAX_LINES,
    MAX_PANELS,
    NothingToDrawError,
    cell_means,
    check_count,
    count_seeds,
    epoch_values,
    final_values,
    group_label,
    has_several_leaks,
    layer_grid,
    leak_families,
    numeric_settings,
    setting_label,
    split_by,
)
from nsrelu_bench.plot.style import FRONT, linear_norm, log_norm
from nsrelu_bench.text import join_words

Panels = Sequence[tuple[str, Callable[..., Axes]]]

#: The metrics of figures of final values; if settings vary, only the first one is drawn.
FINALS = ("test_accuracy", "zero_fraction", "dead_fraction", "diverged_fraction")

#: Pairs of settings for a phase diagram; the first pair of which both vary is taken.
PHASE_AXES = (("leak", "lr"), ("depth", "width"), ("leak", "depth"), ("leak", "width"))


@dataclass(frozen=True)
class FigureSpec:
    """The panels of a figure.

    Attributes:
        panels: The title of each, and a function that draws it when it is called with `ax`.
        title: What the figure shows: its metrics, and over what.
        foot: What marks and intervals mean, and the number of seeds.
        legend: The grouped runs whose activations the legend names.
        marks: Makes further entries of the legend, once the style is known.
        dashes: Whether the legend shows the activations' lines, or only their markers.
        columns: The most panels side by side.
        alike: Whether all panels show the same quantities, on shared axes.
    """

    panels: Panels
    title: str
    foot: str
    legend: pd.DataFrame | None = None
    marks: Callable[[], Sequence[Artist]] = tuple
    dashes: bool = True
    columns: int = 3
    alike: bool = True


def name_metrics(metrics: Sequence[str]) -> str:
    """Name metrics as the beginning of a title: "Test accuracy, zeros and dead units"."""
    text = join_words(list(dict.fromkeys(map(label, metrics))))
    return text[:1].upper() + text[1:]


def _each(
    panel: Callable[..., Axes],
    parts: Sequence[tuple[str, pd.DataFrame]],
    metrics: Sequence[str],
    *given: pd.DataFrame,
) -> Panels:
    """Return a panel for each part and metric; `given` are further arguments of `panel`."""
    return [
        (setting, partial(panel, part, *given, metric=metric))
        for setting, part in parts
        for metric in metrics
    ]


def describe_means(groups: pd.DataFrame, metrics: Sequence[str] = ()) -> str:
    """Describe what is drawn: "mean, 95 % interval, 12 seeds"."""
    seeds = count_seeds(groups)
    logs = [metric in LOG_METRICS for metric in metrics]
    mean = "geometric mean" if logs and all(logs) else "mean"
    if any(logs) and not all(logs):
        mean += " (geometric where the axis is logarithmic)"
    text = f"{mean} over {seeds}" if seeds == "1 seed" else f"{mean}, 95 % interval, {seeds}"
    completed = (groups["state"] == "completed").all()
    return text + ("" if completed else ", completed runs")


def plan_curves(results: GroupedResults, metrics: Sequence[str] = ()) -> FigureSpec:
    """Plan accuracy, loss and sparsity over the epochs; only accuracy if settings vary."""
    usual = ("test_accuracy", "train_loss", "zero_fraction", "dead_fraction")
    return _plan_epochs(results, metrics or usual[: None if len(results.facets()) == 1 else 1])


def plan_units(results: GroupedResults, metrics: Sequence[str] = ()) -> FigureSpec:
    """Plan units that are dead, came back, are submerged or dormant over the epochs."""
    usual = ("dead_fraction", "revived_fraction", "submerged_fraction", "dormant_fraction")
    return _plan_epochs(results, metrics or usual[: None if len(results.facets()) == 1 else 2])


def plan_cosine(results: GroupedResults, metrics: Sequence[str] = ()) -> FigureSpec:
    """Plan the cosine between the surrogate and the true gradient over the epochs."""
    if not metrics:
        values = epoch_values(results.groups, results.metrics, "surrogate_cosine")["value"]
        if len(values) and (values > 1 - 1e-9).all():
            raise NothingToDrawError("every activation has its own gradient: all cosines are 1")
    return _plan_epochs(results, metrics or ("surrogate_cosine",))


def _plan_epochs(results: GroupedResults, wanted: Sequence[str]) -> FigureSpec:
    """Plan a panel for each setting and each metric that has values."""
    groups = results.groups
    metrics = [m for m in wanted if not epoch_values(groups, results.metrics, m).empty]
    if not metrics:
        raise NothingToDrawError(f"no run has {' or '.join(wanted)}")
    check_count(groups["line"].nunique(), MAX_LINES, "lines")
    if len(results.facets()) * len(metrics) > MAX_PANELS:
        metrics = metrics[:1]
    return FigureSpec(
        _each(panels.curves, results.facets(len(metrics)), metrics, results.metrics),
        f"{name_metrics(metrics)} over the epochs",
        f"Line and band: {describe_means(groups, metrics)}. Marks only identify the lines.",
        legend=groups,
        marks=partial(outcome_entries, groups, lines=True),
        columns=_columns(metrics),
        alike=len(metrics) == 1,
    )


def _columns(metrics: Sequence[str]) -> int:
    """Return the most panels side by side: three for a multiple of three metrics, otherwise two."""
    return 2 if len(metrics) % 3 else 3


def plan_layers(results: GroupedResults, metrics: Sequence[str] = ()) -> FigureSpec:
    """Plan a metric over the epochs, a panel per layer; of many layers some, evenly spaced."""
    groups, layers = results.groups, results.layers
    facets, wanted = results.facets(), metrics or ("dead_fraction",)
    there = [m for m in wanted if not epoch_values(groups, layers, m).empty]
    if not there:
        raise NothingToDrawError(f"no run has {' or '.join(wanted)} by layer")
    names = list(dict.fromkeys(layers.loc[layers["run_id"].isin(groups["run_id"]), "layer"]))
    room = max(1, MAX_PANELS // (len(facets) * len(there)))
    places = np.linspace(0, len(names) - 1, min(room, len(names))).round().astype(int)
    shown = [names[place] for place in dict.fromkeys(places)]
    check_count(len(facets) * len(there) * len(shown), MAX_PANELS, "panels")
    drawn = []
    for setting, part in facets:
        for metric in there:
            for name in shown:
                rows = layers[layers["layer"] == name]
                if not epoch_values(part, rows, metric).empty:
                    panel = partial(panels.curves, part, rows, metric=metric)
                    drawn.append((f"{setting} {name}".strip(), panel))
    some = f" {len(shown)} of {len(names)} layers." if len(shown) < len(names) else ""
    return FigureSpec(
        drawn,
        f"{name_metrics(there)} by layer over the epochs",
        f"Line and band: {describe_means(groups, there)}.{some}",
        legend=groups,
        marks=partial(outcome_entries, groups, lines=True),
        columns=min(3, len(shown)) if len(shown) > 1 else 2,
        alike=len(there) == 1,
    )


def plan_tradeoff(results: GroupedResults, metrics: Sequence[str] = ()) -> FigureSpec:
    """Plan accuracy against sparsity."""
    wanted = metrics or ("test_accuracy",)
    means = describe_means(results.groups)
    return FigureSpec(
        _each(
            lambda part, metric, ax: panels.tradeoff(part, y=metric, ax=ax),
            results.facets(len(wanted)),
            wanted,
        ),
        f"{name_metrics(wanted)} against {label('zero_fraction')}",
        f"Large marks: {means}. Dots: single runs.",
        legend=results.groups,
        marks=lambda: [
            Line2D([], [], **FRONT),
            *outcome_entries(results.groups, lines=False, marked=("collapsed",)),
        ],
        dashes=False,
        alike=len(wanted) == 1,
    )


def plan_gradient_depth(results: GroupedResults, metrics: Sequence[str] = ()) -> FigureSpec:
    """Plan the gradient's norm by layer and epoch, a panel per group."""
    metric, layers = _only("gradient_depth", metrics, "grad_norm"), results.layers
    parts = [part for _, part in results.groups.groupby("group", sort=False)]
    check_count(len(parts), MAX_PANELS, "panels")
    grids = [(part, layer_grid(part, layers, metric)) for part in parts]
    grids = [(part, grid) for part, grid in grids if not grid.empty]
    if not grids:
        raise NothingToDrawError(f"no run has {metric} by layer")
    completed = [grid for part, grid in grids if (part["state"] == "completed").any()]
    # A gradient that explodes would flatten the others.
    norm = log_norm(completed or [grid for _, grid in grids])
    drawn = [
        (group_label(part), partial(panels.gradient_depth, part, layers, metric=metric, norm=norm))
        for part, _ in grids
    ]
    return FigureSpec(
        drawn,
        f"{name_metrics([metric])} by layer and epoch",
        f"Colour: mean over {count_seeds(results.groups)}. Grey: zero. Hatched: no value.",
        alike=len({(tuple(grid.index), grid.shape) for _, grid in grids}) == 1,
    )


def _only(kind: str, metrics: Sequence[str], default: str) -> str:
    """Return the metric of a figure with one colour scale."""
    if len(metrics) > 1:
        raise NothingToDrawError(f"{kind} shows one metric at a time, not {' and '.join(metrics)}")
    return metrics[0] if metrics else default


def plan_leak(results: GroupedResults, metrics: Sequence[str] = ()) -> FigureSpec:
    """Plan accuracy, sparsity, dead units and divergence over the leak."""
    families = leak_families(results.groups)
    if not any(map(has_several_leaks, families.values())):
        raise NothingToDrawError("no activation has several leaks")
    with_leak = set(pd.concat(families.values())["run_id"])
    groups = results.groups[results.groups["run_id"].isin(with_leak)]
    parts = [
        (setting, part)
        for setting, part in split_by(groups, results.varying)
        if any(map(has_several_leaks, leak_families(part).values()))
    ]
    return _plan_finals(groups, parts, metrics, "the leak", panels.leak_curve)


def plan_line(results: GroupedResults, metrics: Sequence[str] = ()) -> FigureSpec:
    """Plan final metrics over a numeric setting, such as the learning rate."""
    groups, numeric = results.groups, numeric_settings(results.groups, results.varying)
    x = results.x or next(iter(numeric), None)
    if x is None:
        raise NothingToDrawError("no numeric setting varies")
    if x == "leak":
        return plan_leak(results, metrics)
    if x not in numeric:
        hint = f"those that do: {', '.join(numeric)}" if numeric else "none does"
        raise NothingToDrawError(f"{x} is not a setting that varies over numbers; {hint}")
    parts = split_by(groups, [c for c in results.varying if c != x])
    parts = [(setting, part) for setting, part in parts if len(part[x].unique()) > 1]
    panel = partial(panels.setting_curve, x=x)
    return _plan_finals(groups, parts, metrics, f"the {setting_label(x)}", panel)


def _plan_finals(
    groups: pd.DataFrame,
    parts: Sequence[tuple[str, pd.DataFrame]],
    metrics: Sequence[str],
    over: str,
    panel: Callable[..., Axes],
) -> FigureSpec:
    """Plan a panel of final metrics for each part and each metric that has values."""
    wanted = metrics or FINALS[: None if len(parts) == 1 else 1]
    there = [m for m in wanted if final_values(groups, m).notna().any()]
    if not metrics and (groups["state"] != "diverged").all():
        there = [m for m in there if m != "diverged_fraction"]
    if not there:
        raise NothingToDrawError(f"no run has {' or '.join(wanted)}")
    check_count(len(parts) * len(there), MAX_PANELS, "panels")
    drawn = [
        (setting, partial(panel, part, metric=metric))
        for setting, part in parts
        for metric in there
        if final_values(part, metric).notna().any()
    ]
    same = len({frozenset(part["act"]) for _, part in parts}) == 1
    return FigureSpec(
        drawn,
        f"{name_metrics(there)} over {over}",
        f"Marks: {describe_means(groups, there)}.",
        legend=groups,
        marks=partial(outcome_entries, groups, lines=False),
        columns=_columns(there),
        alike=same and len(there) == 1,
    )


def plan_phase(results: GroupedResults, metrics: Sequence[str] = ()) -> FigureSpec:
    """Plan a final metric over two settings, the first pair of `PHASE_AXES` that vary."""
    metric, groups = _only("phase", metrics, "test_accuracy"), results.groups
    families = leak_families(groups)
    by_leak = {name: runs for name, runs in families.items() if has_several_leaks(runs)}
    axes = {*results.varying, *(["leak"] if by_leak else [])}
    pair = next((pair for pair in PHASE_AXES if axes.issuperset(pair)), None)
    if pair is None:
        choices = ", ".join(map(" x ".join, PHASE_AXES))
        raise NothingToDrawError(f"none of the pairs {choices} varies")
    x, y = pair
    by_act = {str(act): part for act, part in groups.groupby("act")}
    named = by_leak if "leak" in pair else {a: by_act[a] for a in sorted(by_act, key=act_order)}
    rest = [c for c in results.varying if c not in pair]
    parts = [
        (f"{name} {text}".strip(), part)
        for name, runs in named.items()
        for text, part in split_by(runs, rest)
    ]
    check_count(len(parts), MAX_PANELS, "panels")
    norm = linear_norm(cell_means(part, x, y, metric) for _, part in parts)
    drawn = [
        (title, partial(panels.phase, part, x=x, y=y, metric=metric, norm=norm))
        for title, part in parts
    ]
    return FigureSpec(
        drawn,
        f"{name_metrics([metric])} over {setting_label(x)} and {setting_label(y)}",
        f"Number and colour: mean over {count_seeds(groups)}. White: no run completed.",
        marks=partial(diverged_cells, pd.concat(part for _, part in parts)),
        columns=2,
        alike=False,
    )


def plan_profile(results: GroupedResults, metrics: Sequence[str] = ()) -> FigureSpec:
    """Plan the share of the runs that end above each value of a metric."""
    wanted = metrics or ("test_accuracy",)
    one = f"share of the runs above each {label(wanted[0])}"
    return FigureSpec(
        _each(panels.profile, results.facets(len(wanted)), wanted),
        f"Every run: {one if len(wanted) == 1 else name_metrics(wanted)}",
        f"Each mark is one run, {count_seeds(results.groups)}. A line further right is better where"
        " more is better; diverged runs are above nothing.",
        legend=results.groups,
        marks=partial(outcome_entries, results.groups, lines=False, marked=("collapsed",)),
        columns=2,
        alike=len(wanted) == 1,
    )


def plan_pairs(results: GroupedResults, metrics: Sequence[str] = ()) -> FigureSpec:
    """Plan each run beside the baseline's run of the same seed."""
    wanted, baseline = metrics or ("test_accuracy",), results.baseline
    others = [c for c in results.varying if c != baseline.setting]
    parts = [(text, _paired(part, baseline)) for text, part in split_by(results.groups, others)]
    parts = [(text, part) for text, part in parts if len(part)]
    if not parts:
        raise NothingToDrawError(f"no run has a run of {baseline} to be paired with")
    check_count(len(parts) * len(wanted), MAX_PANELS, "panels")
    drawn = pd.concat([part for _, part in parts])
    another = "activation" if baseline.setting == "act" else setting_label(baseline.setting)
    return FigureSpec(
        _each(partial(panels.pairs, baseline=baseline), parts, wanted),
        f"{name_metrics(wanted)} of each seed with {baseline} and with another {another}",
        f"Each line joins two runs of one seed, {count_seeds(drawn)}. Marks: means of completed"
        " runs.",
        legend=drawn,
        marks=partial(outcome_entries, drawn, lines=False),
        dashes=False,
        columns=2,
        alike=len(wanted) == 1 and len({frozenset(part["line"]) for _, part in parts}) == 1,
    )


def _paired(runs: pd.DataFrame, baseline: Baseline) -> pd.DataFrame:
    """Return the runs that may have a partner: all, or those of activations on both sides."""
    marked = baseline.marks(runs)
    both = marked.groupby(
        runs["act"] if baseline.setting != "act" else np.zeros(len(runs))
    ).transform("nunique")
    return runs[both > 1]


def plan_histogram(results: GroupedResults, metrics: Sequence[str] = ()) -> FigureSpec:
    """Plan the distribution of the pre-activations at each site after the last epoch."""
    if metrics:
        raise NothingToDrawError("it has no other metric")
    if results.quantiles.empty:
        raise NothingToDrawError("no run has quantiles.csv")
    values = results.groups[["run_id", "line", "setting"]].merge(results.quantiles, on="run_id")
    drawn = []
    for (setting, layer), part in values.groupby(["setting", "layer"], sort=False):
        arrays = {str(act): runs["value"] for act, runs in part.groupby("line", sort=False)}
        drawn.append((f"{setting} {layer}".strip(), partial(panels.histogram, arrays)))
    check_count(len(drawn), MAX_PANELS, "panels")
    return FigureSpec(
        drawn,
        "Inputs of the activations after the last epoch, by layer",
        f"Density over {count_seeds(results.groups)} and all units, cut at the 1 % and 99 %"
        " quantiles of each activation that does not run away.",
        legend=results.groups,
        columns=min(3, values["layer"].nunique()),
        alike=False,
    )


def plan_figure(kind: str, results: GroupedResults, metrics: Sequence[str] = ()) -> FigureSpec:
    """Plan one of the `FIGURES`.

    Raises:
        NothingToDrawError: The runs have no data for it, or too much.
    """
    if kind in FROM_RUN_FOLDERS and results.only_summaries:
        raise NothingToDrawError("it needs run folders, and here is only summary.csv")
    return PLANS[kind](results, metrics)


#: Figures that summary.csv has no data for: epochs, layers and inputs of the activations.
FROM_RUN_FOLDERS = ("curves", "units", "layers", "cosine", "gradient_depth", "histogram")

#: The function that plans each of the `FIGURES`.
PLANS: dict[str, Callable[[GroupedResults, Sequence[str]], FigureSpec]] = {
    "curves": plan_curves,
    "tradeoff": plan_tradeoff,
    "units": plan_units,
    "gradient_depth": plan_gradient_depth,
    "cosine": plan_cosine,
    "leak": plan_leak,
    "phase": plan_phase,
    "histogram": plan_histogram,
    "line": plan_line,
    "layers": plan_layers,
    "profile": plan_profile,
    "pairs": plan_pairs,
}
