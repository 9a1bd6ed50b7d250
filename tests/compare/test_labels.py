"""Which columns are metrics."""

from pathlib import Path

import pandas as pd
import pytest
from helpers.made_up import MADE_UP_CONFIG, TWO
from helpers.tiny_runs import make

from nsrelu_bench.compare import comparison as c
from nsrelu_bench.compare.labels import NOT_METRICS, RUN_COUNTS, check_metric, metrics_among
from nsrelu_bench.config import METRICS, RunConfig
from nsrelu_bench.errors import UsageError
from nsrelu_bench.records import ENVIRONMENT, write_summary

#: What the files of a run have besides metrics, and summary.csv besides that and the settings.
POSITIONS = {
    "metrics.csv": {"epoch", "step", "lr", "task", "collapsed", "gradient_lost_step"},
    "layers.csv": {"epoch", "layer", "units"},
}
OF_RUNS = {
    *("study", "run_id", "state", "epoch", "diverged_epoch", "diverged_step", "error", "leak"),
    *("classes", "step", "collapsed", "gradient_lost_step", "fingerprint"),
    *ENVIRONMENT,
    *RunConfig.model_fields,
}


def test_every_column_of_a_run_is_a_metric_or_known_to_be_none(tmp_path: Path) -> None:
    folder = make(tmp_path, epochs=1)
    columns = {name: list(pd.read_csv(folder / name)) for name in POSITIONS}
    columns["summary.csv"] = [*write_summary(tmp_path), "fingerprint"]
    others = POSITIONS | {"summary.csv": OF_RUNS}
    for name, there in columns.items():
        metrics = metrics_among(there, ())
        assert set(metrics) == set(there) - others[name], name
        assert set(metrics) <= set(METRICS), name
        assert others[name] <= set(there), name


def test_a_column_of_ones_own_is_a_metric() -> None:
    runs = TWO.assign(seconds_per_joule=1.5)
    rows = c.compare(runs, MADE_UP_CONFIG, metrics=["seconds_per_joule"]).rows
    assert set(rows["mean"]) == {1.5}


@pytest.mark.parametrize("column", sorted(NOT_METRICS - {"study", *MADE_UP_CONFIG, *RUN_COUNTS}))
@pytest.mark.parametrize("how", ["metrics", "primary"])
def test_what_is_no_metric_can_not_be_compared(column: str, how: str) -> None:
    runs = TWO.assign(**{column: TWO.get(column, 1)})
    with pytest.raises(UsageError, match=f"^'{column}' is a (setting|column of a run), not a"):
        c.compare(runs, MADE_UP_CONFIG, **{how: column if how == "primary" else [column]})


@pytest.mark.parametrize("count", RUN_COUNTS)
def test_a_number_of_runs_is_a_column_and_no_metric(count: str) -> None:
    with pytest.raises(UsageError) as caught:
        c.compare(TWO.assign(collapsed=0.0), MADE_UP_CONFIG, metrics=[count])
    assert str(caught.value) == (
        f"{count!r} is a number of runs, not a metric; use compare --columns {count}"
    )
    share = f"{count}_fraction"
    with pytest.raises(UsageError, match=f"is a share of runs, not a .* --columns {count}$"):
        check_metric(share, ["test_accuracy"])
    check_metric(share, [share])  # a figure can draw it
    with pytest.raises(UsageError, match=f"not a metric; use {share}$"):
        check_metric(count, [share])
