"""Keep a run once that is in several folders."""

from pathlib import Path
from typing import TYPE_CHECKING

from nsrelu_bench.files import shortest_ends
from nsrelu_bench.records.environment import ENVIRONMENT
from nsrelu_bench.records.frames import CONFIG_COLUMNS
from nsrelu_bench.records.status import DONE
from nsrelu_bench.text import printable

if TYPE_CHECKING:
    import pandas as pd


def merge_places(runs: "pd.DataFrame") -> "pd.DataFrame":
    """Keep each run of a study once, in an order that does not depend on the folders.

    Where studies of the same name have different results of a run, all are kept, and their names
    get their folders: "a/study" and "b/study".

    Args:
        runs: One row per run and folder of a study, whose path is the column `place`; this column
            is removed.
    """
    identity = ["study", "run_id"]
    if runs.duplicated(identity).any():
        runs = runs.assign(study=_name_apart(runs))
        unfinished = (~runs["state"].isin(DONE)).sort_values(kind="stable").index
        runs = runs.loc[unfinished].drop_duplicates(identity).sort_index()
    return runs.drop(columns="place").reset_index(drop=True)


def _name_apart(runs: "pd.DataFrame") -> "pd.Series[str]":
    """Return the names of the studies, longer ones where a name has contradicting results."""
    results = runs[runs["state"].isin(DONE)]
    given = [*CONFIG_COLUMNS, *ENVIRONMENT, "place", "number"]
    results = results.drop(columns=given, errors="ignore").drop_duplicates()
    clashes = results.loc[results.duplicated(["study", "run_id"]), "study"].unique()
    names = runs["study"].copy()
    for study in clashes:
        places = runs.loc[runs["study"] == study, "place"]
        paths = [Path(place) for place in places.unique()]
        ends = [printable(end.as_posix()) for end in shortest_ends(paths)]
        names.loc[places.index] = places.map(dict(zip(places.unique(), ends, strict=True)))
    return names
