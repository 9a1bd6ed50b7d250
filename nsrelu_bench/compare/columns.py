"""The columns of a comparison's tables: their names, headers and cells."""

import math
from collections.abc import Sequence

import pandas as pd

from nsrelu_bench.compare.comparison import Comparison
from nsrelu_bench.compare.declared_tests import PRIMARY
from nsrelu_bench.compare.labels import (
    RUN_COUNTS,
    SHORT_LABELS,
    format_interval,
    is_percent,
    label,
    metrics_among,
    scale_of,
)
from nsrelu_bench.compare.outcomes import KEYS
from nsrelu_bench.compare.statistics import LEAST_VALUES
from nsrelu_bench.config import METRICS
from nsrelu_bench.errors import lookup
from nsrelu_bench.records import CONFIG_COLUMNS
from nsrelu_bench.text import decimal_places, format_fixed, format_p

#: Columns about the differences in a metric; for another than the main one, "metric:diff".
COLUMN_TESTS = ("diff", "pairs", "p", "verdict")


#: The header of a column, and its cells, one per group.
Column = tuple[str, list[str]]


def column_names(comparison: Comparison) -> list[str]:
    """Return the names of all columns that a comparison has."""
    tests = COLUMN_TESTS if comparison.rows["pairs"].any() else ()
    of_metrics = [f"{metric}:{test}" for metric in comparison.metrics for test in tests]
    return [*RUN_COUNTS, *comparison.metrics, *tests, *of_metrics]


def usual_columns(comparison: Comparison) -> list[str]:
    """Return the default columns: counts, means, and the differences in the main metric.

    Counts that are 0 everywhere are left out, except for the diverged runs.
    """
    rows = comparison.rows
    counts = [c for c in RUN_COUNTS if c in ("runs", "diverged") or rows[c].any()]
    tests = list(COLUMN_TESTS) if rows["pairs"].any() else []
    if comparison.main_metric not in comparison.family.metrics:
        tests = tests[:-1]  # a metric that is not tested has no verdict
    return [*counts, *comparison.metrics, *tests]


def choose_columns(
    comparison: Comparison, given: Sequence[str] | None, usual: Sequence[str]
) -> list[str]:
    """Return the columns to show: those given, otherwise the usual ones.

    Raises:
        UsageError: There is no such column.
    """
    known = dict.fromkeys(column_names(comparison))
    for name in given or ():
        lookup(known, name, "column")
    return list(given or usual)


def make_column(comparison: Comparison, rows: pd.DataFrame, key: str) -> Column:
    """Return one of `column_names`, such as "zero_fraction:p", for the rows of a section."""
    if key in RUN_COUNTS:
        groups = rows[["group", key]].drop_duplicates("group")
        return key, list(map(str, groups[key]))
    metric, test = split_key(key)
    named = bool(metric)
    metric = metric or comparison.main_metric
    part = rows[rows["metric"] == metric]
    if not test:
        return column_name(metric), _format_means(comparison, part, metric)
    header, cells = _test_column(comparison, part, metric, test)
    of = f"{SHORT_LABELS.get(metric, label(metric))} " if named else ""
    return of + header, cells


def split_key(key: str) -> tuple[str, str]:
    """Split a column's name into metric and test: ("zero_fraction", "p"), ("", "diff")."""
    metric, _, test = key.rpartition(":")
    return (metric, test) if test in COLUMN_TESTS else (key, "")


def metrics_for(columns: Sequence[str], primary: str | None, runs: pd.DataFrame) -> list[str]:
    """Return the metrics to compare so that a table can have these columns."""
    there = {*metrics_among(runs, CONFIG_COLUMNS), *METRICS}
    named = [split_key(key)[0] for key in columns]
    return list(dict.fromkeys([primary or PRIMARY, *(name for name in named if name in there)]))


def _test_column(comparison: Comparison, rows: pd.DataFrame, metric: str, test: str) -> Column:
    """Return the column of one of `COLUMN_TESTS`."""
    if test == "diff":
        unit = scale_of(metric)[1] if len(comparison.metrics) > 1 else ""
        cells = _format_differences(comparison, rows, metric)
        return f"vs {comparison.baseline}{unit}", cells
    if test == "pairs":
        return "pairs", [str(n) if n else "-" for n in rows["pairs"]]
    if test == "verdict":
        words = rows["verdict"].str.replace("would need about ", "~")
        words = words.str.replace("would need more than ", "> ")
        return "verdict", list(words.replace("", "-"))
    tested = metric in comparison.family.metrics
    p = rows["p_adjusted" if tested else "p"]
    return "adj. p" if tested else "raw p", list(map(format_p, p))


def column_name(metric: str) -> str:
    """Return the header of a metric's column."""
    return SHORT_LABELS.get(metric, label(metric)) + " %" * is_percent(metric)


def _format_means(comparison: Comparison, rows: pd.DataFrame, metric: str) -> list[str]:
    """Write the means of completed runs, with as many places as their half-widths need."""
    scale, _ = scale_of(metric)
    places = decimal_places((rows["high"] - rows["low"]) / 2 * scale)
    few = rows["n"].between(1, LEAST_VALUES - 1).any()
    by_group = values_of(comparison, "value", metric) if few else {}
    cells = []
    for row in rows[[*KEYS, "n", "mean", "low", "high"]].to_dict("records"):
        if 0 < row["n"] < LEAST_VALUES:
            values = by_group[row["section"], row["group"], metric]
            texts = (format_mean(metric, v, math.nan, math.nan, places) for v in values)
            cells.append(", ".join(texts))
        else:
            cells.append(format_mean(metric, row["mean"], row["low"], row["high"], places))
    return cells


def values_of(
    comparison: Comparison, column: str, *metrics: str
) -> dict[tuple[str, str, str], list[float]]:
    """Return the column `value` (of completed runs) or `difference` by group, ordered by seed."""
    seeds = comparison.seeds[comparison.seeds["metric"].isin(metrics)]
    seeds = seeds[seeds[column].notna()].sort_values("seed")
    if column == "value":
        seeds = seeds[seeds["survived"] > 0]
    found: dict[tuple[str, str, str], list[float]] = {}
    for section, group, metric, value in seeds[[*KEYS, column]].itertuples(index=False):
        found.setdefault((section, group, metric), []).append(value)
    return found


def format_mean(metric: str, mean: float, low: float, high: float, common: int) -> str:
    """Write "93.1 ± 0.3", or "0.5 [0.0, 1.1]" if the interval is cut off."""
    scale, _ = scale_of(metric)
    half = (high - low) / 2
    if math.isnan(mean):
        return "-"
    places = common if is_percent(metric) else two_digits(mean, half)
    if places is None:
        return f"{mean:.3g}" + (f" ± {half:.2g}" if half >= 0 else "")
    text = format_fixed(scale * mean, places)
    if math.isnan(half):
        return text
    if abs(high + low - 2 * mean) > 1e-9 * max(abs(high), abs(low)):
        return f"{text} {format_interval(metric, low, high, places)}"
    return f"{text} ± {format_fixed(scale * half, places)}"


def _format_differences(comparison: Comparison, rows: pd.DataFrame, metric: str) -> list[str]:
    """Write differences as "+1.5 [0.8, 2.2]", or all values if they are too few for an interval."""
    scale, _ = scale_of(metric)
    common = decimal_places((rows["diff_high"] - rows["diff_low"]) / 2 * scale)
    by_group = values_of(comparison, "difference", metric) if rows["diff_low"].isna().any() else {}
    cells = []
    for row in rows[[*KEYS, "pairs", "diff", "diff_low", "diff_high"]].to_dict("records"):
        low, high = row["diff_low"], row["diff_high"]
        places = common if is_percent(metric) else two_digits(row["diff"], (high - low) / 2)
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


def two_digits(value: float, half: float) -> int | None:
    """Return how many decimals show two digits of a half-width; None if there is no such number."""
    if not half > 0 or not 1e-3 <= abs(value) < 1e5:
        return None
    return max(1 - math.floor(math.log10(half)), 0)
