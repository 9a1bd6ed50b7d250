"""Compare groups of runs with a baseline: means over seeds, and differences paired by seed.

The words, which are columns of the frames too:

- group: the runs that differ only in the seed and the replicate; its name is line and setting.
- line: the activation, with its implementation if it has several: a line of a figure.
- setting: the other settings that vary within a section, such as "lr=0.2".
- section: a table of its own, for each combination of the settings `by`.
- shared: what else all runs of a section have in common.
- pair: runs with the same number here are compared, seed by seed.
- arm: a setting that is made part of the activation's label, to be compared like an activation.
- itt: by intention to treat, over all finished runs; a diverged one has the accuracy of chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nsrelu_bench.compare.baseline import check_pairs, read_baseline, settings_to_match
from nsrelu_bench.compare.conditions import Baseline, select, split_condition
from nsrelu_bench.compare.declared_tests import Family, assess_differences
from nsrelu_bench.compare.grouping import (
    ACT_COLUMNS,
    ACT_SETTINGS,
    COUNTED_STATES,
    name_arms,
    name_groups,
    rank,
    settings_of,
    varies,
)
from nsrelu_bench.compare.labels import is_percent
from nsrelu_bench.compare.metric_choice import choose_metrics
from nsrelu_bench.compare.outcomes import (
    FAILED,
    GROUP,
    KEYS,
    collapsed,
    failed_to_train,
    mean_over_replicates,
    outcomes,
    pair_with_baseline,
)
from nsrelu_bench.compare.provenance import provenance
from nsrelu_bench.compare.statistics import (
    LEAST_VALUES,
    clopper_pearson,
    interquartile_mean,
    mcnemar_p,
    t_half_width,
    variance_components,
)
from nsrelu_bench.errors import BenchError, UsageError, lookup


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        rows: One row per group and metric; NaN where there is no value. The columns are:
            `section`, `group`, `act`, `is_baseline`, the `settings`, `metric`;
            `runs`, and how many of them are `completed`, `diverged`, `failed` or `unfinished`, and
            how many of the completed ones `collapsed`;
            `failed_to_train`, the share of finished runs that diverged or collapsed, with
            `failed_low`, `failed_high`, and McNemar's `p_failed`;
            `n`, `mean`, `sd`, `low`, `high` over the seeds of completed runs;
            `itt_mean`, `itt_low`, `itt_high`, `median`, `iqm` over all finished runs, where a
            diverged one has the accuracy of chance;
            with replicates `sd_seed`, `sd_rounding` and `rounding`, the half-width of the
            differences that rounding alone gives;
            and the columns of `assess_differences`, over all finished runs too.
        seeds: One row per group, metric and seed: `value` over all finished runs, whether the run
            `survived`, that is, did not diverge, and for pairs `baseline` and `difference`.
        settings: The settings that vary, which are columns of `rows`.
        metrics: The metrics of `rows`, in the order asked for.
        family: The metrics that are tested together, and their margins.
        tests_of: The number of tests of each study, for which its p values are adjusted.
        baseline: The baseline's label, or its setting and value; there may be no run of it.
        confidence: The coverage of the intervals.
        shared: For each section, the settings that its runs have in common.
        tuned: The settings that were chosen by validation accuracy.
        datasets: The data sets of the runs.
        chance: The accuracy of guessing on each, with which a diverged run counts.
        environment: What the numbers depend on besides the configuration, such as the version of
            torch, if it is the same for all runs that record it.
        mixed: The values of what differs instead.
        copies: For pairs of studies, how many runs of the first train as one of the second.
        studies: The names of the studies.
        baseline_setting: The setting that the baseline is a value of: the activation, or another.
    """

    rows: pd.DataFrame
    seeds: pd.DataFrame
    settings: tuple[str, ...]
    metrics: tuple[str, ...]
    family: Family
    tests_of: Mapping[str, int]
    baseline: str
    confidence: float
    shared: Mapping[str, str]
    tuned: tuple[str, ...]
    datasets: tuple[str, ...]
    chance: Mapping[str, Sequence[float]]
    environment: Mapping[str, str]
    mixed: Mapping[str, Sequence[str]]
    copies: Mapping[tuple[str, str], int]
    studies: tuple[str, ...]
    baseline_setting: str

    @property
    def tests(self) -> int:
        """The number of tests of all studies."""
        return sum(self.tests_of.values())

    def _repr_markdown_(self) -> str:
        """Return tables, notes and verdicts, as a notebook shows them."""
        from nsrelu_bench.compare.tables import format_table

        return format_table(self, "md")

    @property
    def compared(self) -> pd.DataFrame:
        """The rows of groups that are compared with the baseline.

        That is all others where it is an activation, otherwise those that have a run to pair.
        """
        rows = self.rows[~self.rows["is_baseline"]]
        paired = rows.groupby(GROUP)["pairs"].transform("max") > 0
        return rows if self.baseline_setting == "act" else rows[paired]

    @property
    def main_metric(self) -> str:
        """The metric whose differences a table gives: the primary one, or the first shown."""
        return self.family.primary if self.family.primary in self.metrics else self.metrics[0]


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
    primary: str | None = None,
    secondary: Sequence[str] | None = None,
    margins: Mapping[str, float] | None = None,
    arms: Sequence[str] = (),
    by: Sequence[str] | None = None,
    where: Sequence[str] = (),
    tune: Sequence[str] = (),
    sort: str | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Compare each group of runs with the baseline of the same settings, paired by seed.

    Args:
        runs: One row per run: `run_id`, `state`, the configuration, the final metrics.
        config_columns: The columns of `runs` that are configuration.
        baseline: An activation's label, or its name if it has one leak; or a ``setting=value``.
        metrics: The columns of `runs` to show.
        primary: The metric that counts most.
        secondary: The other metrics that are tested; p values are adjusted for all tests.
        margins: By metric, the differences that count as equivalent.
        arms: Settings that are compared like activations (`name_arms`).
        by: The settings with a table each; by default study, data set and model.
        where: Conditions as in `select`; the baseline always stays.
        tune: Settings to choose per activation: fewest failures, then best validation accuracy.
        sort: A metric, largest mean first, or a setting; by default settings, then activation.
        confidence: The coverage of the intervals.

    Raises:
        UsageError: A column, condition or label makes no sense.
        BenchError: There is nothing to compare, or two runs of a group have the same seed.
    """
    runs, columns = _with_configuration(runs, config_columns)
    shown, family = choose_metrics(runs, columns, metrics, primary, secondary, margins)
    runs, config_columns = name_arms(runs, columns, arms)
    reference = read_baseline(runs, baseline, config_columns)
    config_columns = settings_to_match(runs, config_columns, reference)
    settings = settings_of(runs, config_columns)
    by = _choose_tables(settings, by, tune, reference)
    tested, frame = _choose_groups(runs, config_columns, reference, by, where, tune, arms)
    varying = [c for c in settings if c in (*by, *tune) or varies(frame[c])]
    rows, seeds, tests = _compare_groups(tested, frame, varying, shown, family, confidence)
    return Comparison(
        rows=_sort(rows, sort, varying),
        seeds=seeds,
        settings=tuple(varying),
        metrics=tuple(shown),
        family=family,
        tests_of=tests,
        baseline=str(reference),
        baseline_setting=reference.setting,
        confidence=confidence,
        tuned=tuple(tune),
        **provenance(frame, config_columns),
    )


def _choose_tables(
    settings: Sequence[str], by: Sequence[str] | None, tune: Sequence[str], baseline: Baseline
) -> Sequence[str]:
    """Return the settings with a table for each combination of their values.

    Raises:
        UsageError: `by` or `tune` names what is no setting, or what the baseline is a value of.
    """
    usual = ("study", "dataset", "model")
    if by is None:
        by = [name for name in usual if name in settings and name != baseline.setting]
    for name in (*by, *tune):
        lookup(dict.fromkeys(settings), name, "setting")
        if name == baseline.setting:
            raise UsageError(f"baseline {baseline}: {name} can't be in by or tune as well")
    return by


def _with_configuration(
    runs: pd.DataFrame, config_columns: Sequence[str]
) -> tuple[pd.DataFrame, Sequence[str]]:
    """Return the runs that have a configuration; of several studies, the study is part of it."""
    if runs.empty or runs["act"].isna().all():
        raise BenchError("no runs to compare")
    runs = runs[runs["act"].notna()]  # the others have a damaged configuration, and no group
    if "study" in runs and len(runs["study"].unique()) > 1:
        config_columns = ["study", *config_columns]
    return runs, config_columns


def _choose_groups(
    runs: pd.DataFrame,
    config_columns: Sequence[str],
    baseline: Baseline,
    by: Sequence[str],
    where: Sequence[str],
    tune: Sequence[str],
    arms: Sequence[str],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs that are tested, and those of them that are shown, with their groups.

    The column `pair` numbers the runs that pair, and `is_baseline` marks those of the baseline.

    A condition on a setting chooses what is shown, and changes no test. One on what else a run has,
    such as its seed, or on a setting to tune, chooses what is tested.
    """
    untuned = [c for c in settings_of(runs, config_columns) if c not in tune]
    columns = [split_condition(condition)[0] for condition in where]
    chosen = {*untuned, *ACT_COLUMNS, *ACT_SETTINGS, *arms}
    showing = [w for w, c in zip(where, columns, strict=True) if c in chosen]
    runs = select(runs, [w for w in where if w not in showing], keep=baseline)
    pairing = baseline.pair_columns(untuned, runs)
    check_pairs(runs, baseline, pairing)
    parts = [runs] if not showing else [runs, select(runs, showing, baseline, arms)]
    frames = []
    for part in parts:
        frame = name_groups(part, config_columns, by)
        if tune:
            frame = _keep_best(frame, tune, untuned)
        frame["pair"] = frame.groupby(pairing, dropna=False).ngroup() if pairing else 0
        frames.append(frame.assign(is_baseline=baseline.marks(frame)))
    return frames[0], frames[-1]


def _compare_groups(
    tested: pd.DataFrame,
    frame: pd.DataFrame,
    settings: Sequence[str],
    metrics: Sequence[str],
    family: Family,
    confidence: float,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Return `rows` and `seeds` of a `Comparison`, and the number of tests of each study.

    All groups of `tested` are tested, and those of `frame`, a part of it, are described.
    """
    columns = list(dict.fromkeys([*metrics, *family.metrics]))
    pairs = pair_with_baseline(outcomes(tested, columns))
    found, tests = assess_differences(pairs[pairs["metric"] != FAILED], family, confidence)
    found = found.reset_index()
    hides_some = len(frame) < len(tested)  # then its groups may have shorter names
    if hides_some:
        pairs, found = (_rename_groups(table, tested, frame) for table in (pairs, found))
    values = outcomes(frame, columns)
    rows = _describe_groups(frame, settings, pairs, confidence)
    rows = rows.merge(pd.DataFrame({"metric": metrics}), how="cross")
    for table in (_describe_values(values, confidence).reset_index(), found):
        rows = rows.merge(table, how="left", on=KEYS)
    rows[["n", "pairs"]] = rows[["n", "pairs"]].fillna(0).astype(int)
    rows["verdict"] = rows["verdict"].fillna("")
    if "sd_rounding" in rows:
        rows["rounding"] = _rounding_range(rows)
    seeds = mean_over_replicates(values, ["value", "survived"]).merge(
        pairs[[*KEYS, "seed", "baseline", "difference"]], how="left", on=[*KEYS, "seed"]
    )
    return rows, seeds, tests


def _rename_groups(table: pd.DataFrame, old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table on groups that are in `new` too, under their names there."""
    run = [c for c in ("study", "run_id") if c in old]
    both = old[[*run, *GROUP]].merge(new[[*run, *GROUP]], on=run, suffixes=("", "_new"))
    names = both.drop(columns=run).drop_duplicates(GROUP)
    of_baseline = {"group": "baseline_group", "group_new": "baseline_new"}
    baselines = names.drop(columns="section_new").rename(columns=of_baseline)
    merged = table.merge(names, on=GROUP)
    merged = merged.merge(baselines, how="left", on=["section", "baseline_group"])
    return merged.assign(
        section=merged.pop("section_new"),
        group=merged.pop("group_new"),
        baseline_group=merged.pop("baseline_new"),
    )


def _rounding_range(rows: pd.DataFrame) -> "pd.Series[float]":
    """Return the half-width of the 95 % range of the differences that rounding alone gives."""
    deviation = rows.set_index(KEYS)["sd_rounding"]
    names = rows[["section", "baseline_group", "metric"]]
    of_baseline = deviation.reindex(pd.MultiIndex.from_frame(names)).to_numpy()
    variance = rows["sd_rounding"] ** 2 + of_baseline**2
    width: pd.Series[float] = 1.96 * np.sqrt(variance / rows["pairs"].where(rows["pairs"] > 0))
    return width


def _describe_values(values: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Summarise the metrics of each group: of completed runs, and of all that finished."""
    survivors = mean_over_replicates(values[values["survived"]], ["value"])
    everyone = mean_over_replicates(values, ["value"])
    table = _bounded(summarise(everyone, KEYS, confidence))[["mean", "low", "high"]]
    table = table.add_prefix("itt_").join(_bounded(summarise(survivors, KEYS, confidence)))
    grouped = everyone.groupby(KEYS, sort=False)["value"]
    table["median"], table["iqm"] = grouped.median(), grouped.agg(interquartile_mean)
    if varies(values["replicate"]):
        parts = [
            variance_components(part["value"].to_numpy(), part["seed"].to_numpy())
            for _, part in values.groupby(KEYS, sort=False)
        ]
        found = np.sqrt(np.array(parts).reshape(-1, 2))
        table["sd_seed"], table["sd_rounding"] = found.T
    return table


def _bounded(table: pd.DataFrame) -> pd.DataFrame:
    """Drop intervals of too few values, and keep those of fractions within 0 and 1."""
    fractions = table.index.get_level_values("metric").map(is_percent).to_numpy(dtype=bool)
    for name in ("low", "high"):
        bound = table[name].where(table["n"] >= LEAST_VALUES)
        table[name] = bound.mask(fractions, bound.clip(0, 1))
    return table


def _describe_groups(
    frame: pd.DataFrame, settings: Sequence[str], pairs: pd.DataFrame, confidence: float
) -> pd.DataFrame:
    """Return one row per group: its settings, its runs by state, and how many failed to train."""
    heads = frame.drop_duplicates(GROUP)[[*GROUP, "act", "is_baseline", *settings]]
    heads = heads.merge(_count_states(frame).reset_index(), on=GROUP)
    # With replicates the seeds are what varies independently.
    failing = frame.assign(failed=failed_to_train(frame)).groupby([*GROUP, "seed"])["failed"].mean()
    rate = failing.groupby(GROUP).agg(["count", "mean"])
    rate = rate.reindex(pd.MultiIndex.from_frame(heads[GROUP]))
    count, mean = rate["count"].to_numpy(dtype=float), rate["mean"].to_numpy(dtype=float)
    low, high = clopper_pearson(np.nan_to_num(count * mean), count, confidence)
    heads = heads.assign(failed_to_train=mean, failed_low=low, failed_high=high)
    failures = pairs[pairs["metric"] == FAILED]
    groups = [failures["section"], failures["group"]]
    more, fewer = ((sign * failures["difference"] > 0).groupby(groups).sum() for sign in (1, -1))
    p = pd.Series(mcnemar_p(more, fewer), index=more.index, name="p_failed")
    return heads.merge(p.reset_index(), how="left", on=GROUP)


def _count_states(frame: pd.DataFrame) -> pd.DataFrame:
    """Count the runs of each group by state; a collapsed run is completed too."""
    states = frame["state"].where(frame["state"].isin(COUNTED_STATES), "unfinished")
    counts = pd.crosstab([frame["section"], frame["group"]], states)
    counts = counts.reindex(columns=list(COUNTED_STATES), fill_value=0).rename_axis(columns=None)
    counts.insert(0, "runs", counts.sum(axis=1))
    groups = [frame["section"], frame["group"]]
    return counts.assign(collapsed=collapsed(frame).groupby(groups).sum())


def _keep_best(frame: pd.DataFrame, tune: Sequence[str], others: Sequence[str]) -> pd.DataFrame:
    """Keep, for each activation, the runs with the best values of the settings `tune`.

    The best have the smallest share of runs that failed to train, then the best mean validation
    accuracy of the others.
    """
    if "val_accuracy" not in frame:
        raise BenchError(f"tune {', '.join(tune)}: the runs have no val_accuracy to choose by")
    accuracy = pd.to_numeric(frame["val_accuracy"], errors="coerce").astype(float)
    scores = frame[GROUP].assign(
        failed=failed_to_train(frame), accuracy=accuracy.where(frame["state"] == "completed")
    )
    # Rounded, so that equal means tie. A tie goes to the first, the smallest value.
    means = scores.groupby(GROUP, sort=False).mean().round(9).reset_index()
    groups = frame.drop_duplicates(GROUP)[[*GROUP, "line", *others]].merge(means, on=GROUP)
    ranked = groups.sort_values(["failed", "accuracy"], ascending=[True, False], kind="stable")
    best = ranked.drop_duplicates(["section", "line", *others])
    return frame.merge(best[GROUP], on=GROUP)


def _sort(rows: pd.DataFrame, column: str | None, settings: Sequence[str]) -> pd.DataFrame:
    """Order the groups of each section by a metric, descending, or by a setting, ascending."""
    if column is None:
        return rows
    heads = rows.drop_duplicates(GROUP)
    metrics = rows["metric"].unique()
    lookup(dict.fromkeys([*metrics, "act", *settings]), column, "column to sort by")
    if column in metrics:
        heads = rows[rows["metric"] == column]
    values = -heads["mean"] if column in metrics else heads[column]
    ranks = list(zip(pd.factorize(heads["section"])[0], map(rank, values), strict=True))
    order = sorted(range(len(heads)), key=ranks.__getitem__)
    return heads[GROUP].iloc[order].merge(rows, on=GROUP)
