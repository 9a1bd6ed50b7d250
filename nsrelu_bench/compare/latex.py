"""Format a comparison as LaTeX tables that can go into a paper as they are; they need booktabs."""

import re
from collections.abc import Sequence

import pandas as pd

from nsrelu_bench.compare.columns import Column, choose_columns, make_column, split_key
from nsrelu_bench.compare.comparison import Comparison
from nsrelu_bench.compare.declared_tests import format_margin
from nsrelu_bench.compare.grouping import format_setting, join_settings, varies
from nsrelu_bench.compare.labels import best_of, label
from nsrelu_bench.compare.notes import notes
from nsrelu_bench.compare.statistics import ALPHA
from nsrelu_bench.compare.verdicts import verdicts
from nsrelu_bench.text import join_words

#: The signs in a cell for the words of a verdict.
VERDICT_SIGNS = {"higher": r"\uparrow", "lower": r"\downarrow", "equivalent": r"\approx"}


def format_latex(comparison: Comparison, columns: Sequence[str] | None = None) -> str:
    """Return one table per section, each with a caption and a label, and the notes as comments.

    By default the columns are the tested metrics, with signs for the results of the tests, and the
    difference in the main one.

    Raises:
        UsageError: There is no such column.
    """
    keys = choose_columns(comparison, columns, _usual_columns(comparison))
    lines = []
    for section, rows in comparison.rows.groupby("section", sort=False):
        lines += [*_table(comparison, str(section), rows, keys), ""]
    for line in (*notes(comparison), *verdicts(comparison)):
        lines.append("% " + " ".join(line.splitlines()))
    return "\n".join(lines) + "\n"


def _usual_columns(comparison: Comparison) -> list[str]:
    """Return the tested metrics, or those asked for, and the difference in the main one."""
    rows, tested = comparison.rows, comparison.family.metrics
    metrics = tested if set(tested) <= set(comparison.metrics) else comparison.metrics
    counts = [count for count in ("diverged", "collapsed") if rows[count].any()]
    return [*counts, *metrics, *(["diff", "p"] if rows["pairs"].any() else [])]


def _table(
    comparison: Comparison, section: str, rows: pd.DataFrame, keys: Sequence[str]
) -> list[str]:
    """Return the lines of a table: a row per group, its settings in columns of their own."""
    groups = rows.drop_duplicates("group").reset_index(drop=True)
    settings = [c for c in comparison.settings if varies(groups[c])]
    joined = join_settings(groups, settings)
    names = [
        group.removesuffix(text).strip()
        for group, text in zip(groups["group"], joined, strict=True)
    ]
    columns = [("activation", [_escape(name) for name in names])]
    columns += [(_escape(c), [_escape(format_setting(v)) for v in groups[c]]) for c in settings]
    columns += [_column(comparison, rows, key, joined) for key in keys]
    body = [" & ".join(row) + r" \\" for row in zip(*(c for _, c in columns), strict=True)]
    for place in reversed(range(1, len(body))):
        if joined[place] != joined[place - 1]:
            body.insert(place, r"\addlinespace")
    alignment = "l" * (1 + len(settings)) + "r" * len(keys)
    return [
        r"\begin{table}",
        r"\centering",
        r"\caption{" + _caption(comparison, section, rows, keys) + "}",
        r"\label{tab:" + _slug(comparison, section) + "}",
        r"\smallskip\small",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
        r"\toprule",
        " & ".join(name for name, _ in columns) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def _column(comparison: Comparison, rows: pd.DataFrame, key: str, blocks: Sequence[str]) -> Column:
    """Return a column; those of metrics have bold type and signs."""
    header, texts = make_column(comparison, rows, key)
    if key in comparison.metrics:
        return _header(header), _decorated(rows[rows["metric"] == key], key, texts, blocks)
    return _header(header), list(map(_cell, texts))


def _decorated(
    rows: pd.DataFrame, metric: str, texts: Sequence[str], blocks: Sequence[str]
) -> list[str]:
    """Write means with the signs of their verdicts, the best one of each block in bold."""
    best = _best_cells(rows, metric, texts, blocks)
    cells = []
    for text, words, block in zip(texts, rows["verdict"], blocks, strict=True):
        mean, _, rest = text.partition(" ")
        signs = "".join(sign for word, sign in VERDICT_SIGNS.items() if word in words)
        is_best = mean == best.get(block)
        bold = rf"\textbf{{{mean}}} {_cell(rest)}".strip() if is_best else _cell(text)
        cells.append(bold + (f"$^{{{signs}}}$" if signs else ""))
    return cells


def _best_cells(
    rows: pd.DataFrame, metric: str, texts: Sequence[str], blocks: Sequence[str]
) -> dict[str, str]:
    """Return the text of the best mean of each block, among groups in which no run failed."""
    direction = best_of(metric)
    means = rows["mean"].where(rows["failed_to_train"] == 0).reset_index(drop=True)
    found = {}
    for block, part in means.groupby(list(blocks)):
        if direction is not None and len(part) > 1 and part.notna().any():
            best = part.max() if direction == "highest" else part.min()
            cells = (text for text, m in zip(texts, means, strict=True) if m == best)
            found[str(block)] = next(cells).partition(" ")[0]
    return found


def _caption(comparison: Comparison, section: str, rows: pd.DataFrame, keys: Sequence[str]) -> str:
    """Return the caption: what the table shows, and what its signs mean."""
    metrics = [key for key in keys if key in comparison.metrics]
    names = list(map(label, metrics))
    heading = ", ".join(filter(None, [section, comparison.shared[section]]))
    seeds = comparison.seeds[comparison.seeds["section"] == section]
    counts = seeds.groupby("group")["seed"].nunique()
    low, high = counts.min(), counts.max()
    sentences = [f"{heading}; {low}{'' if low == high else f' to {high}'} seeds"]
    if names:
        listed = join_words(names)
        sentences.append(
            f"{listed[:1].upper()}{listed[1:]}: mean ± half-width of the"
            f" {comparison.confidence:.0%} interval"
        )
    if any(best_of(metric) for metric in metrics):
        sentences.append("Bold: the best mean where no run failed to train")
    text = ". ".join(map(_prose, sentences)) + "."
    words = rows.loc[rows["metric"].isin(metrics), "verdict"]
    if words.str.contains("|".join(VERDICT_SIGNS)).any():
        text += _signs_explained(comparison, metrics)
    if {"diff", "p"} & {split_key(key)[1] for key in keys}:
        text += _prose(
            f" Differences to {comparison.baseline} are paired by seed, with"
            f" {comparison.confidence:.0%} intervals."
        )
    return text


def _signs_explained(comparison: Comparison, metrics: Sequence[str]) -> str:
    family = comparison.family
    margins = [
        f"{format_margin(metric, family.margin(metric))} of {label(metric)}"
        for metric in metrics
        if metric in family.metrics and family.margin(metric) > 0
    ]
    return (
        rf" $\uparrow$, $\downarrow$: higher or lower than {_escape(comparison.baseline)}"
        rf" ($p < {ALPHA}$, adjusted for {comparison.tests} tests)"
        + (rf"; $\approx$: equivalent within {_prose(' or '.join(margins))}." if margins else ".")
    )


def _slug(comparison: Comparison, section: str) -> str:
    several = varies(comparison.rows["section"])
    words = " ".join([*comparison.studies, *([section] if several else [])])
    return re.sub(r"[^\w.]+", "-", words).strip("-") or "comparison"


def _header(text: str) -> str:
    """Write a column's header: the unit in brackets, p in math mode."""
    unit = re.search(r" (%|pp)$", text)
    name = text[: unit.start()] if unit else text
    words = re.sub(r"^vs ", r"vs.\\ ", _prose(name))
    words = re.sub(r"\bp$", "$p$", words).replace("adj. ", r"adj.\ ")
    return words + (f" ({_escape(unit[1])})" if unit else "")


def _cell(text: str) -> str:
    """Write numbers with a minus and powers of ten; a lone dash is a missing value."""
    return "--" if text == "-" else _prose(text)


def _prose(text: str) -> str:
    """Write text with its numbers and comparisons in math mode."""
    return "".join(
        _number(part) if LATEX_NUMBER.fullmatch(part) else _escape(part)
        for part in LATEX_PARTS.split(text)
    )


LATEX_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?|<= \d+")
LATEX_PARTS = re.compile(r"((?<![\w.(-])[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.)])|<= \d+)")


def _number(text: str) -> str:
    if text.startswith("<="):
        return rf"$\le {text[3:]}$"
    mantissa, _, exponent = text.partition("e")
    if exponent:
        return rf"${mantissa} \times 10^{{{int(exponent)}}}$"
    return f"${text}$" if text[0] in "+-" else text


def _escape(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


#: Characters with a special meaning in LaTeX.
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
