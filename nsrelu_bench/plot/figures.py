"""Figures: which panels each has, how they stand side by side, and how they are written.

`FIGURES` names them, `figure` draws one and `draw_all` writes them to files.
"""

import io
import logging
import math
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import matplotlib as mpl
import matplotlib.style
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nsrelu_bench.compare import act_order, join_settings, name_groups, varying_settings
from nsrelu_bench.errors import BenchError, error_reason, lookup
from nsrelu_bench.plot.panel_data import (
    MAX_LINES,
    MAX_PANELS,
    NothingToDrawError,
    cells_of,
    depth_grid,
    families_of,
    final_of,
    history_of,
    name_of,
    refuse_many,
    several_leaks,
)
from nsrelu_bench.plot.panels import curves, gradient_depth, histogram, leak_curve, phase, tradeoff
from nsrelu_bench.plot.style import (
    FRONT,
    HATCH,
    RC,
    STYLES,
    activation_style,
    add_colorbar,
    add_legend,
    cross,
    linear_norm,
    log_norm,
    new_figure,
)
from nsrelu_bench.records import ENVIRONMENT

logger = logging.getLogger(__name__)

#: The metrics of a figure; where settings vary, a panel each, only the first.
CURVES = ("test_accuracy", "train_loss", "zero_fraction", "dead_fraction")
UNIT_COUNTS = ("dead_units", "submerged_units", "dormant_units", "revived_units")
LEAK_CURVES = ("test_accuracy", "zero_fraction", "dead_fraction", "diverged_fraction")

#: Settings that make a phase diagram, the first pair that both vary.
PHASE_AXES = (("leak", "lr"), ("depth", "width"), ("leak", "depth"), ("leak", "width"))


class Frames(Protocol):
    """What `nsrelu_bench.load` gives."""

    @property
    def runs(self) -> pd.DataFrame:
        """One row a run: configuration, state, final metrics."""

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a run and epoch."""

    @property
    def layers(self) -> pd.DataFrame:
        """One row a run, epoch and layer."""

    @property
    def quantiles(self) -> pd.DataFrame:
        """Quantiles of the pre-activations of a run and layer."""

    @property
    def config_columns(self) -> list[str]:
        """The columns of `runs` that are configuration."""


Panel = Callable[..., Axes]


@dataclass(frozen=True)
class FigureSpec:
    """The panels of a figure.

    Attributes:
        panels: The title of each, and a function that draws it when it is called with `ax`.
        legend: Runs as `name_groups` returns them, whose activations the legend names.
        marks: Makes further entries of the legend, when the style is known.
        dashes: Whether the legend shows the activations' lines, or their markers alone.
        columns: How many panels may stand side by side.
        alike: Whether all show the same quantities, on axes that they share.
    """

    panels: Sequence[tuple[str, Panel]]
    legend: pd.DataFrame | None = None
    marks: Callable[[], Sequence[Artist]] = tuple
    dashes: bool = True
    columns: int = 3
    alike: bool = True


def plan_curves(frames: Frames, metric: str | None = None) -> FigureSpec:
    """Losses, accuracy and sparsity over the epochs; one of them where settings vary."""
    named = name_groups(frames.runs, frames.config_columns)
    wanted = (metric,) if metric else CURVES[: None if len(_facets(named)) == 1 else 1]
    return _over_epochs(frames, named, wanted)


def plan_units(frames: Frames, metric: str | None = None) -> FigureSpec:
    """Dead, submerged, dormant and revived units over the epochs."""
    named = name_groups(frames.runs, frames.config_columns)
    return _over_epochs(frames, named, (metric,) if metric else UNIT_COUNTS)


def plan_cosine(frames: Frames, metric: str | None = None) -> FigureSpec:
    """The cosine between the surrogate and the true gradient over the epochs."""
    metric = metric or "surrogate_cosine"
    named = name_groups(frames.runs, frames.config_columns)
    values = history_of(named, frames.metrics, metric)["value"]
    if metric == "surrogate_cosine" and (values > 1 - 1e-9).all() and len(values):
        raise NothingToDrawError("every activation has its own gradient: all cosines are 1")
    return _over_epochs(frames, named, (metric,))


def _over_epochs(frames: Frames, named: pd.DataFrame, metrics: Sequence[str]) -> FigureSpec:
    """Plan a panel for each setting and metric that there is."""
    there = [m for m in metrics if not history_of(named, frames.metrics, m).empty]
    if not there:
        raise NothingToDrawError(f"no run has {' or '.join(metrics)}")
    refuse_many(len(named["line"].unique()), MAX_LINES, "lines")
    if len(_facets(named)) * len(there) > MAX_PANELS:
        there = there[:1]
    panels = [
        (setting, partial(curves, part, frames.metrics, frames.config_columns, metric=metric))
        for setting, part in _facets(named, len(there))
        for metric in there
    ]
    lost = bool((named["state"] == "diverged").any())
    return FigureSpec(
        panels,
        legend=named,
        marks=lambda: [_diverged_entry()] if lost else [],
        columns=2 if len(there) % 3 else 3,
        alike=len(there) == 1,
    )


def _diverged_entry() -> Line2D:
    mark = cross()
    width = mark["markeredgewidth"] / 2
    return Line2D([], [], color="0.3", lw=width, label="diverged run", **mark)


def plan_tradeoff(frames: Frames, metric: str | None = None) -> FigureSpec:
    """Accuracy against sparsity."""
    named = name_groups(frames.runs, frames.config_columns)
    panels = [
        (setting, partial(tradeoff, part, frames.config_columns, y=metric or "test_accuracy"))
        for setting, part in _facets(named)
    ]
    return FigureSpec(panels, legend=named, marks=lambda: [Line2D([], [], **FRONT)], dashes=False)


def plan_gradient_depth(frames: Frames, metric: str | None = None) -> FigureSpec:
    """The gradient's norm by layer and epoch, a panel for each group."""
    metric = metric or "grad_norm"
    named = name_groups(frames.runs, frames.config_columns)
    groups = [part for _, part in named.groupby("group", sort=False)]
    refuse_many(len(groups), MAX_PANELS, "panels")
    grids = [depth_grid(part, frames.layers, metric) for part in groups]
    completed = [
        grid
        for part, grid in zip(groups, grids, strict=True)
        if (part["state"] == "completed").any()
    ]
    norm = log_norm(completed or grids)  # a gradient that explodes would flatten the others
    panels = [
        (
            name_of(part),
            partial(
                gradient_depth, part, frames.layers, frames.config_columns, metric=metric, norm=norm
            ),
        )
        for part, grid in zip(groups, grids, strict=True)
        if not grid.empty
    ]
    alike = len({(tuple(grid.index), grid.shape) for grid in grids if not grid.empty}) == 1
    return FigureSpec(panels, alike=alike)


def plan_leak(frames: Frames, metric: str | None = None) -> FigureSpec:
    """Accuracy, sparsity, dead units and divergence over the leak."""
    named = name_groups(frames.runs, frames.config_columns)
    families = families_of(named)
    if not any(map(several_leaks, families.values())):
        raise NothingToDrawError("no activation has several leaks")
    wanted = (metric,) if metric else LEAK_CURVES[: None if len(_facets(named)) == 1 else 1]
    there = [m for m in wanted if final_of(named, m).notna().any()]
    if not there:
        raise NothingToDrawError(f"no run has {' or '.join(wanted)}")
    of_family = named[named["run_id"].isin(pd.concat(families.values())["run_id"])]
    panels = [
        (setting, partial(leak_curve, part, frames.config_columns, metric=m))
        for setting, part in _facets(of_family, len(there))
        if any(map(several_leaks, families_of(part).values()))
        for m in there
    ]
    same = len({frozenset(part["act"]) for _, part in _facets(of_family)}) == 1
    return FigureSpec(panels, legend=of_family, alike=same and len(there) == 1)


def plan_phase(frames: Frames, metric: str | None = None) -> FigureSpec:
    """A final metric over two settings, the first pair of `PHASE_AXES` that vary."""
    metric = metric or "test_accuracy"
    named = name_groups(frames.runs, frames.config_columns)
    varying = varying_settings(named, frames.config_columns)
    by_leak = {name: part for name, part in families_of(named).items() if several_leaks(part)}
    axes = {*varying, *(["leak"] if by_leak else [])}
    pair = next((pair for pair in PHASE_AXES if axes.issuperset(pair)), None)
    if pair is None:
        raise NothingToDrawError(
            f"none of the pairs {', '.join(map(' x '.join, PHASE_AXES))} varies"
        )
    x, y = pair
    by_act = {str(act): part for act, part in named.groupby("act")}
    acts = {act: by_act[act] for act in sorted(by_act, key=act_order)}
    rest = [c for c in varying if c not in pair]
    parts = {}
    for name, part in (by_leak if "leak" in pair else acts).items():
        texts = pd.Series(join_settings(part, rest), index=part.index)
        for text, cell in part.groupby(texts, sort=False):
            parts[f"{name} {text}".strip()] = cell
    refuse_many(len(parts), MAX_PANELS, "panels")
    norm = linear_norm(cells_of(part, x, y, metric) for part in parts.values())
    panels = [
        (title, partial(phase, part, frames.config_columns, x=x, y=y, metric=metric, norm=norm))
        for title, part in parts.items()
    ]
    some = any((part["state"] == "diverged").any() for part in parts.values())
    return FigureSpec(
        panels, marks=lambda: [_hatch_entry()] if some else [], columns=2, alike=False
    )


def _hatch_entry() -> Patch:
    return Patch(**HATCH, label="div.: share of runs that diverged")


def plan_histogram(frames: Frames, metric: str | None = None) -> FigureSpec:
    """The distribution of the pre-activations at each site after the last epoch, over all seeds."""
    if metric is not None:
        raise NothingToDrawError("it has no other metric")
    named = name_groups(frames.runs, frames.config_columns)
    if frames.quantiles.empty:
        raise NothingToDrawError("no run has quantiles.csv")
    values = named[["run_id", "line", "setting"]].merge(frames.quantiles, on="run_id")
    layers = list(dict.fromkeys(values["layer"]))
    panels = [
        (
            f"{setting} {layer}".strip(),
            partial(
                histogram, {str(act): p["value"] for act, p in part.groupby("line", sort=False)}
            ),
        )
        for (setting, layer), part in values.groupby(["setting", "layer"], sort=False)
    ]
    refuse_many(len(panels), MAX_PANELS, "panels")
    return FigureSpec(panels, legend=named, columns=min(3, len(layers)), alike=False)


def _facets(named: pd.DataFrame, each: int = 1) -> list[tuple[str, pd.DataFrame]]:
    """Split runs by the settings that vary beside the activation."""
    parts = [(str(setting), part) for setting, part in named.groupby("setting", sort=False)]
    refuse_many(len(parts) * each, MAX_PANELS, "panels")
    return parts


def figure(plan: FigureSpec, style: str = "paper") -> Figure:
    """Draw the panels of a plan side by side, with one legend or colour bar for all.

    Raises:
        UsageError: There is no such style.
        NothingToDrawError: A panel has no data.
    """
    chosen = lookup(STYLES, style, "style")
    count = len(plan.panels)
    if not count:
        raise NothingToDrawError("there is no data for it")
    columns = min(2 if count == 4 else plan.columns, chosen.columns, count)
    width = chosen.column if count == 1 else chosen.page
    height = chosen.column * {1: 0.7, 2: 0.62}.get(columns, 0.52)
    with mpl.style.context(["default", RC, chosen.rc]):
        drawn = new_figure((width, math.ceil(count / columns) * height))
        axes: list[Axes] = []
        for place, (title, panel) in enumerate(plan.panels):
            ax = drawn.add_subplot(math.ceil(count / columns), columns, place + 1)
            # Said here, or the number of ticks follows from the style at the time of saving.
            ax.tick_params(labelsize=mpl.rcParams["font.size"])
            panel(ax=ax)
            # A letter is some 0.6 of its height wide, and the axes have 0.85 of the panel's width.
            letters = 0.85 * width / columns * 72 / (0.6 * mpl.rcParams["axes.titlesize"])
            ax.set_title(textwrap.fill(title, int(letters)))
            axes.append(ax)
        if plan.alike:
            _share_limits(axes, columns)
        _name_outer(axes, columns)
        add_legend(drawn, [*_legend_entries(plan), *plan.marks()])
        add_colorbar(drawn, axes)
        drawn.draw_without_rendering()  # lays out, which saving in each format would do again
    drawn.set_layout_engine("none")
    return drawn


def _share_limits(axes: Sequence[Axes], columns: int) -> None:
    """Give all panels limits that hold the data of each, and tick labels to the left ones."""
    x = _union([ax.get_xlim() for ax in axes], axes[0].get_xscale())
    y = _union([ax.get_ylim() for ax in axes], axes[0].get_yscale())
    for place, ax in enumerate(axes):
        ax.set(xlim=x, ylim=y)
        if place % columns:
            ax.tick_params(labelleft=False)


def _union(limits: Sequence[tuple[float, float]], scale: str) -> tuple[float, float]:
    """Return limits around all; a little more where a panel's own margin is too small for that."""
    lows, highs = zip(*limits, strict=True)
    low, high = min(lows), max(highs)
    same = len(set(limits)) == 1
    margin = 0.0 if same or scale == "log" else 0.03 * (high - low)
    return low - margin, high + margin


def _name_outer(axes: Sequence[Axes], columns: int) -> None:
    """Leave out the names of axes that the panel below or to the left has too."""
    for ax, below in zip(axes, axes[columns:], strict=False):
        if ax.get_xlabel() == below.get_xlabel():
            ax.set_xlabel("")
    for place in reversed(range(len(axes))):
        if place % columns and axes[place].get_ylabel() == axes[place - 1].get_ylabel():
            axes[place].set_ylabel("")


def _legend_entries(plan: FigureSpec) -> list[Line2D]:
    """Return an entry for each activation, which counts the runs of all panels."""
    if plan.legend is None:
        return []
    entries = []
    for _, part in plan.legend.groupby("line", sort=False):
        look = activation_style(part["act"].iloc[0])
        dash = look.dash if plan.dashes else "none"
        entries.append(Line2D([], [], ls=dash, label=name_of(part, "line"), **look.point))
    return entries


def draw_all(
    frames: Frames,
    out_dir: Path,
    kinds: Sequence[str] | None = None,
    formats: Sequence[str] = ("png", "svg"),
    style: str = "paper",
    metric: str | None = None,
    tell: Callable[[str], None] = logger.info,
) -> list[Path]:
    """Write figures to `out_dir` as <kind>.<format>, and return their paths.

    Args:
        frames: What `nsrelu_bench.load` gives.
        out_dir: A folder; made where there is none.
        kinds: Keys of `FIGURES`; None for all.
        formats: Keys of `FORMATS`. The bytes of an SVG or PDF depend on the data alone.
        style: A key of `STYLES`.
        metric: What to draw in place of a figure's own metrics.
        tell: Is given one line for each figure that there is no data for.

    Raises:
        UsageError: There is no such kind, format or style.
        BenchError: A file can't be written.
    """
    plans = {kind: lookup(FIGURES, kind, "figure") for kind in kinds or FIGURES}
    if metric is not None:
        known = {*frames.runs, *frames.metrics, *frames.layers} - {*frames.config_columns}
        measured = [name for name in known if name not in NO_METRICS]
        lookup(dict.fromkeys(sorted(measured)), metric, "metric")
    savers = {fmt: lookup(FORMATS, fmt, "format") for fmt in formats}
    dpi = lookup(STYLES, style, "style").dpi
    paths = []
    with mpl.style.context(["default", RC]):
        for kind, plan in plans.items():
            try:
                drawn = figure(plan(frames, metric), style)
            except NothingToDrawError as reason:
                tell(f"no figure {kind}: {reason}")
                continue
            for fmt, metadata in savers.items():
                path = out_dir / f"{kind}.{fmt}"
                _save(drawn, path, dpi=dpi, metadata=metadata)
                paths.append(path)
    return paths


def to_svg(plan: FigureSpec, prefix: str, style: str = "paper") -> str:
    """Draw a figure as an SVG element to stand in an HTML page, as wide as there is room.

    Its ids begin with `prefix`, so that several may stand in one page, and it refers to nothing
    outside itself. The bytes depend on the data alone.
    """
    buffer = io.StringIO()
    with mpl.style.context(["default", RC]):
        drawn = figure(plan, style)
        drawn.savefig(buffer, format="svg", metadata=FORMATS["svg"])
    # Twice its width on paper at most: letters larger than the page's own help nobody.
    head = f'<svg style="max-width: {2 * 72 * drawn.get_figwidth():.0f}px"'
    text = buffer.getvalue()
    text = head + text[text.index("<svg") + len("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", text, count=5)
    text = re.sub(r"\bid=\"", f'id="{prefix}-', text)
    text = re.sub(r"\b(?:xlink:)?href=\"#", f'href="#{prefix}-', text)
    return re.sub(r"url\(#", f"url(#{prefix}-", text).strip()


def _save(drawn: Figure, path: Path, **options: Any) -> None:
    """Write beside the file, then rename, so that nobody sees half a figure."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(draft, format=path.suffix[1:], **options)
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise BenchError(f"can't write {path}: {error_reason(error)}") from None


#: Each format's metadata; a date would make the bytes differ from run to run.
FORMATS: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}

#: Columns of the frames that are no metrics.
NO_METRICS = (
    *("study", "run_id", "state", "error", "diverged_epoch", "diverged_step"),
    *("epoch", "step", "task", "layer", "units"),
    *ENVIRONMENT,
)

FIGURES: dict[str, Callable[[Frames, str | None], FigureSpec]] = {
    "curves": plan_curves,
    "tradeoff": plan_tradeoff,
    "units": plan_units,
    "gradient_depth": plan_gradient_depth,
    "cosine": plan_cosine,
    "leak": plan_leak,
    "phase": plan_phase,
    "histogram": plan_histogram,
}
