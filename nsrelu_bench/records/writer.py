"""Run folders: what a run leaves on disk, and when it counts as done. No torch.

One process at a time writes a run: config.yaml, env.json, the CSV files, and last, by rename,
status.json, which says how the run ended and vouches for the others by their SHA-256.

A long run keeps a checkpoint as well. The order on disk is rows, fsync, checkpoint: it knows the
length and the SHA-256 of every CSV file, and a process that goes on from it cuts them to that.
"""

import csv
import io
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from filelock import Timeout

from nsrelu_bench.config import RunConfig, Study, write_yaml
from nsrelu_bench.errors import BenchError
from nsrelu_bench.records.checkpoint import load_state, pack, unpack

if TYPE_CHECKING:
    from nsrelu_bench.training import Epoch
from nsrelu_bench.files import file_sha256, replace_file, wrap_write_errors, write_text
from nsrelu_bench.records.environment import environment
from nsrelu_bench.records.schema import COLUMNS, csv_names, format_cell
from nsrelu_bench.records.status import (
    CHANGED,
    VOUCHED,
    RunDoneError,
    RunLockedError,
    Status,
    failed,
    read_status_or_raise,
    run_lock,
    to_json,
)

CHECKPOINT = "checkpoint.pt"

#: What a run that goes on from a checkpoint must have in common with the one that left it, so
#: that it gives the same bits; names in env.json.
DECISIVE = ("packages", "git_commit", "device", "processor", "cpu_capability", "threads")


class RunWriter:
    """Writes one run folder, from its configuration to its status.

    A context manager: on leaving it writes the status that is true, also after an error or
    Ctrl-C, and lets the exception through. On entering, what an earlier process left is thrown
    away, but for a checkpoint that is intact, and the rows up to that: `checkpoint` then holds
    what `train.run` needs to go on, and is None else.

    Args:
        folder: The run's own folder; it is made.
        config: The run.
        fresh: Begin anew, also where the run is done or has a checkpoint.
        checkpoint_after: Keep a checkpoint at the end of an epoch when so many seconds have passed.

    Raises:
        BenchError: The folder can't be written.
        RunLockedError: Another process is making the run.
        RunDoneError: It is done, and `fresh` does not ask for it again.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        *,
        fresh: bool = False,
        checkpoint_after: float = 10.0,
    ) -> None:
        self.folder = folder
        self.checkpoint: dict[str, Any] | None = None
        self.config = config
        self.status = Status("running")
        self._fresh = fresh
        self._checkpoint_after = checkpoint_after
        self._since = time.monotonic()
        self._files: dict[str, TextIO] = {}
        self._environment: dict[str, Any] = {}
        self._lock = run_lock(folder)

    def __enter__(self) -> Self:
        with wrap_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise RunLockedError(f"{self.folder}: another process is making this run") from None
        try:
            with wrap_write_errors(self.folder):
                # Not `read_status`: a run whose files can't be read at present may be done.
                status = None if self._fresh else read_status_or_raise(self.folder)
                if status is not None and CHANGED in (status.error or ""):
                    self._set_aside()
            if status is not None and status.done:
                raise RunDoneError(status)
        except BaseException:
            self._lock.release()
            raise
        try:
            self._begin()
        except BaseException as error:
            with suppress(OSError):
                self._end(error)
            raise
        return self

    def _begin(self) -> None:
        self._environment = environment(self.config)
        with wrap_write_errors(self.folder):
            for draft in self.folder.glob(".*.tmp"):  # of a process that was killed
                draft.unlink()
            lengths = self._go_on()
            self._write_status()
            buffer = io.StringIO()
            write_yaml(self.config.settings, buffer)
            replace_file(self.folder / "config.yaml", buffer.getvalue())
            replace_file(self.folder / "env.json", to_json(self._environment), durable=False)
            for name in csv_names(self.config):
                file = (self.folder / name).open("a", newline="", encoding="utf-8")
                self._files[name] = file
                file.truncate(lengths.get(name, 0))
                if name not in lengths:
                    self._append(name, COLUMNS[name])

    def _set_aside(self) -> None:
        """Keep the files of a done run that was changed since: someone may want them."""
        for name in VOUCHED:
            with suppress(FileNotFoundError):
                (self.folder / name).replace(self.folder / f"{name}.damaged")

    def _go_on(self) -> dict[str, int]:
        """Take up the checkpoint if it fits; returns the length that each CSV file had then."""
        path = self.folder / CHECKPOINT
        refused = None
        if path.exists() and not self._fresh:
            try:
                about, state = unpack(path.read_bytes())
                self._fits(about)
            except ValueError as error:
                refused = f"{CHECKPOINT} {error}"
            else:
                self.checkpoint = load_state(state)
                self.status = Status("running", epoch=about["epoch"])
                self._environment["resumed_after"] = about["epoch"]
                return {name: length for name, (length, _) in about["files"].items()}
        self._environment |= {"resumed_after": None, "refused": refused}
        path.unlink(missing_ok=True)
        return {}

    def _fits(self, about: dict[str, Any]) -> None:
        """Check that going on from a checkpoint gives the bits of a run that was never stopped.

        Raises:
            ValueError: It would not.
        """
        if about["run_id"] != self.config.run_id:
            raise ValueError(f"is of {about['run_id']}")
        for name in DECISIVE:
            if about["environment"][name] != self._environment[name]:
                raise ValueError(f"was left with other {name}: {about['environment'][name]}")
        for name in csv_names(self.config):
            length, digest = about["files"][name]
            path = self.folder / name
            if not path.exists() or file_sha256(path, length) != digest:
                raise ValueError(f"does not fit {name}")

    def append(self, epoch: "Epoch") -> None:
        """Write the rows of one epoch."""
        rows = {
            "metrics.csv": [epoch.metrics],
            "layers.csv": epoch.layers,
            "timing.csv": [epoch.timing],
            "steps.csv": epoch.steps,
            "quantiles.csv": epoch.quantiles,
        }
        with wrap_write_errors(self.folder):
            for name, file in self._files.items():
                for row in rows[name]:
                    self._append(name, [format_cell(row.get(column)) for column in COLUMNS[name]])
                file.flush()
        number = epoch.metrics["epoch"]
        self.status = Status("running", epoch=number)
        if epoch.diverged_step is not None:
            self.status = Status("diverged", number, number, epoch.diverged_step)
        due = time.monotonic() - self._since >= self._checkpoint_after
        if due and self.status.state == "running" and number < self.config.total_epochs:
            self._keep(epoch.checkpoint())
            self._since = time.monotonic()

    def _keep(self, state: dict[str, Any]) -> None:
        """Keep a checkpoint, for which all rows so far must be on disk."""
        with wrap_write_errors(self.folder):
            for file in self._files.values():
                os.fsync(file.fileno())
            about = {
                "run_id": self.config.run_id,
                "epoch": self.status.epoch,
                "environment": {name: self._environment[name] for name in DECISIVE},
                "files": {name: self._state_of(name) for name in self._files},
            }
            replace_file(self.folder / CHECKPOINT, pack(about, state))

    def _state_of(self, name: str) -> tuple[int, str]:
        length = (self.folder / name).stat().st_size
        return length, file_sha256(self.folder / name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with wrap_write_errors(self.folder):
                self._end(error)
        except BenchError:
            if error is None:  # else it is no news
                raise

    def _end(self, error: BaseException | None) -> None:
        """Close the files, write the status that is true, and give the run free."""
        try:
            self._close()
        except OSError as full:
            error = error or full
            raise
        finally:
            if isinstance(error, Exception):
                self.status = failed(self.status, error)
            elif error is not None:
                self.status = replace(self.status, state="interrupted")
            elif self.status.state == "running":
                self.status = replace(self.status, state="completed")
            try:
                self._write_status()
                if self.status.done:
                    with suppress(OSError):  # a run that is done is not gone on with
                        (self.folder / CHECKPOINT).unlink(missing_ok=True)
            finally:
                self._lock.release()

    def _close(self) -> None:
        with ExitStack() as closing:
            for file in self._files.values():
                closing.callback(file.close)
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())

    def _append(self, name: str, cells: Iterable[str]) -> None:
        csv.writer(self._files[name], lineterminator="\n").writerow(cells)

    def _write_status(self) -> None:
        content: dict[str, Any] = asdict(self.status)
        if self.status.done:
            names = ("config.yaml", *self._files)
            content["sha256"] = {name: file_sha256(self.folder / name) for name in names}
        durable = self.status.state != "running"
        replace_file(self.folder / "status.json", to_json(content), durable=durable)


def save_study(study: Study, folder: Path) -> None:
    """Keep a study as it was asked, in its folder's study.yaml."""
    buffer = io.StringIO()
    write_yaml(study.asked, buffer)
    write_text(folder / "study.yaml", buffer.getvalue())
