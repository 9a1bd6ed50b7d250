"""Estimate how many seeds a study needs, from the spread of a pilot."""

import json
import math
from functools import partial

import numpy as np
import pandas as pd
from scipy import special

from nsrelu_bench.compare.comparison import Comparison
from nsrelu_bench.compare.declared_tests import MANY_SEEDS, format_margin, round_up
from nsrelu_bench.compare.grouping import varies
from nsrelu_bench.compare.labels import label, scale_of
from nsrelu_bench.compare.statistics import ALPHA, POWER, seeds_needed
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.text import align, format_fixed, wrap

#: The confidence of the interval whose upper end is the careful spread.
SURE = 0.8


def plan_seeds(
    comparison: Comparison, difference: float | None = None, power: float = POWER
) -> pd.DataFrame:
    """Return how many seeds each group of a pilot needs in the main metric, one row per group.

    `difference` is the difference to show, in the metric's own unit; None for the margin. The
    columns are `section`, `group`, `pairs`, `diff_sd`, `seeds_difference`, `seeds_equivalence`
    and `seeds_careful`, the larger of the two if the spread is at the upper end of its interval.

    Raises:
        UsageError: The difference or the power is out of range, or there is no margin to use.
        BenchError: No group has two pairs, so there is no spread.
    """
    metric = comparison.main_metric
    margin = comparison.family.margin(metric)
    difference = margin if difference is None else difference
    if math.isnan(difference):
        raise UsageError(f"{metric} has no margin; give the difference to show")
    if not 0 < difference < math.inf:
        raise UsageError(f"difference must be above 0, got {difference:g}")
    if not 0.5 <= power < 1:
        raise UsageError(f"power must be from 0.5 to below 1, got {power:g}")
    rows = comparison.rows
    found = rows[(rows["metric"] == metric) & (rows["pairs"] > 1)].reset_index(drop=True)
    if found.empty:
        raise BenchError(
            "no group has two seeds in common with the baseline, so there is no spread"
        )
    sd = found["diff_sd"].to_numpy(dtype=float)
    degrees = found["pairs"].to_numpy(dtype=float) - 1
    largest = sd * np.sqrt(degrees / special.chdtri(degrees, SURE))
    tests = len(found) * len(comparison.family.metrics)
    needed = partial(seeds_needed, tests=tests, power=power)
    return found[["section", "group", "pairs", "diff_sd"]].assign(
        seeds_difference=needed(difference, sd, math.nan),
        seeds_equivalence=needed(0.0, sd, margin),
        seeds_careful=np.maximum(
            needed(difference, largest, math.nan),
            np.nan_to_num(needed(0.0, largest, margin), posinf=0.0),
        ),
        tests=tests,
    )


def format_plan(
    comparison: Comparison,
    difference: float | None = None,
    power: float = POWER,
    *,
    as_json: bool = False,
    width: int | None = None,
) -> str:
    """Format what `plan_seeds` returns as a table with a sentence above and below, or as JSON."""
    plan = plan_seeds(comparison, difference, power)
    metric = comparison.main_metric
    margin = comparison.family.margin(metric)
    difference = margin if difference is None else difference
    if as_json:
        content = {"metric": metric, "difference": difference, "power": power}
        content |= {"margin": None if math.isnan(margin) else margin}
        rows = json.loads(plan.to_json(orient="records", double_precision=15))
        return json.dumps(content | {"rows": rows}, indent=2, ensure_ascii=False) + "\n"
    scale, unit = scale_of(metric)
    head = f"Seeds to show a difference of {format_margin(metric, difference)} in {label(metric)}"
    if not math.isnan(margin):
        head += f", or equivalence within {format_margin(metric, margin)}"
    head += f", with a power of {power:.0%}, at the level {ALPHA} / {plan['tests'].iloc[0]} tests:"
    header = ["activation", "pairs", f"sd of differences{unit}", "difference", "equivalence"]
    lines = [[*header, "careful"]]
    several = varies(plan["section"])
    for row in plan.to_dict("records"):
        counts = (row[f"seeds_{kind}"] for kind in ("difference", "equivalence", "careful"))
        name = f"{row['section']}: " * several + row["group"]
        spread = format_fixed(scale * row["diff_sd"], 2)
        lines.append([name, str(row["pairs"]), spread, *map(_about, counts)])
    largest = plan["seeds_careful"].max()
    foot = (
        f"careful: the larger of both, if the spread is at the upper end of its {SURE:.0%} "
        f"interval. With {_about(largest)} seeds, every group has enough."
    )
    return "\n".join([wrap(head, width), "", *align(lines, width), "", wrap(foot, width), ""])


def _about(number: float) -> str:
    if not math.isfinite(number):
        return "-"
    return f"> {MANY_SEEDS:,}" if number > MANY_SEEDS else f"{round_up(number):,}"
