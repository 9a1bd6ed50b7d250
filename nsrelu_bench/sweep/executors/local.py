"""Compute jobs in this process, or in processes on this machine."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from pathlib import Path
from types import ModuleType

from nsrelu_bench.config import RunConfig
from nsrelu_bench.sweep.execution import Event, Job, RunPolicy, execute_job, group_into_jobs
from nsrelu_bench.sweep.executors import Executor, Lost

#: Seconds that a worker without a job may take to end.
GRACE_S = 3.0


class InProcess(Executor):
    """Computes one job after another in this process."""

    def start(self, study: Path, policy: RunPolicy, runs: Sequence[RunConfig]) -> None:  # noqa: ARG002
        """Remember where and how to run."""
        self._study, self._policy = study, policy
        self._events: Iterator[Event] | None = None

    def room(self) -> int:
        """Return 1 between two jobs."""
        return int(self._events is None)

    def submit(self, job: Job) -> None:
        """Take the job; `wait` computes it."""
        self._events = execute_job(job, self._study, self._policy)

    def wait(self, timeout_s: float | None) -> list[Event | Lost]:
        """Compute until the next event."""
        if self._events is None:
            time.sleep(timeout_s or 0.0)
            return []
        event = next(self._events, None)
        if event is None:
            self._events = None
            return []
        return [event]

    def stop(self) -> None:
        """End the job as interrupted."""
        if self._events is not None:
            self._events.close()  # type: ignore[attr-defined]
            self._events = None


class ProcessPool(Executor):
    """Computes jobs in at most so many worker processes, one at a time in each.

    A worker can be killed at any moment: that is how a study ends, too.
    """

    def __init__(self, workers: int) -> None:
        self._size = workers

    def start(self, study: Path, policy: RunPolicy, runs: Sequence[RunConfig]) -> None:
        """Start the workers, no more than there can be jobs."""
        self._workers: list[_Worker] = []
        self._study, self._policy = study, policy
        self._context = multiprocessing.get_context("spawn")
        for _ in range(min(self._size, len(list(group_into_jobs(runs))))):
            self._workers.append(_Worker(self._context, study, policy))

    def room(self) -> int:
        """Return the number of workers without a job."""
        return sum(not worker.running for worker in self._workers)

    def submit(self, job: Job) -> None:
        """Give the job to a worker without one; a dead worker is replaced."""
        index = next(i for i, worker in enumerate(self._workers) if not worker.running)
        if not self._workers[index].process.is_alive():
            self._workers[index].end()
            self._workers[index] = _Worker(self._context, self._study, self._policy)
        self._workers[index].begin(job)

    def wait(self, timeout_s: float | None) -> list[Event | Lost]:
        """Return an event of each worker that has one."""
        busy = {worker.connection: worker for worker in self._workers if worker.running}
        if not busy:
            time.sleep(timeout_s or 0.0)
            return []
        return [busy[ready].receive() for ready in wait(list(busy), timeout_s)]  # type: ignore[index]

    def stop(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.ask_to_end()
        for worker in self._workers:
            worker.end()


class _Worker:
    """A process that computes one job after another, and the connection to it."""

    def __init__(self, context: SpawnContext, study: Path, policy: RunPolicy) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, study, policy), daemon=True)
        with _signals_held(), _clean_start():
            self.process.start()
        theirs.close()
        self.running: dict[str, RunConfig] = {}  # of its job, what has not ended, by run id

    def begin(self, job: Job) -> None:
        """Send a job."""
        self._job = job
        self.running = {config.run_id: config for config in job.runs}
        with suppress(OSError):  # a process that is gone is found by `receive`
            self.connection.send(job)

    def receive(self) -> Event | Lost:
        """Take the next event; `Lost` if the process is gone."""
        try:
            event: Event = self.connection.recv()
        except (EOFError, OSError):
            reason = f"its process ended with exit code {self.end()}"
            unfinished, self.running = tuple(self.running.values()), {}
            return Lost(Job(unfinished, self._job.attempt), reason)
        if event.ended or event.elsewhere:
            del self.running[event.config.run_id]
        return event

    def ask_to_end(self) -> None:
        """Ask the process to end; kill it if it has a job."""
        self.connection.close()
        if self.running:
            self.process.kill()

    def end(self) -> int | None:
        """Wait for the process to end, kill it if it does not, and return its exit code."""
        self.process.join(GRACE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def _work(connection: Connection, study: Path, policy: RunPolicy) -> None:
    """Compute the jobs that come over the connection until it is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        for event in execute_job(job, study, policy):
            connection.send(event)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, for whatever reason."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Start a process with the signals that end a study blocked: this process ends it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Now, as it lets SIGINT and SIGTERM through when it starts, which is with the first worker.
    resource_tracker.ensure_running()
    ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _clean_start() -> Iterator[None]:
    """Start a process that runs none of the user's code before it works.

    A spawned process imports the script that started it, which fails if that has no
    ``if __name__ == "__main__"`` or came from standard input; and it finds modules in the working
    folder first, where a types.py would hide Python's own.
    """
    main, safe_path = sys.modules["__main__"], os.environ.get("PYTHONSAFEPATH")
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if safe_path is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = safe_path
