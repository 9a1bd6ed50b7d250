import json
from pathlib import Path

from helpers.tiny_runs import TINY, make

from nsrelu_bench.config import make_study
from nsrelu_bench.sweep import plan_runs
from nsrelu_bench.sweep.plan import find_varying, format_runs

PLANNED = TINY | {"grid": {"lr": [0.1, 0.2], "batch_norm": [False, True]}}


def test_a_plan_names_what_varies_and_estimates_the_time(tmp_path: Path) -> None:
    runs = make_study(PLANNED, "s").runs
    study = tmp_path / "results" / "s"
    new = format_runs(list(plan_runs(runs, study)), study, 2).splitlines()
    assert new[0].endswith("  batch_norm=False  lr=0.1")
    assert new[-1].startswith("4 runs, 4 to run; no earlier run tells how long")
    make(tmp_path / "results" / "other", lr=0.3)
    # Batch norm costs time: only the runs without it are like the earlier one.
    timed = format_runs(list(plan_runs(runs, study)), study, 2).splitlines()[-1]
    assert timed.startswith("4 runs, 4 to run; about 0.1 minutes in 2 processes, for 2 of them")


def test_a_plan_for_programs_has_the_settings_that_vary(tmp_path: Path) -> None:
    runs = make_study(PLANNED, "s").runs
    rows = json.loads(format_runs(list(plan_runs(runs, tmp_path)), tmp_path, 1, as_json=True))
    assert rows[0]["settings"] == {"batch_norm": False, "lr": 0.1}
    assert [row["state"] for row in rows] == ["new"] * 4


def test_what_the_id_shows_is_not_repeated() -> None:
    runs = make_study({"grid": {"act": ["relu", "gelu"]}, "seeds": 2}, "s").runs
    assert find_varying(runs) == []
