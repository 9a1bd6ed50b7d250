"""What a run leaves on disk, and how it is read back. No torch."""

from nsrelu_bench.records.describe import describe_run
from nsrelu_bench.records.environment import (
    ENVIRONMENT,
    began_before,
    environment,
    read_environment,
)
from nsrelu_bench.records.export import export
from nsrelu_bench.records.folders import NoRunsError, find_drawable, find_runs, find_studies
from nsrelu_bench.records.frames import CONFIG_COLUMNS, KNOWN_COLUMNS, find_mixed, to_csv
from nsrelu_bench.records.leftover_runs import find_leftovers, remove_runs
from nsrelu_bench.records.merge import merge_studies, study_name
from nsrelu_bench.records.reader import Results, load, load_runs
from nsrelu_bench.records.same_run import check_configuration, check_inputs
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
    "KNOWN_COLUMNS",
    "STATES",
    "NoRunsError",
    "Results",
    "RunDoneError",
    "RunLockedError",
    "RunWriter",
    "Status",
    "began_before",
    "check_configuration",
    "check_inputs",
    "describe_run",
    "environment",
    "export",
    "failed",
    "find_drawable",
    "find_leftovers",
    "find_mixed",
    "find_runs",
    "find_studies",
    "load",
    "load_runs",
    "merge_studies",
    "read_environment",
    "read_status",
    "remove_runs",
    "save_study",
    "study_name",
    "to_csv",
    "write_status",
    "write_summary",
]
