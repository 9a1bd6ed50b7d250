"""Select and group the runs of results once, for all figures."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from nsrelu_bench.compare import (
    RELU_BASELINE,
    Baseline,
    name_arms,
    name_groups,
    read_baseline,
    select,
    settings_of,
    settings_to_match,
    varies,
    varying_settings,
)
from nsrelu_bench.errors import BenchError, UsageError, lookup
from nsrelu_bench.plot.panel_data import MAX_PANELS, add_unit_fractions, check_count
from nsrelu_bench.records import DONE, Results


@dataclass(frozen=True)
class GroupedResults:
    """The results of runs that have been grouped.

    Attributes:
        groups: The runs as `name_groups` returns them.
        metrics: One row per run and epoch.
        layers: One row per run, epoch and layer.
        quantiles: Quantiles of the pre-activations by run and layer.
        varying: The settings that vary, without the activation.
        section: The values of the settings `by`, which only these runs share: "lr 0.1".
        baseline: What others are paired with.
        x: The setting on the x axis of `line`; None for the first that varies.
    """

    groups: pd.DataFrame
    metrics: pd.DataFrame
    layers: pd.DataFrame
    quantiles: pd.DataFrame
    varying: Sequence[str] = ()
    section: str = ""
    baseline: Baseline = RELU_BASELINE
    x: str | None = None

    @property
    def only_summaries(self) -> bool:
        """Whether the runs come from the summary of a study without run folders."""
        return bool(self.metrics.empty and self.groups["state"].isin(DONE).any())

    def facets(self, each: int = 1) -> list[tuple[str, pd.DataFrame]]:
        """Split the runs by the settings that vary, for `each` panels per setting.

        Raises:
            NothingToDrawError: That would be too many panels.
        """
        parts = [(str(name), part) for name, part in self.groups.groupby("setting", sort=False)]
        check_count(len(parts) * each, MAX_PANELS, "panels")
        return parts


def group_results(
    results: Results,
    *,
    arms: Sequence[str] = (),
    where: Sequence[str] = (),
    by: Sequence[str] = (),
    baseline: str = "relu",
    x: str | None = None,
) -> list[GroupedResults]:
    """Select and group runs; one `GroupedResults` for each combination of the settings `by`.

    Raises:
        UsageError: A condition, setting or baseline makes no sense.
        BenchError: The runs can't be grouped.
    """
    read = results.runs[results.runs["act"].notna()]
    if read.empty:
        raise BenchError("no run has a configuration that can be read")
    runs, columns = name_arms(read, results.config_columns, arms)
    with_study = ["study", *columns] if varies(runs["study"]) else columns
    chosen = read_baseline(runs, baseline, with_study)
    if chosen.setting == "study":
        columns = settings_to_match(runs, with_study, chosen)
    settings = settings_of(runs, columns)
    for name in by:
        lookup(dict.fromkeys(settings), name, "setting")
        if name == chosen.setting:
            raise UsageError(f"baseline {chosen}: {name} can't be in by as well")
    if x is not None:
        lookup(dict.fromkeys(["leak", *settings]), x, "setting")
    runs = select(runs, where, chosen, arms)
    metrics = add_unit_fractions(results.metrics, results.layers)
    found = []
    named = name_groups(runs, columns, by)
    for section, groups in named.groupby("section", sort=False):
        varying = [c for c in varying_settings(groups, columns) if c not in by]
        frames = (groups, metrics, results.layers, results.quantiles)
        found.append(GroupedResults(*frames, varying, str(section), chosen, x))
    return found
