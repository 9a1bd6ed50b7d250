"""Run folders: what a run leaves on disk, when it counts as done, and how it is read. No torch.

results/<study>/<run_id>/   config.yaml, env.json, metrics.csv, layers.csv, timing.csv and,
written last, by rename, status.json, which vouches for them
results/<study>/summary.csv derived from the run folders: one row a run
"""

import csv
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
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from nsrelu_bench.config import RunConfig, read_yaml, write_yaml
from nsrelu_bench.errors import BenchError

if TYPE_CHECKING:
    import pandas as pd

    from nsrelu_bench.train import Epoch

_MEASURES = (
    "zero_fraction",
    "negative_fraction",
    "dead_units",
    "dead_fraction",
    "submerged_units",
    "dormant_units",
    "died_units",
    "revived_units",
    "grad_norm",
    "zero_grad_units",
    "surrogate_cosine",
)
_FURTHER = (
    "ever_dead_units",
    "recovered_units",
    "pre_grad_norm",
    "sign_disagreement",
    "lifetime_sparsity",
    "population_sparsity",
    "effective_rank",
)
_SPLITS = tuple(
    f"{split}_{name}" for split in ("train", "val", "test") for name in ("loss", "accuracy")
)

#: The CSV files of a run and their columns; docs/metrics.md defines them.
COLUMNS = {
    "metrics.csv": ("epoch", "step", *_SPLITS, *_MEASURES, "lr", *_FURTHER),
    "layers.csv": ("epoch", "layer", "units", *_MEASURES, *_FURTHER),
    "timing.csv": ("epoch", "time_s", "train_s", "measure_s", "evaluate_s"),
}

STATES = ("running", "completed", "diverged", "failed", "interrupted")
DONE = ("completed", "diverged")


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
        BenchError: The folder can't be written.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self.config = config
        self.status = Status("running")
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException as error:
            self._end(error)
            raise
        return self

    def _begin(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_status()
            buffer = io.StringIO()
            write_yaml(self.config.settings, buffer)
            _replace(self.folder / "config.yaml", buffer.getvalue())
            _replace(self.folder / "env.json", _to_json(environment(self.config)))
            for name, columns in COLUMNS.items():
                self._files[name] = (self.folder / name).open("w", newline="", encoding="utf-8")
                self._append(name, columns)

    def append(self, epoch: "Epoch") -> None:
        """Write the rows of one epoch."""
        rows = {"metrics.csv": [epoch.metrics], "layers.csv": epoch.layers}
        with writing(self.folder):
            for name, content in (rows | {"timing.csv": [epoch.timing]}).items():
                for row in content:
                    self._append(name, [_cell(row.get(column)) for column in COLUMNS[name]])
                self._files[name].flush()
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
        if isinstance(error, Exception):
            self.status = failed(self.status, error)
        elif error is not None:
            self.status = replace(self.status, state="interrupted")
        elif self.status.state == "running":
            self.status = replace(self.status, state="completed")
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        if self.folder.is_dir():
            self._write_status()

    def _append(self, name: str, cells: Iterable[str]) -> None:
        csv.writer(self._files[name], lineterminator="\n").writerow(cells)

    def _write_status(self) -> None:
        content: dict[str, Any] = asdict(self.status)
        if self.status.done:
            names = ("config.yaml", *COLUMNS)
            content["sha256"] = {name: _sha256(self.folder / name) for name in names}
        _replace(self.folder / "status.json", _to_json(content))


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
            _replace(folder / "status.json", _to_json(asdict(status)))
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
        for name in ("config.yaml", *COLUMNS):
            try:
                intact = _sha256(folder / name) == vouched.get(name)
            except OSError:
                intact = False
            if not intact:
                return replace(status, state="failed", error=f"{name} is not as it was written")
    return status


@dataclass(frozen=True)
class Results:
    """What runs left, as frames.

    Attributes:
        runs: One row a run, as in summary.csv: `study`, `run_id`, how it ended, its
            configuration, and the metrics after its last epoch (empty for diverged runs).
        metrics: `study`, `run_id`, and the rows of every done run's metrics.csv.
        layers: The same of layers.csv.
        config_columns: Which columns of `runs` are the configuration.
    """

    runs: "pd.DataFrame"
    metrics: "pd.DataFrame"
    layers: "pd.DataFrame"
    config_columns: list[str]


def load(*paths: str | Path) -> Results:
    """Read all runs in run folders, studies or folders of studies.

    Raises:
        BenchError: There is no run.
    """
    import pandas as pd

    runs, metrics, layers = [], [], []
    folders = {folder.resolve(): folder for path in paths for folder in find_runs(Path(path))}
    for folder in folders.values():
        identity = {"study": folder.parent.name, "run_id": folder.name}
        status = read_status(folder) or Status("failed")
        summary = identity | asdict(status) | _configuration(folder)
        if status.done:
            frame = pd.read_csv(folder / "metrics.csv")
            summary |= frame.drop(columns="lr").iloc[-1].to_dict()
            metrics.append(frame.assign(**identity))
            layers.append(pd.read_csv(folder / "layers.csv").assign(**identity))
        runs.append(summary)
    columns = [*identity, *(field.name for field in fields(Status)), *CONFIG_COLUMNS]
    table = pd.DataFrame(runs)
    table = table.reindex(columns=[*columns, *(c for c in table if c not in columns)])
    return Results(table, _stack(metrics), _stack(layers), list(CONFIG_COLUMNS))


def write_summary(study: Path) -> "pd.DataFrame":
    """Derive a study's summary.csv from its run folders; returns its rows."""
    path = study / "summary.csv"
    runs = load(study).runs
    with writing(path):
        _replace(path, runs.to_csv(index=False, lineterminator="\n"))
    return runs


def find_runs(path: Path) -> list[Path]:
    """Find the run folders at, in, or one level below a folder's children, sorted.

    Raises:
        BenchError: There is none.
    """
    for depth in ("", "*/", "*/*/"):
        found = sorted(file.parent for file in path.glob(f"{depth}config.yaml"))
        if found:
            return found
    raise BenchError(f"no runs in {str(path)!r}; nsrelu-bench train makes one")


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


def _configuration(folder: Path) -> dict[str, Any]:
    """Read the configuration columns of a run; empty where its config.yaml is damaged."""
    try:
        config = RunConfig.model_validate(read_yaml(folder / "config.yaml"))
    except (BenchError, ValueError):
        return {}
    return config.settings | {"leak": config.label.leak}


def _configuration_columns() -> Iterator[str]:
    for name in RunConfig.model_fields:
        yield name
        if name == "act":
            yield "leak"


def _stack(frames: list["pd.DataFrame"]) -> "pd.DataFrame":
    import pandas as pd

    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _cell(value: float | int | str | None) -> str:
    """Write a value so that it reads back the same; what is not finite is no value."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def _to_json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
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


CONFIG_COLUMNS = tuple(_configuration_columns())
