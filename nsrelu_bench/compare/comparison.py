"""Compare groups of runs with a baseline: means over seeds, and differences paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from nsrelu_bench.compare.conditions import select
from nsrelu_bench.compare.grouping import (
    STATES,
    name_groups,
    rank,
    settings_of,
    varying_settings,
)
from nsrelu_bench.compare.sign_flips import sign_flip_p
from nsrelu_bench.compare.statistics import cohen_dz, holm, t_half_width
from nsrelu_bench.config import same_activation
from nsrelu_bench.errors import BenchError, UsageError, lookup, unknown
from nsrelu_bench.records import ENVIRONMENT, find_mixed

#: What is measured by default, and what the verdicts speak of.
#: LeakyReLU has no exact zeros: what is negative and submerged compares it too.
TABLE_METRICS = (
    *("test_accuracy", "zero_fraction", "negative_fraction", "dead_fraction"),
    *("submerged_fraction", "grad_norm"),
)

#: Columns of a run that are neither configuration nor metric.
RUN_COLUMNS = (
    *("study", "run_id", "state", "error", "diverged_epoch", "diverged_step", "epoch", "step"),
    *("section", "shared", "line", "setting", "group"),
    *ENVIRONMENT,
)


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


def summarise(frame: pd.DataFrame, keys: Sequence[str], confidence: float = 0.95) -> pd.DataFrame:
    """Return n, mean, sd, low and high of the column `value` for each combination of `keys`.

    Rows without a finite value are left out. The keys are the index, in order of appearance.
    """
    finite = frame[np.isfinite(frame["value"])]
    grouped = finite.groupby(list(keys), sort=False)["value"]
    table: pd.DataFrame = grouped.agg(["count", "mean", "std"])
    table = table.rename(columns={"count": "n", "std": "sd"})
    half = t_half_width(table["sd"].to_numpy(), table["n"].to_numpy(), confidence)
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


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
    label = find_baseline(runs, baseline)

    frame = name_groups(select(runs, where, keep=label), config_columns, by)
    untuned = [c for c in settings if c not in tune]
    if tune:
        frame = _keep_best(frame, tune, untuned)
    frame["pair"] = frame.groupby(untuned, dropna=False).ngroup() if untuned else 0
    shown = {*by, *tune, *varying_settings(frame, config_columns)}
    rows = _rows(frame, [c for c in settings if c in shown], metrics, label, confidence)
    return Comparison(
        _sort(rows, sort),
        tuple(metrics),
        label,
        confidence,
        shared=dict(zip(frame["section"], frame["shared"], strict=True)),
        tuned=tuple(tune),
        mixed=find_mixed(frame),
    )


def _rows(
    frame: pd.DataFrame,
    settings: Sequence[str],
    metrics: Sequence[str],
    baseline: str,
    confidence: float,
) -> pd.DataFrame:
    """Return one row per group and metric, as `Comparison.rows` has them."""
    values = _final_values(frame, metrics)
    rows = _count_states(frame, settings).merge(pd.DataFrame({"metric": metrics}), how="cross")
    for table in (summarise(values, KEYS, confidence), _paired(values, baseline, confidence)):
        rows = rows.merge(table.reset_index(), how="left", on=KEYS)
    rows["p_holm"] = holm(rows["p"].to_numpy(dtype=float))
    rows[["n", "pairs"]] = rows[["n", "pairs"]].fillna(0).astype(int)
    return rows


KEYS = ["section", "group", "metric"]


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


def find_baseline(runs: pd.DataFrame, baseline: str) -> str:
    """Return the baseline's full label; that of the default need not be there."""
    labels = sorted(set(runs["act"]))
    fits = [label for label in labels if same_activation(label, baseline)]
    if len(fits) > 1:
        raise UsageError(f"baseline {baseline!r} is one of several: {', '.join(fits)}")
    if not fits and baseline != "relu":
        raise unknown(baseline, labels, "baseline")
    return fits[0] if fits else baseline
