"""Run folders: what a run leaves on disk, and when it counts as done. No torch.

One process at a time writes a run: config.yaml, env.json, the CSV files, and last, by rename,
status.json, which says how the run ended and vouches for the others by their SHA-256.

A long run keeps a checkpoint as well. The order on disk is rows, fsync, checkpoint: it knows the
length and the SHA-256 of every CSV file, and a process that goes on from it cuts them to that.
"""

import csv
import errno
import functools
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from filelock import FileLock, Timeout

from nsrelu_bench.checkpoint import load_state, pack, unpack
from nsrelu_bench.config import MEASURES, RunConfig, Study, read_yaml, run_config, write_yaml
from nsrelu_bench.errors import BenchError, UsageError

if TYPE_CHECKING:
    from nsrelu_bench.train import Epoch

_SPLITS = tuple(
    f"{split}_{name}" for split in ("train", "val", "test") for name in ("loss", "accuracy")
)

# The rate stands where the design's first columns end; measures added later come after it.
_FIRST = tuple(MEASURES)[: 1 + list(MEASURES).index("surrogate_cosine")]
_FURTHER = tuple(MEASURES)[len(_FIRST) :]

#: The CSV files of a run and their columns; docs/metrics.md defines them. steps.csv is there only
#: where measures are taken between epochs.
COLUMNS = {
    "metrics.csv": ("epoch", "step", *_SPLITS, *_FIRST, "lr", *_FURTHER, "task"),
    "layers.csv": ("epoch", "layer", "units", *MEASURES),
    "timing.csv": ("epoch", "time_s", "train_s", "measure_s", "evaluate_s"),
    "steps.csv": ("epoch", "step", "train_loss", "train_accuracy", *MEASURES),
    "quantiles.csv": ("layer", "quantile", "value"),
}

STATES = ("running", "completed", "diverged", "failed", "interrupted")
DONE = ("completed", "diverged")

#: What the status of every done run vouches for.
VOUCHED = ("config.yaml", "metrics.csv", "layers.csv", "timing.csv")

CHECKPOINT = "checkpoint.pt"

#: What a run that goes on from a checkpoint must have in common with the one that left it, so
#: that it gives the same bits; names in env.json.
DECISIVE = ("packages", "git_commit", "device", "processor", "cpu_capability", "threads")

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
        self._lock = _lock(folder)

    def __enter__(self) -> Self:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise RunLockedError(f"{self.folder}: another process is making this run") from None
        try:
            with writing(self.folder):
                # Not `read_status`: a run whose files can't be read at present may be done.
                status = None if self._fresh else _stands(self.folder)
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
        with writing(self.folder):
            for draft in self.folder.glob(".*.tmp"):  # of a process that was killed
                draft.unlink()
            lengths = self._go_on()
            self._write_status()
            buffer = io.StringIO()
            write_yaml(self.config.settings, buffer)
            replace_file(self.folder / "config.yaml", buffer.getvalue())
            replace_file(self.folder / "env.json", _to_json(self._environment), durable=False)
            for name in _csv_names(self.config):
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
        for name in _csv_names(self.config):
            length, digest = about["files"][name]
            path = self.folder / name
            if not path.exists() or _sha256(path, length) != digest:
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
        with writing(self.folder):
            for name, file in self._files.items():
                for row in rows[name]:
                    self._append(name, [_cell(row.get(column)) for column in COLUMNS[name]])
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
        with writing(self.folder):
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
        return length, _sha256(self.folder / name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with writing(self.folder):
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
            content["sha256"] = {name: _sha256(self.folder / name) for name in names}
        durable = self.status.state != "running"
        replace_file(self.folder / "status.json", _to_json(content), durable=durable)


def _csv_names(config: RunConfig) -> list[str]:
    return [name for name in COLUMNS if name != "steps.csv" or config.probe_every]


def failed(status: Status, error: Exception) -> Status:
    """The status of a run that was ended by an error, told in one line."""
    text = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
    return replace(status, state="failed", error=" ".join(text.split()))


def mark(folder: Path, state: str, error: str | None = None) -> Status:
    """Write down how a run ended whose own process could not.

    A run that is done, or that another process is making by now, stays as it is.
    """
    marked = Status(state, error=error)
    if not folder.is_dir():
        return marked
    with writing(folder), suppress(Timeout), _lock(folder):
        status = read_status(folder) or marked
        if status.done:
            return status
        marked = replace(status, state=state, error=error)
        replace_file(folder / "status.json", _to_json(asdict(marked)))
    return marked


def read_status(folder: Path) -> Status | None:
    """Read how the run in a folder stands; None where no run has been.

    A run that says it is done, but whose files are not those it vouches for, has failed; one that
    says it is running, but that no process is making, was interrupted.
    """
    try:
        return _stands(folder)
    except OSError as error:
        return Status("failed", error=f"its files can't be read ({error.strerror})")


def _stands(folder: Path) -> Status | None:
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
                intact = _sha256(folder / name) == vouched.get(name)
            except FileNotFoundError:
                intact = False
            if not intact:
                told = f" ({found})" if (found := damage(folder / name)) else ""
                return replace(status, state="failed", error=f"{name} {CHANGED}{told}")
    if status.state == "running" and not _is_locked(folder):
        return replace(status, state="interrupted")
    return status


def _lock(folder: Path) -> FileLock:
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


def damage(path: Path) -> str:
    """Say what is wrong with the form of a run's CSV or YAML file, and in which line; else ""."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return str(error.strerror)
    if path.suffix == ".yaml":
        try:
            run_config(read_yaml(path))
        except UsageError as error:
            return str(error).splitlines()[0].removeprefix(f"{path}: ")
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


#: A cell of the CSV files: a number as Python writes it, or nothing.
NUMBER = re.compile(r"(-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?)?")


def environment(config: RunConfig) -> dict[str, Any]:
    """What a run's numbers or its time may depend on beside its configuration."""
    import torch

    packages = ("nsrelu-bench", "torch", "numpy", "pandas")
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "device": config.device,
        "processor": _processor(config.device),
        "threads": config.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "git_commit": _git_commit(),
        "command": sys.argv,
    }


@functools.cache
def _processor(device: str) -> str:
    """The model of the processor that computes."""
    import torch

    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = []
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        models = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return models[0] if models else platform.processor() or platform.machine()


@functools.cache
def _git_commit() -> str | None:
    """The commit of the package's own checkout, None where it is installed without one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _cell(value: float | int | str | None) -> str:
    """Write a value so that it reads back the same; what is not finite is no value."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def _to_json(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _sha256(path: Path, length: int | None = None) -> str:
    """Hash a file, or as much of its beginning."""
    return hashlib.sha256(path.read_bytes()[:length]).hexdigest()


def keep_study(study: Study, folder: Path) -> None:
    """Keep a study as it was asked, in its folder's study.yaml."""
    buffer = io.StringIO()
    write_yaml(study.asked, buffer)
    write_text(folder / "study.yaml", buffer.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and the folder that it is to lie in.

    Raises:
        BenchError: It can't be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_text(text, encoding="utf-8")  # a device is written to, never replaced
        else:
            replace_file(path, text)


def replace_file(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all.

    Args:
        path: The file; its folder is there.
        content: What it is to hold.
        durable: Return only when it would outlast a loss of power.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring to disk which files a folder has; Windows has no such thing."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line what can't be written."""
    try:
        yield
    except OSError as error:
        raise BenchError(f"{path}: can't be written ({error.strerror})") from error
