"""Read and write how a run ended, and check that its files are still those that it wrote."""

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nsrelu_bench.errors import BenchError, describe_error, error_reason
from nsrelu_bench.files import (
    file_lock,
    file_sha256,
    is_locked,
    read_bytes,
    wrap_write_errors,
    write_json,
)
from nsrelu_bench.records.corruption import find_corruption
from nsrelu_bench.records.schema import REQUIRED, STATUS
from nsrelu_bench.text import printable

State = Literal["running", "completed", "diverged", "failed", "interrupted"]
STATES: tuple[str, ...] = get_args(State)
DONE = ("completed", "diverged")

#: Part of the error of a done run if a file has another hash than the one in its status.
CHANGED = "is not as it was written"

#: Seconds to try to lock a run: others lock it for a moment to see whether it is free.
LOCK_S = 0.2


class RunLockedError(BenchError):
    """Another process has claimed this run."""


@dataclass(frozen=True)
class Status:
    """The state of a run and, if it diverged or failed, where or why."""

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
    """The run is already done; `status` says how it ended."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"the run is already done ({status.state})")
        self.status = status


def failed(status: Status, error: Exception) -> Status:
    """Return the status of a run that an error ended, with the error in one line."""
    return replace(status, state="failed", error=describe_error(error))


def write_status(folder: Path, state: str, error: str | None = None) -> Status:
    """Record how a run ended if its own process could not.

    Nothing is written if the run is done or another process has claimed it.
    """
    ended = Status(state, error=error)
    if not folder.is_dir():
        return ended
    with wrap_write_errors(folder), suppress(Timeout), run_lock(folder):
        status = read_status(folder)
        if status.done:
            return status
        ended = replace(status, state=state, error=error)
        write_json(folder / STATUS, asdict(ended))
    return ended


def read_status(folder: Path, *, strict: bool = False) -> Status:
    """Return the status of the run in a folder, "new" where there never was one.

    A run that is done according to its file has failed if its files have other hashes. One that is
    running according to its file was interrupted if no process holds its lock.

    Raises:
        OSError: With `strict`, a file exists and can't be read, perhaps for the moment. Without,
            the run has failed.
    """
    try:
        return _read_status(folder)
    except OSError as error:
        if strict:
            raise
        return Status("failed", error=f"its files can't be read ({error_reason(error)})")


def _read_status(folder: Path) -> Status:
    try:
        status, hashes = parse_status(read_bytes(folder / STATUS))
    except FileNotFoundError:
        if folder.is_dir():
            return Status("failed", error=f"{STATUS} is missing")
        return Status("new")
    except ValueError as error:
        return Status("failed", error=f"{STATUS} can't be read ({error})")
    if status.done:
        for name in dict.fromkeys((*REQUIRED, *hashes)):
            if _hash_or_none(folder / name) != hashes.get(name, ""):
                problem = find_corruption(folder / name)
                reason = f"{name} {CHANGED}" + (f" ({problem})" if problem else "")
                return replace(status, state="failed", error=reason)
    if status.state == "running" and not is_locked(folder / ".lock"):
        return replace(status, state="interrupted")
    return status


Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Content(BaseModel):
    """What status.json may hold."""

    model_config = ConfigDict(strict=True, extra="forbid", defer_build=True)

    state: State
    epoch: Count | None = None
    diverged_epoch: Count | None = None
    diverged_step: Count | None = None
    error: str | None = None
    sha256: dict[str, str] = {}


def parse_status(content: bytes) -> tuple[Status, dict[str, str]]:
    """Parse a status.json into the status and the SHA-256 of each file, without checking the files.

    Raises:
        ValueError: It is something else.
    """
    try:
        values = _Content.model_validate_json(content).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{name}: " for name in first["loc"])
        message = first["msg"].replace("Input should be", "must be")
        if first["type"] != "json_invalid":
            message += f", got {printable(repr(first['input']))[:40]}"
        raise ValueError(f"{place}{message}") from None
    hashes = values.pop("sha256")
    return Status(**values | {"error": values["error"] and printable(values["error"])}), hashes


def _hash_or_none(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except FileNotFoundError:
        return None


def run_lock(folder: Path) -> FileLock:
    """Return the lock that a process holds while it writes a run."""
    return file_lock(folder / ".lock", LOCK_S)
