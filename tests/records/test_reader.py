import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers.tiny_runs import make, tiny

from nsrelu_bench.errors import BenchError
from nsrelu_bench.records import RunWriter, find_drawable, find_runs, load, write_summary


def test_loading_gives_tidy_frames(study: Path) -> None:
    results = load(study)
    assert list(results.runs["act"]) == sorted(results.runs["act"])
    assert results.runs.set_index("act")["leak"].isna().to_dict() == {
        "nsrelu(0.1)": False,
        "nsrelu(1)": False,
        "relu": True,
    }
    assert {"act", "leak", "lr", "seed"} <= set(results.config_columns)
    by_act = results.runs.set_index("act")
    assert by_act.loc["nsrelu(1)", "state"] == "diverged"
    assert pd.isna(by_act.loc["nsrelu(1)", "test_accuracy"])
    assert by_act.loc["relu", "lr"] == 0.02
    metrics = results.metrics
    last = metrics[(metrics["run_id"] == by_act.loc["relu", "run_id"]) & (metrics["epoch"] == 2)]
    assert last["test_accuracy"].item() == by_act.loc["relu", "test_accuracy"]
    assert set(results.layers["layer"]) == {"act1", "act2"}


def test_unfinished_runs_are_listed_without_numbers(study: Path, tmp_path: Path) -> None:
    make(tmp_path / "study")
    with pytest.raises(KeyboardInterrupt), RunWriter(tmp_path / "study" / "b", tiny(seed=4)):
        raise KeyboardInterrupt
    results = load(tmp_path)
    assert results.runs["state"].tolist() == ["interrupted", "completed"]
    assert len(results.metrics["run_id"].unique()) == 1


def test_a_run_a_study_and_all_studies_can_be_loaded(study: Path) -> None:
    run = study / tiny().run_id
    assert find_runs(run) == [run]
    assert find_runs(study) == find_runs(study.parent)
    assert len(load(run, study).runs) == 3  # a run that is named twice counts once


def test_a_folder_without_runs_says_how_to_create_one(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"no runs in '.*'; create one with nsrelu-bench train"):
        load(tmp_path)


def test_a_run_or_the_studies_with_runs_can_be_drawn(study: Path, tmp_path: Path) -> None:
    run = study / tiny().run_id
    (tmp_path / "summary.csv").write_text("run_id\n")
    assert find_drawable(run) == [run]
    assert find_drawable(study) == find_drawable(study.parent) == [study]
    assert find_drawable(tmp_path) == [tmp_path]
    with pytest.raises(BenchError, match="no runs in"):
        find_drawable(tmp_path / "nowhere")


def test_a_study_that_is_only_a_summary_has_its_runs(study: Path, tmp_path: Path) -> None:
    write_summary(study)
    (tmp_path / "study").mkdir()
    shutil.copy(study / "summary.csv", tmp_path / "study")
    whole, copied = load(study), load(tmp_path / "study")
    pd.testing.assert_frame_equal(copied.runs, whole.runs)
    assert copied.metrics.empty
    both = load(study, tmp_path / "study")
    assert (len(both.runs), len(both.metrics)) == (len(whole.runs), len(whole.metrics))
