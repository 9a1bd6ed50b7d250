"""summary.csv: one row per run of a study, derived from its run folders.

A row is up to date as long as its fingerprint is that of the run's status.json and env.json. Runs
that can't be read at the moment are reported, but not recorded.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nsrelu_bench.errors import BenchError
from nsrelu_bench.files import read_bytes, replace_file, wrap_read_errors, wrap_write_errors
from nsrelu_bench.records.folders import find_runs
from nsrelu_bench.records.frames import (
    CONFIG_COLUMNS,
    Row,
    complete,
    read_csv,
    runs_frame,
    to_csv,
    with_plain_types,
)
from nsrelu_bench.records.schema import CHECKPOINT, SUMMARY
from nsrelu_bench.records.status import DONE, run_lock
from nsrelu_bench.records.summary_rows import fingerprint, read_run, unreadable_run
from nsrelu_bench.text import printable

if TYPE_CHECKING:
    import pandas as pd


def write_summary(study: Path) -> "pd.DataFrame":
    """Update a study's summary.csv from its run folders; return its rows.

    Raises:
        BenchError: There is no run, or the summary can't be written.
    """
    folders = find_runs(study)
    known, _ = _known_rows(study)
    current, unreadable = _current_rows(study, folders, known)
    with wrap_write_errors(study / SUMMARY):
        _save(study, current, known, unreadable)
    _remove_checkpoints(study, current)
    return with_plain_types(_all_rows(current, unreadable))


def study_runs(study: Path, folders: Sequence[Path]) -> "pd.DataFrame":
    """Return one row per run of a study, reading only the runs that summary.csv does not cover.

    The summary is updated if it can be written, unless it would lose the rows of runs whose folders
    are elsewhere. A study without run folders has the runs of its summary.

    Raises:
        BenchError: There are no run folders, and the summary can't be read.
    """
    if not folders:
        return _read_summary(study, ("act", "seed")).drop(columns="fingerprint", errors="ignore")
    known, lost = _known_rows(study)
    current, unreadable = _current_rows(study, folders, known)
    all_here = {*known["run_id"]} <= {printable(folder.name) for folder in folders}
    if all_here and not lost:
        with suppress(OSError):
            _save(study, current, known, unreadable)
    return _all_rows(current, unreadable)


def _current_rows(
    study: Path, folders: Sequence[Path], known: "pd.DataFrame"
) -> tuple["pd.DataFrame", list[Row]]:
    """Return the rows of the runs that can be read, and those of the others."""
    import pandas as pd

    marks = dict(zip(known["run_id"], known["fingerprint"], strict=True))
    kept: set[str] = set()
    read: list[Row] = []
    unreadable: list[Row] = []
    for folder in folders:
        name = printable(folder.name)
        try:
            if (mark := fingerprint(folder)) and marks.get(name) == mark:
                kept.add(name)
            else:
                read.append(read_run(folder, mark=mark))
        except OSError as error:
            unreadable.append(unreadable_run(folder, error))
    parts = [known[known["run_id"].isin(kept)]] if kept else []
    if read or not kept:
        parts.append(runs_frame(read))
    table = complete(pd.concat(parts))
    table["study"] = printable(study.absolute().name)
    return table.sort_values("run_id", ignore_index=True), unreadable


def _save(
    study: Path, current: "pd.DataFrame", known: "pd.DataFrame", unreadable: Sequence[Row]
) -> None:
    """Write the current rows, and the known rows of runs that can't be read now."""
    import pandas as pd

    before = known[known["run_id"].isin([row["run_id"] for row in unreadable])]
    table = pd.concat([current, before]) if len(before) else current
    if table.equals(known):
        return
    replace_file(study / SUMMARY, to_csv(table.sort_values("run_id")))


def _remove_checkpoints(study: Path, runs: "pd.DataFrame") -> None:
    """Remove the checkpoints of done runs that were killed before they could remove them."""
    for run_id in runs.loc[runs["state"].isin(DONE), "run_id"]:
        path = study / str(run_id) / CHECKPOINT
        if path.exists():
            with suppress(OSError), run_lock(path.parent):  # a Timeout is an OSError
                path.unlink(missing_ok=True)


def _all_rows(current: "pd.DataFrame", unreadable: Sequence[Row]) -> "pd.DataFrame":
    """Return the rows to show; runs that can't be read are failed."""
    import pandas as pd

    parts = [current, runs_frame(unreadable)] if unreadable else [current]
    table = complete(pd.concat(parts)).sort_values("run_id", ignore_index=True)
    return table.drop(columns="fingerprint", errors="ignore")


def _known_rows(study: Path) -> tuple["pd.DataFrame", bool]:
    """Return the rows of the summary, and whether it exists but can't be read at the moment.

    There are no rows without a summary of this version.
    """
    import pandas as pd

    try:
        return _read_summary(study, ("fingerprint", *CONFIG_COLUMNS)), False
    except BenchError as error:
        lost = isinstance(error.__cause__, OSError) and (study / SUMMARY).is_file()
    return pd.DataFrame(columns=["run_id", "fingerprint"], dtype="str"), lost


def _read_summary(study: Path, needed: Iterable[str]) -> "pd.DataFrame":
    """Read a study's summary.csv; one of an older version may lack columns.

    Raises:
        BenchError: It can't be read, is cut off, or lacks columns.
    """
    path = study / SUMMARY
    with wrap_read_errors(path):
        text = read_bytes(path).decode()
        table = read_csv(text)
    missing = [name for name in ("run_id", "state", *needed) if name not in table]
    if missing or not text.endswith("\n"):
        raise BenchError(f"{path}: " + (f"has no {missing[0]}" if missing else "is cut off"))
    return complete(table.assign(study=printable(path.absolute().parent.name)))
