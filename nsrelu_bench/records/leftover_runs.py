"""Find and remove runs in a study's folder that its study.yaml no longer asks for."""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from nsrelu_bench.config import make_study, read_settings
from nsrelu_bench.errors import UsageError
from nsrelu_bench.files import wrap_write_errors
from nsrelu_bench.records.folders import NoRunsError, find_studies
from nsrelu_bench.records.schema import CONFIG, STUDY
from nsrelu_bench.records.status import read_status
from nsrelu_bench.records.summary import write_summary


def find_leftovers(*paths: Path) -> list[Path]:
    """Return the run folders that the studies at or in some folders do not ask for.

    If a study.yaml can't be read, or asks for none of the runs, they come from elsewhere and are
    not leftovers. A run folder among `paths` is never one.
    """
    found: list[Path] = []
    for path in paths:
        if (path / CONFIG).exists():
            continue
        for study, folders in find_studies(path).items():
            asked = _asked_ids(study)
            if asked & {folder.name for folder in folders}:
                found += [folder for folder in folders if folder.name not in asked]
    return found


def _asked_ids(study: Path) -> set[str]:
    if not (study / STUDY).exists():
        return set()
    settings = read_settings(study / STUDY)
    try:
        return {run.run_id for run in make_study(settings, study.name, strict=False).runs}
    except UsageError:
        return set()


def remove_runs(folders: Iterable[Path]) -> list[Path]:
    """Remove run folders and their rows in summary.csv; return those removed.

    Runs that are still running stay.

    Raises:
        BenchError: A folder can't be removed.
    """
    removed = []
    for folder in folders:
        if read_status(folder).state == "running":
            continue
        with wrap_write_errors(folder):
            shutil.rmtree(folder)
        removed.append(folder)
    for study in {folder.parent for folder in removed}:
        with suppress(NoRunsError):  # none is left
            write_summary(study)
    return removed
