"""Draw every run: score distributions, and seeds paired with the baseline."""

from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from nsrelu_bench.compare import ACT_COLUMNS, Baseline, join_settings, score_distribution, varies
from nsrelu_bench.plot.axes import axes_for, finish, mark_runs, needs_log, set_metric_axis
from nsrelu_bench.plot.panel_data import (
    MAX_LINES,
    NothingToDrawError,
    check_count,
    final_values,
    group_label,
    label_column,
    outcomes,
)
from nsrelu_bench.plot.style import activation_style


def profile(groups: pd.DataFrame, *, metric: str = "test_accuracy", ax: Axes | None = None) -> Axes:
    """Draw the share of a group's runs that end above each value: each run is a step.

    A diverged run ends above no value, so its group begins below 100 %.

    Raises:
        NothingToDrawError: No run has the metric, or there are more than 12 groups.

    Source: Agarwal et al. 2021, section 4.2.
    """
    check_count(groups["group"].nunique(), MAX_LINES, "lines")
    runs = groups.assign(x=final_values(groups, metric), outcome=outcomes(groups))
    final = runs["x"].dropna()
    if final.empty:
        raise NothingToDrawError(f"no run has {metric}")
    axes, name, log = axes_for(ax), label_column(groups), needs_log(metric, final)
    set_metric_axis(axes, final, metric, log=log, which="x")
    axes.set(ylim=(-3, 103), ylabel="runs above (%)")
    left, right = axes.get_xlim()
    for _, part in runs.groupby("group", sort=False):
        style = activation_style(part["act"].iloc[0])
        finished = part[part["x"].notna() | (part["state"] == "diverged")]
        label = group_label(part, name)
        axes.plot([], [], ls=style.dash, label=label, **style.point)
        if finished.empty:
            continue
        scores, shares = score_distribution(finished["x"].fillna(-np.inf).to_numpy())
        shares, start = 100 * shares, 100.0
        if np.isneginf(scores[0]):
            start, scores, shares = float(shares[0]), scores[1:], shares[1:]
        line: dict[str, Any] = {"ls": style.dash, "color": style.color, "drawstyle": "steps-post"}
        axes.plot([left, *scores, right], [start, *shares, 0], **line)
        heights = dict(zip(scores, [start, *shares], strict=False))
        steps = finished.dropna(subset=["x"])
        steps = steps.assign(value=steps["x"].map(heights))
        well = steps[steps["outcome"] == "completed"]
        axes.plot(well["x"], well["value"], ls="none", **style.point)
        mark_runs(axes, steps[steps["outcome"] == "collapsed"], "collapsed")
    axes.set_xlim(left, right)
    return finish(axes, ax)


def pairs(
    groups: pd.DataFrame,
    *,
    baseline: Baseline | str = "relu",
    metric: str = "test_accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Draw each run beside the baseline's run of the same seed, joined by a line.

    Marks are means over the pairs. A diverged run is a cross on the lower edge. The runs differ
    only in the activation, the seed and the baseline's setting; a label is that of an activation.

    Raises:
        NothingToDrawError: No run has the metric or a partner, or there are more than 12 groups.
    """
    runs = groups.assign(value=final_values(groups, metric), outcome=outcomes(groups))
    runs = runs[runs["value"].notna() | (runs["state"] == "diverged")]
    baseline = Baseline("act", baseline) if isinstance(baseline, str) else baseline
    key = [*baseline.pair_columns([], runs), "seed"]
    marked = baseline.marks(runs)
    base = runs[marked].drop_duplicates(key)
    others = _named(runs[~marked], baseline)
    pairs_of = {
        str(name): part.merge(base, on=key, suffixes=("", "_base"))
        for name, part in others.groupby("name", sort=False)
    }
    pairs_of = {name: part for name, part in pairs_of.items() if len(part)}
    if not pairs_of:
        raise NothingToDrawError(f"no run has {metric} and a run of {baseline} with its seed")
    check_count(len(pairs_of), MAX_LINES, "activations")
    joined = pd.concat(pairs_of.values())
    final = pd.concat([joined["value"], joined["value_base"]]).dropna()
    if final.empty:
        raise NothingToDrawError(f"no run has {metric}")
    axes = axes_for(ax)
    set_metric_axis(axes, final, metric, log=needs_log(metric, final))
    for place, part in enumerate(pairs_of.values()):
        _draw_pairs(axes, part, place, hollow=baseline.setting != "act")
    axes.set_xlim(-0.6, len(pairs_of) - 0.4)
    axes.set_xticks(range(len(pairs_of)), list(pairs_of), rotation=30, ha="right")
    axes.set_xlabel(f"{baseline} (left) and {_others_label(others, baseline)} (right)")
    return finish(axes, ax)


def _named(runs: pd.DataFrame, baseline: Baseline) -> pd.DataFrame:
    """Name what is paired with the baseline: the activation, with its setting if that varies."""
    if baseline.setting in ACT_COLUMNS or not varies(runs[baseline.setting]):
        return runs.assign(name=runs["line"])
    values = join_settings(runs, [baseline.setting])
    return runs.assign(name=runs["line"] + [f" {value}" for value in values])


def _others_label(others: pd.DataFrame, baseline: Baseline) -> str:
    """Return what is on the right of each pair."""
    if baseline.setting == "act":
        return "each activation"
    values = dict.fromkeys(join_settings(others, [baseline.setting]))
    return next(iter(values)) if len(values) == 1 else "another value"


def _draw_pairs(axes: Axes, part: pd.DataFrame, place: int, *, hollow: bool) -> None:
    """Draw the pairs of one activation around a place on the x axis.

    The marks of the baseline are hollow where both sides have the same activation.
    """
    floor = axes.get_ylim()[0]
    left, right = place - 0.22, place + 0.22
    style = activation_style(part["act"].iloc[0])
    acts = {"": part["act"], "_base": part["act" if hollow else "act_base"]}
    base = activation_style(acts["_base"].iloc[0])
    base = replace(base, fill="white") if hollow else base
    width = mpl.rcParams["lines.linewidth"]
    for ends in part[["value_base", "value"]].fillna(floor).to_numpy():
        axes.plot([left, right], ends, color=style.color, lw=0.5 * width, alpha=0.7, zorder=1)
    for x, suffix, look in ((left, "_base", base), (right, "", style)):
        values = part[f"value{suffix}"]
        side = pd.DataFrame({"x": x, "value": values.fillna(floor), "act": acts[suffix]})
        for outcome in ("diverged", "collapsed"):
            mark_runs(axes, side[part[f"outcome{suffix}"] == outcome], outcome)
        if values.notna().any():
            axes.plot([x], [values.mean()], ls="none", zorder=3, **look.point)
