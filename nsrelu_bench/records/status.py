"""How a run ended, and whether its files are those that it wrote."""

import csv
import io
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nsrelu_bench.config import read_yaml, run_config
from nsrelu_bench.errors import BenchError, UsageError, describe_error, error_reason
from nsrelu_bench.files import file_sha256, replace_file, wrap_write_errors
from nsrelu_bench.records.schema import NUMBER

STATES = ("running", "completed", "diverged", "failed", "interrupted")
DONE = ("completed", "diverged")

#: What the status of every done run vouches for.
VOUCHED = ("config.yaml", "metrics.csv", "layers.csv", "timing.csv")

#: What is said of a file of a done run that is not what the run's status vouches for.
CHANGED = "is not as it was written"

#: How long to try for the lock of a run: others take it for a moment to see whether it is free.
LOCK_S = 0.2


class RunLockedError(BenchError):
    """Another process is making this run."""


@dataclass(frozen=True)
class Status:
    """How a run stands: its state and, where these apply, where it diverged or why it failed."""

    state: str
    epoch: int | None = None
    diverged_epoch: int | None = None
    diverged_step: int | None = None
    error: str | None = None

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.state in DONE


class RunDoneError(BenchError):
    """The run is done already; `status` says how it ended."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"the run is done already ({status.state})")
        self.status = status


def failed(status: Status, error: Exception) -> Status:
    """The status of a run that was ended by an error, told in one line."""
    return replace(status, state="failed", error=describe_error(error))


def write_status(folder: Path, state: str, error: str | None = None) -> Status:
    """Write down how a run ended whose own process could not.

    A run that is done, or that another process is making by now, stays as it is.
    """
    marked = Status(state, error=error)
    if not folder.is_dir():
        return marked
    with wrap_write_errors(folder), suppress(Timeout), run_lock(folder):
        status = read_status(folder) or marked
        if status.done:
            return status
        marked = replace(status, state=state, error=error)
        replace_file(folder / "status.json", to_json(asdict(marked)))
    return marked


def read_status(folder: Path) -> Status | None:
    """Read how the run in a folder stands; None where no run has been.

    A run that says it is done, but whose files are not those it vouches for, has failed; one that
    says it is running, but that no process is making, was interrupted.
    """
    try:
        return read_status_or_raise(folder)
    except OSError as error:
        return Status("failed", error=f"its files can't be read ({error_reason(error)})")


def read_status_or_raise(folder: Path) -> Status | None:
    """Tell what `read_status` tells.

    Raises:
        OSError: A file is there and can't be read, so that it can't be told.
    """
    try:
        content = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        vouched = dict(content.pop("sha256", {}))
        status = Status(**content)
        if status.state not in STATES:
            raise ValueError(f"unknown state {status.state!r}")
    except FileNotFoundError:
        return Status("failed", error="status.json is missing") if folder.is_dir() else None
    except (ValueError, TypeError, AttributeError) as error:
        return Status("failed", error=f"status.json can't be read ({error})")
    if status.done:
        for name in dict.fromkeys((*VOUCHED, *vouched)):
            try:
                intact = file_sha256(folder / name) == vouched.get(name)
            except FileNotFoundError:
                intact = False
            if not intact:
                told = f" ({found})" if (found := find_corruption(folder / name)) else ""
                return replace(status, state="failed", error=f"{name} {CHANGED}{told}")
    if status.state == "running" and not _is_locked(folder):
        return replace(status, state="interrupted")
    return status


def run_lock(folder: Path) -> FileLock:
    """The lock of who makes a run; it goes with the process, however that ends."""
    return FileLock(folder / ".lock", timeout=LOCK_S, poll_interval=LOCK_S / 20)


def _is_locked(folder: Path) -> bool:
    """Whether a process is making the run, as far as that can be told."""
    lock = FileLock(folder / ".lock", timeout=0)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock:
            return False
    except OSError:  # it is taken, or the folder is read-only
        return True


def find_corruption(path: Path) -> str:
    """Say what is wrong with the form of a run's CSV or YAML file, and in which line; else ""."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return error_reason(error)
    if path.suffix == ".yaml":
        try:
            run_config(read_yaml(path))
        except UsageError as error:
            return error_reason(error).removeprefix(f"{path}: ")
        return ""
    lines = content.count(b"\n") + 1
    if not content:
        return "it is empty"
    if b"\0" in content:
        return f"line {1 + content[: content.index(0)].count(10)} has NUL bytes"
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        return f"line {1 + content[: error.start].count(10)} is not UTF-8 text"
    if not text.endswith("\n"):
        return f"line {lines} is cut off"
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(rows)
        if len(set(header)) < len(header) or not {"epoch", "layer"} & set(header):
            return "line 1 is no header"
        for row in rows:
            if told := _damaged_row(row, header):
                return f"line {rows.line_num} {told}"
    except csv.Error as error:
        return f"line {rows.line_num}: {error}"
    return "it has no rows" if path.name == "metrics.csv" and lines < 3 else ""


def _damaged_row(row: list[str], header: list[str]) -> str:
    if row == header:
        return "is the header again"
    if len(row) != len(header):
        return f"has {len(row)} cells, the header {len(header)}"
    for column, cell in zip(header, row, strict=True):
        if column != "layer" and not NUMBER.fullmatch(cell):
            return f"has {cell[:40]!r} as {column}, which is no number"
    return ""


def to_json(content: Any) -> str:
    """Write JSON; raise ValueError for a number that is not finite."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
