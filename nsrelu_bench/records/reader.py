"""Read runs as frames, from their folders or from the summaries of their studies. No torch.

`load` reads every file of every run; `load_runs` only the runs that summary.csv does not cover.
"""

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nsrelu_bench.files import read_bytes, shortest_ends
from nsrelu_bench.records.environment import ENVIRONMENT
from nsrelu_bench.records.folders import require_studies
from nsrelu_bench.records.frames import (
    CONFIG_COLUMNS,
    Row,
    complete,
    make_printable,
    runs_frame,
    with_plain_types,
)
from nsrelu_bench.records.schema import CONFIG
from nsrelu_bench.records.status import DONE
from nsrelu_bench.records.summary import study_runs
from nsrelu_bench.records.summary_rows import read_run, unreadable_run
from nsrelu_bench.text import printable

if TYPE_CHECKING:
    import pandas as pd

    Tables = dict[str, pd.DataFrame]

#: The CSV files that `load` reads; runs of older versions have no quantiles.csv.
FRAME_FILES = ("metrics.csv", "layers.csv", "quantiles.csv")


@dataclass(frozen=True)
class Results:
    """Runs as frames; each row has the `study`, the `run_id` and the settings.

    Attributes:
        runs: One row per run, as in summary.csv: how it ended, its settings, and the metrics
            after its last epoch (empty for diverged runs).
        metrics: The rows of metrics.csv of every done run; `lr` is the rate of the epoch.
        layers: Those of layers.csv.
        quantiles: Those of quantiles.csv: the pre-activations of each site after the last epoch.
        config_columns: The names of the settings.
    """

    runs: "pd.DataFrame"
    metrics: "pd.DataFrame"
    layers: "pd.DataFrame"
    quantiles: "pd.DataFrame"
    config_columns: list[str]


def load(*paths: str | Path, without: Collection[Path] = ()) -> Results:
    """Read all runs in run folders, studies or folders of studies, `without` some run folders.

    A study without run folders, as in findings/, has only the `runs` of its summary.

    Studies of the same name in several folders are one study, unless they have different results of
    a run. Then their folders become part of their names: "a/study" and "b/study".

    Raises:
        BenchError: There is no run, or a study without run folders has a damaged summary.
    """
    import pandas as pd

    rows: list[Row] = []
    tables: dict[tuple[str, str], Tables] = {}
    studies = [found for path in paths for found in require_studies(Path(path)).items()]
    folders = {folder.resolve(): folder for _, found in studies for folder in found}
    summaries = {study.resolve() for study, found in studies if not found}
    left_out = {folder.resolve() for folder in without}
    for folder in (folders[place] for place in folders if place not in left_out):
        try:
            row = read_run(folder, FRAME_FILES)
            found = _read_tables(folder) if row["state"] in DONE else {}
        except OSError as error:
            row, found = unreadable_run(folder, error), {}
        place = str(folder.absolute().parent.resolve())
        rows.append(row | {"place": place})
        tables[place, row["run_id"]] = found
    parts = [runs_frame(rows)]
    parts += [study_runs(study, []).assign(place=str(study)) for study in sorted(summaries)]
    parts = [part for part in parts if len(part)] or parts[:1]
    runs = with_plain_types(complete(pd.concat(parts, ignore_index=True)))
    runs = _merge_places(runs)
    chosen = [tables.get(key, {}) for key in zip(runs.pop("place"), runs["run_id"], strict=True)]
    metrics, layers, quantiles = (_stack(runs, chosen, name) for name in FRAME_FILES)
    return Results(runs, metrics, layers, quantiles, list(CONFIG_COLUMNS))


def load_runs(*paths: str | Path, without: Collection[Path] = ()) -> "pd.DataFrame":
    """Read the `runs` of `load`, from the summaries of the studies if these are up to date.

    Other summaries are updated if they can be written. A study without run folders, as in
    findings/, has the runs of its summary.

    Raises:
        BenchError: There is no run, or a study without run folders has a damaged summary.
    """
    import pandas as pd

    parts: list[pd.DataFrame] = []
    for path in map(Path, paths):
        if (path / CONFIG).exists():
            place = path.absolute().parent.resolve()
            parts.append(_single_run(path).assign(place=str(place)))
            continue
        for study, folders in require_studies(path).items():
            parts.append(study_runs(study, folders).assign(place=str(study.resolve())))
    runs = pd.concat(parts, ignore_index=True).drop_duplicates(["place", "run_id"])
    left_out = {(str(folder.parent.resolve()), folder.name) for folder in without}
    places = zip(runs["place"], runs["run_id"], strict=True)
    runs = runs[[place not in left_out for place in places]]
    runs = with_plain_types(complete(_merge_places(runs).drop(columns="place")))
    return runs.copy()  # in few blocks: choosing rows of it takes a tenth of the time


def _merge_places(runs: "pd.DataFrame") -> "pd.DataFrame":
    """Keep each run of a study once; the column `place` is the folder of the study."""
    identity = ["study", "run_id"]
    if runs.duplicated(identity).any():
        runs = runs.assign(study=_name_apart(runs))
        unfinished = (~runs["state"].isin(DONE)).sort_values(kind="stable").index
        runs = runs.loc[unfinished].drop_duplicates(identity).sort_index()
    return runs.reset_index(drop=True)


def _name_apart(runs: "pd.DataFrame") -> "pd.Series[str]":
    """Return the studies' names, with their folders if their results contradict each other."""
    results = runs[runs["state"].isin(DONE)]
    given = [*CONFIG_COLUMNS, *ENVIRONMENT, "classes", "place"]
    results = results.drop(columns=given, errors="ignore").drop_duplicates()
    clashes = results.loc[results.duplicated(["study", "run_id"]), "study"].unique()
    names = runs["study"].copy()
    for study in clashes:
        places = runs.loc[runs["study"] == study, "place"]
        paths = [Path(place) for place in places.unique()]
        ends = [printable(end.as_posix()) for end in shortest_ends(paths)]
        names.loc[places.index] = places.map(dict(zip(places.unique(), ends, strict=True)))
    return names


def _single_run(folder: Path) -> "pd.DataFrame":
    try:
        row = read_run(folder)
    except OSError as error:
        row = unreadable_run(folder, error)
    return runs_frame([row])


def _read_tables(folder: Path) -> "Tables":
    """Read the CSV files of a run; names of layers stay text, even if they look like numbers."""
    import pandas as pd

    tables = {}
    for name in FRAME_FILES:
        if (folder / name).exists():
            text = io.StringIO(read_bytes(folder / name).decode())
            table = pd.read_csv(text, dtype={"layer": "str"}, keep_default_na=False, na_values=[""])
            tables[name] = make_printable(table)
    return tables


def _stack(runs: "pd.DataFrame", tables: Sequence["Tables"], name: str) -> "pd.DataFrame":
    """Concatenate the tables of one name, at most one per run, and add the settings of each run.

    A column that both have, such as `lr`, is taken from the table.
    """
    import pandas as pd

    rows = [number for number, files in enumerate(tables) if name in files]
    if not rows:
        return pd.DataFrame()
    parts = [tables[number][name] for number in rows]
    stacked = pd.concat(parts, ignore_index=True)
    lengths = [len(part) for part in parts]
    known = runs.iloc[[row for row, n in zip(rows, lengths, strict=True) for _ in range(n)]]
    known = known.reset_index(drop=True)
    settings = known[[column for column in CONFIG_COLUMNS if column not in stacked]]
    return pd.concat([known[["study", "run_id"]], stacked, settings], axis=1)
