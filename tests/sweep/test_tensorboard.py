"""Event files hold what the CSV files hold, and change nothing about a run."""

import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers.command_line import ask
from helpers.tiny_runs import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.records.status import read_status
from nsrelu_bench.sweep import tensorboard
from nsrelu_bench.sweep.execution import RunPolicy
from nsrelu_bench.sweep.new_values import NewValues
from nsrelu_bench.sweep.scheduler import run_all

TINY_RUN = tiny(act="nsrelu(0.1)")
DIVERGING_RUN = tiny(act="nsrelu(1)", lr=1e4, epochs=3)


def follow(study: Path, *runs: RunConfig, fresh: bool = False) -> None:
    list(tensorboard.follow(run_all(runs, study, policy=RunPolicy(fresh=fresh)), study))


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    (file,) = folder.glob("events.out.tfevents.*")
    events = EventAccumulator(str(file), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: {point.step: point.value for point in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def test_event_files_hold_every_epoch(tmp_path: Path) -> None:
    follow(tmp_path / "with", TINY_RUN, DIVERGING_RUN)
    list(run_all([TINY_RUN, DIVERGING_RUN], tmp_path / "without"))
    for run in (TINY_RUN, DIVERGING_RUN):
        folder, plain = (tmp_path / name / run.run_id for name in ("with", "without"))
        for name in ("config.yaml", "metrics.csv", "layers.csv"):
            assert (folder / name).read_bytes() == (plain / name).read_bytes()
        assert read_status(folder).done
        found = scalars(folder)
        metrics = pd.read_csv(folder / "metrics.csv", index_col="epoch")
        for name in ("test_accuracy", "dead_units", "died_units"):
            expected = metrics[name].dropna().to_dict()
            assert found.get(name, {}) == pytest.approx(expected)
        layers = pd.read_csv(folder / "layers.csv").query("layer == 'act2'").set_index("epoch")
        zeros = layers["zero_fraction"].dropna().to_dict()
        assert found.get("zero_fraction/act2", {}) == pytest.approx(zeros)


def test_a_run_that_was_done_before_gets_a_file_once(tmp_path: Path) -> None:
    list(run_all([TINY_RUN], tmp_path))
    for fresh in (False, False, True):
        follow(tmp_path, TINY_RUN, fresh=fresh)
        assert set(scalars(tmp_path / TINY_RUN.run_id)["step"]) == {0, 1, 2}


def test_rows_that_a_worker_is_writing_are_read_once_and_whole(tmp_path: Path) -> None:
    values = NewValues(tmp_path)
    assert list(values) == []
    with (tmp_path / "metrics.csv").open("w") as file:
        for text, expected in (
            ("epoch,loss\n0,2.5\n1,1.", [("loss", 2.5, 0)]),
            ("25", []),
            ("\n2,\n", [("loss", 1.25, 1)]),
        ):
            print(text, end="", file=file, flush=True)
            assert list(values) == expected


def test_the_file_ends_with_the_run_that_is_broken_off(tmp_path: Path) -> None:
    events = tensorboard.follow(run_all([TINY_RUN], tmp_path), tmp_path)
    next(events)
    next(events)
    events.close()
    assert set(scalars(tmp_path / TINY_RUN.run_id)["test_accuracy"]) == {0}
    assert read_status(tmp_path / TINY_RUN.run_id).state == "interrupted"


def test_without_the_extra_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delitem(sys.modules, tensorboard.__name__)
    monkeypatch.delattr(tensorboard.__name__)
    answer = ask("train", "--tensorboard", cwd=tmp_path)
    assert answer.code == 2
    assert answer.err == (
        "nsrelu-bench: --tensorboard: needs TensorBoard; pip install 'nsrelu-bench[tensorboard]'\n"
    )
    assert not list(tmp_path.iterdir())
