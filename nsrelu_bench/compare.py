"""Is one activation better than another, and is that more than noise? Statistics over seeds.

The pure functions come first (`t_half_width`, `sign_flip_p`, `holm`, `cohen_dz`), then `compare`,
which applies them to the runs of a study, then `verdicts` and `notes`, which say the result in
words.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from nsrelu_bench.errors import BenchError, UsageError, lookup, unknown
from nsrelu_bench.groups import (
    STATES,
    name_groups,
    rank,
    same_act,
    select,
    settings_of,
    varies,
    varying_settings,
)
from nsrelu_bench.results import ENVIRONMENT

Array = npt.NDArray[np.float64]

#: Below this a p value counts as a difference shown.
ALPHA = 0.05

#: Sign flips drawn where there are more than this many; up to 13 pairs all 2^n are enumerated.
MAX_FLIPS = 9_999

#: What is measured by default, and what the verdicts speak of.
#: LeakyReLU has no exact zeros: what is negative and submerged compares it too.
TABLE_METRICS = (
    *("test_accuracy", "zero_fraction", "negative_fraction", "dead_fraction"),
    *("submerged_fraction", "grad_norm"),
)
VERDICT_METRICS = ("test_accuracy", "zero_fraction", "dead_fraction")

#: Columns of a run that are neither configuration nor metric.
RUN_COLUMNS = (
    *("study", "run_id", "state", "error", "diverged_epoch", "diverged_step", "epoch", "step"),
    *("section", "shared", "line", "setting", "group"),
    *ENVIRONMENT,
)

#: Names of metrics for people: in figures, and short in tables.
LABELS = {
    "train_loss": "train loss",
    "val_loss": "validation loss",
    "val_accuracy": "validation accuracy",
    "zero_fraction": "zeros after activation",
    "negative_fraction": "inputs <= 0",
    "dead_fraction": "dead units",
    "submerged_fraction": "submerged units",
    "grad_norm": "gradient norm",
    "pre_grad_norm": "gradient norm before activation",
    "zero_grad_units": "units with zero gradient",
    "died_units": "units that died",
    "diverged_fraction": "runs that diverged",
    "surrogate_cosine": "cosine to true gradient",
}
SHORT_LABELS = {
    "test_accuracy": "accuracy",
    "zero_fraction": "zeros",
    "negative_fraction": "inputs <= 0",
    "dead_fraction": "dead",
    "submerged_fraction": "submerged",
    "grad_norm": "grad norm",
}


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        rows: One row a group and metric. `section`, `group`, `act`, the settings that vary;
            `runs`, and how many of them are `completed`, `diverged`, `failed`, `unfinished`;
            `metric`, `n`, `mean`, `sd`, `low`, `high` over the completed runs that have the
            metric; and against the baseline, over the `pairs` of runs with the same seed:
            `baseline_mean`, `diff`, `diff_low`, `diff_high`, `p`, `p_holm`, `d_z`. NaN where
            there is no value.
        metrics: The metrics, in the order asked for.
        baseline: The label of the baseline; there may be no run of it.
        confidence: The coverage of the intervals.
        shared: For each section, the settings that its runs have in common.
        tuned: The settings that were chosen by validation accuracy.
        mixed: What the runs were made with where that differs, such as versions of torch.
    """

    rows: pd.DataFrame
    metrics: tuple[str, ...]
    baseline: str
    confidence: float
    shared: dict[str, str]
    tuned: tuple[str, ...] = ()
    mixed: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def tests(self) -> int:
        """How many p values Holm's adjustment is over."""
        return int(self.rows["p"].notna().sum())


# Statistics: arrays in, arrays out.


def t_half_width(sd: Array, n: Array, confidence: float = 0.95) -> Array:
    """Return the half-width of the t interval of a mean, NaN where n < 2.

    `sd` (K,) is the sample standard deviation (n - 1) of `n` (K,) values.

    Source: Student 1908; with five values it covers 95 %, where a percentile bootstrap covers 83 %.
    """
    n = np.where(np.asarray(n) > 1, n, np.nan)
    quantile = stats.t.ppf((1 + confidence) / 2, n - 1)
    return np.asarray(quantile * sd / np.sqrt(n), dtype=float)


def sign_flip_p(differences: Array) -> Array:
    """Return the two-sided sign-flip permutation p of paired differences (K, n), as (K,).

    Exact up to 13 pairs: all 2^n signs, so p is at least 2 / 2^n; NaN for a single pair. With
    more pairs 9,999 flips are drawn with a fixed seed. Means that differ by less than one part
    in 10^9 of the largest difference tie: accuracies are multiples of 1/N, and rounding must not
    break their ties.

    Source: Fisher 1935, section 21; `scipy.stats.permutation_test`.
    """
    count, n = differences.shape
    if n < 2:
        return np.full(count, np.nan)
    largest = np.abs(differences).max(axis=1, keepdims=True)
    scaled = differences / np.where(largest > 0, largest, 1)

    def mean(values: Array, axis: int = -1) -> Array:
        return np.asarray(values.mean(axis=axis)).round(9)

    result = stats.permutation_test(
        (scaled,),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=MAX_FLIPS,
        batch=max(1, 2_000_000 // scaled.size),
        axis=-1,
        rng=np.random.default_rng(0),
    )
    return np.asarray(result.pvalue, dtype=float)


def holm(p: Array) -> Array:
    """Return the p values (K,) adjusted for their number; NaN are left out and stay NaN.

    Source: Holm 1979, section 3.
    """
    p = np.asarray(p, dtype=float)
    adjusted = np.full_like(p, np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


def cohen_dz(mean: Array, sd: Array) -> Array:
    """Return the effect size of paired differences, mean / sd (K,); NaN where they don't vary.

    Source: Cohen 1988, section 2.3.5 (d_z); Lakens 2013, equation 6.
    """
    varies = sd > 1e-9 * np.abs(mean)
    return np.asarray(np.where(varies, mean / np.where(varies, sd, 1), np.nan))


def summarise(frame: pd.DataFrame, keys: Sequence[str], confidence: float = 0.95) -> pd.DataFrame:
    """Return n, mean, sd, low and high of the column `value` for each combination of `keys`.

    Rows without a finite value don't count. The keys are the index, in their order of appearance.
    """
    finite = frame[np.isfinite(frame["value"])]
    grouped = finite.groupby(list(keys), sort=False)["value"]
    table: pd.DataFrame = grouped.agg(["count", "mean", "std"])
    table = table.rename(columns={"count": "n", "std": "sd"})
    half = t_half_width(table["sd"].to_numpy(), table["n"].to_numpy(), confidence)
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


# Comparing.


def compare(
    runs: pd.DataFrame,
    config_columns: Sequence[str],
    *,
    baseline: str = "relu",
    metrics: Sequence[str] | None = None,
    by: Sequence[str] | None = None,
    where: Sequence[str] = (),
    tune: Sequence[str] = (),
    sort: str | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Compare each group of runs with the baseline of the same settings, paired by seed.

    Args:
        runs: One row a run: `run_id`, `state`, the configuration, the final metrics.
        config_columns: The columns of `runs` that are configuration.
        baseline: An activation's label, or its bare name where it has one leak only.
        metrics: Columns of `runs`. A table shows the difference in `test_accuracy`, or in the
            first of them.
        by: The settings whose combinations have a table each; the study, where there are
            several, the data set and the model.
        where: Conditions as in `select`; the baseline always stays.
        tune: Settings to choose for each activation. The one with the smallest share of diverged
            runs wins (a mean over survivors flatters), among equals the one with the best mean
            validation accuracy over its completed runs; the test set has no say.
        sort: A metric, the largest mean first, or a setting. By settings, then by activation.
        confidence: The coverage of the intervals.

    Raises:
        UsageError: A column, condition or label makes no sense.
        BenchError: There is nothing to compare, or two runs of a group have the same seed.
    """
    if runs.empty or runs["act"].isna().all():
        raise BenchError("no runs to compare")
    runs = runs[runs["act"].notna()]  # the others have a damaged configuration, and no group
    if "study" in runs and len(runs["study"].unique()) > 1:
        config_columns = ["study", *config_columns]
    settings = settings_of(runs, config_columns)
    by = [c for c in ("study", "dataset", "model") if c in settings] if by is None else by
    for column in (*by, *tune):
        lookup(dict.fromkeys(settings), column, "setting")
    metrics = _choose_metrics(runs, config_columns, metrics)
    label = _find_baseline(runs, baseline)

    frame = name_groups(select(runs, where, keep=label), config_columns, by)
    same = [c for c in settings if c not in tune]
    if tune:
        frame = _keep_best(frame, tune, same)
    frame["pair"] = frame.groupby(same, dropna=False).ngroup() if same else 0
    vary = varying_settings(frame, config_columns)
    shown = [c for c in settings if c in (*by, *tune, *vary)]

    values = _final_values(frame, metrics)
    rows = _count_states(frame, shown).merge(pd.DataFrame({"metric": metrics}), how="cross")
    for table in (summarise(values, KEYS, confidence), _paired(values, label, confidence)):
        rows = rows.merge(table.reset_index(), how="left", on=KEYS)
    rows["p_holm"] = holm(rows["p"].to_numpy(dtype=float))
    rows[["n", "pairs"]] = rows[["n", "pairs"]].fillna(0).astype(int)
    shared = dict(zip(frame["section"], frame["shared"], strict=True))
    return Comparison(
        _sort(rows, sort),
        tuple(metrics),
        label,
        confidence,
        shared=shared,
        tuned=tuple(tune),
        mixed=_mixed(frame),
    )


KEYS = ["section", "group", "metric"]


def _mixed(runs: pd.DataFrame) -> dict[str, list[str]]:
    """Find what the numbers of the runs depend on beside their configuration, and differs."""
    made_with = {name: sorted(set(runs[name].dropna())) for name in ENVIRONMENT if name in runs}
    return {name: values for name, values in made_with.items() if len(values) > 1}


def _final_values(frame: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return the finite final metrics of the completed runs, one a row."""
    done = frame[frame["state"] == "completed"]
    keep = ["section", "group", "act", "pair", "seed"]
    values: pd.DataFrame = done.melt(id_vars=keep, value_vars=list(metrics), var_name="metric")
    values["value"] = pd.to_numeric(values["value"], errors="coerce").astype(float)
    finite: pd.DataFrame = values[np.isfinite(values["value"])]
    return finite


def _paired(values: pd.DataFrame, baseline: str, confidence: float) -> pd.DataFrame:
    """Compare with the runs of the baseline that have the same settings and seed."""
    pair = ["pair", "seed", "metric"]
    base = values[values["act"] == baseline].drop_duplicates(pair)
    base = base[[*pair, "value", "group"]].rename(columns={"group": "baseline_group"})
    pairs = values[values["act"] != baseline].merge(base, on=pair, suffixes=("", "_base"))
    pairs["value"] -= pairs["value_base"]

    names = {"n": "pairs", "mean": "diff", "sd": "diff_sd", "low": "diff_low", "high": "diff_high"}
    table = summarise(pairs, KEYS, confidence).rename(columns=names)
    grouped = pairs.groupby(KEYS, sort=False)
    table["baseline_group"] = grouped["baseline_group"].first()
    table["baseline_mean"] = grouped["value_base"].mean()
    table["d_z"] = cohen_dz(table["diff"].to_numpy(), table["diff_sd"].to_numpy())
    table["p"] = np.nan
    for index in table.groupby("pairs").groups.values():
        differences = grouped["value"].agg(list)[index]
        table.loc[index, "p"] = sign_flip_p(np.array(differences.tolist()))
    return table


def _count_states(frame: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """Return one row a group: its names, its settings, and its runs by state."""
    key = ["section", "group"]
    states = frame["state"].where(frame["state"].isin(STATES), "unfinished")
    counts = pd.crosstab([frame["section"], frame["group"]], states)
    counts = counts.reindex(columns=list(STATES), fill_value=0).rename_axis(columns=None)
    counts.insert(0, "runs", counts.sum(axis=1))
    heads = frame.drop_duplicates(key)[[*key, "act", *settings]]
    return heads.merge(counts.reset_index(), on=key)


def _keep_best(frame: pd.DataFrame, tune: Sequence[str], others: Sequence[str]) -> pd.DataFrame:
    """Keep, for each activation, the runs with the best values of the settings `tune`."""
    if "val_accuracy" not in frame:
        raise BenchError(f"tune {', '.join(tune)}: the runs have no val_accuracy to choose by")
    key = ["section", "group"]
    completed, diverged = frame["state"] == "completed", frame["state"] == "diverged"
    accuracy = pd.to_numeric(frame["val_accuracy"], errors="coerce").astype(float)
    scores = frame[key].assign(
        diverged=diverged.astype(float).where(completed | diverged),
        accuracy=accuracy.where(completed),
    )
    # Rounded, so that equal means tie. A tie goes to the first, the smallest value.
    means = scores.groupby(key, sort=False).mean().round(9).reset_index()
    groups = frame.drop_duplicates(key)[[*key, "line", *others]].merge(means, on=key)
    ranked = groups.sort_values(["diverged", "accuracy"], ascending=[True, False], kind="stable")
    best = ranked.drop_duplicates(["section", "line", *others])
    return frame.merge(best[key], on=key)


def _sort(rows: pd.DataFrame, column: str | None) -> pd.DataFrame:
    """Order the groups of each section by a metric, falling, or by a setting, rising."""
    if column is None:
        return rows
    key = ["section", "group"]
    heads = rows.drop_duplicates(key)
    metrics, settings = rows["metric"].unique(), heads.columns[2 : heads.columns.get_loc("runs")]
    lookup(dict.fromkeys([*metrics, *settings]), column, "column to sort by")
    if column in metrics:
        heads = rows[rows["metric"] == column]
    values = -heads["mean"] if column in metrics else heads[column]
    places = pd.factorize(heads["section"])[0]
    ranks = [(place, rank(value)) for place, value in zip(places, values, strict=True)]
    order = sorted(range(len(heads)), key=ranks.__getitem__)
    return heads[key].iloc[order].merge(rows, on=key)


def _choose_metrics(
    runs: pd.DataFrame, config_columns: Sequence[str], metrics: Sequence[str] | None
) -> list[str]:
    there = [str(c) for c in runs if c not in {*config_columns, *RUN_COLUMNS}]
    for metric in metrics or ():
        lookup(dict.fromkeys(there), metric, "metric")
    chosen = list(dict.fromkeys(metrics or [m for m in TABLE_METRICS if m in there]))
    if not chosen:
        raise BenchError("the runs have no metrics to compare")
    return chosen


def _find_baseline(runs: pd.DataFrame, baseline: str) -> str:
    """Return the baseline's full label; that of the default need not be there."""
    labels = sorted(set(runs["act"]))
    fits = [label for label in labels if same_act(label, baseline)]
    if len(fits) > 1:
        raise UsageError(f"baseline {baseline!r} is one of several: {', '.join(fits)}")
    if not fits and baseline != "relu":
        raise unknown(baseline, labels, "baseline")
    return fits[0] if fits else baseline


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
        places = places_for([half * 100])
        text = f"{fixed(diff * 100, places, '+')} pp"
        if row["pairs"] > 1:
            ends = (fixed(row[end] * 100, places) for end in ("diff_low", "diff_high"))
            text += f" [{', '.join(ends)}]"
    else:
        before, after = row["baseline_mean"], row["baseline_mean"] + diff
        text = f"{_plain(metric, before)} -> {_plain(metric, after)}"
    name = "dead units" if metric == "dead_fraction" else SHORT_LABELS.get(metric, label(metric))
    if row["pairs"] < 2:
        return f"{name} {text}: one pair, no test"
    word = judge(diff, row["p"], row["p_holm"], row["pairs"])
    return f"{name} {text}, p = {format_p(row['p'])}: {word}"


def judge(diff: float, p: float, p_holm: float, pairs: int) -> str:
    """Say what a paired difference shows.

    "no difference shown" says that noise would do, not that the two are equal.
    """
    if p >= ALPHA:
        return "no difference shown" if least_p(pairs) < ALPHA else "too few seeds to tell"
    word = "higher" if diff > 0 else "lower"
    return word if p_holm < ALPHA else f"{word} (Holm p {format_p(p_holm)})"


def least_p(pairs: int) -> float:
    """Return the smallest two-sided p that a sign-flip test of so many pairs can have."""
    return min(1.0, 2.0 / 2.0**pairs)


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


def label(metric: str) -> str:
    """Name a metric for people."""
    return LABELS.get(metric, metric.replace("_", " "))


def is_percent(metric: str) -> bool:
    """Tell whether a metric is a fraction that people read in percent."""
    return metric.endswith(("accuracy", "fraction"))


def places_for(halves: Iterable[float]) -> int:
    """Return how many decimal places show the middle one of the half-widths, at least one."""
    positive = sorted(half for half in halves if half > 0)
    return min(max(math.ceil(-math.log10(positive[len(positive) // 2])), 1), 4) if positive else 1


def fixed(value: float, places: int, sign: str = "") -> str:
    """Write a number with so many decimal places, and no minus before zero."""
    return f"{round(value, places) + 0.0:{sign}.{places}f}"


def _plain(metric: str, value: float) -> str:
    return f"{fixed(value * 100, 1)} %" if is_percent(metric) else f"{value:.3g}"


def format_p(p: float) -> str:
    """Write a p value with two digits."""
    return "-" if math.isnan(p) else f"{p:.2g}"
