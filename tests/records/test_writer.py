import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from helpers.tiny_runs import DIVERGING, make, tiny

from nsrelu_bench.config.reading import read_run, run_config
from nsrelu_bench.errors import BenchError
from nsrelu_bench.files import file_lock
from nsrelu_bench.records import status
from nsrelu_bench.records import writer as records
from nsrelu_bench.records.schema import COLUMNS
from nsrelu_bench.records.status import (
    RunDoneError,
    RunLockedError,
    Status,
    read_status,
    write_status,
)
from nsrelu_bench.records.writer import RunWriter
from nsrelu_bench.sweep.execution import execute_run


def test_a_run_folder_has_the_files_of_the_design(study: Path) -> None:
    folder = study / tiny().run_id
    names = ["config.yaml", "env.json", "metrics.csv", "layers.csv", "timing.csv", "quantiles.csv"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [".lock", "status.json", *names]
    )
    assert json.loads((folder / "env.json").read_text())["threads"] == 1


def test_the_configuration_of_a_run_repeats_it(study: Path, tmp_path: Path) -> None:
    folder = study / tiny().run_id
    config = run_config(read_run(folder / "config.yaml"))
    assert config == tiny()
    list(execute_run(config, tmp_path / config.run_id))
    for name in ("config.yaml", "metrics.csv", "layers.csv"):
        assert (tmp_path / config.run_id / name).read_bytes() == (folder / name).read_bytes()


def test_pandas_reads_the_csv_files(study: Path) -> None:
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


def test_measures_between_epochs_have_their_own_file(tmp_path: Path) -> None:
    folder = make(tmp_path, probe_every=10)
    steps = pd.read_csv(folder / "steps.csv")
    assert tuple(steps.columns) == COLUMNS["steps.csv"]
    assert steps["step"].tolist() == [10, 20, 30, 40]
    (folder / "steps.csv").write_text("step\n")
    assert (
        read_status(folder).error == "steps.csv is not as it was written (line 1 is not a header)"
    )


def test_a_diverged_run_is_done_and_says_when(study: Path) -> None:
    folder = study / tiny(**DIVERGING).run_id
    status = read_status(folder)
    assert status.state == "diverged"
    assert status.done
    assert status.diverged_epoch == status.epoch
    assert status.diverged_step
    last = pd.read_csv(folder / "metrics.csv").iloc[-1]
    assert last.drop(["epoch", "step", "lr", "task"]).isna().all()


@pytest.mark.parametrize("error", [ValueError("bad\nthing"), KeyboardInterrupt(), GeneratorExit()])
def test_an_aborted_run_records_why(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), RunWriter(tmp_path / "run", tiny()):
        raise error
    status = read_status(tmp_path / "run")
    assert not status.done
    if isinstance(error, ValueError):
        assert (status.state, status.error) == ("failed", "ValueError: bad thing")
    else:
        assert status.state == "interrupted"


def test_a_run_aborted_at_its_start_records_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "environment", interrupt)
    with pytest.raises(KeyboardInterrupt), RunWriter(tmp_path / "run", tiny()):
        pass
    assert read_status(tmp_path / "run").state == "interrupted"


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "layers.csv", "timing.csv"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_run_is_done_only_while_its_files_are_unchanged(
    tmp_path: Path, name: str, damage: str
) -> None:
    folder = make(tmp_path)
    assert read_status(folder).done
    path = folder / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        flipped = content[:-2] + bytes([content[-2] ^ 1, content[-1]])
        path.write_bytes(content[:-5] if damage == "cut" else flipped)
    status = read_status(folder)
    assert status.state == "failed"
    reported = str(status.error).removeprefix(f"{name} is not as it was written")
    if name.endswith(".csv"):
        assert {"cut": "is cut off", "flipped": "", "gone": "missing"}[damage] in reported


def test_a_done_run_keeps_its_status(study: Path, tmp_path: Path) -> None:
    assert write_status(study / tiny().run_id, "interrupted").state == "completed"
    assert write_status(tmp_path / "none", "failed", "killed").error == "killed"
    assert not (tmp_path / "none").exists()


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(BenchError, match="file/run: can't be written"),
        RunWriter(tmp_path / "file" / "run", tiny()),
    ):
        pass


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from nsrelu_bench.config import RunConfig\n"
        "from nsrelu_bench.records import RunWriter, writer\n"
        "writer.environment = lambda _: {}\n"  # it imports torch, for seconds
        "config = RunConfig(**json.loads(sys.argv[2]))\n"
        "with RunWriter(Path(sys.argv[1]), config): print('began', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run"), json.dumps(tiny().settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    other.stdout.readline()
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    reported = "run: running in another process"
    with pytest.raises(RunLockedError, match=reported), RunWriter(tmp_path / "run", tiny()):
        pass
    assert write_status(tmp_path / "run", "failed").state == "failed"  # not on disk
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before
    assert read_status(tmp_path / "run").state == "running"
    other.communicate("go on")
    with pytest.raises(RunDoneError, match="already done"), RunWriter(tmp_path / "run", tiny()):
        pass
    with RunWriter(tmp_path / "run", tiny(), fresh=True):
        pass


def test_a_run_without_a_process_was_interrupted(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", tiny()):
        begun = (tmp_path / "run" / "status.json").read_bytes()
    (tmp_path / "run" / "status.json").write_bytes(begun)
    assert json.loads(begun)["state"] == "running"
    assert read_status(tmp_path / "run") == Status("interrupted")
    (tmp_path / "run" / ".lock").unlink()  # as in a copy
    assert read_status(tmp_path / "run") == Status("interrupted")
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_run_that_can_not_be_read_is_not_repeated(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study / tiny().run_id
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def unreadable(path: Path, length: int | None = None) -> str:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(status, "file_sha256", unreadable)
        reported = "its files can't be read (Input/output error)"
        assert read_status(folder) == Status("failed", error=reported)
        with pytest.raises(BenchError, match="Input/output error"), RunWriter(folder, tiny()):
            pass
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_half_written_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    folder = make(tmp_path)
    whole = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    for name in ("status.json", "config.yaml", "env.json", "metrics.csv"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        (folder / f".{name}.4711-0a1b2c.tmp").write_bytes(content[:7])
    assert make(tmp_path) == folder
    left = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    assert left.pop("timing.csv") != whole.pop("timing.csv")
    assert left == whole
    assert not list(folder.glob(".*.tmp"))
    assert read_status(folder).state == "completed"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, GeneratorExit])
def test_an_interrupt_is_not_lost_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with RunWriter(tmp_path / "run", tiny()):
            monkeypatch.setattr(os, "fsync", full)
            raise stop

    with pytest.raises(stop):
        write()


def test_a_folder_in_the_place_of_a_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(BenchError) as caught, RunWriter(tmp_path, tiny()):
        pass
    assert str(caught.value) == f"{tmp_path}: can't be written (.lock is a folder)"


@pytest.fixture
def of_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a run that root was making, where this process is another user's."""
    if sys.platform == "win32" or os.geteuid():
        pytest.skip("needs root, who can act as another user")
    monkeypatch.chdir("/")  # pytest's own folders are not for others
    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        folder = Path(root) / "run"
        folder.mkdir()
        for name, content in ((".lock", ""), ("status.json", '{"state": "running"}')):
            (folder / name).write_text(content)
            (folder / name).chmod(0o644)
        for place in (Path(root), folder):
            place.chmod(0o777)
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)


def test_another_users_lock_is_named(of_root: Path) -> None:
    with pytest.raises(BenchError) as caught, RunWriter(of_root, tiny()):
        pass
    assert str(caught.value) == (
        f"{of_root}: can't be written (.lock belongs to root: Permission denied)"
    )


def test_another_users_run_that_was_killed_is_interrupted(of_root: Path) -> None:
    assert read_status(of_root).state == "interrupted"


def test_another_users_run_that_is_under_way_is_running(of_root: Path) -> None:
    os.seteuid(0)
    with file_lock(of_root / ".lock"):
        os.seteuid(65534)
        found = read_status(of_root)
        os.seteuid(0)
    assert found.state == "running"
