"""Group the runs that differ only in the seed, and name the groups.

Settings can be part of an activation's name, to be compared like activations: "relu redo=100".
"""

import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

from nsrelu_bench.config import NUMBER, format_number
from nsrelu_bench.errors import BenchError, lookup
from nsrelu_bench.records import DONE

#: The states that are counted separately; running and interrupted runs are both unfinished.
COUNTED_STATES = ("completed", "diverged", "failed", "unfinished")

#: Settings of the activation: its label `act` has all of them except `impl`.
ACT_COLUMNS = ("act", "leak", "backward", "impl")
#: Settings of the activation that its label leaves out.
ACT_SETTINGS = ("local", "leak_schedule")
#: What the runs of a group differ in: the seed, and the replicate, which changes only rounding.
REPEATS = ("seed", "replicate")

#: Settings that don't decide a run's numbers.
NEUTRAL_COLUMNS = ("data_dir",)

#: The first activations in every table and figure; others follow by name, each by its leak.
FAMILIES = ("relu", "leaky_relu", "nsrelu")

#: The settings that a heading names if all runs share them.
HEADING = (
    *("dataset", "model", "train_size", "depth", "width", "epochs", "batch_size"),
    *("optimizer", "lr", "schedule"),
)


def parse_act(label: str) -> tuple[str, float | None]:
    """Split an activation's label: ``nsrelu(0.1)`` is ("nsrelu", 0.1), ``relu`` ("relu", None)."""
    match = re.fullmatch(r"([^()/]+)\(([^()/,]+)\)", label)
    if match is None or not NUMBER.fullmatch(match[2]):
        return label, None
    return match[1], float(match[2])


def name_arms(
    runs: pd.DataFrame, config_columns: Sequence[str], arms: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Make settings part of the activations' labels, so that they are compared with one baseline.

    The value that most runs have is left out of the label: with ``arms=["redo"]``, the runs of relu
    are "relu" and "relu redo=100". Those of `ACT_SETTINGS` are always part of it. Returns the runs,
    with new labels in the column `act`, and the configuration without the settings.

    Raises:
        UsageError: There is no such setting.
    """
    settings = settings_of(runs, config_columns)
    for name in arms:
        lookup(dict.fromkeys(settings), name, "setting")
    folded = [name for name in dict.fromkeys((*ACT_SETTINGS, *arms)) if name in settings]
    act = runs["act"].astype(str)
    for name in folded:
        texts = runs[name].map(format_setting)
        suffixes = [f" {name}={text}" if text else "" for text in texts]
        suffixes = [suffix.removesuffix("=true") for suffix in suffixes]
        act += np.where(texts.isin(texts.mode()[:1]), "", suffixes)
    return runs.assign(act=act), [name for name in config_columns if name not in folded]


def name_groups(
    runs: pd.DataFrame, config_columns: Sequence[str], by: Sequence[str] = ()
) -> pd.DataFrame:
    """Name the group of each run: runs that differ in nothing but the seed and the replicate.

    Group runs once and pass the frame on: in a part of it, such as the runs of one `setting`, the
    names are still right.

    All runs must have a configuration. Returns each run once, in an order that doesn't depend on
    that of `runs`, with five more columns: `section`, the values of the columns `by`; `shared`,
    what else all runs of a section have in common; `line`, the activation, and its implementation
    if it has several; `setting`, the other settings that vary within the section ("lr=0.2"); and
    `group`, line and setting.

    Raises:
        BenchError: Two copies of a run have different results, or two runs of a group have the same
            seed.
    """
    identity = ["study", "run_id"] if "study" in config_columns else ["run_id"]
    frame = _unique_runs(runs, identity, config_columns)
    others = settings_of(frame, config_columns)
    parts = []
    for _, part in frame.groupby(list(by), dropna=False) if by else [((), frame)]:
        varying = [c for c in varying_settings(part, config_columns) if c not in by]
        shared = [c for c in HEADING if c in others and c not in by]
        named = part.assign(
            section=_describe(part.iloc[0], by),
            shared=_describe(part.iloc[0], [c for c in shared if c not in varying]),
            line=_lines(part),
            setting=join_settings(part, varying),
        )
        named["group"] = (named["line"] + " " + named["setting"]).str.strip()
        parts.append(_in_order(named, varying))
    result = pd.concat(parts, ignore_index=True)
    key = ["section", "group", *(c for c in REPEATS if c in result)]
    doubles = result[result.duplicated(key, keep=False)]
    if not doubles.empty:
        first, second = doubles.sort_values(key)["run_id"].head(2)
        raise BenchError(
            f"runs {first} and {second} have the same settings and seed, but are not the same run;"
            " compare one study at a time, or remove one of them"
        )
    return result


def varying_settings(runs: pd.DataFrame, config_columns: Sequence[str]) -> list[str]:
    """Return the settings that differ, without the activation, seed and replicate."""
    return [c for c in settings_of(runs, config_columns) if varies(runs[c])]


def settings_of(runs: pd.DataFrame, config_columns: Sequence[str]) -> list[str]:
    """Return the configuration without the activation, seed and replicate."""
    apart = {*ACT_COLUMNS, *NEUTRAL_COLUMNS, *REPEATS}
    return [c for c in config_columns if c in runs and c not in apart]


def _unique_runs(runs: pd.DataFrame, identity: list[str], settings: Sequence[str]) -> pd.DataFrame:
    """Return each run once; of several copies, the one with the most epochs.

    Raises:
        BenchError: Two copies have different results.
    """
    done = runs[runs["state"].isin(DONE)]
    copies = done[done.duplicated(identity, keep=False)]
    results = copies.select_dtypes("number").columns.difference([*settings, *ACT_COLUMNS])
    for name, copy in copies.groupby(identity, sort=False) if len(copies) else ():
        differs = [c for c in results if varies(copy[c])]
        if differs:
            values = " and ".join(map(format_setting, copy[differs[0]].unique()[:2]))
            raise BenchError(
                f"run {'/'.join(map(str, name))} was found twice, with different numbers "
                f"({differs[0]} {values}); compare one folder at a time, or give the studies "
                "different names"
            )
    rank = runs["state"].map({state: rank for rank, state in enumerate(COUNTED_STATES)})
    order = rank.fillna(len(COUNTED_STATES)).sort_values(kind="stable").index
    return runs.loc[order].drop_duplicates(identity)


def _in_order(runs: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """Sort by settings, then by activation, implementation and seed."""
    columns = [map(rank, runs[c]) for c in settings]
    names = (map(act_order, runs["act"]), runs["line"], runs["seed"], runs["run_id"])
    ranks = list(zip(*columns, *names, strict=True))
    return runs.iloc[sorted(range(len(runs)), key=ranks.__getitem__)]


def varies(values: "pd.Series[Any]") -> bool:
    """Return whether there is more than one value."""
    return len(values.unique()) > 1


def rank(value: Any) -> tuple[int, float, str]:
    """Order numbers before texts before nothing."""
    if pd.isna(value):
        return 2, 0.0, ""
    return (0, float(value), "") if isinstance(value, Real) else (1, 0.0, str(value))


def act_order(label: str) -> tuple[int, str, float]:
    """Order activations: relu, leaky_relu, nsrelu, others, each by its leak."""
    family, leak = parse_act(label)
    place = FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)
    return place, family, leak or 0.0


def format_setting(value: Any) -> str:
    """Write a setting as in a config file: 0.1, 64, true; empty if it is missing.

    Different values have different texts: numbers have all their digits.
    """
    if pd.isna(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    is_fraction = isinstance(value, Real) and not isinstance(value, Integral)
    return format_number(float(value)) if is_fraction else str(value)


def _lines(runs: pd.DataFrame) -> "pd.Series[str]":
    """Name each run's activation, and its implementation where the activation has several."""
    if "impl" not in runs:
        return runs["act"]
    several = runs.groupby("act")["impl"].transform("nunique") > 1
    return runs["act"].where(~several, runs["act"] + " impl=" + runs["impl"].astype(str))


def join_settings(runs: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Write each run's settings as "lr=0.2 width=64", leaving out those that are missing."""
    texts = [[f"{c}={format_setting(v)}" * (not pd.isna(v)) for v in runs[c]] for c in columns]
    return [" ".join(filter(None, row)) for row in zip(*texts, strict=True)] or [""] * len(runs)


def _describe(run: "pd.Series[Any]", columns: Sequence[str]) -> str:
    """Write settings as a heading: "mnist5k, mlp, width 128", leaving out those not used."""
    texts = ((c, format_setting(run[c])) for c in columns)
    bare = ("dataset", "model", "optimizer")
    return ", ".join(text if c in bare else f"{c} {text}" for c, text in texts if text)
