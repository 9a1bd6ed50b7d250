"""Merge the runs of one study from several folders into one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout

from nsrelu_bench.errors import BenchError
from nsrelu_bench.files import DRAFT, read_bytes, replace_file, wrap_read_errors, wrap_write_errors
from nsrelu_bench.records.folders import find_runs
from nsrelu_bench.records.schema import CONFIG, MAX_CHECKPOINT_BYTES, STATUS, STUDY
from nsrelu_bench.records.status import Status, parse_status, read_status, run_lock
from nsrelu_bench.records.summary import write_summary


@dataclass
class Merged:
    """The ids of runs that `merge_studies` copied, that were there, and that it left out."""

    copied: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Candidate:
    folder: Path
    status: Status
    metrics: str  # the SHA-256 of metrics.csv; empty unless the run is done
    lines: int  # of metrics.csv unless the run is done: a killed run's status has no epoch


def merge_studies(sources: Sequence[Path], target: Path) -> Merged:
    """Copy the runs of several folders into one study, which may be one of them.

    Runs that are still running are left out. If several folders have a run, the one that got
    furthest is copied. Nothing is copied if two folders have different results of a run. An
    interrupted merge can be repeated.

    Raises:
        BenchError: A folder has no runs, results differ, or the target can't be written.
    """
    there = find_runs(target) if target.is_dir() and any(target.glob(f"*/{CONFIG}")) else []
    folders = [*there, *(folder for source in sources for folder in find_runs(source))]
    candidates: dict[str, list[_Candidate]] = {}
    merged = Merged()
    for folder in {folder.resolve(): folder for folder in folders}.values():
        candidate = _examine(folder)
        if candidate.status.state == "running":
            merged.running.append(folder.name)
        else:
            candidates.setdefault(folder.name, []).append(candidate)
    best = {run_id: _choose(found) for run_id, found in sorted(candidates.items())}
    with wrap_write_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for run_id, chosen in best.items():
            place = target / run_id
            if chosen.folder.resolve() == place.resolve():
                merged.kept.append(run_id)
            else:
                _copy_run(chosen.folder, place)
                merged.copied.append(run_id)
        _copy_study(sources, target)
    write_summary(target)
    return merged


def study_name(sources: Sequence[Path]) -> str | None:
    """Return the name of the folders of a study; None if they have different names."""
    names = {find_runs(source)[0].absolute().parent.name for source in sources}
    return names.pop() if len(names) == 1 else None


def _examine(folder: Path) -> _Candidate:
    with wrap_read_errors(folder):
        status = read_status(folder, strict=True)
        if status.done:
            hashes = parse_status(read_bytes(folder / STATUS))[1]
            return _Candidate(folder, status, hashes.get("metrics.csv", ""), 0)
        metrics = folder / "metrics.csv"
        lines = read_bytes(metrics).count(b"\n") if metrics.exists() else 0
        return _Candidate(folder, status, "", lines)


def _choose(candidates: Sequence[_Candidate]) -> _Candidate:
    """Return the candidate that got furthest, the first among equals."""
    best = max(candidates, key=lambda one: (one.status.done, one.lines))
    for other in candidates:
        if other.status.done and other.metrics != best.metrics:
            raise BenchError(
                f"{other.folder} and {best.folder} are results of one run, and differ;"
                " leave one of them out"
            )
    return best


def _copy_run(source: Path, target: Path) -> None:
    """Copy the files of a run, its status last, so that an incomplete copy counts as unfinished."""
    target.mkdir(exist_ok=True)
    try:
        lock = run_lock(target).acquire()
    except Timeout:
        raise BenchError(f"{target}: running in another process") from None
    with lock:
        for path in sorted(target.iterdir()):
            if path.name != ".lock" and path.is_file():
                path.unlink()
        files = [path for path in source.iterdir() if path.is_file() and path.name != ".lock"]
        for path in sorted(files, key=lambda path: (path.name == STATUS, path.name)):
            if not DRAFT.search(path.name):
                replace_file(target / path.name, read_bytes(path, MAX_CHECKPOINT_BYTES))


def _copy_study(sources: Sequence[Path], target: Path) -> None:
    """Copy study.yaml if the folders agree on it and the target has none."""
    places = {find_runs(source)[0].parent / STUDY for source in sources}
    texts = {read_bytes(place) for place in places if place.is_file()}
    if len(texts) == 1 and not (target / STUDY).exists():
        replace_file(target / STUDY, texts.pop())
