"""Figures as files: panels side by side with one legend, as PNG, SVG or PDF, or within HTML."""

import io
import logging
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nsrelu_bench.errors import lookup
from nsrelu_bench.files import replace_file, wrap_write_errors
from nsrelu_bench.plot.layout import (
    add_colorbar,
    add_legend,
    name_outer_axes,
    new_figure,
    share_limits,
)
from nsrelu_bench.plot.panel_data import NothingToDrawError, group_label
from nsrelu_bench.plot.specs import FIGURES, FigureSpec, group_results
from nsrelu_bench.plot.style import RC, STYLES, activation_style
from nsrelu_bench.records import ENVIRONMENT, Results

logger = logging.getLogger(__name__)

#: Each format's metadata; a date would make the bytes differ from run to run.
FORMATS: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}

#: Columns of the frames that are not metrics.
NOT_METRICS = (
    *("study", "run_id", "state", "error", "diverged_epoch", "diverged_step"),
    *("epoch", "step", "task", "layer", "units"),
    *ENVIRONMENT,
)


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
    height = chosen.column * {1: 0.7, 2: 0.62}.get(columns, 0.52)
    with mpl.style.context(["default", RC, chosen.rc]):
        drawn = new_figure((width, math.ceil(count / columns) * height))
        axes: list[Axes] = []
        for place, (title, panel) in enumerate(spec.panels):
            ax = drawn.add_subplot(math.ceil(count / columns), columns, place + 1)
            # Set here, or the number of ticks follows from the style at the time of saving.
            ax.tick_params(labelsize=mpl.rcParams["font.size"])
            panel(ax=ax)
            # A letter is some 0.6 of its height wide, and the axes have 0.85 of the panel's width.
            letters = 0.85 * width / columns * 72 / (0.6 * mpl.rcParams["axes.titlesize"])
            ax.set_title(textwrap.fill(title, int(letters)))
            axes.append(ax)
        if spec.alike:
            share_limits(axes, columns)
        name_outer_axes(axes, columns)
        add_legend(drawn, [*_legend_entries(spec), *spec.marks()])
        add_colorbar(drawn, axes)
        drawn.draw_without_rendering()  # lays out, which saving in each format would do again
    drawn.set_layout_engine("none")
    return drawn


def _legend_entries(spec: FigureSpec) -> list[Line2D]:
    """Return an entry for each activation, which counts the runs of all panels."""
    if spec.legend is None:
        return []
    entries = []
    for _, part in spec.legend.groupby("line", sort=False):
        style = activation_style(part["act"].iloc[0])
        dash = style.dash if spec.dashes else "none"
        entries.append(Line2D([], [], ls=dash, label=group_label(part, "line"), **style.point))
    return entries


def draw_all(
    frames: Results,
    out_dir: Path,
    kinds: Sequence[str] | None = None,
    formats: Sequence[str] = ("png", "svg"),
    style: str = "paper",
    metric: str | None = None,
    tell: Callable[[str], None] = logger.info,
) -> list[Path]:
    """Write figures to `out_dir` as <kind>.<format>, and return their paths.

    Args:
        frames: What `nsrelu_bench.load` returns.
        out_dir: A folder; created if needed.
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
        measured = [name for name in known if name not in NOT_METRICS]
        lookup(dict.fromkeys(sorted(measured)), metric, "metric")
    savers = {fmt: lookup(FORMATS, fmt, "format") for fmt in formats}
    dpi = lookup(STYLES, style, "style").dpi
    results, paths = group_results(frames), []
    with mpl.style.context(["default", RC]):
        for kind, plan in plans.items():
            try:
                drawn = figure(plan(results, metric), style)
            except NothingToDrawError as reason:
                tell(f"no figure {kind}: {reason}")
                continue
            for fmt, metadata in savers.items():
                buffer = io.BytesIO()
                drawn.savefig(buffer, format=fmt, dpi=dpi, metadata=metadata)
                paths.append(out_dir / f"{kind}.{fmt}")
                with wrap_write_errors(paths[-1]):
                    out_dir.mkdir(parents=True, exist_ok=True)
                    replace_file(paths[-1], buffer.getvalue(), durable=False)
    return paths


def to_svg(spec: FigureSpec, prefix: str, style: str = "paper") -> str:
    """Draw a figure as an SVG element for an HTML page, as wide as there is room.

    Its ids begin with `prefix`, so that a page may have several, and it refers to nothing outside
    itself. The bytes depend on the data alone.
    """
    buffer = io.StringIO()
    with mpl.style.context(["default", RC]):
        drawn = figure(spec, style)
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
