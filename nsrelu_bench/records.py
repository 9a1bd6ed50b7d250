"""Run folders: what a run leaves on disk, and when it counts as done. No torch.

One process at a time writes a run: config.yaml, env.json, the CSV files, and last, by rename,
status.json, which says how the run ended and vouches for the others by their SHA-256.
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
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from filelock import FileLock, Timeout

from nsrelu_bench.config import MEASURES, RunConfig, write_yaml
from nsrelu_bench.errors import BenchError

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
    "metrics.csv": ("epoch", "step", *_SPLITS, *_FIRST, "lr", *_FURTHER),
    "layers.csv": ("epoch", "layer", "units", *MEASURES),
    "timing.csv": ("epoch", "time_s", "train_s", "measure_s", "evaluate_s"),
    "steps.csv": ("epoch", "step", "train_loss", "train_accuracy", *MEASURES),
    "quantiles.csv": ("layer", "quantile", "value"),
}

STATES = ("running", "completed", "diverged", "failed", "interrupted")
DONE = ("completed", "diverged")

#: What the status of every done run vouches for.
VOUCHED = ("config.yaml", "metrics.csv", "layers.csv", "timing.csv")


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


class RunWriter:
    """Writes one run folder, from its configuration to its status.

    A context manager: on leaving it writes the status that is true, also after an error or
    Ctrl-C, and lets the exception through.

    Raises:
        BenchError: The folder can't be written, or another process is writing it.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self.config = config
        self.status = Status("running")
        self._files: dict[str, TextIO] = {}
        # The lock goes with the process, however that ends.
        self._lock = FileLock(folder / ".lock", timeout=0)

    def __enter__(self) -> Self:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise BenchError(f"{self.folder}: another process is making this run") from None
        try:
            self._begin()
        except BaseException as error:
            self._end(error)
            raise
        return self

    def _begin(self) -> None:
        with writing(self.folder):
            self._write_status()
            buffer = io.StringIO()
            write_yaml(self.config.settings, buffer)
            replace_file(self.folder / "config.yaml", buffer.getvalue())
            replace_file(self.folder / "env.json", _to_json(environment(self.config)))
            for name in _csv_names(self.config):
                self._files[name] = (self.folder / name).open("w", newline="", encoding="utf-8")
                self._append(name, COLUMNS[name])

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with writing(self.folder):
            self._end(error)

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
        replace_file(self.folder / "status.json", _to_json(content))


def _csv_names(config: RunConfig) -> list[str]:
    return [name for name in COLUMNS if name != "steps.csv" or config.probe_every]


def failed(status: Status, error: Exception) -> Status:
    """The status of a run that was ended by an error, told in one line."""
    text = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
    return replace(status, state="failed", error=" ".join(text.split()))


def mark(folder: Path, state: str, error: str | None = None) -> Status:
    """Write down how a run ended whose own process could not; a finished run stays as it is."""
    status = read_status(folder)
    if status is not None and status.done:
        return status
    status = replace(status or Status(state), state=state, error=error)
    if folder.is_dir():
        with writing(folder):
            replace_file(folder / "status.json", _to_json(asdict(status)))
    return status


def read_status(folder: Path) -> Status | None:
    """Read how the run in a folder stands; None where no run has been.

    A run that says it is done, but whose files are not those it vouches for, has failed.
    """
    try:
        content = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        vouched = content.pop("sha256", {})
        status = Status(**content)
        if status.state not in STATES:
            raise ValueError(f"unknown state {status.state!r}")
    except FileNotFoundError:
        return Status("failed", error="status.json is missing") if folder.is_dir() else None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return Status("failed", error=f"status.json can't be read ({error})")
    if status.done:
        for name in dict.fromkeys((*VOUCHED, *vouched)):
            try:
                intact = _sha256(folder / name) == vouched.get(name)
            except OSError:
                intact = False
            if not intact:
                return replace(status, state="failed", error=f"{name} is not as it was written")
    return status


def environment(config: RunConfig) -> dict[str, Any]:
    """What a run's numbers or its time may depend on beside its configuration."""
    import torch

    packages = ("nsrelu-bench", "torch", "numpy", "pandas")
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "device": config.device,
        "threads": config.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "git_commit": _git_commit(),
        "command": sys.argv,
    }


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
    return json.dumps(content, indent=2) + "\n"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and the folder that it is to lie in.

    Raises:
        BenchError: It can't be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line what can't be written."""
    try:
        yield
    except OSError as error:
        raise BenchError(f"{path}: can't be written ({error.strerror})") from error
