"""Run many: which are due, what computes them, and their progress. No torch."""

from nsrelu_bench.sweep.execution import (
    Event,
    RunPolicy,
    execute_run,
    group_into_jobs,
)
from nsrelu_bench.sweep.executors import Executor
from nsrelu_bench.sweep.scheduler import plan_runs, run_all

__all__ = [
    "Event",
    "Executor",
    "RunPolicy",
    "execute_run",
    "group_into_jobs",
    "plan_runs",
    "run_all",
]
