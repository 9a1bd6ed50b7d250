"""A comparison as text: a table for a terminal or a pipe, csv, json, markdown, latex."""

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nsrelu_bench.compare.comparison import Comparison
from nsrelu_bench.compare.grouping import STATES
from nsrelu_bench.compare.labels import SHORT_LABELS, is_percent, label
from nsrelu_bench.compare.statistics import ALPHA
from nsrelu_bench.compare.verdicts import notes, verdicts
from nsrelu_bench.errors import lookup
from nsrelu_bench.records import to_csv
from nsrelu_bench.text import decimal_places, format_fixed, format_p, split_columns


@dataclass(frozen=True)
class Sheet:
    """A table as texts: the first column names the rows."""

    heading: str
    header: list[str]
    rows: list[list[str]]

    @property
    def widths(self) -> list[int]:
        """The width of each column in characters; cells may have several lines."""
        columns = zip(self.header, *self.rows, strict=True)
        return [max(map(len, "\n".join(column).split("\n"))) for column in columns]


def format_table(comparison: Comparison, fmt: str = "table", width: int | None = None) -> str:
    """Return the comparison as text: ``table``, ``csv``, ``json``, ``md`` or ``latex``.

    `width` is that of the terminal, into which a table is fitted; None is for a pipe, and cuts
    nothing. csv is `Comparison.rows` alone; latex needs the package booktabs.

    Raises:
        UsageError: There is no such format.
    """
    return lookup(FORMATS, fmt, "format")(comparison, width)


def sheets_of(comparison: Comparison) -> list[Sheet]:
    """Write a comparison as tables, one a section."""
    rows, metrics = comparison.rows, comparison.metrics
    main = "test_accuracy" if "test_accuracy" in metrics else metrics[0]
    states = [s for s in STATES[2:] if rows[s].any()]
    header = ["activation", "runs", "diverged", *states, *map(_column_name, metrics)]
    unit = (" pp" if is_percent(main) else "") if len(metrics) > 1 else ""
    paired = rows["pairs"].any()
    header += [f"vs {comparison.baseline}{unit}", "p"] if paired else []
    sheets = []
    for section, part in rows.groupby("section", sort=False):
        columns = {m: _intervals(g, str(m), "mean") for m, g in part.groupby("metric", sort=False)}
        chosen = part[part["metric"] == main]
        lines = []
        differences = _intervals(chosen, main, "diff")
        for i, (_, row) in enumerate(chosen.iterrows()):
            line = [row["group"], *(str(row[s]) for s in ("runs", "diverged", *states))]
            line += [columns[metric][i] for metric in metrics]
            star = "*" if row["p_holm"] < ALPHA else ""
            line += [differences[i], format_p(row["p"]) + star] if paired else []
            lines.append(line)
        heading = ", ".join(filter(None, [str(section), comparison.shared[str(section)]]))
        sheets.append(Sheet(heading, header, lines))
    return sheets


def _column_name(metric: str) -> str:
    return SHORT_LABELS.get(metric, label(metric)) + " %" * is_percent(metric)


def _intervals(rows: pd.DataFrame, metric: str, column: str) -> list[str]:
    """Write a column as "93.1 ± 0.3", with as many places as its half-widths ask for."""
    scale, sign = (100 if is_percent(metric) else 1), ("+" if column == "diff" else "")
    high = rows["high" if column == "mean" else "diff_high"]
    halves = (high - rows[column]) * scale
    common = decimal_places(halves)
    texts = []
    for value, half in zip(rows[column] * scale, halves, strict=True):
        places = common if is_percent(metric) else _two_digits(value, half)
        if math.isnan(value):
            texts.append("-")
        elif places is None:
            texts.append(f"{value:{sign}.3g}" + (f" ± {half:.2g}" if half >= 0 else ""))
        else:
            error = f" ± {format_fixed(half, places)}" if half >= 0 else ""
            texts.append(format_fixed(value, places, sign) + error)
    return texts


def _two_digits(value: float, half: float) -> int | None:
    """Return how many places show two digits of a half-width; None if that is no way to write."""
    if not half > 0 or not 1e-3 <= abs(value) < 1e5:
        return None
    return max(1 - math.floor(math.log10(half)), 0)


def _text(comparison: Comparison, width: int | None) -> str:
    """Tables, foot and verdicts; fitted to a terminal of that width."""
    sheets = sheets_of(comparison)
    below = "\n".join([*notes(comparison), "", *verdicts(comparison)]).strip()
    if width is None:
        return "\n\n".join([*map(_aligned, sheets), below]) + "\n"
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    with console.capture() as capture:
        for sheet in sheets:
            console.print(Text(sheet.heading), *_fitted(sheet, width), "", sep="\n")
        console.print(Text(below))
    return capture.get()


def _fitted(sheet: Sheet, width: int) -> list[Table]:
    """Make a table that a terminal shows, the closer set the less room there is, or several."""
    close = Sheet(
        sheet.heading,
        [name.replace("diverged", "div.").replace(" ", "\n") for name in sheet.header],
        [[cell.replace(" ± ", "±") for cell in row] for row in sheet.rows],
    )
    for form, gap in ((sheet, 2), (sheet, 1), (close, 1)):
        blocks = split_columns(form.widths, width, gap)
        if len(blocks) == 1:
            break
    tables = []
    for block in blocks:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold")
        table.padding = (0, gap - 1, 0, 0)
        whole = max(form.widths[c] for c in block[1:]) + gap + form.widths[0] <= width
        for c in block:
            table.add_column(
                form.header[c], justify="right" if c else "left", no_wrap=bool(c) or whole
            )
        for row in form.rows:
            table.add_row(*(Text(row[c]) for c in block))
        tables.append(table)
    return tables


def _aligned(sheet: Sheet) -> str:
    """Align the columns with blanks, the first to the left, the others to the right."""
    first, *others = sheet.widths
    texts = [sheet.heading] if sheet.heading else []
    for name, *cells in (sheet.header, *sheet.rows):
        aligned = (cell.rjust(w) for cell, w in zip(cells, others, strict=True))
        texts.append("  ".join([name.ljust(first), *aligned]))
    return "\n".join(texts)


def _csv(comparison: Comparison, _: int | None) -> str:
    return to_csv(comparison.rows)


def _json(comparison: Comparison, _: int | None) -> str:
    rows = comparison.rows.to_json(orient="records", double_precision=15)
    content = {
        "baseline": comparison.baseline,
        "metrics": comparison.metrics,
        "confidence": comparison.confidence,
        "tuned": comparison.tuned,
        "rows": json.loads(rows),
        "notes": notes(comparison),
        "verdicts": verdicts(comparison),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _markdown(comparison: Comparison, _: int | None) -> str:
    blocks = []
    for sheet in sheets_of(comparison):
        rule = ["---", *["---:"] * (len(sheet.header) - 1)]
        lines = [" | ".join(row) for row in (sheet.header, rule, *sheet.rows)]
        blocks += [f"**{sheet.heading}**" * bool(sheet.heading)]
        blocks += ["\n".join(f"| {line} |" for line in lines)]
    for lines in (notes(comparison), verdicts(comparison)):
        blocks += ["\n".join(f"- {line}".replace("*", r"\*") for line in lines)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _latex(comparison: Comparison, _: int | None) -> str:
    lines = []
    for sheet in sheets_of(comparison):
        head, *rows = [
            " & ".join(map(_escape_latex, row)) + r" \\" for row in (sheet.header, *sheet.rows)
        ]
        columns = "l" + "r" * (len(sheet.header) - 1)
        lines += [f"% {sheet.heading}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head]
        lines += [r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", ""]
    lines += [f"% {line}" for line in (*notes(comparison), *verdicts(comparison))]
    return "\n".join(lines) + "\n"


def _escape_latex(text: str) -> str:
    return re.sub(r"([%_&#$])", r"\\\1", text).replace("±", r"$\pm$")


FORMATS: dict[str, Callable[[Comparison, int | None], str]] = {
    "table": _text,
    "csv": _csv,
    "json": _json,
    "md": _markdown,
    "latex": _latex,
}
