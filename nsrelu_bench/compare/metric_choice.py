"""Choose the metrics that are shown and tested."""

from collections.abc import Mapping, Sequence

import pandas as pd

from nsrelu_bench.compare.declared_tests import Family, declare_family
from nsrelu_bench.compare.labels import check_metric, metrics_among
from nsrelu_bench.errors import BenchError

#: What a table shows by default. LeakyReLU has no exact zeros: what is negative compares it too.
TABLE_METRICS = (
    *("test_accuracy", "zero_fraction", "negative_fraction", "dead_fraction"),
    *("submerged_fraction", "grad_norm"),
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
    measured = metrics_among(runs, config_columns)
    if not measured:
        raise BenchError("the runs have no metrics to compare")
    for metric in metrics or ():
        check_metric(metric, measured)
    family = declare_family(measured, primary, secondary, margins)
    taken = [name for name in TABLE_METRICS if name in measured and runs[name].notna().any()]
    usual = [family.primary, *taken, *(secondary or ())]
    return list(dict.fromkeys(metrics or usual)), family
