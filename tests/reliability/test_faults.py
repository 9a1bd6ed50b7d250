"""What a run leaves when file operations fail, tear or are the last thing that a process does.

`Disk` lets the k-th operation on the files of a run go wrong. The tests try every k with every
fault, begin again from each state on disk that this gave with a second fault at every STRIDE-th k,
and let a process without faults finish all that is left.
"""

import builtins
import errno
import functools
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_run import FAKE_CONFIG, FAKE_ENVIRONMENT, fake_run

from nsrelu_bench import training
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.records import same_run
from nsrelu_bench.records import writer as records
from nsrelu_bench.records.checkpoint import unpack
from nsrelu_bench.records.status import Status, read_status
from nsrelu_bench.sweep.execution import RunPolicy, execute_run
from nsrelu_bench.training.loop import Epoch

State = dict[str, bytes]

#: "broken": it stays so for all operations that follow.
ERRORS = {"EIO": errno.EIO, "torn": errno.ENOSPC, "broken": errno.EIO}
#: How the process or the machine ends. At a loss of power, what was not synced is cut off, or
#: reads as zeros; "torn": half of what was to be written came to disk.
DEATHS = ("killed", "killed torn", "power cut", "power zeros")
FAULTS = (*ERRORS, *DEATHS)

#: Of the second faults, one in so many is tried, beginning elsewhere from each state: all of them
#: (STRIDE 1) take minutes.
STRIDE = 48


class Died(BaseException):
    """The process is gone: nothing that it does from here on has an effect."""


class Disk:
    """Counts the operations on the files of a folder, and lets one go wrong."""

    def __init__(self, folder: Path, fault: str = "none", at: int = 0) -> None:
        self.folder = folder
        self.fault = fault
        self.at = at
        self.count = 0
        self.dead = False
        files = list(folder.glob("*"))
        self.synced = {path.stat().st_ino: path.stat().st_size for path in files}

    def operate(self, tear: Callable[[], object] = lambda: None) -> None:
        """Count an operation that is about to be; `tear` does half of it."""
        if self.dead:
            raise Died
        self.count += 1
        if self.count < self.at or (self.count > self.at and self.fault != "broken"):
            return
        if "torn" in self.fault:
            tear()
        if self.fault in ERRORS:
            raise OSError(ERRORS[self.fault], os.strerror(ERRORS[self.fault]))
        self.dead = True
        raise Died

    def lose_power(self) -> None:
        """Lose what was written and not synced."""
        for path in self.folder.glob("*"):
            content = path.read_bytes()
            kept = content[: self.synced.get(path.stat().st_ino, 0)]
            lost = len(content) - len(kept)
            with path.open("r+b") as file:
                file.write(kept + (b"\0" * lost if self.fault == "power zeros" else b""))
                file.truncate()


class _Raw(io.FileIO):
    """An open file of the folder, below Python's buffers."""

    def __init__(self, path: Path, mode: str, disk: Disk) -> None:
        super().__init__(path, mode)
        self.disk = disk

    def write(self, data: Any) -> int:
        half = bytes(data)[: len(data) // 2]
        self.disk.operate(lambda: super(_Raw, self).write(half))
        return super().write(data)

    def readinto(self, buffer: Any) -> int:
        self.disk.operate()
        return super().readinto(buffer) or 0

    def readall(self) -> bytes:
        self.disk.operate()
        return super().readall() or b""

    def truncate(self, size: int | None = None) -> int:
        self.disk.operate()
        length = super().truncate(size)
        inode = os.fstat(self.fileno()).st_ino
        self.disk.synced[inode] = min(self.disk.synced.get(inode, 0), length)
        return length


@pytest.fixture
def put_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Disk | None], None]]:
    """Return a function that puts a disk under what is done from here on."""
    disks: list[Disk] = []
    operations = {name: getattr(os, name) for name in ("mkdir", "open", "replace", "unlink")}
    plain_open = io.open

    def open_file(path: Any, mode: str = "r", *args: Any, **settings: Any) -> Any:
        if isinstance(path, int) or not disks or disks[0].folder not in Path(path).parents:
            return plain_open(path, mode, *args, **settings)
        disks[0].operate()
        raw = _Raw(path, mode.replace("b", ""), disks[0])
        buffered: Any = io.BufferedReader(raw) if mode[0] == "r" else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, settings.get("encoding"), newline=settings.get("newline"))

    def on_path(name: str) -> Callable[..., Any]:
        def operation(path: Any, *args: Any, **settings: Any) -> Any:
            if disks and disks[0].folder in (Path(path), *Path(path).parents):
                disks[0].operate()
            return operations[name](path, *args, **settings)

        return operation

    def fsync(descriptor: int) -> None:
        disks[0].operate()
        state = os.fstat(descriptor)
        disks[0].synced[state.st_ino] = state.st_size

    for module in (io, builtins):
        monkeypatch.setattr(module, "open", open_file)
    monkeypatch.setattr(os, "fsync", fsync)
    for name in operations:
        monkeypatch.setattr(os, name, on_path(name))
    # What takes most of the time of an attempt, and is no matter here.
    monkeypatch.setattr(records, "environment", lambda _: dict(FAKE_ENVIRONMENT))
    monkeypatch.setattr(records, "format_yaml", str)
    parse = functools.cache(same_run.parse_settings)
    monkeypatch.setattr(same_run, "parse_settings", parse)

    def put(disk: Disk | None) -> None:
        disks[:] = [disk] if disk else []

    yield put
    put(None)


class Laboratory:
    """Makes one run over and over, each time from some state on disk."""

    def __init__(
        self, folder: Path, put_in: Callable[[Disk | None], None], patch: pytest.MonkeyPatch
    ) -> None:
        self.folder = folder
        self.put_in = put_in
        self.status = Status("running")
        self.first: int | None = None  # the epoch that the last attempt began with
        patch.setattr(training, "run", self._run)

    def _run(
        self, config: RunConfig, checkpoint: Mapping[str, Any] | None = None
    ) -> Iterator[Epoch]:
        for epoch in fake_run(config, checkpoint):
            self.first = epoch.metrics["epoch"] if self.first is None else self.first
            yield epoch

    def attempt(self, before: State, fault: str = "none", at: int = 0) -> tuple[State, bool]:
        """Make the run; returns what is on disk then, and whether the fault came to be."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, content in before.items():
            self.folder.mkdir(exist_ok=True)
            (self.folder / name).write_bytes(content)
        disk = self.disk = Disk(self.folder, fault, at)
        self.status, self.first = Status("running"), None
        self.put_in(disk)
        try:
            for event in execute_run(FAKE_CONFIG, self.folder, RunPolicy(checkpoint_after=0)):
                self.status = event.status
        except Died:
            assert disk.dead
        finally:
            self.put_in(None)
        if disk.dead and "power" in fault:
            disk.lose_power()
        return self.state(), disk.count >= disk.at

    def state(self) -> State:
        """What is on disk; the lock holds nothing."""
        files = sorted(self.folder.glob("*"))
        return {path.name: path.read_bytes() for path in files if path.name != ".lock"}


@pytest.fixture
def laboratory(
    tmp_path: Path, put_in: Callable[[Disk | None], None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Laboratory]:
    memory = Path("/dev/shm")  # noqa: S108 -- a disk is several times slower
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as place:
        yield Laboratory(Path(place) / "run", put_in, monkeypatch)


def kept_epoch(state: State) -> int:
    """The epoch of the checkpoint on disk, -1 where there is none."""
    packed = state.get("checkpoint.pt")
    return unpack(packed)[0]["epoch"] if packed else -1


def csv_files(state: State) -> State:
    return {name: content for name, content in state.items() if name.endswith(".csv")}


@pytest.mark.slow
def test_no_fault_loses_a_done_run_or_a_checkpoint(
    laboratory: Laboratory,
) -> None:
    whole, _ = laboratory.attempt({})
    assert laboratory.status.state == "completed"
    assert sorted(csv_files(whole)) == ["layers.csv", "metrics.csv", "quantiles.csv", "timing.csv"]
    found: dict[int, tuple[State, bool]] = {}  # what is on disk, and whether that is a done run

    def go_wrong(before: State, was_done: bool, fault: str, at: int) -> bool:
        after, came = laboratory.attempt(before, fault, at)
        is_done = read_status(laboratory.folder).done
        if is_done:
            assert csv_files(after) == csv_files(whole)
        else:
            assert not was_done
            assert laboratory.status.state in ("running", "failed")
            assert kept_epoch(after) >= kept_epoch(before)
        if laboratory.status.state == "failed":
            reported = f"run: can't be written ({os.strerror(ERRORS[fault])})"
            assert str(laboratory.status.error).endswith(reported)
        found[hash(frozenset(after.items()))] = (after, is_done)
        return came

    for fault in FAULTS:
        assert any(not go_wrong({}, False, fault, at) for at in range(1, 1000))
        assert any(not go_wrong(whole, True, fault, at) for at in range(1, 1000))
    assert len(found) > 100
    for index, (before, was_done) in enumerate(list(found.values())):
        for at in range(1 + index % STRIDE, 1000, STRIDE):
            fault = FAULTS[(index + at // STRIDE) % len(FAULTS)]
            if not go_wrong(before, was_done, fault, at):
                break
    for before, was_done in found.values():
        after, _ = laboratory.attempt(before)
        assert laboratory.status.state == "completed"
        assert csv_files(after) == csv_files(whole)
        if was_done:
            assert laboratory.first is None
        else:
            assert laboratory.first == kept_epoch(before) + 1
            assert after.keys() == whole.keys()


@pytest.mark.parametrize("fault", ["power cut", "power zeros"])
def test_a_done_run_survives_a_loss_of_power(laboratory: Laboratory, fault: str) -> None:
    whole, _ = laboratory.attempt({}, fault, at=1000)
    assert laboratory.status.state == "completed"
    laboratory.disk.lose_power()
    assert read_status(laboratory.folder).done
    assert csv_files(laboratory.state()) == csv_files(whole)
