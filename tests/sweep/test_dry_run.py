import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_runs import TINY, make, tiny

from nsrelu_bench import training
from nsrelu_bench.config import RunConfig, find_varying, make_study, name_run
from nsrelu_bench.data import load_dataset
from nsrelu_bench.sweep import dry_run, plan_runs
from nsrelu_bench.sweep.dry_run import format_runs, time_epoch
from nsrelu_bench.training import Epoch

PLANNED = TINY | {"grid": {"lr": [0.1, 0.2], "batch_norm": [False, True]}}


def test_a_plan_names_what_varies_and_estimates_the_time(tmp_path: Path) -> None:
    runs = make_study(PLANNED, "s").runs
    study = tmp_path / "results" / "s"
    new = format_runs(list(plan_runs(runs, study)), study, 2).splitlines()
    assert new[0].endswith("  batch_norm=false  lr=0.1")
    assert new[-1].startswith(
        "4 runs, 4 to run; no earlier runs to estimate the time from: use --time"
    )
    make(tmp_path / "results" / "other", lr=0.3)
    # Batch norm costs time: only the runs without it are like the earlier one.
    timed = format_runs(list(plan_runs(runs, study)), study, 2).splitlines()[-1]
    assert timed == (
        "4 runs, 4 to run; about 0.1 minutes in 2 processes, for 2 of them, from earlier runs"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "alike"),
    [
        ({"seed": 1, "lr": 0.2, "weight_decay": 0.1, "epochs": 3, "schedule": "cosine"}, True),
        ({"act": "nsrelu(0.3)"}, True),
        ({"act": "relu"}, False),
        ({"act": "nsrelu", "gate": "rescue"}, False),
        ({"act": "leaky_relu(0.1)"}, False),
        ({"impl": "function"}, False),
        ({"probe_every": 1}, False),
        ({"probe_size": 100}, False),
        ({"measures": "none"}, False),
        ({"optimizer": "adam"}, False),
        ({"augment": "crop"}, False),
        ({"clip_norm": 1.0}, False),
        ({"redo": 5}, False),
        ({"local": True}, False),
    ],
    ids=str,
)
def test_a_time_comes_from_runs_that_take_as_long(
    settings: dict[str, Any], alike: bool, tmp_path: Path
) -> None:
    make(tmp_path / "results" / "before")
    plan = list(plan_runs([tiny(**settings)], study := tmp_path / "results" / "s"))
    assert ("from earlier runs" in format_runs(plan, study, 1)) == alike


def test_an_epoch_of_each_kind_is_timed_and_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = list(plan_runs(make_study(PLANNED, "s").runs, tmp_path / "s"))
    timed: list[RunConfig] = []
    monkeypatch.setattr(dry_run, "time_epoch", lambda config: timed.append(config) or 900.0)
    lines = format_runs(plan, tmp_path / "s", 1, timed=True).splitlines()
    assert [config.batch_norm for config in timed] == [False, True]
    hours = 4 * 900 * timed[0].epochs / 3600
    assert lines[-1] == (
        f"4 runs, 4 to run; about {hours:.1f} hours in 1 process, from a timed epoch"
    )
    rows = json.loads(format_runs(plan, tmp_path / "s", 1, timed=True, as_json=True))
    assert {row["estimated_s"] for row in rows} == {900.0 * timed[0].epochs}


def test_a_timed_epoch_scales_with_the_training_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []

    def fake(config: RunConfig) -> Iterator[Epoch]:
        asked.append(config)
        for epoch in (0, 1, 2):
            yield Epoch({}, [], {"train_s": float(epoch), "measure_s": 0.5, "evaluate_s": 0.25})

    monkeypatch.setattr(training, "run", fake)
    config = RunConfig(dataset="mnist5k", batch_size=64, epochs=30, tasks=5)
    total = len(load_dataset(config).train)
    seconds = time_epoch(config)
    assert asked[0].train_size == 2048
    assert (asked[0].epochs, asked[0].tasks) == (2, 1)
    assert seconds == pytest.approx(2 * total / 2048 + 0.75)
    between = time_epoch(config.model_copy(update={"probe_every": 8}))
    share = (1 + total / 64 / 8) / (1 + 2048 / 64 / 8)  # of measurements
    assert between == pytest.approx(2 * total / 2048 + 0.5 * share + 0.25)
    assert not list(tmp_path.iterdir())


def test_a_name_has_what_varies() -> None:
    runs = make_study(PLANNED, "s").runs
    assert name_run(runs[-1], find_varying(runs)).endswith(", batch_norm true, lr 0.2, seed 0")
    assert name_run(RunConfig()) == "nsrelu(0.1) on mnist5k, mlp, lr 0.02, seed 0"


def test_a_plan_for_programs_has_the_settings_that_vary(tmp_path: Path) -> None:
    runs = make_study(PLANNED, "s").runs
    rows = json.loads(format_runs(list(plan_runs(runs, tmp_path)), tmp_path, 1, as_json=True))
    assert rows[0]["settings"] == {"batch_norm": False, "lr": 0.1}
    assert [row["state"] for row in rows] == ["new"] * 4


def test_what_the_id_shows_is_not_repeated() -> None:
    runs = make_study({"grid": {"act": ["relu", "gelu"]}, "seeds": 2}, "s").runs
    assert find_varying(runs) == []
