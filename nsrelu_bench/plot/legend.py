"""Entries of legends: activations, and the marks of diverged and collapsed runs."""

from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nsrelu_bench.plot.panel_data import group_label, outcomes
from nsrelu_bench.plot.style import FRONT, HATCH, WARNING, activation_style, run_mark


def activation_entries(groups: pd.DataFrame, *, dashes: bool) -> list[Line2D]:
    """Return an entry for each activation, with the number of its runs that did not complete."""
    entries = []
    for _, runs in groups.groupby("line", sort=False):
        style = activation_style(runs["act"].iloc[0])
        dash = style.dash if dashes else "none"
        entries.append(Line2D([], [], ls=dash, label=group_label(runs, "line"), **style.point))
    return entries


def outcome_entries(
    groups: pd.DataFrame, *, lines: bool, marked: Sequence[str] = ("diverged", "collapsed")
) -> list[Artist]:
    """Return entries for the marks that these runs get; with `lines`, over the epochs."""
    width = mpl.rcParams["lines.linewidth"] / 2 if lines else 0
    ended, entries = outcomes(groups), list[Artist]()
    for outcome in marked:
        if (ended == outcome).any():
            mark = run_mark(outcome)
            entries.append(Line2D([], [], color="0.3", lw=width, label=f"{outcome} run", **mark))
    if lines and "gradient_lost_step" in groups and groups["gradient_lost_step"].notna().any():
        entries.append(Line2D([], [], color="0.3", label="gradient lost", **WARNING))
    return entries


def front_entry() -> Line2D:
    """Return the entry for a Pareto front."""
    return Line2D([], [], **FRONT)


def diverged_cells(groups: pd.DataFrame) -> Sequence[Artist]:
    """Return the entry for hatched cells, where there are some."""
    there = [o for o in ("diverged", "collapsed") if (outcomes(groups) == o).any()]
    short = {"diverged": "div.: share that diverged", "collapsed": "coll.: share that collapsed"}
    return [Patch(**HATCH, label="; ".join(short[o] for o in there))] if there else []
