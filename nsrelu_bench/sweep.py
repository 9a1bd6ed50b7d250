"""Many runs: those that are done are kept, the others go to a pool of processes. No torch here.

`run_all` yields an event whenever a run begins, ends an epoch or ends; nothing is decided by the
order in which runs end, since each has a folder of its own.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from pathlib import Path
from traceback import format_exc
from typing import Any

from nsrelu_bench.config import RunConfig
from nsrelu_bench.records import RunWriter, Status, failed, mark, read_status, writing

#: How long a worker may take to end its run as interrupted before it is killed.
GRACE_S = 3.0


@dataclass(frozen=True)
class Event:
    """How a run stands now; `metrics` is its newest row of metrics.csv, where there is one."""

    config: RunConfig
    status: Status
    metrics: dict[str, Any] = field(default_factory=dict)
    kept: bool = False
    traceback: str | None = None


def run_all(
    runs: Sequence[RunConfig], study: Path, *, workers: int = 1, fresh: bool = False
) -> Generator[Event, None, None]:
    """Run all that is not done yet, each into its folder below `study`.

    With one worker the runs are made in this process. Closing the iterator ends the runs that
    are under way as interrupted.

    Args:
        runs: What to run.
        study: The study's folder.
        workers: How many processes run at once.
        fresh: Do runs again that are done.

    Raises:
        BenchError: The study's folder can't be written.
    """
    with writing(study):
        study.mkdir(parents=True, exist_ok=True)
    left = []
    for config in runs:
        status = None if fresh else read_status(study / config.run_id)
        if status is not None and status.done:
            yield Event(config, status, kept=True)
        else:
            left.append(config)
    workers = min(workers, len(left))
    yield from _pooled(left, study, workers) if workers > 1 else _in_turn(left, study)


def _in_turn(runs: Sequence[RunConfig], study: Path) -> Iterator[Event]:
    for config in runs:
        yield from execute(config, study / config.run_id)


def execute(config: RunConfig, folder: Path) -> Iterator[Event]:
    """Make one run and write it down; yields an event an epoch, and one at the end.

    An error ends the run as failed, and no other.
    """
    metrics: dict[str, Any] = {}
    writer = RunWriter(folder, config)
    try:
        with writer:
            yield Event(config, writer.status)
            from nsrelu_bench.train import run

            for epoch in run(config):
                writer.append(epoch)
                metrics = epoch.metrics
                if writer.status.state == "running":
                    yield Event(config, writer.status, metrics)
    except Exception as error:
        yield Event(config, failed(writer.status, error), metrics, traceback=format_exc())
    else:
        yield Event(config, writer.status, metrics)


class _Worker:
    """A process that makes one run after another, and the connection to it."""

    def __init__(self, context: SpawnContext, study: Path) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, study), daemon=True)
        with _interrupts_ignored():
            self.process.start()
        theirs.close()
        self.config: RunConfig | None = None

    def begin(self, config: RunConfig) -> None:
        self.config = config
        self.connection.send(config)

    def receive(self) -> Event | None:
        """Take the next event; None if the process is gone."""
        try:
            event: Event = self.connection.recv()
        except (EOFError, OSError):
            return None
        if event.status.state != "running":
            self.config = None
        return event

    def ask_to_end(self) -> None:
        """Ask the process to end: at once if it is idle, else after it has noted its run."""
        self.connection.close()
        if self.config is not None:
            self.process.terminate()

    def end(self) -> int | None:
        """Wait for the process to end, and kill it if it does not; returns its exit code."""
        self.process.join(GRACE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def _pooled(runs: Sequence[RunConfig], study: Path, workers: int) -> Iterator[Event]:
    context = multiprocessing.get_context("spawn")
    waiting = deque(runs)
    crew = [_Worker(context, study) for _ in range(workers)]
    try:
        while waiting or any(worker.config for worker in crew):
            for worker in crew:
                if worker.config is None and waiting:
                    worker.begin(waiting.popleft())
            busy = [worker for worker in crew if worker.config]
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                config = worker.config
                event = worker.receive()
                if event is None and config is not None:  # killed, or out of memory
                    worker.ask_to_end()
                    error = f"its process ended with exit code {worker.end()}"
                    event = Event(config, mark(study / config.run_id, "failed", error))
                    crew[crew.index(worker)] = _Worker(context, study)
                if event is not None:
                    yield event
    finally:
        for worker in crew:
            worker.ask_to_end()
        for worker in crew:
            worker.end()
            if worker.config is not None:
                mark(study / worker.config.run_id, "interrupted")


def _work(connection: Connection, study: Path) -> None:
    """Make the runs that come over the connection until it is closed."""
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            config: RunConfig = connection.recv()
        except EOFError:
            return
        for event in execute(config, study / config.run_id):
            connection.send(event)


def _leave(number: int, _: object) -> None:
    """End in good order on a signal, and only once."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Start a process that Ctrl-C does not reach: this process ends it in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
