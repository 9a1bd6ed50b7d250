"""Decide which runs of a study are due, and have them computed. No torch here.

`run_all` hands jobs to an `Executor`, which computes them and reports; all decisions are made here:
what to run, what to retry, what to wait for. Nothing depends on the order in which runs end, since
each has its own folder.
"""

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nsrelu_bench.config import RunConfig
from nsrelu_bench.files import wrap_write_errors
from nsrelu_bench.records import (
    Status,
    check_configuration,
    check_inputs,
    read_status,
    write_status,
)
from nsrelu_bench.sweep.execution import DEFAULT_POLICY, Event, Job, RunPolicy, group_into_jobs
from nsrelu_bench.sweep.executors import POLL_S, Executor, Lost


def plan_runs(
    runs: Sequence[RunConfig], study: Path, policy: RunPolicy = DEFAULT_POLICY
) -> Iterator[tuple[RunConfig, Status, bool]]:
    """Yield each run with its status and whether it is due.

    Raises:
        BenchError: A run that is kept has another configuration, or had other data or sources.
    """
    for config in runs:
        folder = study / config.run_id
        status = read_status(folder)
        due = status.state in policy.retry if policy.retry else (policy.fresh or not status.done)
        if due and status.done:
            due = policy.starts_over(folder)
        if status.done and not due:
            check_configuration(folder, config)
            check_inputs(folder, config)
        yield config, status, due


def run_all(
    runs: Sequence[RunConfig],
    study: Path,
    *,
    workers: int = 0,
    policy: RunPolicy = DEFAULT_POLICY,
    executor: Executor | None = None,
) -> Generator[Event, None, None]:
    """Run all that is due, each run in its folder below `study`; yield an event per epoch and end.

    A run that is not due has one event; it is "new" only if it never ran and is not among those to
    retry. The last event comes when all have ended, including those that another process runs.
    Closing the iterator kills the runs that are running, and marks them interrupted.

    Args:
        runs: What to run.
        study: The study's folder.
        workers: Number of processes; 0 runs one after another in this process.
        policy: How to run.
        executor: Computes the runs instead of processes on this machine.

    Raises:
        BenchError: The study's folder can't be written, or the executor can't compute the runs.
    """
    with wrap_write_errors(study):
        study.mkdir(parents=True, exist_ok=True)
    due = []
    for config, status, is_due in plan_runs(runs, study, policy):
        if is_due:
            due.append(config)
        else:
            yield Event(config, status, kept=True)
    if not due:
        return
    if executor is None:
        from nsrelu_bench.sweep.executors.local import InProcess, ProcessPool

        executor = ProcessPool(workers) if workers else InProcess()
    yield from _schedule(due, study, policy, executor)


def _schedule(
    runs: Sequence[RunConfig], study: Path, policy: RunPolicy, executor: Executor
) -> Iterator[Event]:
    """Submit jobs as there is room; postpone those that run elsewhere or were lost."""
    waiting = deque(group_into_jobs(runs))
    put_off: list[tuple[float, Job]] = []
    under_way: dict[str, RunConfig] = {}
    try:
        executor.start(study, policy, runs)
        while waiting or put_off or under_way:
            now = time.monotonic()
            waiting.extend(_regroup([job for when, job in put_off if when <= now]))
            put_off = [(when, job) for when, job in put_off if when > now]
            for _ in range(min(executor.room(), len(waiting))):
                job = waiting.popleft()
                under_way |= {config.run_id: config for config in job.runs}
                executor.submit(job)
            next_due = min((when for when, _ in put_off), default=None)
            timeout_s = None if next_due is None else max(0.0, next_due - time.monotonic())
            for report in executor.wait(timeout_s):
                if not isinstance(report, Lost):
                    if report.elsewhere:
                        put_off.append((time.monotonic() + POLL_S, Job((report.config,))))
                    if report.elsewhere or report.ended:
                        del under_way[report.config.run_id]
                    yield report
                elif report.job.attempt < executor.attempts:
                    again = replace(report.job, attempt=report.job.attempt + 1)
                    put_off.append((time.monotonic() + 2.0**report.job.attempt, again))
                else:
                    for config in report.job.runs:
                        del under_way[config.run_id]
                        status = write_status(study / config.run_id, "failed", report.reason)
                        yield Event(config, status)
    finally:
        executor.stop()
        for config in under_way.values():
            write_status(study / config.run_id, "interrupted")


def _regroup(jobs: Sequence[Job]) -> Iterator[Job]:
    """Put the seeds of an ensemble that were running elsewhere back into one job."""
    yield from (job for job in jobs if job.attempt > 1)
    yield from group_into_jobs([run for job in jobs if job.attempt == 1 for run in job.runs])
