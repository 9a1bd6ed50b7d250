"""Find the baseline of a comparison: an activation, a value such as init=he, or a study."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import pandas as pd

from nsrelu_bench.compare.conditions import Baseline, find_values, name_value
from nsrelu_bench.compare.grouping import settings_of, varies, varying_settings
from nsrelu_bench.config import same_activation
from nsrelu_bench.errors import UsageError, unknown

#: Settings that change what is measured, not what is trained.
MEASURING = ("data_dir", "probe_size", "measures", "probe_every")

#: The most settings that a message lists as different, and the most values of each.
MAX_REASONS = 3


def settings_to_match(
    runs: pd.DataFrame, config_columns: Sequence[str], baseline: Baseline
) -> list[str]:
    """Return the configuration that runs must share to be compared with a baseline.

    Two studies may train in the same way and measure in different ways.
    """
    if baseline.setting != "study":
        return list(config_columns)
    by_study = [part for _, part in runs.groupby("study")]
    fixed = [c for c in MEASURING if c in runs and not any(varies(part[c]) for part in by_study)]
    return [c for c in config_columns if c not in fixed]


def read_baseline(runs: pd.DataFrame, text: str, config_columns: Sequence[str]) -> Baseline:
    """Read an activation's name, ``setting=value``, or ``study=name`` (or its path).

    Raises:
        UsageError: No run, or more than one value or activation, is meant.
    """
    setting, equals, value = (part.strip() for part in text.partition("="))
    if not equals or any(same_activation(label, text) for label in runs["act"].unique()):
        return Baseline("act", find_baseline(runs, text))
    if setting == "act":
        return Baseline("act", find_baseline(runs, value))
    choices = [*settings_of(runs, config_columns), *(["impl"] if "impl" in runs else [])]
    if setting == "study":
        if "study" not in choices:
            raise UsageError(f"baseline {text}: there is one study only; name the other one too")
        return Baseline("study", _find_study(runs, value))
    if setting not in choices:
        raise unknown(setting, ["act", *varying_settings(runs, config_columns)], "setting")
    found = find_values(runs[setting], value)
    if len(found) > 1:
        raise UsageError(f"baseline {text}: must be one value, got {', '.join(sorted(found))}")
    return Baseline(setting, found.pop())


def find_baseline(runs: pd.DataFrame, baseline: str) -> str:
    """Return the full label of an activation; only "relu" need not be among the runs."""
    labels = sorted(set(runs["act"]))
    fits = [label for label in labels if same_activation(label, baseline)]
    if len(fits) > 1:
        raise UsageError(f"baseline {baseline!r} is one of several: {', '.join(fits)}")
    if not fits and baseline != "relu":
        raise unknown(baseline, labels, "baseline")
    return fits[0] if fits else baseline


def _find_study(runs: pd.DataFrame, text: str) -> str:
    """Return the study that a name or a path ends in."""
    studies = sorted(map(str, runs["study"].unique()))
    parts = PurePath(text).parts
    fits = [s for s in studies if s == text or PurePath(s).parts == parts[-s.count("/") - 1 :]]
    if len(fits) != 1:
        raise unknown(text, studies, "study")
    return fits[0]


def check_pairs(runs: pd.DataFrame, baseline: Baseline, settings: Sequence[str]) -> None:
    """Check that some run can be compared with a baseline that is not an activation.

    `settings` are those that paired runs must share.

    Raises:
        UsageError: All runs belong to the baseline, or none has a partner; the message names the
            settings that differ.
    """
    if baseline.setting == "act":
        return
    marked = baseline.marks(runs)
    base, others = runs[marked], runs[~marked]
    if others.empty:
        raise UsageError(f"baseline {baseline}: every run has it, so there is nothing to compare")
    key = [*settings, *(c for c in ("seed", "replicate") if c in runs)]
    if set(_rows(base, key)) & set(_rows(others, key)):
        return
    apart = [c for c in key if not set(base[c].map(name_value)) & set(others[c].map(name_value))]
    reasons = [f"{c} is {_list(base[c])} there, {_list(others[c])} elsewhere" for c in apart]
    if len(reasons) > MAX_REASONS:
        reasons[MAX_REASONS:] = [f"and {len(reasons) - MAX_REASONS} more settings differ"]
    raise UsageError(
        f"baseline {baseline}: no other run has the same activation, settings and seed"
        + (f" ({'; '.join(reasons)})" if reasons else "")
    )


def _rows(runs: pd.DataFrame, columns: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip(*(runs[c].map(name_value) for c in columns), strict=True))


def _list(values: "pd.Series[Any]") -> str:
    names = list(dict.fromkeys(values.map(name_value)))
    return ", ".join(names[:MAX_REASONS]) + ", ..." * (len(names) > MAX_REASONS)
