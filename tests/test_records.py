import errno
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import tiny

from nsrelu_bench import records
from nsrelu_bench.config import read_run, run_config
from nsrelu_bench.errors import BenchError
from nsrelu_bench.records import (
    COLUMNS,
    RunWriter,
    find_runs,
    load,
    load_runs,
    mark,
    read_status,
    write_summary,
)
from nsrelu_bench.sweep import execute
from nsrelu_bench.train import Epoch

#: Longer than the clock that stamps files takes from one time to the next.
TICK_S = 0.05

DIVERGING = {"act": "nsrelu(1)", "lr": 1e4, "epochs": 3}


def make(study: Path, **settings: object) -> Path:
    config = tiny(**settings)
    list(execute(config, study / config.run_id))
    return study / config.run_id


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with two completed runs and a diverged one."""
    folder = tmp_path_factory.mktemp("results") / "study"
    make(folder, act="relu")
    make(folder, act="nsrelu(0.1)")
    make(folder, **DIVERGING)
    return folder


def test_a_run_folder_has_the_files_of_the_design(study: Path) -> None:
    folder = study / tiny().run_id
    names = ("config.yaml", "env.json", "metrics.csv", "layers.csv", "timing.csv", "status.json")
    assert sorted(path.name for path in folder.iterdir()) == sorted((".lock", *names))
    assert json.loads((folder / "env.json").read_text())["threads"] == 1


def test_the_configuration_of_a_run_repeats_it(study: Path, tmp_path: Path) -> None:
    folder = study / tiny().run_id
    config = run_config(read_run(folder / "config.yaml"))
    assert config == tiny()
    list(execute(config, tmp_path / config.run_id))
    for name in ("config.yaml", "metrics.csv", "layers.csv"):
        assert (tmp_path / config.run_id / name).read_bytes() == (folder / name).read_bytes()


def test_the_csv_files_just_work(study: Path) -> None:
    folder = study / tiny().run_id
    metrics = pd.read_csv(folder / "metrics.csv")
    layers = pd.read_csv(folder / "layers.csv")
    assert tuple(metrics.columns) == COLUMNS["metrics.csv"]
    assert tuple(metrics.columns[:3]) == ("epoch", "step", "train_loss")
    assert tuple(layers.columns) == COLUMNS["layers.csv"]
    assert metrics["epoch"].tolist() == [0, 1, 2]
    assert layers["layer"].tolist() == ["act1", "act2"] * 3
    assert metrics["died_units"].isna().tolist() == [True, False, False]
    assert metrics["zero_fraction"].between(0.05, 0.95).all()


def test_every_float_reads_back_the_same(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    row = {"epoch": 0, "step": 0, "train_loss": value, "val_loss": float("nan")}
    with RunWriter(tmp_path / "run", tiny()) as writer:
        writer.append(Epoch(row, [], {"epoch": 0}))
    line = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1].split(",")
    assert float(line[2]) == value
    assert line[4] == ""


def test_measures_between_epochs_have_a_file_of_their_own(tmp_path: Path) -> None:
    folder = make(tmp_path, probe_every=10)
    steps = pd.read_csv(folder / "steps.csv")
    assert tuple(steps.columns) == COLUMNS["steps.csv"]
    assert steps["step"].tolist() == [10, 20, 30, 40]
    (folder / "steps.csv").write_text("step\n")
    status = read_status(folder)
    assert status is not None
    assert status.error == "steps.csv is not as it was written"


def test_a_diverged_run_is_done_and_says_when(study: Path) -> None:
    folder = study / tiny(**DIVERGING).run_id
    status = read_status(folder)
    assert status is not None
    assert status.state == "diverged"
    assert status.done
    assert status.diverged_epoch == status.epoch
    assert status.diverged_step
    last = pd.read_csv(folder / "metrics.csv").iloc[-1]
    assert last.drop(["epoch", "step", "lr"]).isna().all()


@pytest.mark.parametrize("error", [ValueError("bad\nthing"), KeyboardInterrupt(), GeneratorExit()])
def test_a_run_that_is_broken_off_says_so(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), RunWriter(tmp_path / "run", tiny()):
        raise error
    status = read_status(tmp_path / "run")
    assert status is not None
    assert not status.done
    if isinstance(error, ValueError):
        assert (status.state, status.error) == ("failed", "ValueError: bad thing")
    else:
        assert status.state == "interrupted"


def test_a_run_that_is_broken_off_while_it_begins_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "environment", interrupt)
    with pytest.raises(KeyboardInterrupt), RunWriter(tmp_path / "run", tiny()):
        pass
    status = read_status(tmp_path / "run")
    assert status is not None
    assert status.state == "interrupted"


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "layers.csv", "timing.csv"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_run_is_done_only_while_its_files_are_as_they_were_written(
    tmp_path: Path, name: str, damage: str
) -> None:
    folder = make(tmp_path)
    status = read_status(folder)
    assert status is not None
    assert status.done
    path = folder / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        flipped = content[:-2] + bytes([content[-2] ^ 1, content[-1]])
        path.write_bytes(content[:-5] if damage == "cut" else flipped)
    status = read_status(folder)
    assert status is not None
    assert (status.state, status.error) == ("failed", f"{name} is not as it was written")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "great"}', '{"state": 1, "x": 2}'])
def test_a_status_that_can_not_be_read_is_a_failed_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    status = read_status(tmp_path)
    assert status is not None
    assert status.state == "failed"
    assert "status.json can't be read" in str(status.error)


def test_where_no_run_has_been_there_is_no_status(tmp_path: Path) -> None:
    assert read_status(tmp_path / "none") is None


def test_a_finished_run_is_not_marked_otherwise(study: Path, tmp_path: Path) -> None:
    assert mark(study / tiny().run_id, "interrupted").state == "completed"
    assert mark(tmp_path / "none", "failed", "killed").error == "killed"
    assert not (tmp_path / "none").exists()


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


def test_a_folder_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(BenchError, match="file/run: can't be written"),
        RunWriter(tmp_path / "file" / "run", tiny()),
    ):
        pass


# The summary.


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
    read = records._read_run
    monkeypatch.setattr(records, "_read_run", lambda path: names.append(path.name) or read(path))
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
    read = records._read_run

    def slowly(folder: Path) -> dict[str, object]:
        row = read(folder)
        (folder / "status.json").write_text('{"state": "interrupted"}')
        return row

    (copied / "summary.csv").unlink()
    monkeypatch.setattr(records, "_read_run", slowly)
    assert "completed" in set(load_runs(copied)["state"])
    monkeypatch.setattr(records, "_read_run", read)
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


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nsrelu_bench.config import RunConfig\n"
        "from nsrelu_bench.records import RunWriter\n"
        "with RunWriter(Path(sys.argv[1]), RunConfig()): print('began', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    other.stdout.readline()
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    told = "run: another process is making this run"
    with pytest.raises(BenchError, match=told), RunWriter(tmp_path / "run", tiny()):
        pass
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before
    status = read_status(tmp_path / "run")
    assert status is not None
    assert status.state == "running"
    other.communicate("go on")
    with RunWriter(tmp_path / "run", tiny()):
        pass


def test_a_disk_that_is_full_leaves_a_failed_run(tmp_path: Path) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with RunWriter(tmp_path / "run", tiny()) as writer:
            writer._files["layers.csv"].close()
            writer._files["layers.csv"] = Full()
            writer.append(Epoch({"epoch": 0}, [], {}))

    with pytest.raises(BenchError, match=r"run: can't be written \(No space left on device\)"):
        write()
    status = read_status(tmp_path / "run")
    assert status is not None
    assert status.state == "failed"
    assert "No space left on device" in str(status.error)


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


def test_a_folder_that_is_read_only_can_be_compared(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "summary.csv").unlink()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(records, "_replace", refuse)
    monkeypatch.setattr(records.tempfile, "TemporaryFile", refuse)
    assert len(load_runs(copied)) == 3
    with pytest.raises(BenchError, match=r"summary.csv: can't be written"):
        write_summary(copied)


def test_a_run_by_itself_leaves_the_summary_alone(copied: Path) -> None:
    (copied / "summary.csv").unlink()
    assert load_runs(copied / tiny().run_id)["run_id"].tolist() == [tiny().run_id]
    assert not (copied / "summary.csv").exists()
    with pytest.raises(BenchError, match="no runs in"):
        load_runs(copied.parent / "none")
