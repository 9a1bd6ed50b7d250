"""Write a run folder. No torch.

One process at a time writes a run: config.yaml, env.json, the CSV files and last, by rename,
status.json, which says how the run ended and holds the SHA-256 of the others.

A long run also saves checkpoints. The order on disk is rows, fsync, checkpoint: a checkpoint knows
the length and the SHA-256 of every CSV file, and resuming from it cuts them to that length.
"""

import csv
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from filelock import Timeout

from nsrelu_bench.config import RunConfig, Study, format_yaml
from nsrelu_bench.errors import BenchError
from nsrelu_bench.files import (
    file_sha256,
    read_bytes,
    remove_drafts,
    replace_file,
    wrap_write_errors,
    write_file,
    write_json,
)
from nsrelu_bench.records.checkpoint import check_resumable, describe, load_state, pack, unpack
from nsrelu_bench.records.environment import began_before, environment
from nsrelu_bench.records.same_run import check_configuration
from nsrelu_bench.records.schema import (
    CHECKPOINT,
    CONFIG,
    ENVIRONMENT_FILE,
    MAX_CHECKPOINT_BYTES,
    REQUIRED,
    STATUS,
    STUDY,
    csv_files,
    format_cell,
)
from nsrelu_bench.records.status import (
    CHANGED,
    RunDoneError,
    RunLockedError,
    Status,
    failed,
    read_status,
    run_lock,
)
from nsrelu_bench.text import format_ranges

if TYPE_CHECKING:
    from nsrelu_bench.training import Epoch


class RunWriter:
    """A context manager that writes one run folder, from its configuration to its status.

    On entering, it discards what an earlier process left, except for an intact checkpoint and the
    rows up to it. `checkpoint` is then what `training.run` needs to resume, otherwise None. On
    leaving, also after an error or Ctrl-C, it writes the status.

    Args:
        folder: The run's own folder; created if missing.
        config: The run.
        fresh: Start over, even if the run is done or has a checkpoint.
        before: With `fresh`, only if it began before this time.
        checkpoint_after: The least time between two checkpoints, in seconds.

    Raises:
        BenchError: The folder can't be written.
        RunLockedError: Another process has claimed the run.
        RunDoneError: It is done, and `fresh` is off.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        *,
        fresh: bool = False,
        before: datetime | None = None,
        checkpoint_after: float = 10.0,
    ) -> None:
        self.folder = folder
        self.checkpoint: dict[str, Any] | None = None
        self.config = config
        self.status = Status("running")
        self._fresh, self._before = fresh, before
        self._checkpoint_after = checkpoint_after
        self._last_checkpoint_s = time.monotonic()
        self._files: dict[str, TextIO] = {}
        self._environment: dict[str, Any] = {}
        self._lock = run_lock(folder)

    def __enter__(self) -> Self:
        with wrap_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise RunLockedError(f"{self.folder}: running in another process") from None
        try:
            with wrap_write_errors(self.folder):
                self._fresh = self._fresh and began_before(self.folder, self._before)
                # Strict: a read error that may pass must not start a done run over.
                status = read_status(self.folder, strict=True)
                changed = CHANGED in (status.error or "")
                if not changed:
                    check_configuration(self.folder, self.config)
                elif not self._fresh:
                    self._set_aside()
            if status.done and not self._fresh:
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
        with wrap_write_errors(self.folder):
            remove_drafts(self.folder)
            self._write_status()
            replace_file(self.folder / CONFIG, format_yaml(self.config.settings))
        self._environment = environment(self.config)
        with wrap_write_errors(self.folder):
            lengths = self._resume()
            write_json(self.folder / ENVIRONMENT_FILE, self._environment, durable=False)
            for name, columns in csv_files(self.config).items():
                file = (self.folder / name).open("a", newline="", encoding="utf-8")
                self._files[name] = file
                file.truncate(lengths.get(name, 0))
                if name not in lengths:
                    self._write_row(name, columns)

    def _set_aside(self) -> None:
        """Keep the files of a done run that were changed: the user may want them."""
        for name in REQUIRED:
            with suppress(FileNotFoundError):
                (self.folder / name).replace(self.folder / f"{name}.damaged")

    def _resume(self) -> dict[str, int]:
        """Load the checkpoint if it is usable; return the length of each CSV file at that time."""
        path = self.folder / CHECKPOINT
        refused = None
        if path.exists() and not self._fresh:
            try:
                about, state = unpack(read_bytes(path, MAX_CHECKPOINT_BYTES))
                check_resumable(about, self.folder, self.config, self._environment)
            except ValueError as error:
                refused = f"{CHECKPOINT} {error}"
            else:
                self.checkpoint = load_state(state)
                self.status = Status("running", epoch=about["epoch"])
                self._environment["resumed_after"] = about["epoch"]
                self._environment["stacked"] = about.get("stacked")
                self._environment["started"] = about.get("started")
                return {name: length for name, (length, _) in about["files"].items()}
        self._environment |= {"resumed_after": None, "refused": refused}
        path.unlink(missing_ok=True)
        return {}

    def record_stack(self, seeds: Sequence[int]) -> None:
        """Record in env.json which seeds are computed as one network with this run from now on.

        They affect its last digits, so the seeds from before a resume are kept too.
        """
        now, before = f"seeds {format_ranges(seeds)}", self._environment.get("stacked") or ""
        if not before.endswith(now):
            then = f"{before} until epoch {self.status.epoch}, then " if before else ""
            self._environment["stacked"] = then + now
        with wrap_write_errors(self.folder):
            write_json(self.folder / ENVIRONMENT_FILE, self._environment, durable=False)

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
            for name, columns in csv_files(self.config).items():
                for row in rows[name]:
                    self._write_row(name, [format_cell(row.get(c)) for c in columns])
                self._files[name].flush()
        number = epoch.metrics["epoch"]
        self.status = Status("running", epoch=number)
        if epoch.diverged_step is not None:
            self.status = Status("diverged", number, number, epoch.diverged_step)
        elif number < self.config.total_epochs:
            now_s = time.monotonic()
            if now_s - self._last_checkpoint_s >= self._checkpoint_after:
                self._save_checkpoint(epoch.checkpoint())
                self._last_checkpoint_s = time.monotonic()

    def _save_checkpoint(self, state: dict[str, Any]) -> None:
        """Save a checkpoint once all rows so far are on disk."""
        with wrap_write_errors(self.folder):
            for file in self._files.values():
                os.fsync(file.fileno())
            about = describe(self.folder, self.config, self.status.epoch, self._environment)
            replace_file(self.folder / CHECKPOINT, pack(about, state))

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            with wrap_write_errors(self.folder):
                self._end(error)
        except BenchError:
            if error is None:  # otherwise the first error is the one to report
                raise

    def _end(self, error: BaseException | None) -> None:
        """Close the files, write the status, and release the run."""
        try:
            self._close()
        except OSError as disk_error:
            error = error or disk_error
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
                    with suppress(OSError):  # it is not needed any more
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

    def _write_row(self, name: str, cells: Iterable[str]) -> None:
        csv.writer(self._files[name], lineterminator="\n").writerow(cells)

    def _write_status(self) -> None:
        content: dict[str, Any] = asdict(self.status)
        if self.status.done:
            names = (CONFIG, *self._files)
            content["sha256"] = {name: file_sha256(self.folder / name) for name in names}
        write_json(self.folder / STATUS, content, durable=self.status.state != "running")


def save_study(study: Study, folder: Path) -> None:
    """Save the settings of a study to study.yaml in its folder.

    This also removes temporary files of killed processes.
    """
    remove_drafts(folder)
    write_file(folder / STUDY, format_yaml(study.asked))
