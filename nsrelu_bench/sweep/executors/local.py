"""Runs in processes on this machine."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from pathlib import Path

from nsrelu_bench.config import RunConfig
from nsrelu_bench.records import (
    write_status,
)
from nsrelu_bench.sweep.execution import POLL_S, Event, RunPolicy, execute_job, group_into_jobs

#: How long a worker without a run may take to end.
GRACE_S = 3.0


def in_turn(runs: Sequence[RunConfig], study: Path, policy: RunPolicy) -> Iterator[Event]:
    """Run in this process, one job after another."""
    waiting = deque(group_into_jobs(runs))
    looked: dict[str, float] = {}
    while waiting:
        job = waiting.popleft()
        time.sleep(max(0.0, looked.get(job[0].run_id, 0.0) + POLL_S - time.monotonic()))
        for event in execute_job(job, study, policy):
            if event.elsewhere:
                looked[event.config.run_id] = time.monotonic()
                waiting.append([event.config])
            yield event


class _Worker:
    """A process that makes one job after another, and the connection to it.

    `left` are the runs of its job that have not ended, by their ids.
    """

    def __init__(self, context: SpawnContext, study: Path, policy: RunPolicy) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, study, policy), daemon=True)
        with _signals_held():
            self.process.start()
        theirs.close()
        self.left: dict[str, RunConfig] = {}

    def begin(self, job: list[RunConfig]) -> None:
        self.left = {config.run_id: config for config in job}
        # A process that is gone is found when it is waited for.
        with suppress(OSError):
            self.connection.send(job)

    def receive(self) -> Event | None:
        """Take the next event; None if the process is gone."""
        try:
            event: Event = self.connection.recv()
        except (EOFError, OSError):
            return None
        if event.status.state != "running" or event.elsewhere:
            del self.left[event.config.run_id]
        return event

    def ask_to_end(self) -> None:
        """Let the process end by itself, or at once if it has a run."""
        self.connection.close()
        if self.left:
            self.process.kill()

    def end(self) -> int | None:
        """Wait for the process to end, and kill it if it does not; returns its exit code."""
        self.process.join(GRACE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def pooled(
    workers: int, runs: Sequence[RunConfig], study: Path, policy: RunPolicy
) -> Iterator[Event]:
    """Run on a pool of worker processes."""
    waiting = deque(group_into_jobs(runs))
    workers = min(workers, len(waiting))
    context = multiprocessing.get_context("spawn")
    crew = [_Worker(context, study, policy) for _ in range(workers)]
    later: deque[tuple[float, RunConfig]] = deque()  # runs that are made elsewhere
    try:
        while waiting or later or any(worker.left for worker in crew):
            due = []
            while later and later[0][0] <= time.monotonic():
                due.append(later.popleft()[1])
            waiting.extend(group_into_jobs(due))
            for index, worker in enumerate(crew):
                if not worker.left and waiting:
                    if not worker.process.is_alive():
                        crew[index] = worker = _Worker(context, study, policy)
                    worker.begin(waiting.popleft())
            busy = [worker for worker in crew if worker.left]
            pause = max(0.0, later[0][0] - time.monotonic()) if later else None
            ready = wait([worker.connection for worker in busy], pause)
            for worker in [worker for worker in busy if worker.connection in ready]:
                event = worker.receive()
                if event is None:  # killed, or out of memory
                    error = f"its process ended with exit code {worker.end()}"
                    lost, worker.left = worker.left, {}
                    for config in lost.values():
                        yield Event(config, write_status(study / config.run_id, "failed", error))
                    continue
                if event.elsewhere:
                    later.append((time.monotonic() + POLL_S, event.config))
                yield event
    finally:
        for worker in crew:
            worker.ask_to_end()
        for worker in crew:
            worker.end()
            for run_id in worker.left:
                write_status(study / run_id, "interrupted")


def _work(connection: Connection, study: Path, policy: RunPolicy) -> None:
    """Make the jobs that come over the connection until it is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job: list[RunConfig] = connection.recv()
        except EOFError:
            return
        for event in execute_job(job, study, policy):
            connection.send(event)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Start a process that the signals which end a study do not reach: this one ends it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
