import errno
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from helpers.tiny_runs import make, tiny

from nsrelu_bench.errors import BenchError
from nsrelu_bench.records import RunWriter, find_runs, load, load_runs, write_summary
from nsrelu_bench.records import summary as summaries

RUN = tiny().run_id
INTERRUPTED = '{"state": "interrupted"}'


@pytest.fixture
def copied(study: Path, tmp_path: Path) -> Path:
    """A copy of the study with an up-to-date summary."""
    folder = tmp_path / "results" / "study"
    shutil.copytree(study, folder)
    (folder / "summary.csv").unlink(missing_ok=True)
    write_summary(folder)
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs whose files have been read."""
    names: list[str] = []
    read = summaries.read_run
    monkeypatch.setattr(
        summaries, "read_run", lambda run, **given: names.append(run.name) or read(run, **given)
    )
    return names


def state(study: Path) -> str:
    return str(load_runs(study).set_index("run_id").loc[RUN, "state"])


def test_the_summary_is_sorted_and_the_same_every_time(copied: Path) -> None:
    first = (copied / "summary.csv").read_bytes()
    (copied / "summary.csv").unlink()
    write_summary(copied)
    assert (copied / "summary.csv").read_bytes() == first
    summary = pd.read_csv(copied / "summary.csv")
    assert len(summary) == 3
    assert summary["run_id"].is_monotonic_increasing


def test_a_repeated_run_has_the_same_row(copied: Path) -> None:
    first = (copied / "summary.csv").read_bytes()
    shutil.rmtree(copied / RUN)
    make(copied)  # takes another time
    write_summary(copied)
    assert (copied / "summary.csv").read_bytes() == first


def test_an_up_to_date_summary_replaces_the_folders(copied: Path, opened: list[str]) -> None:
    expected = load(copied).runs
    for path in (copied, copied.parent):
        pd.testing.assert_frame_equal(load_runs(path), expected)
    assert opened == []


def test_a_changed_run_is_read_once(copied: Path, opened: list[str]) -> None:
    (copied / RUN / "status.json").write_text(INTERRUPTED)
    assert state(copied) == "interrupted"
    assert state(copied) == "interrupted"
    assert opened == [RUN]


@pytest.mark.parametrize("name", ["status.json", "env.json"])
def test_a_run_replaced_by_another_machines_is_read(copied: Path, name: str) -> None:
    path = copied / RUN / name
    path.write_text(path.read_text().replace("completed", "diverged").replace("2.", "1."))
    runs = load_runs(copied).set_index("run_id").loc[RUN]
    assert runs["state"] == "diverged" or str(runs["torch"]).startswith("1.")


def test_classes_that_a_run_records_replace_a_row_without(copied: Path, opened: list[str]) -> None:
    path = copied / RUN / "env.json"
    content = json.loads(path.read_text())
    classes = content.pop("classes")
    path.write_text(json.dumps(content))
    write_summary(copied)
    assert math.isnan(load_runs(copied).set_index("run_id").loc[RUN, "classes"])
    path.write_text(json.dumps(content | {"classes": classes}))
    opened.clear()
    assert load_runs(copied).set_index("run_id").loc[RUN, "classes"] == classes == 10
    assert opened == [RUN]


def test_a_change_while_the_summary_is_written_is_not_missed(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = summaries.read_run

    def read_slowly(folder: Path, mark: str) -> dict[str, object]:
        row = read(folder, mark=mark)
        (folder / "status.json").write_text(INTERRUPTED)
        return row

    (copied / "summary.csv").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(summaries, "read_run", read_slowly)
        assert state(copied) == "completed"
    assert state(copied) == "interrupted"


def test_times_of_files_do_not_matter(copied: Path, tmp_path: Path) -> None:
    shutil.copytree(copied / RUN, tmp_path / "elsewhere")  # keeps the times
    (copied / RUN / "status.json").write_text(INTERRUPTED)
    write_summary(copied)
    shutil.rmtree(copied / RUN)
    shutil.copytree(tmp_path / "elsewhere", copied / RUN)
    assert state(copied) == "completed"


def test_a_repaired_run_is_no_longer_failed(copied: Path) -> None:
    path = copied / RUN / "metrics.csv"
    content = path.read_bytes()
    (copied / "summary.csv").unlink()
    path.write_bytes(content[:-3])
    assert state(copied) == "failed"
    path.write_bytes(content)
    assert state(copied) == "completed"


def test_a_killed_run_is_no_longer_running(tmp_path: Path) -> None:
    folder = make(tmp_path)
    with RunWriter(folder, tiny(), fresh=True):
        begun = (folder / "status.json").read_bytes()
    (folder / "status.json").write_bytes(begun)
    with FileLock(folder / ".lock"):
        assert state(tmp_path) == "running"
    assert state(tmp_path) == "interrupted"


@contextmanager
def unreadable(bad: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a file be on a part of the disk that can't be read."""
    plain_open = open

    def failing(path: object, *args: object, **settings: object) -> object:
        if path == bad:
            raise OSError(errno.EIO, "Input/output error")
        return plain_open(path, *args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", failing)
        yield


@pytest.mark.parametrize("name", ["status.json", "config.yaml", "metrics.csv", "env.json"])
@pytest.mark.parametrize("known", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_passing_read_error_is_reported_and_not_saved(
    copied: Path, monkeypatch: pytest.MonkeyPatch, name: str, known: bool
) -> None:
    expected = load_runs(copied)
    if not known:
        (copied / "summary.csv").unlink()
    with unreadable(copied / RUN / name, monkeypatch):
        for runs in (load_runs(copied), load(copied).runs, write_summary(copied)):
            row = runs.set_index("run_id").loc[RUN]
            if known and name in ("config.yaml", "metrics.csv") and row["state"] == "completed":
                continue  # its row is up to date: the file was not read
            assert row["state"] == "failed"
            assert row["error"] == "its files can't be read (Input/output error)"
    saved = pd.read_csv(copied / "summary.csv")
    assert "failed" not in set(saved["state"])
    assert (RUN in set(saved["run_id"])) == known
    pd.testing.assert_frame_equal(load_runs(copied), expected)


def test_a_summary_that_can_not_be_read_now_keeps_its_rows(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / RUN)  # its row is all that is left of it
    before = (copied / "summary.csv").read_bytes()
    with unreadable(copied / "summary.csv", monkeypatch):
        assert RUN not in set(load_runs(copied)["run_id"])
    assert (copied / "summary.csv").read_bytes() == before


def test_comparing_loses_no_row_of_a_summary(copied: Path) -> None:
    make(copied, seed=7)
    shutil.rmtree(copied / RUN)
    text = (copied / "summary.csv").read_text()
    folders = {folder.name for folder in find_runs(copied)}
    assert set(load_runs(copied)["run_id"]) == folders
    assert (copied / "summary.csv").read_text() == text
    write_summary(copied)
    assert set(pd.read_csv(copied / "summary.csv")["run_id"]) == folders


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda text: text[:-9],
        lambda text: text.replace("width", "wide"),
        lambda text: text + 'x,"',
        lambda text: text.replace(",8,2,", ",9999999999999999999,2,"),
        lambda text: text.replace(",8,2,", ",eight,2,"),
        lambda _: "\udcff",
    ],
    ids=["empty", "cut", "columns", "quote", "large", "word", "bytes"],
)
def test_a_damaged_summary_is_written_again(copied: Path, damage: Callable[[str], str]) -> None:
    path = copied / "summary.csv"
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text), errors="surrogateescape")
    pd.testing.assert_frame_equal(load_runs(copied), load(copied).runs)
    assert path.read_text() == text


def test_a_study_may_be_only_a_summary(copied: Path) -> None:
    expected = load_runs(copied)
    for run in find_runs(copied):
        shutil.rmtree(run)
    shutil.copytree(copied, copied.parent / "copy")
    pd.testing.assert_frame_equal(load_runs(copied), expected)
    assert load_runs(copied.parent)["study"].tolist() == ["copy"] * 3 + ["study"] * 3
    (copied / "summary.csv").write_text("act\n")
    with pytest.raises(BenchError, match=r"summary.csv: has no run_id"):
        load_runs(copied)


def test_an_older_summary_lacks_a_setting_and_is_compared(copied: Path, tmp_path: Path) -> None:
    older = pd.read_csv(copied / "summary.csv").drop(columns=["stack", "fingerprint"])
    (tmp_path / "old").mkdir()
    older.to_csv(tmp_path / "old" / "summary.csv", index=False)
    both = load_runs(tmp_path / "old", copied)
    assert len(both) == 2 * len(load_runs(copied))
    assert both["stack"].tolist() == [False] * len(both)


def test_a_read_only_study_can_be_compared(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "summary.csv").unlink()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(summaries, "replace_file", refuse)
    assert len(load_runs(copied)) == 3
    with pytest.raises(BenchError, match=r"summary.csv: can't be written"):
        write_summary(copied)


def test_a_single_run_does_not_change_the_summary(copied: Path) -> None:
    (copied / "summary.csv").unlink()
    assert load_runs(copied / RUN)["run_id"].tolist() == [RUN]
    assert not (copied / "summary.csv").exists()
    with pytest.raises(BenchError, match="no runs in"):
        load_runs(copied.parent / "none")
