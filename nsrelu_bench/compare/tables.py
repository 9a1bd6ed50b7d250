"""A comparison as text: a table for a terminal or a pipe, csv, json, markdown, latex."""

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nsrelu_bench.compare.comparison import Comparison
from nsrelu_bench.compare.grouping import COUNTED_STATES
from nsrelu_bench.compare.labels import (
    SHORT_LABELS,
    format_interval,
    is_percent,
    label,
    scale_of,
)
from nsrelu_bench.compare.notes import notes
from nsrelu_bench.compare.outcomes import KEYS
from nsrelu_bench.compare.statistics import LEAST_SEEDS, LEAST_VALUES
from nsrelu_bench.compare.verdicts import verdicts
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


def format_table(
    comparison: Comparison, fmt: str = "table", width: int | None = None, *, detail: bool = False
) -> str:
    """Return the comparison as text: ``table``, ``csv``, ``json``, ``md`` or ``latex``.

    `width` is that of the terminal, into which a table is fitted; None is for a pipe, and cuts
    nothing. `detail` adds tables of failures, medians and chances of improvement, which otherwise
    are there only where a run failed to train; csv and json always have these numbers. csv is
    `Comparison.rows` alone; latex needs the package booktabs.

    Raises:
        UsageError: There is no such format.
    """
    write = lookup(FORMATS, fmt, "format")
    return write(comparison, sheets_of(comparison, detail=detail), width)


def sheets_of(comparison: Comparison, *, detail: bool = False) -> list[Sheet]:
    """Return a comparison as tables: one per section, and one more with its failures.

    That one is there where a run failed to train, and everywhere with `detail`.
    """
    sheets = []
    for section, part in comparison.rows.groupby("section", sort=False):
        heading = ", ".join(filter(None, [str(section), comparison.shared[str(section)]]))
        sheets.append(_main_sheet(comparison, heading, part))
        if detail or part["failed_to_train"].any():
            sheets.append(_detail_sheet(comparison, heading, part))
    return sheets


def _main_sheet(comparison: Comparison, heading: str, rows: pd.DataFrame) -> Sheet:
    """Return the means of the metrics, and the differences in the main one."""
    everywhere, metrics, main = comparison.rows, comparison.metrics, comparison.main_metric
    of_main = rows[rows["metric"] == main]
    counts = [
        c for c in (*COUNTED_STATES[1:2], "collapsed", *COUNTED_STATES[2:]) if everywhere[c].any()
    ]
    counts = ["runs", *dict.fromkeys(["diverged", *counts])]
    columns = {"activation": list(of_main["group"])}
    columns |= {count: list(map(str, of_main[count])) for count in counts}
    for metric in metrics:
        part = rows[rows["metric"] == metric]
        columns[_column_name(metric)] = _means(comparison, part, metric)
    if everywhere["pairs"].any():
        tested = main in comparison.family.metrics
        unit = scale_of(main)[1] if len(metrics) > 1 else ""
        columns[f"vs {comparison.baseline}{unit}"] = _differences(comparison, of_main, main)
        columns["pairs"] = [str(n) if n else "-" for n in of_main["pairs"]]
        columns["adj. p" if tested else "raw p"] = list(
            map(format_p, of_main["p_adjusted" if tested else "p"])
        )
        if tested:
            columns["verdict"] = [_brief(words) or "-" for words in of_main["verdict"]]
    return Sheet(heading, list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def _detail_sheet(comparison: Comparison, heading: str, rows: pd.DataFrame) -> Sheet:
    """Return how many runs failed to train, and the main metric of all that finished."""
    main, baseline = comparison.main_metric, comparison.baseline
    name = _column_name(main)
    lines = []
    for row in rows[rows["metric"] == main].to_dict("records"):
        share, better = (
            f"{100 * row[key]:.0f} {format_interval('fraction', row[low], row[high], 0)}"
            if row[key] >= 0
            else "-"
            for key, low, high in (
                ("failed_to_train", "failed_low", "failed_high"),
                ("p_better", "p_better_low", "p_better_high"),
            )
        )
        values = [_mean(main, row["itt_mean"], row["itt_low"], row["itt_high"], 1)]
        values += [_mean(main, row[key], math.nan, math.nan, 1) for key in ("median", "iqm")]
        failed = f"{row['diverged'] + row['collapsed']}/{row['completed'] + row['diverged']}"
        lines.append([row["group"], failed, share, format_p(row["p_failed"]), *values, better])
    header = ["activation", "failed to train", "share %", "McNemar p", f"{name}, all runs"]
    header += ["median", "interquartile mean", f"P(> {baseline}) %"]
    return Sheet(f"{heading}: every run that finished", header, lines)


def _column_name(metric: str) -> str:
    return SHORT_LABELS.get(metric, label(metric)) + " %" * is_percent(metric)


def _brief(words: str) -> str:
    """Shorten a verdict for a cell."""
    return words.replace("would need about ", "~").replace("would need more than ", "> ")


def _means(comparison: Comparison, rows: pd.DataFrame, metric: str) -> list[str]:
    """Write the means of completed runs, with as many places as their half-widths need."""
    scale, _ = scale_of(metric)
    places = decimal_places((rows["high"] - rows["low"]) / 2 * scale)
    few = rows["n"].between(1, LEAST_VALUES - 1).any()
    by_group = _values(comparison, "value", metric) if few else {}
    cells = []
    for row in rows.to_dict("records"):
        if 0 < row["n"] < LEAST_VALUES:
            values = by_group[row["section"], row["group"], metric]
            cells.append(", ".join(_mean(metric, v, math.nan, math.nan, places) for v in values))
        else:
            cells.append(_mean(metric, row["mean"], row["low"], row["high"], places))
    return cells


def _values(
    comparison: Comparison, column: str, *metrics: str
) -> dict[tuple[str, str, str], list[float]]:
    """Return the values of groups by seed; those of completed runs, or differences."""
    seeds = comparison.seeds[comparison.seeds["metric"].isin(metrics)]
    seeds = seeds[seeds[column].notna()].sort_values("seed")
    if column == "value":
        seeds = seeds[seeds["survived"] > 0]
    found: dict[tuple[str, str, str], list[float]] = {}
    for section, group, metric, value in seeds[[*KEYS, column]].itertuples(index=False):
        found.setdefault((section, group, metric), []).append(value)
    return found


def _mean(metric: str, mean: float, low: float, high: float, common: int) -> str:
    """Write "93.1 ± 0.3", or "0.5 [0.0, 1.1]" where the interval is cut off."""
    scale, _ = scale_of(metric)
    half = (high - low) / 2
    if math.isnan(mean):
        return "-"
    places = common if is_percent(metric) else _two_digits(mean, half)
    if places is None:
        return f"{mean:.3g}" + (f" ± {half:.2g}" if half >= 0 else "")
    text = format_fixed(scale * mean, places)
    if math.isnan(half):
        return text
    if abs(high + low - 2 * mean) > 1e-9 * max(abs(high), abs(low)):
        return f"{text} {format_interval(metric, low, high, places)}"
    return f"{text} ± {format_fixed(scale * half, places)}"


def _differences(comparison: Comparison, rows: pd.DataFrame, metric: str) -> list[str]:
    """Write differences as "+1.5 [0.8, 2.2]", or all of them where they are too few for that."""
    scale, _ = scale_of(metric)
    common = decimal_places((rows["diff_high"] - rows["diff_low"]) / 2 * scale)
    by_group = _values(comparison, "difference", metric) if rows["diff_low"].isna().any() else {}
    cells = []
    for row in rows.to_dict("records"):
        low, high = row["diff_low"], row["diff_high"]
        places = common if is_percent(metric) else _two_digits(row["diff"], (high - low) / 2)
        if not row["pairs"]:
            cells.append("-")
        elif math.isnan(low):
            values = by_group[row["section"], row["group"], metric]
            cells.append(", ".join(format_fixed(scale * v, common, "+") for v in values))
        elif places is None:
            cells.append(f"{row['diff']:+.3g} [{low:.3g}, {high:.3g}]")
        else:
            ends = format_interval(metric, low, high, places)
            cells.append(f"{format_fixed(scale * row['diff'], places, '+')} {ends}")
    return cells


def _two_digits(value: float, half: float) -> int | None:
    """Return how many places show two digits of a half-width; None if that is no way to write."""
    if not half > 0 or not 1e-3 <= abs(value) < 1e5:
        return None
    return max(1 - math.floor(math.log10(half)), 0)


def _text(comparison: Comparison, sheets: Sequence[Sheet], width: int | None) -> str:
    """Return tables, foot and verdicts, fitted to a terminal of that width."""
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


def _csv(comparison: Comparison, _sheets: Sequence[Sheet], _width: int | None) -> str:
    return to_csv(comparison.rows)


def _json(comparison: Comparison, _sheets: Sequence[Sheet], _width: int | None) -> str:
    rows = json.loads(comparison.rows.to_json(orient="records", double_precision=15))
    values = _values(comparison, "value", *comparison.metrics)
    differences = _values(comparison, "difference", *comparison.metrics)
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


def _markdown(comparison: Comparison, sheets: Sequence[Sheet], _width: int | None) -> str:
    blocks = []
    for sheet in sheets:
        rule = ["---", *["---:"] * (len(sheet.header) - 1)]
        lines = [" | ".join(row) for row in (sheet.header, rule, *sheet.rows)]
        blocks += [f"**{sheet.heading}**" * bool(sheet.heading)]
        blocks += ["\n".join(f"| {line} |" for line in lines)]
    for lines in (notes(comparison), verdicts(comparison)):
        blocks += ["\n".join(f"- {line}".replace("*", r"\*") for line in lines)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _latex(comparison: Comparison, sheets: Sequence[Sheet], _width: int | None) -> str:
    lines = []
    for sheet in sheets:
        head, *rows = [
            " & ".join(map(_escape_latex, row)) + r" \\" for row in (sheet.header, *sheet.rows)
        ]
        columns = "l" + "r" * (len(sheet.header) - 1)
        lines += [
            "% " + " ".join(sheet.heading.splitlines()),
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
        ]
        lines += [r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", ""]
    for line in (*notes(comparison), *verdicts(comparison)):
        lines.append("% " + " ".join(line.splitlines()))
    return "\n".join(lines) + "\n"


def _escape_latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


#: What LaTeX reads as something else.
LATEX = {letter: rf"\{letter}" for letter in "%_&#${}"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "\n": " ",
    "\r": " ",
}

FORMATS: dict[str, Callable[[Comparison, Sequence[Sheet], int | None], str]] = {
    "table": _text,
    "csv": _csv,
    "json": _json,
    "md": _markdown,
    "latex": _latex,
}
