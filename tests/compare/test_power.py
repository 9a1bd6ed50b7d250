"""How many seeds a pilot says that a study needs."""

import json

import numpy as np
import pytest
from helpers.made_up import BETTER, MADE_UP_CONFIG, RELU, TWO, make_runs, study
from scipy import stats

from nsrelu_bench.compare import compare, format_plan, plan_seeds
from nsrelu_bench.compare.statistics import seeds_needed
from nsrelu_bench.errors import BenchError, UsageError

PILOT = compare(TWO, MADE_UP_CONFIG)
SD = np.std(np.subtract(BETTER, RELU), ddof=1)


def test_a_plan_is_from_the_spread_of_the_pilot() -> None:
    (row,) = plan_seeds(PILOT, 0.005).to_dict("records")
    none, one = np.array([np.nan]), np.ones(1)
    spread = SD * (5 / stats.chi2.ppf(0.2, 5)) ** 0.5
    expected = [
        seeds_needed(0.005 * one, SD * one, none, tests=3),
        seeds_needed(0 * one, SD * one, 0.01 * one, tests=3),
        seeds_needed(0.005 * one, spread * one, none, tests=3),
    ]
    kinds = ("difference", "equivalence", "careful")
    assert [row[f"seeds_{kind}"] for kind in kinds] == [n[0] for n in expected]


def test_a_plan_says_what_it_is_for() -> None:
    lines = format_plan(PILOT, 0.005).splitlines()
    assert lines[0] == (
        "Seeds to show a difference of 0.5 pp in test accuracy, or equivalence within 1 pp, with a"
        " power of 80%, at the level 0.05 / 3 tests:"
    )
    assert lines[2].split("  ")[0] == "activation"
    assert lines[3].split() == ["nsrelu(0.1)", "6", "0.55", "16", "6", "30"]
    assert lines[5].endswith("With 30 seeds, every group has enough.")


def test_a_plan_as_json() -> None:
    content = json.loads(format_plan(PILOT, as_json=True))
    assert (content["metric"], content["difference"]) == ("test_accuracy", 0.01)
    assert content["rows"][0]["group"] == "nsrelu(0.1)"


@pytest.mark.parametrize(
    ("difference", "power", "message"),
    [
        (0.0, 0.8, "difference must be above 0, got 0"),
        (0.01, 1.0, "power must be from 0.5 to below 1, got 1"),
    ],
)
def test_a_plan_of_nothing_is_refused(difference: float, power: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_seeds(PILOT, difference, power)


def test_a_metric_without_a_margin_needs_a_difference() -> None:
    pilot = compare(TWO, MADE_UP_CONFIG, primary="grad_norm")
    with pytest.raises(UsageError, match="grad_norm has no margin"):
        plan_seeds(pilot)
    assert "-" in format_plan(pilot, 0.1).splitlines()[3].split()


def test_a_pilot_of_one_seed_has_no_spread() -> None:
    pilot = compare(TWO.query("seed == 0"), MADE_UP_CONFIG)
    with pytest.raises(BenchError, match="no group has two seeds in common"):
        plan_seeds(pilot)


def test_groups_of_several_tables_are_named_with_theirs() -> None:
    runs = study(TWO, make_runs("relu", RELU, lr=0.2), make_runs("nsrelu(0.1)", BETTER, lr=0.2))
    text = format_plan(compare(runs, MADE_UP_CONFIG, by=["lr"]))
    assert "lr 0.1: nsrelu(0.1)" in text
