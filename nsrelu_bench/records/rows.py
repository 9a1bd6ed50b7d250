"""One run folder as a row of summary.csv."""

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nsrelu_bench.config import parse_settings, run_config
from nsrelu_bench.errors import error_reason
from nsrelu_bench.files import read_bytes
from nsrelu_bench.records.corruption import find_corruption
from nsrelu_bench.records.environment import environment_columns, read_environment
from nsrelu_bench.records.frames import COUNTERS, Row
from nsrelu_bench.records.schema import CONFIG, STATUS
from nsrelu_bench.records.status import Status, parse_status, read_status
from nsrelu_bench.text import printable


def fingerprint(folder: Path) -> str:
    """Return a hash of what status.json and env.json say; a row with the same one is up to date.

    Hashes of files that measure time are left out: the same run gives the same fingerprint. It is
    empty, and then means nothing, where status.json is missing or damaged, and for a running
    run, which ends without changing a file when its process is killed.

    Raises:
        OSError: A file exists and can't be read.
    """
    try:
        status, hashes = parse_status(read_bytes(folder / STATUS))
    except (FileNotFoundError, ValueError):
        return ""
    if status.state == "running":
        return ""
    hashes.pop("timing.csv", None)
    content = [asdict(status), hashes, _environment(folder)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_run(folder: Path, needed: Sequence[str] = ("metrics.csv",)) -> Row:
    """Return how a run ended, its configuration and, if it is done, its final metrics.

    A run has failed if one of its files `needed` is damaged, whatever its status says.

    Raises:
        OSError: A file exists and can't be read.
    """
    mark = fingerprint(folder)  # before the rest, so that what changes meanwhile is noticed
    status = read_status(folder, strict=True) or Status("failed", error="it was removed")
    if status.done:
        for name in (CONFIG, *needed):
            problem = find_corruption(folder / name) if (folder / name).exists() else ""
            if problem:
                status = replace(status, state="failed", error=f"{name} can't be read ({problem})")
                break
    row = _names(folder) | asdict(status) | _configuration(folder) | _environment(folder)
    if status.done:
        text = read_bytes(folder / "metrics.csv").decode()
        *_, final = csv.DictReader(io.StringIO(text, newline=""))
        row |= {name: float(cell or "nan") for name, cell in final.items() if name not in COUNTERS}
    return row | {"fingerprint": mark if _is_trusted(folder, status) else ""}


def unreadable_run(folder: Path, error: OSError) -> Row:
    """Return the row of a run whose files can't be read at the moment."""
    status = Status("failed", error=f"its files can't be read ({error_reason(error)})")
    return _names(folder) | asdict(status)


def _names(folder: Path) -> Row:
    place = folder.absolute()
    return {"study": printable(place.parent.name), "run_id": printable(place.name)}


def _is_trusted(folder: Path, status: Status) -> bool:
    """Return whether the state is the one that status.json records, and not due to damage."""
    try:
        recorded, _ = parse_status(read_bytes(folder / STATUS))
    except (OSError, ValueError):
        return False
    return recorded.state == status.state


def _configuration(folder: Path) -> dict[str, Any]:
    """Return the configuration columns of a run; empty where its config.yaml is damaged."""
    try:
        config = run_config(parse_settings(read_bytes(folder / CONFIG), CONFIG))
    except (FileNotFoundError, ValueError):
        return {}
    settings = config.settings | {"leak": config.activation.leak}
    return {k: printable(v) if isinstance(v, str) else v for k, v in settings.items()}


def _environment(folder: Path) -> dict[str, str | None]:
    return environment_columns(read_environment(folder))
