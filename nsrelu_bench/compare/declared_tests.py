"""Test the declared family of metrics: its margins, p values and verdicts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nsrelu_bench.compare.labels import check_metric, is_percent, scale_of
from nsrelu_bench.compare.outcomes import KEYS
from nsrelu_bench.compare.sign_flips import sign_flip_interval, sign_flip_p, step_down_p
from nsrelu_bench.compare.statistics import (
    ALPHA,
    Array,
    cohen_dz,
    holm,
    probability_of_improvement,
    seeds_needed,
)
from nsrelu_bench.config import NUMBER, read_settings
from nsrelu_bench.errors import UsageError
from nsrelu_bench.records import find_studies

#: The metrics that are tested unless others are declared.
PRIMARY = "test_accuracy"
SECONDARY = ("zero_fraction", "dead_fraction")
USUAL_FAMILY = {"primary": PRIMARY, "secondary": list(SECONDARY)}

#: The default margins: smaller differences count as equivalent.
ACCURACY_MARGIN = 0.01
MARGINS = {"zero_fraction": 0.02}

#: A larger number of seeds is given as "more than" this.
MANY_SEEDS = 10_000


@dataclass(frozen=True)
class Family:
    """The metrics that are tested together, independent of what a table shows.

    Attributes:
        primary: The metric whose differences a table shows.
        secondary: The other metrics that are tested.
        margins: Given margins by metric, in the metric's own unit.
    """

    primary: str
    secondary: tuple[str, ...] = ()
    margins: Mapping[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics, the primary one first."""
        return (self.primary, *self.secondary)

    def margin(self, metric: str) -> float:
        """Return the margin of a metric; NaN where it has none."""
        usual = ACCURACY_MARGIN if metric.endswith("accuracy") else MARGINS.get(metric, math.nan)
        return self.margins.get(metric, usual)


def declare_family(
    measured: Sequence[str],
    primary: str | None = None,
    secondary: Iterable[str] | None = None,
    margins: Mapping[str, float] | None = None,
) -> Family:
    """Return the family over metrics that were `measured`.

    By default the primary metric is test accuracy, the secondary ones are zeros and dead units, and
    the margins are 0.01 for an accuracy and 0.02 for the zeros.

    Raises:
        UsageError: There is no such metric, it was not measured, or a margin is not above 0.
    """
    for name in (*([primary] if primary else []), *(secondary or ()), *(margins or {})):
        check_metric(name, measured)
    for name, margin in (margins or {}).items():
        if not 0 < margin < math.inf:
            raise UsageError(f"margin of {name} must be above 0, got {margin:g}")
    usual = [m for m in (PRIMARY, *SECONDARY, *measured) if m in measured]
    first = primary or usual[0]
    others = [m for m in SECONDARY if m in measured] if secondary is None else secondary
    return Family(first, tuple(dict.fromkeys(m for m in others if m != first)), dict(margins or {}))


def declared(key: str, *paths: Path) -> dict[Path, Any]:
    """Return what the study.yaml of each study at some paths says under a key, None for nothing.

    Raises:
        UsageError: A study.yaml can't be read.
    """
    files = [study / "study.yaml" for path in paths for study in find_studies(path)]
    return {
        file: read_settings(file).get(key) if file.exists() else None
        for file in dict.fromkeys(files)
    }


def declared_family(*paths: Path, keys: Iterable[str] = tuple(USUAL_FAMILY)) -> dict[str, Any]:
    """Return what the studies at some paths declare under `keys`, as arguments of `compare`.

    A study beside another does not change what that one tests, so all must agree; one that declares
    nothing has the usual metrics.

    Raises:
        UsageError: Two studies have different metrics, or a study.yaml can't be read.
    """
    found = {}
    for key in keys:
        values = declared(key, *paths)
        if all(value is None for value in values.values()):
            continue
        full = {
            file: USUAL_FAMILY[key] if value is None else value for file, value in values.items()
        }
        (first, found[key]), *others = full.items()
        for file, value in others:
            if value != found[key]:
                raise UsageError(
                    f"{first.parent} and {file.parent} have different {key} metrics,"
                    f" {found[key]} and {value}; choose with --{key}"
                )
    return found


def choose_family(
    *paths: Path, primary: str | None = None, secondary: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the family of tests, as arguments of `compare`: what is given, or what is declared.

    Raises:
        UsageError: As `declared_family`, of what is not given.
    """
    given = {"primary": primary, "secondary": [] if secondary == ["none"] else secondary}
    missing = [key for key, value in given.items() if value is None]
    return given | declared_family(*paths, keys=missing)


def read_margins(texts: Iterable[str], primary: str) -> dict[str, float]:
    """Read margins such as ``0.5``, for the primary metric, or ``zero_fraction=2``.

    Margins of percentages are in points.

    Raises:
        UsageError: A margin is not a number.
    """
    margins = {}
    for text in (part for given in texts for part in given.split(",")):
        metric, _, number = (part.strip() for part in text.rpartition("="))
        if not NUMBER.fullmatch(number):
            raise UsageError(f"margin must be a number or metric=number, got {text!r}")
        margins[metric or primary] = float(number) / scale_of(metric or primary)[0]
    return margins


def assess_differences(
    pairs: pd.DataFrame, family: Family, confidence: float = 0.95
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Test the differences of `pair_with_baseline`, and count the tests of each study.

    The tests of a study are a family: p is adjusted for all of them. The table has one row per
    group and metric with `pairs`, `baseline_mean`, `diff`, `diff_sd`, `diff_low`, `diff_high`,
    `d_z`, `p_better` with its interval, and `p`; for metrics of the family also `p_holm`,
    `p_adjusted`, `margin`, `p_equivalent` (adjusted too), `seeds_needed` and `verdict`.
    """
    studies = {
        str(study): _assess_study(part, family, confidence)
        for study, part in pairs.groupby("study", sort=False)
    }
    tables = [*studies.values()] or [_assess_study(pairs, family, confidence)]
    counts = {study: int(table["p_adjusted"].count()) for study, table in studies.items()}
    return pd.concat(tables), counts


def _assess_study(pairs: pd.DataFrame, family: Family, confidence: float) -> pd.DataFrame:
    matrix = pairs.pivot_table(index=KEYS, columns="seed", values="difference")
    differences = matrix.to_numpy(dtype=float)
    grouped = pairs.groupby(KEYS)
    table = pd.DataFrame(index=matrix.index)
    table["baseline_group"] = grouped["baseline_group"].first()
    table["baseline_mean"] = grouped["baseline"].mean()
    table["pairs"] = grouped.size()
    table["diff"] = grouped["difference"].mean()
    table["diff_sd"] = grouped["difference"].std()
    table["d_z"] = cohen_dz(table["diff"].to_numpy(), table["diff_sd"].to_numpy())
    table[["diff_low", "diff_high", "p"]] = _one_by_one(differences, confidence)
    improvement = probability_of_improvement(differences)
    table[["p_better", "p_better_low", "p_better_high"]] = np.column_stack(improvement)

    metrics = table.index.get_level_values("metric")
    tested = np.asarray(metrics.isin(family.metrics))
    table["p_holm"] = holm(table["p"].where(tested).to_numpy())
    table.loc[tested, "p_adjusted"] = step_down_p(differences[tested])
    margins = metrics.map(family.margin).to_numpy(dtype=float)
    table["margin"] = np.where(tested, margins, np.nan)
    bounded = tested & np.isfinite(margins)
    room = margins[bounded, None]
    ends = np.vstack([differences[bounded] + room, room - differences[bounded]])
    # Equivalence needs both one-sided tests.
    one_sided = step_down_p(ends, "greater").reshape(2, -1)
    table.loc[bounded, "p_equivalent"] = one_sided.max(axis=0)
    count = int(tested.sum())
    table["seeds_needed"] = seeds_needed(
        table["diff"].to_numpy(),
        table["diff_sd"].where(tested).to_numpy(),
        table["margin"].to_numpy(),
        tests=max(count, 1),
    )
    words = [verdict(*row) for row in table[VERDICT_COLUMNS].itertuples()]
    table["verdict"] = np.where(tested, words, "")
    return table


def _one_by_one(differences: Array, confidence: float) -> Array:
    """Return low, high and p (K, 3) of each test by itself, over the seeds that it has."""
    there = np.isfinite(differences)
    counts = there.sum(axis=1)
    found = np.full((len(differences), 3), np.nan)
    for n in np.unique(counts):
        rows = counts == n
        some = differences[rows][there[rows]].reshape(-1, n)
        found[rows] = np.column_stack([*sign_flip_interval(some, confidence), sign_flip_p(some)])
    return found


#: The columns that a verdict is computed from.
VERDICT_COLUMNS = ["diff", "p_adjusted", "p_equivalent", "margin", "seeds_needed"]


def verdict(
    key: tuple[str, str, str],
    difference: float,
    p_adjusted: float,
    p_equivalent: float,
    margin: float,
    needed: float,
) -> str:
    """Return the result of a test in words, which depend only on the adjusted p values."""
    words = []
    if p_adjusted < ALPHA:
        words.append("higher" if difference > 0 else "lower")
    if p_equivalent < ALPHA:
        words.append(f"equivalent within {format_margin(key[-1], margin)}")
    if words:
        return ", ".join(words)
    if math.isinf(needed):
        return "not shown: the difference is 0"
    if math.isnan(needed):
        return "not shown: one pair has no spread"
    if needed > MANY_SEEDS:
        return f"not shown: would need more than {MANY_SEEDS:,} seeds"
    return f"not shown: would need about {round_up(needed):,} seeds"


def format_margin(metric: str, margin: float) -> str:
    """Write a margin: "1 pp" for a percentage."""
    return f"{100 * margin:g} pp" if is_percent(metric) else f"{margin:g}"


def round_up(number: float) -> int:
    """Round up to two digits: an estimated number of seeds is not more exact."""
    step = int(10 ** max(math.floor(math.log10(number)) - 1, 0))
    return math.ceil(number / step) * step
