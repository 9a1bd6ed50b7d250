"""Find runs and studies on disk."""

from contextlib import suppress
from pathlib import Path

from nsrelu_bench.errors import BenchError
from nsrelu_bench.files import find_broken_link
from nsrelu_bench.records.schema import CONFIG, STUDY, SUMMARY


class NoRunsError(BenchError):
    """A folder has no runs."""


def find_runs(path: Path) -> list[Path]:
    """Return the run folders that a path is, has, or has one level deeper, sorted.

    Raises:
        NoRunsError: There is no run.
    """
    for depth in ("", "*/", "*/*/"):
        found = sorted(file.parent for file in path.glob(f"{depth}{CONFIG}"))
        if found:
            return found
    raise _no_runs(path)


def find_drawable(path: Path) -> list[Path]:
    """Return what can be drawn: the path itself if it is a run, otherwise the studies there.

    Raises:
        NoRunsError: There is no run.
    """
    return [path] if (path / CONFIG).exists() else list(require_studies(path))


def find_studies(path: Path) -> dict[Path, list[Path]]:
    """Return the run folders of each study at or in a path; a study may have only a summary."""
    summaries = sorted([*path.glob(SUMMARY), *path.glob(f"*/{SUMMARY}")])
    studies: dict[Path, list[Path]] = {file.parent: [] for file in summaries}
    with suppress(NoRunsError):
        for folder in find_runs(path):
            studies.setdefault(folder.parent, []).append(folder)
    return studies


def require_studies(path: Path) -> dict[Path, list[Path]]:
    """Return what `find_studies` does.

    Raises:
        NoRunsError: There is no study.
    """
    studies = find_studies(path)
    if not studies:
        raise _no_runs(path)
    return studies


def _no_runs(path: Path) -> NoRunsError:
    for name in (SUMMARY, STUDY):
        if (path / name).exists():
            return NoRunsError(
                f"{str(path)!r} has a {name} but no run folders; run its sweep to create them"
            )
    missing = "" if path.is_dir() else f" ({find_broken_link(path) or 'there is no such folder'})"
    return NoRunsError(f"no runs in {str(path)!r}{missing}; create one with nsrelu-bench train")
