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
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from filelock import FileLock, Timeout

from nsrelu_bench.config import MEASURES, RunConfig, read_yaml, write_yaml
from nsrelu_bench.errors import BenchError

if TYPE_CHECKING:
    import pandas as pd

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
            _replace(self.folder / "config.yaml", buffer.getvalue())
            _replace(self.folder / "env.json", _to_json(environment(self.config)))
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
        _replace(self.folder / "status.json", _to_json(content))


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
        for name in dict.fromkeys((*VOUCHED, *vouched)):
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

    runs: list[dict[str, Any]] = []
    metrics: list[pd.DataFrame] = []
    layers: list[pd.DataFrame] = []
    folders = {folder.resolve(): folder for path in paths for folder in find_runs(Path(path))}
    for folder in folders.values():
        run = _read_run(folder)
        runs.append(run)
        if run["state"] in DONE:
            identity = {"study": run["study"], "run_id": run["run_id"]}
            for frames, name in ((metrics, "metrics.csv"), (layers, "layers.csv")):
                frame = pd.read_csv(folder / name)
                frames.append(frame.assign(**identity))
    return Results(_table(runs), _stack(metrics), _stack(layers), list(CONFIG_COLUMNS))


def load_runs(*paths: str | Path) -> "pd.DataFrame":
    """Read what `load` gives as `runs`, but open only the runs that summary.csv doesn't tell.

    A run whose files are older than its study's summary is told by its row there. Others are read,
    and the summary is brought up to date where it may be written. A study that has no run folders,
    such as one that lies in git, is what its summary says.

    Raises:
        BenchError: There is no run, or all there is of a study is a summary that can't be read.
    """
    rows: dict[Path, dict[str, Any]] = {}
    for path in map(Path, paths):
        if (path / "config.yaml").exists():
            rows[path.resolve()] = _read_run(path)
            continue
        studies = _find_studies(path)
        if not studies:
            raise _no_runs(path)
        for study, folders in studies.items():
            found = _study_rows(study, folders, suppress(OSError), keep=True)
            rows |= {study.resolve() / row["run_id"]: row for row in found}
    return _table(list(rows.values()))


def write_summary(study: Path) -> "pd.DataFrame":
    """Bring a study's summary.csv up to date with its run folders; returns its rows."""
    return _table(_study_rows(study, find_runs(study), writing(study / "summary.csv")))


def find_runs(path: Path) -> list[Path]:
    """Find the run folders at, in, or one level below a folder's children, sorted.

    Raises:
        BenchError: There is none.
    """
    for depth in ("", "*/", "*/*/"):
        found = sorted(file.parent for file in path.glob(f"{depth}config.yaml"))
        if found:
            return found
    raise _no_runs(path)


def _no_runs(path: Path) -> BenchError:
    return BenchError(f"no runs in {str(path)!r}; nsrelu-bench train makes one")


def _find_studies(path: Path) -> dict[Path, list[Path]]:
    """Find the studies at or in a folder, and the run folders of each; some have a summary only."""
    summaries = sorted([*path.glob("summary.csv"), *path.glob("*/summary.csv")])
    studies: dict[Path, list[Path]] = {file.parent: [] for file in summaries}
    with suppress(BenchError):
        for folder in find_runs(path):
            studies.setdefault(folder.parent, []).append(folder)
    return studies


def _study_rows(
    study: Path, folders: list[Path], guard: AbstractContextManager[None], *, keep: bool = False
) -> list[dict[str, Any]]:
    """Return a row a run, from summary.csv where that is newer, and bring summary.csv up to date.

    `guard` says what comes of an OSError when the summary can't be written. With `keep`, a summary
    that tells of more runs than there are folders of stays as it is.
    """
    path = study / "summary.csv"
    if not folders:
        return list(_read_summary(path, ("act", "seed")).values())
    known: dict[str, dict[str, Any]] = {}
    with suppress(BenchError):
        known = _read_summary(path, CONFIG_COLUMNS)
        written = path.stat().st_mtime_ns
    told = [folder.name for folder in folders if folder.name in known]
    fresh = {name: known[name] for name in told if _last_change(study / name) < written}
    if len(fresh) == len(known) == len(folders):
        return list(fresh.values())
    began = _clock(study)
    rows = [fresh.get(folder.name) or _read_run(folder) for folder in folders]
    if keep and len(told) < len(known):
        return rows
    with guard:
        _replace(path, _table(rows).to_csv(index=False, lineterminator="\n"))
        if began is not None:
            # A run that changed since it was read is newer than this.
            os.utime(path, ns=(began, began))
    return rows


def _read_summary(path: Path, needed: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read the rows of a summary.csv by run id; one of an older version may lack columns.

    Raises:
        BenchError: It can't be read, is cut off, or lacks columns.
    """
    import pandas as pd

    names = dict.fromkeys(("study", "run_id", "state", "error", "act", "backward"), str)
    try:
        text = path.read_text(encoding="utf-8")
        frame = pd.read_csv(
            io.StringIO(text),
            dtype=names,
            keep_default_na=False,
            na_values=[""],
        )
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise BenchError(f"{path}: can't be read ({str(error).splitlines()[0]})") from None
    lacking = [c for c in ("run_id", "state", *needed) if c not in frame]
    if lacking or not text.endswith("\n"):
        raise BenchError(f"{path}: " + (f"has no {lacking[0]}" if lacking else "is cut off"))
    rows = frame.assign(study=path.absolute().parent.name).to_dict("records")
    return {str(row["run_id"]): {str(key): row[key] for key in row} for row in rows}


def _last_change(folder: Path) -> float:
    """When the files of a run last changed or came here, in ns; if one is missing, never."""
    try:
        stats = [(folder / name).stat() for name in ("status.json", *VOUCHED)]
    except OSError:
        return math.inf
    return max(max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)


def _clock(folder: Path) -> int | None:
    """The time in ns by the clock that stamps files in this folder; None if it's not writable."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _read_run(folder: Path) -> dict[str, Any]:
    """Read how a run ended, its configuration and, if it is done, its final metrics."""
    place = folder.absolute()
    status = read_status(folder) or Status("failed")
    row: dict[str, Any] = {"study": place.parent.name, "run_id": place.name}
    row |= asdict(status) | _configuration(folder)
    if status.done:
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            *_, final = csv.DictReader(file)
        row |= {name: float(cell or "nan") for name, cell in final.items() if name != "lr"}
    return row


def _table(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    """Make a frame of runs, its columns in order."""
    import pandas as pd

    columns = ["study", "run_id", *(field.name for field in fields(Status)), *CONFIG_COLUMNS]
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*columns, *(c for c in table if c not in columns)])


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


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and the folder that it is to lie in.

    Raises:
        BenchError: It can't be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, text)


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
