"""Read a run folder as a row of summary.csv."""

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from nsrelu_bench.config import parse_settings, run_config
from nsrelu_bench.errors import UsageError, error_reason
from nsrelu_bench.files import read_bytes
from nsrelu_bench.records.corruption import find_corruption
from nsrelu_bench.records.environment import environment_columns, read_environment
from nsrelu_bench.records.frames import COUNTERS, Row
from nsrelu_bench.records.schema import CONFIG, STATUS
from nsrelu_bench.records.status import CHANGED, Status, parse_status, read_status
from nsrelu_bench.text import printable


def fingerprint(folder: Path) -> str:
    """Return a hash of the content of status.json and env.json; equal if a row is up to date.

    The hash of timing.csv does not count, so the same run always gives the same fingerprint. Empty,
    which means unknown, if status.json is missing or damaged, and for a running run: if its process
    is killed, it ends without changing a file.

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


def read_run(
    folder: Path, needed: Sequence[str] = ("metrics.csv",), mark: str | None = None
) -> Row:
    """Return how a run ended, its configuration and, if it is done, its final metrics.

    If its configuration or one of the files `needed` is damaged, the run has failed, whatever its
    status says. With a `mark`, its fingerprint taken just before, the row has one too.

    Raises:
        OSError: A file exists and can't be read.
    """
    status = read_status(folder, strict=True)
    if status.state == "new":
        status = Status("failed", error="it was removed")
    configuration, problem = _configuration(folder)
    if status.done:
        for name in (CONFIG, *needed):
            if name != CONFIG and (folder / name).exists():
                problem = find_corruption(folder / name)
            if problem:
                status = replace(status, state="failed", error=f"{name} can't be read ({problem})")
                break
    row = _names(folder) | asdict(status) | configuration | _environment(folder)
    if status.done:
        lines = read_bytes(folder / "metrics.csv").decode().splitlines()
        cells = zip(*csv.reader((lines[0], lines[-1])), strict=True)
        row |= {name: float(cell or "nan") for name, cell in cells if name not in COUNTERS}
    if mark is not None:
        # Damage may be repaired, which changes neither status.json nor env.json.
        is_damaged = bool(problem) or CHANGED in (status.error or "")
        row["fingerprint"] = "" if is_damaged else mark
    return row


def unreadable_run(folder: Path, error: OSError) -> Row:
    """Return the row of a run whose files can't be read at the moment."""
    status = Status("failed", error=f"its files can't be read ({error_reason(error)})")
    return _names(folder) | asdict(status)


def _names(folder: Path) -> Row:
    place = folder.absolute()
    return {"study": printable(place.parent.name), "run_id": printable(place.name)}


def _configuration(folder: Path) -> tuple[Row, str]:
    """Return the configuration columns of a run, and what is wrong with its config.yaml."""
    try:
        config = run_config(parse_settings(read_bytes(folder / CONFIG), CONFIG))
    except FileNotFoundError:
        return {}, ""
    except UsageError as error:
        return {}, error_reason(error).removeprefix(f"{CONFIG}: ")
    settings = config.settings | {"leak": config.activation.leak}
    return {k: printable(v) if isinstance(v, str) else v for k, v in settings.items()}, ""


def _environment(folder: Path) -> dict[str, str | int | None]:
    return environment_columns(read_environment(folder))
