"""Choose the metrics that are shown and tested; settings and identifiers are not metrics."""

from collections.abc import Mapping, Sequence

import pandas as pd

from nsrelu_bench.compare.declared_tests import Family, declare_family
from nsrelu_bench.compare.labels import check_metric
from nsrelu_bench.errors import BenchError
from nsrelu_bench.records import ENVIRONMENT

#: What a table shows by default. LeakyReLU has no exact zeros: what is negative compares it too.
TABLE_METRICS = (
    *("test_accuracy", "zero_fraction", "negative_fraction", "dead_fraction"),
    *("submerged_fraction", "grad_norm"),
)

#: Columns of a run that are neither configuration nor metric.
RUN_COLUMNS = (
    *("study", "run_id", "state", "error", "diverged_epoch", "diverged_step"),
    *("epoch", "step", "task"),
    *("section", "shared", "line", "setting", "group", "is_baseline"),
    *ENVIRONMENT,
)


def choose_metrics(
    runs: pd.DataFrame,
    config_columns: Sequence[str],
    metrics: Sequence[str] | None,
    primary: str | None,
    secondary: Sequence[str] | None,
    margins: Mapping[str, float] | None,
) -> tuple[list[str], Family]:
    """Return the metrics to show, and the family of tests.

    `config_columns` are all settings, including those that `name_arms` has put into labels.

    Raises:
        UsageError: There is no such metric, or no run has it.
        BenchError: The runs have no metrics.
    """
    measured = [str(c) for c in runs if c not in {*config_columns, *RUN_COLUMNS}]
    for metric in metrics or ():
        check_metric(metric, measured)
    if not measured:
        raise BenchError("the runs have no metrics to compare")
    family = declare_family(measured, primary, secondary, margins)
    taken = [name for name in TABLE_METRICS if name in measured and runs[name].notna().any()]
    usual = [family.primary, *taken, *(secondary or ())]
    return list(dict.fromkeys(metrics or usual)), family
