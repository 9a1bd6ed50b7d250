import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from helpers.tiny_runs import make, tiny

from nsrelu_bench.errors import BenchError
from nsrelu_bench.records import reader as results
from nsrelu_bench.records.reader import find_drawable, find_runs, load, load_runs, write_summary
from nsrelu_bench.records.writer import RunWriter

#: Longer than the clock that stamps files takes from one time to the next.
TICK_S = 0.05


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


def test_runs_that_are_not_done_are_listed_without_numbers(study: Path, tmp_path: Path) -> None:
    make(tmp_path / "study")
    with pytest.raises(KeyboardInterrupt), RunWriter(tmp_path / "study" / "b", tiny(seed=4)):
        raise KeyboardInterrupt
    results = load(tmp_path)
    assert results.runs["state"].tolist() == ["interrupted", "completed"]
    assert len(results.metrics["run_id"].unique()) == 1


def test_a_run_with_a_damaged_configuration_is_listed_as_failed(tmp_path: Path) -> None:
    folder = make(tmp_path / "study")
    make(tmp_path / "study", seed=1)
    (folder / "config.yaml").write_text("act: [")
    assert load(tmp_path).runs["state"].tolist() == ["failed", "completed"]


def test_one_run_a_study_and_all_studies_can_be_loaded(study: Path) -> None:
    run = study / tiny().run_id
    assert find_runs(run) == [run]
    assert find_runs(study) == find_runs(study.parent)
    assert len(load(run, study).runs) == 3  # a run that is named twice counts once


def test_where_there_are_no_runs_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"no runs in '.*'; nsrelu-bench train makes one"):
        load(tmp_path)


def test_the_summary_is_derived_sorted_and_the_same_every_time(study: Path) -> None:
    write_summary(study)
    first = (study / "summary.csv").read_bytes()
    write_summary(study)
    assert (study / "summary.csv").read_bytes() == first
    summary = pd.read_csv(study / "summary.csv")
    assert len(summary) == 3
    assert summary["run_id"].is_monotonic_increasing


@pytest.fixture
def copied(study: Path, tmp_path: Path) -> Path:
    """The study, with a summary that is newer than each of its runs."""
    folder = tmp_path / "results" / "study"
    shutil.copytree(study, folder)
    (folder / "summary.csv").unlink(missing_ok=True)
    time.sleep(TICK_S)
    write_summary(folder)
    return folder


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the names of the runs whose files are read from now on."""
    names: list[str] = []
    read = results._read_run
    monkeypatch.setattr(results, "_read_run", lambda path: names.append(path.name) or read(path))
    return names


def test_the_summary_says_all_that_the_run_folders_say(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(copied).runs
    opened = reads(monkeypatch)
    for path in (copied, copied.parent):
        assert load_runs(path).to_csv() == expected.to_csv()
    assert opened == []


def test_a_run_that_changed_after_the_summary_is_read_once(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied / tiny().run_id
    (run / "status.json").write_text('{"state": "interrupted"}')
    time.sleep(TICK_S)
    opened = reads(monkeypatch)
    assert load_runs(copied).set_index("run_id").loc[run.name, "state"] == "interrupted"
    assert opened == [run.name]
    assert load_runs(copied).set_index("run_id").loc[run.name, "state"] == "interrupted"
    assert opened == [run.name]


def test_a_run_that_ends_while_the_summary_is_made_is_not_missed(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied / tiny().run_id
    read = results._read_run

    def slowly(folder: Path) -> dict[str, object]:
        row = read(folder)
        (folder / "status.json").write_text('{"state": "interrupted"}')
        return row

    (copied / "summary.csv").unlink()
    monkeypatch.setattr(results, "_read_run", slowly)
    assert "completed" in set(load_runs(copied)["state"])
    monkeypatch.setattr(results, "_read_run", read)
    assert load_runs(copied).set_index("run_id").loc[run.name, "state"] == "interrupted"


def test_a_run_that_comes_with_its_old_times_is_read(copied: Path, tmp_path: Path) -> None:
    run = copied / tiny().run_id
    shutil.copytree(run, tmp_path / "elsewhere")  # keeps the times
    (run / "status.json").write_text('{"state": "interrupted"}')
    time.sleep(TICK_S)
    write_summary(copied)
    time.sleep(TICK_S)
    shutil.rmtree(run)
    shutil.copytree(tmp_path / "elsewhere", run)
    assert load_runs(copied).set_index("run_id").loc[run.name, "state"] == "completed"


def test_comparing_loses_no_row_of_a_summary(copied: Path) -> None:
    make(copied, seed=7)
    shutil.rmtree(copied / tiny().run_id)
    text = (copied / "summary.csv").read_text()
    folders = {folder.name for folder in find_runs(copied)}
    assert set(load_runs(copied)["run_id"]) == folders
    assert (copied / "summary.csv").read_text() == text
    write_summary(copied)
    assert set(pd.read_csv(copied / "summary.csv")["run_id"]) == folders


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda text: text[:-9],
        lambda text: text.replace("width", "wide"),
        lambda text: text + 'x,"',
        lambda _: "\udcff",
    ],
    ids=["empty", "cut", "columns", "quote", "bytes"],
)
def test_a_damaged_summary_is_made_again(copied: Path, damage: Callable[[str], str]) -> None:
    path = copied / "summary.csv"
    text = path.read_text()
    path.write_text(damage(text), errors="surrogateescape")
    assert load_runs(copied).to_csv() == load(copied).runs.to_csv()
    assert path.read_text() == text


def test_a_study_may_be_a_summary_alone(copied: Path) -> None:
    expected = load_runs(copied)
    for run in find_runs(copied):
        shutil.rmtree(run)
    shutil.copytree(copied, copied.parent / "copy")
    pd.testing.assert_frame_equal(load_runs(copied), expected)
    assert load_runs(copied.parent)["study"].tolist() == ["copy"] * 3 + ["study"] * 3
    (copied / "summary.csv").write_text("act\n")
    with pytest.raises(BenchError, match=r"summary.csv: has no run_id"):
        load_runs(copied)


def test_a_summary_from_before_a_setting_was_there_is_compared_with_new_runs(
    copied: Path, tmp_path: Path
) -> None:
    write_summary(copied)
    old = tmp_path / "old"
    old.mkdir()
    pd.read_csv(copied / "summary.csv").drop(columns="stack").to_csv(
        old / "summary.csv", index=False
    )
    together = load_runs(old, copied)
    assert len(together) == 2 * len(load_runs(copied))
    assert together["stack"].tolist() == [False] * len(together)


def test_a_folder_that_is_read_only_can_be_compared(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "summary.csv").unlink()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(results, "replace_file", refuse)
    monkeypatch.setattr(results.tempfile, "TemporaryFile", refuse)
    assert len(load_runs(copied)) == 3
    with pytest.raises(BenchError, match=r"summary.csv: can't be written"):
        write_summary(copied)


def test_a_run_by_itself_leaves_the_summary_alone(copied: Path) -> None:
    (copied / "summary.csv").unlink()
    assert load_runs(copied / tiny().run_id)["run_id"].tolist() == [tiny().run_id]
    assert not (copied / "summary.csv").exists()
    with pytest.raises(BenchError, match="no runs in"):
        load_runs(copied.parent / "none")


def test_what_can_be_drawn_is_a_run_or_the_studies_that_have_runs(copied: Path) -> None:
    run = copied / tiny().run_id
    (copied.parent / "told").mkdir()
    shutil.copy(copied / "summary.csv", copied.parent / "told")
    assert find_drawable(run) == [run]
    assert find_drawable(copied) == find_drawable(copied.parent) == [copied]
    with pytest.raises(BenchError, match="and no runs; its sweep makes"):
        find_drawable(copied.parent / "told")


def test_a_run_that_is_killed_is_no_longer_told_as_running(tmp_path: Path) -> None:
    folder = make(tmp_path)
    with RunWriter(folder, tiny(), fresh=True):
        begun = (folder / "status.json").read_bytes()
    (folder / "status.json").write_bytes(begun)
    time.sleep(TICK_S)
    with FileLock(folder / ".lock"):
        assert load_runs(tmp_path)["state"].tolist() == ["running"]
    assert load_runs(tmp_path)["state"].tolist() == ["interrupted"]
