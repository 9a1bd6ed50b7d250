"""Put the numbers of a comparison into words."""

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from nsrelu_bench.compare.comparison import Comparison
from nsrelu_bench.compare.grouping import varies
from nsrelu_bench.compare.labels import (
    SHORT_LABELS,
    format_interval,
    format_value,
    label,
    scale_of,
)
from nsrelu_bench.text import decimal_places, format_fixed, format_p

#: A row of `Comparison.rows`.
Row = Mapping[Hashable, Any]


def verdicts(comparison: Comparison) -> list[str]:
    """Return one line per group that says how it differs from the baseline."""
    return [f"{name}: {'; '.join(clauses)}" for name, clauses in verdict_clauses(comparison)]


def verdict_clauses(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return the verdicts in parts: what is compared with what, and a clause per metric."""
    shown, family = comparison.metrics, comparison.family.metrics
    wanted = [m for m in family if m in shown] or list(shown)
    rows = comparison.rows[comparison.rows["metric"].isin(wanted)]
    several = varies(comparison.rows["section"])
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows.to_dict("records"):
        groups.setdefault((row["section"], row["group"]), {})[row["metric"]] = row
    found = []
    compared = comparison.compared
    for section, group in dict.fromkeys(zip(compared["section"], compared["group"], strict=True)):
        by_metric = groups[section, group]
        first = by_metric[wanted[0]]
        names = [row["baseline_group"] for row in by_metric.values()]
        baseline = next((str(name) for name in names if pd.notna(name)), comparison.baseline)
        clauses = [_clause(by_metric[m]) for m in wanted if by_metric[m]["pairs"] > 0]
        if not first["completed"] + first["diverged"]:
            clauses = ["no run has finished"]
        elif not clauses:
            clauses = ["no finished run with the same settings and seed to pair with"]
        of_baseline = groups.get((section, baseline), {}).get(wanted[0])
        clauses += _failures(first, of_baseline, baseline)
        found.append((f"{section}: " * several + f"{group} vs {baseline}", clauses))
    return found


def _clause(row: Row) -> str:
    """Write about one metric: "accuracy +1.5 pp [0.8, 2.2], adjusted p = 0.031: higher"."""
    metric, pairs = str(row["metric"]), row["pairs"]
    name = "dead units" if metric == "dead_fraction" else SHORT_LABELS.get(metric, label(metric))
    scale, unit = scale_of(metric)
    if metric.endswith("accuracy"):
        places = decimal_places([(row["diff_high"] - row["diff_low"]) / 2 * scale])
        ends = format_interval(metric, row["diff_low"], row["diff_high"], places)
        text = f"{format_fixed(row['diff'] * scale, places, '+')}{unit} {ends}".rstrip()
    else:
        before, after = row["baseline_mean"], row["baseline_mean"] + row["diff"]
        text = f"{format_value(metric, before)} -> {format_value(metric, after)}"
    if pd.notna(row["p_adjusted"]):
        text += f", adjusted p = {format_p(row['p_adjusted'])}"
    elif row["verdict"] or pairs < 2:
        text += f", {pairs} pair{'s' if pairs > 1 else ''}"
    else:
        text += f", p = {format_p(row['p'])}, not adjusted"
    text = f"{name} {text}" + f": {row['verdict']}" * bool(row["verdict"])
    if "rounding" in row and abs(row["diff"]) <= row["rounding"]:
        text += f" (rounding alone gives up to {scale * row['rounding']:.2g}{unit})"
    return text


def _failures(row: Row, other: Row | None, baseline: str) -> list[str]:
    """Return how many runs failed to train, of the group and of the baseline, `other`."""
    finished = row["completed"] + row["diverged"]
    lost = row["diverged"] + row["collapsed"]
    beside = other["diverged"] + other["collapsed"] if other else 0
    if not lost + beside:
        return []
    kinds = [f"{row[kind]} {kind}" for kind in ("diverged", "collapsed") if row[kind]]
    text = f"{lost} of {finished} runs failed to train" + f" ({', '.join(kinds)})" * bool(kinds)
    if other:
        text += f", {beside} of {other['completed'] + other['diverged']} of {baseline}"
    return [text + f", McNemar p = {format_p(row['p_failed'])}" * bool(pd.notna(row["p_failed"]))]
