"""Conditions on runs, such as ``lr=0.1,0.2`` or ``act=nsrelu``."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

from nsrelu_bench.compare.grouping import ACT_COLUMNS, ACT_SETTINGS, format_setting
from nsrelu_bench.config import NUMBER, same_activation
from nsrelu_bench.errors import UsageError, unknown

#: The value, in a condition, of a setting that a run does not have, such as the momentum of Adam.
MISSING = "none"

#: The most values of a column that a message lists.
MAX_LISTED = 20


@dataclass(frozen=True)
class Baseline:
    """The runs that others are compared with: all with a certain value of one setting.

    Attributes:
        setting: "act" for an activation, "study", or another setting.
        value: The value as text, as in the names of groups.
    """

    setting: str
    value: str

    def __str__(self) -> str:
        """Return the activation's label, or "init=he"."""
        return self.value if self.setting == "act" else f"{self.setting}={self.value}"

    def marks(self, runs: pd.DataFrame) -> "pd.Series[bool]":
        """Return which runs belong to the baseline."""
        return runs[self.setting].map(name_value) == self.value

    def kept_by(self, column: str) -> bool:
        """Return whether a condition on a column does not apply to the baseline."""
        return column == self.setting or {column, self.setting}.issubset(ACT_COLUMNS)

    def pair_columns(self, settings: Sequence[str], runs: pd.DataFrame) -> list[str]:
        """Return the settings that paired runs share, besides seed and replicate."""
        if self.setting == "act":
            return list(settings)
        own = [c for c in ("act", "impl") if c in runs]
        return [c for c in (*own, *settings) if c != self.setting]


RELU_BASELINE = Baseline("act", "relu")


def select(
    runs: pd.DataFrame,
    where: Iterable[str],
    keep: Baseline | None = None,
    arms: Collection[str] = (),
) -> pd.DataFrame:
    """Return the runs that meet every condition ``column=value`` or ``column=value,value``.

    Numbers are compared as numbers, however they are written, and texts as texts. ``act=nsrelu``
    matches every leak, ``momentum=none`` runs without momentum. A condition on the baseline's own
    setting, such as the activation, or on a setting that is part of an activation's name (`arms`),
    keeps the runs of the baseline `keep`.

    Raises:
        UsageError: A condition can't be read, names no column, or has a value that no run has.
    """
    for condition in where:
        column, text = split_condition(condition)
        if column not in runs:
            raise unknown(column, map(str, runs.columns), "column")
        chosen = find_values(runs[column], text)
        wanted = runs[column].map(name_value).isin(chosen)
        kept = keep and (column in (*ACT_SETTINGS, *arms) or keep.kept_by(column))
        runs = runs[wanted | keep.marks(runs) if keep and kept else wanted]
    return runs


def split_condition(condition: str) -> tuple[str, str]:
    """Split a condition into its column and the text of its values.

    Raises:
        UsageError: There is no equals sign.
    """
    column, equals, text = (part.strip() for part in condition.partition("="))
    if not equals:
        raise UsageError(f"where must be column=value, got {condition!r}")
    return column, text


def find_values(column: "pd.Series[Any]", text: str) -> set[str]:
    """Return the names of those values of a column that a text with commas lists.

    A value may contain commas: the longest part of the text that names a value is taken.

    Raises:
        UsageError: A part of the text names no value.
    """
    values = {name_value(value): value for value in column.unique()}
    chosen: set[str] = set()
    pieces = text.split(",")
    while pieces:
        for count in range(len(pieces), 0, -1):
            wanted = ",".join(pieces[:count]).strip()
            found = {n for n, value in values.items() if _is_value(column.name, n, value, wanted)}
            if found:
                break
        else:
            listed = sorted(values)[:MAX_LISTED]
            more = f" and {len(values) - MAX_LISTED} more" if len(values) > MAX_LISTED else ""
            raise UsageError(
                f"no run has {column.name}={wanted}; {column.name} is one of: "
                f"{', '.join(listed)}{more}"
            )
        chosen |= found
        pieces = pieces[count:]
    return chosen


def name_value(value: Any) -> str:
    """Write a value as conditions do."""
    return format_setting(value) or MISSING


def _is_value(column: Any, name: str, value: Any, wanted: str) -> bool:
    """Return whether a condition's text `wanted` means a value, which is written as `name`."""
    if name.lower() == wanted.lower():
        return True
    if column == "act":
        return same_activation(name, wanted)
    is_number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if not is_number or not NUMBER.fullmatch(wanted):
        return False
    whole = wanted.strip().lstrip("+-").isdigit() and isinstance(value, Integral)
    return bool(value == (int(wanted) if whole else float(wanted)))
