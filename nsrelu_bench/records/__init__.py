"""What a run leaves on disk, and how it is read back. No torch."""

from nsrelu_bench.records.environment import ENVIRONMENT, environment
from nsrelu_bench.records.folders import find_drawable, find_runs
from nsrelu_bench.records.frames import CONFIG_COLUMNS, to_csv
from nsrelu_bench.records.reader import Results, load, load_runs
from nsrelu_bench.records.status import (
    DONE,
    STATES,
    RunDoneError,
    RunLockedError,
    Status,
    failed,
    read_status,
    write_status,
)
from nsrelu_bench.records.summary import write_summary
from nsrelu_bench.records.writer import RunWriter, save_study

__all__ = [
    "CONFIG_COLUMNS",
    "DONE",
    "ENVIRONMENT",
    "STATES",
    "Results",
    "RunDoneError",
    "RunLockedError",
    "RunWriter",
    "Status",
    "environment",
    "failed",
    "find_drawable",
    "find_runs",
    "load",
    "load_runs",
    "read_status",
    "save_study",
    "to_csv",
    "write_status",
    "write_summary",
]
