"""Format a comparison: as a table for a terminal or a pipe, CSV, JSON, Markdown or LaTeX."""

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nsrelu_bench.compare.columns import (
    choose_columns,
    column_name,
    format_mean,
    make_column,
    usual_columns,
    values_of,
)
from nsrelu_bench.compare.comparison import Comparison
from nsrelu_bench.compare.labels import format_interval
from nsrelu_bench.compare.latex import format_latex
from nsrelu_bench.compare.notes import notes
from nsrelu_bench.compare.statistics import LEAST_SEEDS, LEAST_VALUES
from nsrelu_bench.compare.verdicts import verdicts
from nsrelu_bench.errors import UsageError, unknown
from nsrelu_bench.records import to_csv
from nsrelu_bench.text import format_fixed, format_p, split_columns

#: What a verdict can do without in a narrow table: a note says what a number of seeds means, and
#: the verdicts in words name the margin.
VERBOSE = re.compile(r"^not shown: (?=[~>])|(?<=equivalent) within .*")

#: csv has `Comparison.rows` alone; latex needs the package booktabs.
FORMATS = ("table", "csv", "json", "md", "latex")


@dataclass(frozen=True)
class Sheet:
    """A table of texts, whose first column names the rows."""

    heading: str
    header: list[str]
    rows: list[list[str]]

    @property
    def widths(self) -> list[int]:
        """The width of each column in characters; a cell may have several lines."""
        columns = zip(self.header, *self.rows, strict=True)
        return [max(map(len, "\n".join(column).split("\n"))) for column in columns]


def format_table(
    comparison: Comparison,
    fmt: str = "table",
    width: int | None = None,
    *,
    detail: bool = False,
    columns: Sequence[str] | None = None,
) -> str:
    """Return the comparison as text.

    Args:
        comparison: What `compare` found.
        fmt: One of `FORMATS`.
        width: The width of the terminal, for ``table``; None for a pipe, where nothing is cut.
        detail: Add the table of failures, medians and chances of improvement also where no run
            failed to train. csv and json always have its numbers.
        columns: The columns of a table: names of `columns.column_names`.

    Raises:
        UsageError: There is no such format or column.
    """
    if fmt not in FORMATS:
        raise unknown(fmt, FORMATS, "format")
    if columns is not None and fmt in ("csv", "json"):
        raise UsageError(f"columns are for the formats table, md and latex, not {fmt}")
    if fmt == "csv":
        return to_csv(comparison.rows)
    if fmt == "json":
        return _json(comparison)
    if fmt == "latex":
        return format_latex(comparison, columns)
    sheets = sheets_of(comparison, detail=detail, columns=columns)
    return _markdown(comparison, sheets) if fmt == "md" else _text(comparison, sheets, width)


def sheets_of(
    comparison: Comparison, *, detail: bool = False, columns: Sequence[str] | None = None
) -> list[Sheet]:
    """Return a comparison as tables: one per section, and a second one with its failures.

    The second one is there if a run failed to train, and always with `detail`. `columns` are names
    of `column_names`, the usual ones by default.

    Raises:
        UsageError: There is no such column.
    """
    keys = choose_columns(comparison, columns, usual_columns(comparison))
    sheets = []
    for section, part in comparison.rows.groupby("section", sort=False):
        heading = ", ".join(filter(None, [str(section), comparison.shared[str(section)]]))
        sheets.append(_main_sheet(comparison, heading, part, keys))
        if detail or (columns is None and part["failed_to_train"].any()):
            sheets.append(_detail_sheet(comparison, heading, part))
    return sheets


def _main_sheet(
    comparison: Comparison, heading: str, rows: pd.DataFrame, keys: Sequence[str]
) -> Sheet:
    """Return the means of the metrics, and the differences in the main one."""
    names = list(rows.drop_duplicates("group")["group"])
    columns = [("activation", names), *(make_column(comparison, rows, key) for key in keys)]
    cells = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    return Sheet(heading, [header for header, _ in columns], cells)


def _detail_sheet(comparison: Comparison, heading: str, rows: pd.DataFrame) -> Sheet:
    """Return how many runs failed to train, and the main metric of all that finished."""
    main, baseline = comparison.main_metric, comparison.baseline
    name = column_name(main)
    lines = []
    for row in rows[rows["metric"] == main].to_dict("records"):
        share, better = (
            format_fixed(100 * row[key], 0)
            + f" {format_interval('fraction', row[low], row[high], 0)}"
            if row[key] >= 0
            else "-"
            for key, low, high in (
                ("failed_to_train", "failed_low", "failed_high"),
                ("p_better", "p_better_low", "p_better_high"),
            )
        )
        values = [format_mean(main, row["itt_mean"], row["itt_low"], row["itt_high"], 1)]
        values += [format_mean(main, row[key], math.nan, math.nan, 1) for key in ("median", "iqm")]
        failed = f"{row['diverged'] + row['collapsed']}/{row['completed'] + row['diverged']}"
        lines.append([row["group"], failed, share, format_p(row["p_failed"]), *values, better])
    header = ["activation", "failed to train", "share %", "McNemar p", f"{name}, all runs"]
    header += ["median", "interquartile mean", f"P(> {baseline}) %"]
    return Sheet(f"{heading}: every run that finished", header, lines)


def _text(comparison: Comparison, sheets: list[Sheet], width: int | None) -> str:
    """Return tables, notes and verdicts, fitted to a terminal."""
    below = "\n".join([*notes(comparison), "", *verdicts(comparison)]).strip()
    if width is None:
        return "\n\n".join([*map(_aligned, sheets), below]) + "\n"
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    with console.capture() as capture:
        for sheet in sheets:
            console.print(Text(sheet.heading))
            for table in _fitted(sheet, width):
                console.print(table)
                console.print()
        console.print(Text(below))
    return capture.get()


def _fitted(sheet: Sheet, width: int) -> list[Table]:
    """Fit a table to a terminal: with smaller gaps, shorter texts, or as several tables."""
    close = Sheet(
        sheet.heading,
        [name.replace("diverged", "div.").replace(" ", "\n") for name in sheet.header],
        [[VERBOSE.sub("", cell.replace(" ± ", "±")) for cell in row] for row in sheet.rows],
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


def _json(comparison: Comparison) -> str:
    rows = json.loads(comparison.rows.to_json(orient="records", double_precision=15))
    values = values_of(comparison, "value", *comparison.metrics)
    differences = values_of(comparison, "difference", *comparison.metrics)
    for row in rows:
        key = row["section"], row["group"], row["metric"]
        if row["n"] < LEAST_VALUES:
            row["values"] = values.get(key, [])
        if row["pairs"] < LEAST_SEEDS:
            row["differences"] = differences.get(key, [])
    content = {
        "baseline": comparison.baseline,
        "metrics": comparison.metrics,
        "confidence": comparison.confidence,
        "tuned": comparison.tuned,
        "primary": comparison.family.primary,
        "secondary": comparison.family.secondary,
        "margins": {
            metric: margin
            for metric in comparison.family.metrics
            if (margin := comparison.family.margin(metric)) > 0
        },
        "tests": comparison.tests,
        "environment": comparison.environment,
        "rows": rows,
        "notes": notes(comparison),
        "verdicts": verdicts(comparison),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _markdown(comparison: Comparison, sheets: list[Sheet]) -> str:
    blocks = []
    for sheet in sheets:
        rule = ["---", *["---:"] * (len(sheet.header) - 1)]
        lines = [" | ".join(row) for row in (sheet.header, rule, *sheet.rows)]
        blocks += [f"**{sheet.heading}**" * bool(sheet.heading)]
        blocks += ["\n".join(f"| {line} |" for line in lines)]
    for lines in (notes(comparison), verdicts(comparison)):
        blocks += ["\n".join(f"- {line}".replace("*", r"\*") for line in lines)]
    return "\n\n".join(filter(None, blocks)) + "\n"
