"""What runs left, as frames: read from run folders, or the summary derived of them. No torch.

`load` reads every run; `load_runs` only those that are newer than their study's summary.csv.
"""

import csv
import io
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsrelu_bench.config import ADDED, RunConfig, read_yaml
from nsrelu_bench.errors import BenchError, error_reason
from nsrelu_bench.files import replace_file, wrap_write_errors
from nsrelu_bench.records.status import DONE, VOUCHED, Status, find_corruption, read_status

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """What runs left, as frames.

    Attributes:
        runs: One row a run, as in summary.csv: `study`, `run_id`, how it ended, its
            configuration, and the metrics after its last epoch (empty for diverged runs).
        metrics: `study`, `run_id`, and the rows of every done run's metrics.csv.
        layers: The same of layers.csv.
        quantiles: The same of quantiles.csv: the pre-activations of each site after the last epoch.
        config_columns: Which columns of `runs` are the configuration.
    """

    runs: "pd.DataFrame"
    metrics: "pd.DataFrame"
    layers: "pd.DataFrame"
    quantiles: "pd.DataFrame"
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
    quantiles: list[pd.DataFrame] = []
    files = {"metrics.csv": metrics, "layers.csv": layers, "quantiles.csv": quantiles}
    folders = {folder.resolve(): folder for path in paths for folder in find_runs(Path(path))}
    for folder in folders.values():
        run = _read_run(folder, tuple(files))
        runs.append(run)
        if run["state"] in DONE:
            identity = {"study": run["study"], "run_id": run["run_id"]}
            for name, frames in files.items():
                if (folder / name).exists():  # runs of older versions have no quantiles
                    frames.append(pd.read_csv(folder / name).assign(**identity))
    stacked = [_stack(frames) for frames in (metrics, layers, quantiles)]
    return Results(_table(runs), stacked[0], stacked[1], stacked[2], list(CONFIG_COLUMNS))


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
    return _table(_study_rows(study, find_runs(study), wrap_write_errors(study / "summary.csv")))


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


def find_drawable(path: Path) -> list[Path]:
    """Find what can be drawn in a folder: a run by itself, or the studies that have run folders.

    Raises:
        BenchError: There is no run.
    """
    runs = find_runs(path)
    return runs if runs == [path] else list(dict.fromkeys(run.parent for run in runs))


def _no_runs(path: Path) -> BenchError:
    if (path / "summary.csv").exists():
        return BenchError(
            f"{str(path)!r} has a summary.csv and no runs; its sweep makes them again"
        )
    there = "" if path.is_dir() else " (there is no such folder)"
    return BenchError(f"no runs in {str(path)!r}{there}; nsrelu-bench train makes one")


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
        known = _read_summary(path, (*CONFIG_COLUMNS, *ENVIRONMENT))
        written = path.stat().st_mtime_ns
    began = _clock(study)
    if known and written > (time.time_ns() if began is None else began):
        written = 0  # the clock was set back since, and times tell nothing
    told = [folder.name for folder in folders if folder.name in known]
    fresh = {
        name: known[name]
        for name in told
        # A process that is killed changes no file.
        if known[name]["state"] != "running" and _last_change(study / name) < written
    }
    if len(fresh) == len(known) == len(folders):
        return list(fresh.values())
    rows = [fresh.get(folder.name) or _read_run(folder) for folder in folders]
    if keep and len(told) < len(known):
        return rows
    with guard:
        replace_file(path, to_csv(_table(rows)))
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

    texts = ("study", "run_id", "state", "error", "act", "backward", "data_dir", *ENVIRONMENT)
    names = dict.fromkeys(texts, str)
    try:
        text = path.read_text(encoding="utf-8")
        frame = pd.read_csv(
            io.StringIO(text),
            dtype=names,
            keep_default_na=False,
            na_values=[""],
        )
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise BenchError(f"{path}: can't be read ({error_reason(error)})") from None
    lacking = [c for c in ("run_id", "state", *needed) if c not in frame]
    if lacking or not text.endswith("\n"):
        raise BenchError(f"{path}: " + (f"has no {lacking[0]}" if lacking else "is cut off"))
    for name in [name for name in frame if frame[name].dtype.kind in "OSU"]:
        frame[name] = frame[name].map(_plain)
    rows = frame.assign(study=path.absolute().parent.name).to_dict("records")
    return {str(row["run_id"]): {str(key): row[key] for key in row} for row in rows}


def to_csv(table: "pd.DataFrame") -> str:
    """Write a table as CSV in which no text is a formula that a spreadsheet would run.

    A text that begins like a formula gets an apostrophe before it, which `load_runs` takes away.
    """
    texts = [name for name in table if table[name].dtype.kind in "OSU"]
    inert = {str(name): table[name].map(_inert) for name in texts}
    return table.assign(**inert).to_csv(index=False, lineterminator="\n")


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def _plain(value: Any) -> Any:
    """Take away what `to_csv` put before a text."""
    inert = isinstance(value, str) and value.startswith("'") and FORMULA.match(value)
    return value[1:] if inert else value


#: What a spreadsheet takes for a formula, and what `to_csv` makes of that.
FORMULA = re.compile(r"'*([=@\t]|[+-].*[(|!])", re.DOTALL)


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


def _read_run(folder: Path, needed: Sequence[str] = ("metrics.csv",)) -> dict[str, Any]:
    """Read how a run ended, its configuration and, if it is done, its final metrics.

    A run one of whose files `needed` is damaged has failed, whatever its status says.
    """
    place = folder.absolute()
    status = read_status(folder) or Status("failed")
    for name in ("config.yaml", *needed) if status.done else ():
        found = find_corruption(folder / name) if (folder / name).exists() else ""
        if found and status.done:
            status = replace(status, state="failed", error=f"{name} can't be read ({found})")
    row: dict[str, Any] = {"study": place.parent.name, "run_id": place.name}
    row |= asdict(status) | _configuration(folder) | _environment(folder)
    if status.done:
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            *_, final = csv.DictReader(file)
        row |= {name: float(cell or "nan") for name, cell in final.items() if name not in COUNTERS}
    return row


def _table(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    """Make a frame of runs, its columns in order."""
    import pandas as pd

    ended = (field.name for field in fields(Status))
    columns = ["study", "run_id", *ended, *CONFIG_COLUMNS, *ENVIRONMENT]
    table = pd.DataFrame(rows)
    table = table.reindex(columns=[*columns, *(c for c in table if c not in columns)])
    # A summary of an older version, or a row in it, has none of what was added since.
    said = {name: table[name].astype(object).fillna(usual) for name, usual in ADDED.items()}
    return table.assign(**said).astype({name: type(usual) for name, usual in ADDED.items()})


def _configuration(folder: Path) -> dict[str, Any]:
    """Read the configuration columns of a run; empty where its config.yaml is damaged."""
    try:
        config = RunConfig.model_validate(read_yaml(folder / "config.yaml"))
    except (BenchError, ValueError):
        return {}
    return config.settings | {"leak": config.label.leak}


def _environment(folder: Path) -> dict[str, Any]:
    """Read what a run's numbers depend on beside its configuration; empty where it is damaged."""
    try:
        content = json.loads((folder / "env.json").read_text(encoding="utf-8"))
        return {"torch": content["packages"]["torch"], "cpu_capability": content["cpu_capability"]}
    except (OSError, ValueError, TypeError, LookupError):
        return dict.fromkeys(ENVIRONMENT)


def _configuration_columns() -> Iterator[str]:
    for name in RunConfig.model_fields:
        yield name
        if name == "act":
            yield "leak"


def _stack(frames: list["pd.DataFrame"]) -> "pd.DataFrame":
    import pandas as pd

    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


CONFIG_COLUMNS = tuple(_configuration_columns())

#: What a run's numbers depend on beside its configuration; `compare` tells where it is mixed.
ENVIRONMENT = ("torch", "cpu_capability")

#: Columns of metrics.csv that tell where a row stands, and are no result.
COUNTERS = ("lr", "task")
