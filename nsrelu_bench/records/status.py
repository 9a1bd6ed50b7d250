"""Read and write how a run ended, and check that its files are still those that it wrote."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

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

STATES = ("running", "completed", "diverged", "failed", "interrupted")
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
        status = read_status(folder) or ended
        if status.done:
            return status
        ended = replace(status, state=state, error=error)
        write_json(folder / STATUS, asdict(ended))
    return ended


def read_status(folder: Path, *, strict: bool = False) -> Status | None:
    """Return the status of the run in a folder, or None where there never was one.

    A run that is done according to its file has failed if its files have other hashes. One that is
    running according to its file was interrupted if no process holds its lock.

    Args:
        folder: The run's folder.
        strict: Raise an error of the disk, which may be temporary, instead of returning "failed".

    Raises:
        OSError: With `strict`, a file exists and can't be read.
    """
    try:
        return _read_status(folder)
    except OSError as error:
        if strict:
            raise
        return Status("failed", error=f"its files can't be read ({error_reason(error)})")


def _read_status(folder: Path) -> Status | None:
    try:
        status, hashes = parse_status(read_bytes(folder / STATUS))
    except FileNotFoundError:
        return Status("failed", error=f"{STATUS} is missing") if folder.is_dir() else None
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


def parse_status(content: bytes) -> tuple[Status, dict[str, str]]:
    """Parse a status.json into the status and the SHA-256 of each file, without checking the files.

    Raises:
        ValueError: It is something else.
    """
    try:
        values = json.loads(content)
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"must be a mapping, got {_brief(values)}")
    hashes = values.pop("sha256", {})
    if not isinstance(hashes, dict) or not all(isinstance(h, str) for h in hashes.values()):
        raise ValueError(f"sha256 must map names of files to hashes, got {_brief(hashes)}")
    for name, value in values.items():
        if name not in _FIELDS:
            raise ValueError(f"unknown entry {_brief(name)}")
        allowed, valid = _FIELDS[name]
        if not valid(value):
            raise ValueError(f"{name} must be {allowed}, got {_brief(value)}")
    if "state" not in values:
        raise ValueError("has no state")
    status = Status(**values)
    return replace(status, error=status.error and printable(status.error)), hashes


def _brief(value: Any) -> str:
    return printable(repr(value))[:40]


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 2**63)


#: The allowed values of each entry of status.json, in words and as a check.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "state": (f"one of {', '.join(STATES)}", lambda value: value in STATES),
    "epoch": ("a whole number", _is_count),
    "diverged_epoch": ("a whole number", _is_count),
    "diverged_step": ("a whole number", _is_count),
    "error": ("a text", lambda value: value is None or isinstance(value, str)),
}


def _hash_or_none(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except FileNotFoundError:
        return None


def run_lock(folder: Path) -> FileLock:
    """Return the lock that a process holds while it writes a run."""
    return file_lock(folder / ".lock", LOCK_S)
