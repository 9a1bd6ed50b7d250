"""Conditions name every value that their own message lists."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers.made_up import MADE_UP_CONFIG, RELU, TWO, make_runs, study

from nsrelu_bench.compare.comparison import compare
from nsrelu_bench.compare.conditions import select
from nsrelu_bench.errors import UsageError

TWO_ACTS = study(TWO, make_runs("leaky_relu(0.1)", RELU), make_runs("nsrelu(1)", RELU))


@pytest.mark.parametrize(
    ("where", "acts"),
    [
        ("act=nsrelu", {"relu", "nsrelu(0.1)", "nsrelu(1)"}),
        ("act=nsrelu(0.10)", {"relu", "nsrelu(0.1)"}),
        ("act=relu/leaky_relu(0.1)", {"relu", "nsrelu(0.1)"}),
        ("act=ste", {"relu", "nsrelu(1)"}),
        ("act=leaky_relu,nsrelu(1)", {"relu", "leaky_relu(0.1)", "nsrelu(1)"}),
        ("leak=0.1", {"relu", "leaky_relu(0.1)", "nsrelu(0.1)"}),
        ("lr=1e-1", {"relu", "leaky_relu(0.1)", "nsrelu(0.1)", "nsrelu(1)"}),
        ("dataset=DIGITS", {"relu", "leaky_relu(0.1)", "nsrelu(0.1)", "nsrelu(1)"}),
    ],
)
def test_where_chooses_runs_and_keeps_the_baseline(where: str, acts: set[str]) -> None:
    assert set(compare(TWO_ACTS, MADE_UP_CONFIG, where=[where]).rows["act"]) == acts


@pytest.mark.parametrize("baseline", ["ste", "relu/identity", "nsrelu(1.0)"])
def test_a_baseline_may_have_any_spelling(baseline: str) -> None:
    assert compare(TWO_ACTS, MADE_UP_CONFIG, baseline=baseline).baseline == "nsrelu(1)"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("act", "where must be column=value, got 'act'"),
        ("lrr=1", "unknown column 'lrr'; did you mean 'lr'?"),
        ("lr=7", "no run has lr=7; lr is one of: 0.1"),
        ("act=relu,nsrelu(7)", "no run has act=nsrelu(7); act is one of: nsrelu(0.1), relu"),
    ],
)
def test_conditions_that_make_no_sense(where: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        compare(TWO, MADE_UP_CONFIG, where=[where])


ODD_VALUES = {
    "dataset": ["folder:a,b", "folder:a", "b", "nan", "007", "7", "1_0", "10", "None", "inf"],
    "act": ["rrelu(0.125, 0.333)", "relu", "relu/softplus(1)", "own:act", "nsrelu(0.1)"],
    "lr": [0.1, np.nextafter(0.1, 1), 1e-3, 12345678.0, np.nan],
    "seed": [2**53, 2**53 + 1, 0],
    "batch_norm": [True, False],
}


@pytest.mark.parametrize("column", ODD_VALUES)
def test_every_listed_value_can_be_named(column: str) -> None:
    runs = pd.DataFrame({"act": "relu", column: ODD_VALUES[column]})
    with pytest.raises(UsageError) as caught:
        select(runs, [f"{column}=nothing such"])
    for value in ODD_VALUES[column]:
        name = "none" if pd.isna(value) else str(value).removesuffix(".0")
        name = name.lower() if column == "batch_norm" else name
        assert name in str(caught.value)
        chosen = select(runs, [f"{column}={name}"])[column]
        assert list(chosen) == [value] or chosen.isna().all()


def test_values_with_commas_can_be_listed() -> None:
    runs = pd.DataFrame({"act": ODD_VALUES["act"], "dataset": "d"})
    both = select(runs, ["act=rrelu(0.125, 0.333),relu/softplus(1), nsrelu"])
    assert list(both["act"]) == ["rrelu(0.125, 0.333)", "relu/softplus(1)", "nsrelu(0.1)"]


def test_many_values_are_listed_in_part() -> None:
    runs = pd.DataFrame({"act": "relu", "lr": np.arange(25) / 8})
    with pytest.raises(UsageError, match=r"lr is one of: 0, 0\.125, .* and 5 more$"):
        select(runs, ["lr=9"])
