"""Runs as frames, from their folders or from the summaries of their studies. No torch.

`load` reads every file of every run; `load_runs` only the runs that summary.csv does not cover.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nsrelu_bench.files import read_bytes
from nsrelu_bench.records.folders import find_runs, find_studies, no_runs
from nsrelu_bench.records.frames import CONFIG_COLUMNS, Row, complete, runs_frame
from nsrelu_bench.records.rows import read_run, unreadable_run
from nsrelu_bench.records.schema import CONFIG
from nsrelu_bench.records.status import DONE
from nsrelu_bench.records.summary import study_runs

if TYPE_CHECKING:
    import pandas as pd

#: The CSV files that `load` reads; runs of older versions have no quantiles.csv.
FILES = ("metrics.csv", "layers.csv", "quantiles.csv")


@dataclass(frozen=True)
class Results:
    """Runs as frames.

    Attributes:
        runs: One row per run, as in summary.csv: `study`, `run_id`, how it ended, its
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
    runs: list[Row] = []
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in FILES}
    folders = {folder.resolve(): folder for path in paths for folder in find_runs(Path(path))}
    for folder in folders.values():
        try:
            run = read_run(folder, FILES)
            tables = _read_tables(folder) if run["state"] in DONE else {}
        except OSError as error:
            run, tables = unreadable_run(folder, error), {}
        runs.append(run)
        for name, table in tables.items():
            frames[name].append(table.assign(study=run["study"], run_id=run["run_id"]))
    metrics, layers, quantiles = (_stack(frames[name]) for name in FILES)
    table = runs_frame(runs).drop(columns="fingerprint", errors="ignore")
    return Results(table, metrics, layers, quantiles, list(CONFIG_COLUMNS))


def load_runs(*paths: str | Path) -> "pd.DataFrame":
    """Read what `load` gives as `runs`, using the summaries of the studies where they are current.

    Summaries that are out of date are updated where they can be written. A study without run
    folders, as in findings/, is what its summary says.

    Raises:
        BenchError: There is no run, or a study without run folders has a damaged summary.
    """
    parts: list[pd.DataFrame] = []
    for path in map(Path, paths):
        if (path / CONFIG).exists():
            parts.append(_place(_single_run(path), path.absolute().parent))
            continue
        studies = find_studies(path)
        if not studies:
            raise no_runs(path)
        parts += [_place(study_runs(study, runs), study) for study, runs in studies.items()]
    table = _stack(parts).drop_duplicates(["place", "run_id"], ignore_index=True)
    return complete(table).drop(columns="place")


def _single_run(folder: Path) -> "pd.DataFrame":
    try:
        row = read_run(folder)
    except OSError as error:
        row = unreadable_run(folder, error)
    return runs_frame([row]).drop(columns="fingerprint", errors="ignore")


def _place(runs: "pd.DataFrame", study: Path) -> "pd.DataFrame":
    return runs.assign(place=str(study.resolve()))


def _read_tables(folder: Path) -> dict[str, "pd.DataFrame"]:
    """Read the CSV files of a run; names of layers are text, even if they look like numbers."""
    import pandas as pd

    tables = {}
    for name in FILES:
        if (folder / name).exists():
            text = io.StringIO(read_bytes(folder / name).decode())
            tables[name] = pd.read_csv(
                text, dtype={"layer": "str"}, keep_default_na=False, na_values=[""]
            )
    return tables


def _stack(frames: Sequence["pd.DataFrame"]) -> "pd.DataFrame":
    import pandas as pd

    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
