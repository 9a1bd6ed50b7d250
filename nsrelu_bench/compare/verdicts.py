"""What a comparison shows, in words."""

import math
from typing import Any

import pandas as pd

from nsrelu_bench.compare.comparison import Comparison
from nsrelu_bench.compare.grouping import (
    STATES,
    varies,
)
from nsrelu_bench.compare.labels import SHORT_LABELS, format_value, label
from nsrelu_bench.compare.sign_flips import least_p
from nsrelu_bench.compare.statistics import ALPHA
from nsrelu_bench.text import decimal_places, format_fixed, format_p

VERDICT_METRICS = ("test_accuracy", "zero_fraction", "dead_fraction")


# In words.


def verdicts(comparison: Comparison) -> list[str]:
    """Say for each group how it differs from the baseline; the words follow from the numbers."""
    return [f"{name}: {'; '.join(clauses)}" for name, clauses in verdict_clauses(comparison)]


def verdict_clauses(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return the verdicts in parts: what is compared with what, and a clause a metric."""
    wanted = [m for m in VERDICT_METRICS if m in comparison.metrics] or list(comparison.metrics)
    rows = comparison.rows
    rows = rows[rows["metric"].isin(wanted) & (rows["act"] != comparison.baseline)]
    several = varies(comparison.rows["section"])
    found = []
    for (section, group), part in rows.groupby(["section", "group"], sort=False):
        first = part.iloc[0]
        names = part["baseline_group"].dropna()
        name = f"{group} vs {names.iloc[0] if len(names) else comparison.baseline}"
        clauses = [_clause(row) for _, row in part.iterrows() if row["pairs"] > 0]
        if not first["completed"]:
            clauses = ["no completed run"]
        elif not clauses:
            clauses = ["no completed run with the same settings and seed to pair with"]
        if first["diverged"]:
            clauses.append(f"{first['diverged']} of {first['runs']} runs diverged")
        found.append((f"{section}: " * several + name, clauses))
    return found


def _clause(row: "pd.Series[Any]") -> str:
    """Say one metric: "accuracy +0.1 pp [-0.2, 0.4], p = 0.5: no difference shown"."""
    metric, diff = row["metric"], row["diff"]
    half = row["diff_high"] - diff
    if metric.endswith("accuracy"):
        places = decimal_places([half * 100])
        text = f"{format_fixed(diff * 100, places, '+')} pp"
        if row["pairs"] > 1:
            ends = (format_fixed(row[end] * 100, places) for end in ("diff_low", "diff_high"))
            text += f" [{', '.join(ends)}]"
    else:
        before, after = row["baseline_mean"], row["baseline_mean"] + diff
        text = f"{format_value(metric, before)} -> {format_value(metric, after)}"
    name = "dead units" if metric == "dead_fraction" else SHORT_LABELS.get(metric, label(metric))
    if row["pairs"] < 2:
        return f"{name} {text}: one pair, no test"
    word = verdict(diff, row["p"], row["p_holm"], row["pairs"])
    return f"{name} {text}, p = {format_p(row['p'])}: {word}"


def verdict(diff: float, p: float, p_holm: float, pairs: int) -> str:
    """Say what a paired difference shows.

    "no difference shown" says that noise would do, not that the two are equal.
    """
    if p >= ALPHA:
        return "no difference shown" if least_p(pairs) < ALPHA else "too few seeds to tell"
    word = "higher" if diff > 0 else "lower"
    return word if p_holm < ALPHA else f"{word} (Holm p {format_p(p_holm)})"


def notes(comparison: Comparison) -> list[str]:
    """Say what the numbers of a table rest on: its foot."""
    rows = comparison.rows
    groups = rows.drop_duplicates(["section", "group"])
    left_out = [f"{groups[state].sum()} {state}" for state in STATES[1:] if groups[state].sum()]
    lines = [
        f"Mean ± half-width of the {comparison.confidence:.0%} t interval, over "
        f"{groups['completed'].sum()} of {groups['runs'].sum()} runs"
        + (f"; left out: {', '.join(left_out)}." if left_out else ", all completed.")
    ]
    gaps = rows[rows["n"] < rows["completed"]].groupby("metric", sort=False)
    lines += [
        f"{metric}: {part['n'].sum()} of the {part['completed'].sum()} completed runs of "
        f"{len(part)} groups have a value."
        for metric, part in gaps
    ]
    lines += [
        f"Careful: these runs were made with {name} {' and '.join(values)}, which changes numbers."
        for name, values in comparison.mixed.items()
    ]
    if comparison.tuned:
        lines.append(
            f"{', '.join(comparison.tuned)}: for each activation the one with the fewest diverged "
            "runs, then the best mean validation accuracy; the test set had no say."
        )
    tested = rows[rows["p"].notna()]
    if tested.empty:
        one = "one pair each, so no interval and no test" if rows["pairs"].any() else "none to pair"
        return [*lines, f"vs {comparison.baseline}: paired by settings and seed; {one}."]
    lines.append(
        f"vs {comparison.baseline}: paired by seed; p by exact sign flips, two-sided; * where it "
        f"stays below {ALPHA} after Holm's adjustment over {comparison.tests} tests."
    )
    fewest, most = int(tested["pairs"].min()), int(tested["pairs"].max())
    if least_p(fewest) > ALPHA:
        lines.append(f"With {fewest} pairs p can't go below 2/2^{fewest} = {least_p(fewest):.3g}.")
    if least_p(most) * comparison.tests > ALPHA:
        needed = math.ceil(math.log2(2 * comparison.tests / ALPHA))
        lines.append(f"{comparison.tests} tests need {needed} pairs for a * to be possible.")
    return lines
