"""Draw figures, panels side by side with one legend, as PNG, SVG or PDF, or within HTML."""

import io
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nsrelu_bench.compare import check_metric, metrics_among
from nsrelu_bench.config import FIGURES
from nsrelu_bench.errors import UsageError, lookup
from nsrelu_bench.files import replace_file, wrap_write_errors
from nsrelu_bench.plot.figure_specs import PLANS, FigureSpec, plan_figure
from nsrelu_bench.plot.grouped_results import GroupedResults, group_results
from nsrelu_bench.plot.layout import (
    activation_entries,
    add_colorbar,
    add_frame,
    freeze_layout,
    name_outer_axes,
    new_figure,
    share_limits,
)
from nsrelu_bench.plot.panel_data import NothingToDrawError
from nsrelu_bench.plot.style import RC, STYLES
from nsrelu_bench.records import Results
from nsrelu_bench.text import wrap

logger = logging.getLogger(__name__)

#: Each format's metadata; a date would make the bytes differ from run to run.
IMAGE_FILES: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


def figure(spec: FigureSpec, style: str = "paper") -> Figure:
    """Draw panels side by side, with one legend or colour bar for all.

    Raises:
        UsageError: There is no such style.
        NothingToDrawError: A panel has no data.
    """
    chosen = lookup(STYLES, style, "style")
    count = len(spec.panels)
    if not count:
        raise NothingToDrawError("there is no data for it")
    columns = min(2 if count == 4 else spec.columns, chosen.columns, count)
    width = chosen.column if count == 1 else chosen.page
    narrow = columns > 1 and chosen.page == chosen.column
    height = chosen.column * (0.52 if narrow else {1: 0.7, 2: 0.62}.get(columns, 0.52))
    with mpl.style.context(["default", RC, chosen.rc]):
        drawn = new_figure((width, math.ceil(count / columns) * height))
        axes: list[Axes] = []
        for place, (title, panel) in enumerate(spec.panels):
            ax = drawn.add_subplot(math.ceil(count / columns), columns, place + 1)
            # Set here; otherwise the number of ticks depends on the style when the file is saved.
            ax.tick_params(labelsize=mpl.rcParams["font.size"])
            panel(ax=ax)
            # A letter is some 0.6 of its height wide, and the axes have 0.85 of the panel's width.
            letters = 0.85 * width / columns * 72 / (0.6 * mpl.rcParams["axes.titlesize"])
            ax.set_title(wrap(title, int(letters), ""))
            ax.set_xlabel(wrap(ax.get_xlabel(), int(letters), ""))
            axes.append(ax)
        shared = not spec.alike or share_limits(axes, columns)
        name_outer_axes(axes, columns)
        handles = [] if spec.legend is None else activation_entries(spec.legend, dashes=spec.dashes)
        foot = spec.foot + ("" if shared else " The panels have limits of their own.")
        add_frame(drawn, [*handles, *spec.marks()], spec.title, foot)
        add_colorbar(drawn, axes)
        freeze_layout(drawn)
    return drawn


def draw_all(
    frames: Results,
    out_dir: Path,
    kinds: Iterable[str] | None = None,
    formats: Sequence[str] = ("png", "svg"),
    style: str = "paper",
    metric: str | Sequence[str] | None = None,
    tell: Callable[[str], None] = logger.info,
    *,
    arms: Sequence[str] = (),
    where: Sequence[str] = (),
    by: Sequence[str] = (),
    baseline: str = "relu",
    x: str | None = None,
) -> list[Path]:
    """Write figures to `out_dir` as <kind>.<format>, and return their paths.

    Args:
        frames: What `nsrelu_bench.load` returns.
        out_dir: A folder; created if needed.
        kinds: Keys of `FIGURES`; None for all.
        formats: Keys of `IMAGE_FILES`. The bytes of an SVG or PDF depend on the data alone.
        style: A key of `STYLES`.
        metric: One or several metrics to draw in place of a figure's own.
        tell: Called with a line for each figure that has no data.
        arms: Settings that are compared like activations, as in `compare`.
        where: Conditions that runs must meet, as in `compare`; the baseline always stays.
        by: Settings with a figure for each value: <kind>-<setting>-<value>.<format>.
        baseline: What others are paired with, as in `compare`.
        x: The numeric setting on the x axis of the figure `line`, otherwise the first that varies.
            With it, only that figure is drawn unless `kinds` names others.

    Raises:
        UsageError: There is no such kind, format, style, metric or setting.
        BenchError: A file can't be written.
    """
    kinds = kinds or (FIGURES if x is None else ["line"])
    kinds = list(dict.fromkeys(kinds))
    for kind in kinds:
        lookup(PLANS, kind, "figure")
    if x is not None and "line" not in kinds:
        raise UsageError(f"x is for the figure line, got {', '.join(kinds)}")
    metrics = [metric] if isinstance(metric, str) else list(metric or ())
    for fmt in formats:
        lookup(IMAGE_FILES, fmt, "format")
    lookup(STYLES, style, "style")
    sections = group_results(frames, arms=arms, where=where, by=by, baseline=baseline, x=x)
    for name in metrics:
        check_metric(name, _known_metrics(frames, sections))
    paths = []
    for results, suffix in zip(sections, _suffixes(sections), strict=True):
        for kind in kinds:
            try:
                drawn = figure(plan_figure(kind, results, metrics), style)
            except NothingToDrawError as reason:
                tell(f"no figure {kind}{suffix}: {reason}")
            else:
                paths += _save(drawn, out_dir / f"{kind}{suffix}", formats, style)
    return paths


def _known_metrics(frames: Results, sections: Sequence[GroupedResults]) -> list[str]:
    """Return the names of all metrics that can be drawn, sorted."""
    columns = {*frames.runs, *frames.layers, *(c for results in sections for c in results.metrics)}
    computed = ("diverged_fraction", "collapsed_fraction")
    return sorted({*metrics_among(columns, frames.config_columns), *computed})


def _suffixes(sections: Sequence[GroupedResults]) -> list[str]:
    """Return the end of the file names of each section: "-lr-0.1"; empty for a single section."""
    if len(sections) == 1:
        return [""]
    slugs = ["-" + re.sub(r"[^\w.+-]+", "-", results.section) for results in sections]
    return [f"{s}-{k}" if slugs.count(s) > 1 else s for k, s in enumerate(slugs, 1)]


def _save(drawn: Figure, stem: Path, formats: Sequence[str], style: str) -> list[Path]:
    """Write a figure in several formats, each file atomically."""
    paths = [stem.with_name(f"{stem.name}.{fmt}") for fmt in formats]
    for path, fmt in zip(paths, formats, strict=True):
        buffer = io.BytesIO()
        with mpl.style.context(["default", RC]):
            drawn.savefig(buffer, format=fmt, dpi=STYLES[style].dpi, metadata=IMAGE_FILES[fmt])
        with wrap_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, buffer.getvalue(), durable=False)
    return paths


def to_svg(spec: FigureSpec, prefix: str, style: str = "paper") -> str:
    """Draw a figure as an SVG element for an HTML page, as wide as the page allows.

    Its ids begin with `prefix`, so that a page can have several, and it refers to nothing outside
    itself. The bytes depend on the data alone.
    """
    buffer = io.StringIO()
    with mpl.style.context(["default", RC]):
        drawn = figure(spec, style)
        drawn.savefig(buffer, format="svg", metadata=IMAGE_FILES["svg"])
    # At most twice its width on paper: its letters need not be larger than the page's.
    head = f'<svg style="max-width: {2 * 72 * drawn.get_figwidth():.0f}px"'
    text = buffer.getvalue()
    text = head + text[text.index("<svg") + len("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", text, count=5)
    text = re.sub(r"\bid=\"", f'id="{prefix}-', text)
    text = re.sub(r"\b(?:xlink:)?href=\"#", f'href="#{prefix}-', text)
    return re.sub(r"url\(#", f"url(#{prefix}-", text).strip()
