"""Many runs: those that are done are kept, the others go to a pool of processes. No torch here.

`run_all` yields an event whenever a run begins, ends an epoch or ends; nothing is decided by the
order in which runs end, since each has a folder of its own. A worker can be killed at any moment:
that is how a study is ended, too.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from pathlib import Path
from traceback import format_exc
from typing import TYPE_CHECKING, Any

from nsrelu_bench.config import RunConfig
from nsrelu_bench.errors import UsageError
from nsrelu_bench.records import (
    DONE,
    STATES,
    RunDoneError,
    RunLockedError,
    RunWriter,
    Status,
    failed,
    mark,
    read_status,
    writing,
)

if TYPE_CHECKING:
    from nsrelu_bench.train import Epoch

#: How often to look again after a run that another process is making.
LOOK_S = 0.5
#: How many seeds are trained as one: each keeps its files open.
MAX_STACK = 64
#: How long a worker without a run may take to end.
GRACE_S = 3.0


@dataclass(frozen=True)
class Event:
    """How a run stands now; `metrics` is its newest row of metrics.csv, where there is one.

    `kept`: it was done before, or is being made by another process (state running).
    """

    config: RunConfig
    status: Status
    metrics: dict[str, Any] = field(default_factory=dict)
    kept: bool = False
    traceback: str | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether another process is making the run."""
        return self.kept and not self.status.done


@dataclass(frozen=True)
class Manner:
    """How runs are made: what does not change their numbers.

    Attributes:
        fresh: Do runs again that are done.
        retry: Do only the runs that ended in these states.
        checkpoint_after: Seconds after which a run that goes on keeps a checkpoint.
    """

    fresh: bool = False
    retry: Collection[str] = ()
    checkpoint_after: float = 10.0

    def __post_init__(self) -> None:
        for state in self.retry:
            if state not in STATES:
                allowed = ", ".join(STATES)
                raise UsageError(f"--retry: must be one of {allowed}, got {state!r}")

    @property
    def anew(self) -> bool:
        """Whether runs that are done are made again, from their first step."""
        return self.fresh or any(state in DONE for state in self.retry)


USUAL = Manner()

#: Makes runs, each into its folder below a study's, in its own way.
Engine = Callable[[Sequence[RunConfig], Path, Manner], Iterator[Event]]


def standing(
    runs: Sequence[RunConfig], study: Path, manner: Manner = USUAL
) -> Iterator[tuple[RunConfig, Status | None, bool]]:
    """Tell of each run how it stands, None where it never began, and whether it is to be made."""
    for config in runs:
        status = read_status(study / config.run_id)
        if manner.retry:
            due = status is not None and status.state in manner.retry
        else:
            due = manner.fresh or status is None or not status.done
        yield config, status, due


def run_all(
    runs: Sequence[RunConfig],
    study: Path,
    *,
    workers: int = 0,
    manner: Manner = USUAL,
    engine: Engine | None = None,
) -> Generator[Event, None, None]:
    """Run all that is not done yet, each into its folder below `study`.

    Closing the iterator ends the runs that are under way as interrupted. Runs that another
    process is making are waited for.

    Args:
        runs: What to run.
        study: The study's folder.
        workers: How many processes run at once; 0: in this process, one run after the other.
        manner: How.
        engine: What makes the runs instead, such as `on_ray`.

    Raises:
        BenchError: The study's folder can't be written.
    """
    with writing(study):
        study.mkdir(parents=True, exist_ok=True)
    left = []
    for config, status, due in standing(runs, study, manner):
        if due:
            left.append(config)
        elif status is not None:
            yield Event(config, status, kept=True)
    if engine is None:
        engine = partial(_pooled, workers) if workers else _in_turn
    yield from engine(left, study, manner)


def jobs(runs: Sequence[RunConfig]) -> Iterator[list[RunConfig]]:
    """Tell which runs are made together: the seeds of a stack, `MAX_STACK` at most."""
    stacks: dict[RunConfig, list[RunConfig]] = {}
    for config in runs:
        if config.stack:
            stacks.setdefault(config.model_copy(update={"seed": 0}), []).append(config)
        else:
            yield [config]
    for stack in stacks.values():
        for first in range(0, len(stack), MAX_STACK):
            yield stack[first : first + MAX_STACK]


def _in_turn(runs: Sequence[RunConfig], study: Path, manner: Manner) -> Iterator[Event]:
    waiting = deque(jobs(runs))
    looked: dict[str, float] = {}
    while waiting:
        job = waiting.popleft()
        time.sleep(max(0.0, looked.get(job[0].run_id, 0.0) + LOOK_S - time.monotonic()))
        for event in _execute_job(job, study, manner):
            if event.elsewhere:
                looked[event.config.run_id] = time.monotonic()
                waiting.append([event.config])
            yield event


def _execute_job(job: Sequence[RunConfig], study: Path, manner: Manner) -> Iterator[Event]:
    """Make the runs of a job in step: all have ended an epoch before any begins the next."""
    if len(job) == 1:
        yield from execute(job[0], study / job[0].run_id, manner)
        return
    from nsrelu_bench.train import Together

    train = Together().run
    with ExitStack() as ending:
        under_way = [
            ending.enter_context(closing(execute(config, study / config.run_id, manner, train)))
            for config in job
        ]
        while under_way:
            events = [(run, next(run, None)) for run in under_way]
            under_way = [run for run, event in events if event is not None]
            yield from (event for _, event in events if event is not None)


def execute(
    config: RunConfig,
    folder: Path,
    manner: Manner = USUAL,
    train: Callable[..., "Iterator[Epoch]"] | None = None,
) -> Generator[Event, None, None]:
    """Make one run and write it down; yields an event an epoch, and one at the end.

    An error ends the run as failed, and no other. A run that another process is making, or has
    just made, is left to it.

    Args:
        config: The run.
        folder: Its own.
        manner: How.
        train: What trains it instead of `train.run`; called before the first event.
    """
    metrics: dict[str, Any] = {}
    writer = RunWriter(folder, config, fresh=manner.anew, checkpoint_after=manner.checkpoint_after)
    try:
        with writer:
            from nsrelu_bench.train import run

            epochs = (train or run)(config, writer.checkpoint)
            yield Event(config, writer.status)
            for epoch in epochs:
                writer.append(epoch)
                metrics = epoch.metrics
                if writer.status.state == "running":
                    yield Event(config, writer.status, metrics)
    except RunLockedError:
        yield Event(config, Status("running"), kept=True)
    except RunDoneError as done:
        yield Event(config, done.status, kept=True)
    except Exception as error:
        yield Event(config, failed(writer.status, error), metrics, traceback=format_exc())
    else:
        yield Event(config, writer.status, metrics)


class _Worker:
    """A process that makes one job after another, and the connection to it.

    `left` are the runs of its job that have not ended, by their ids.
    """

    def __init__(self, context: SpawnContext, study: Path, manner: Manner) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, study, manner), daemon=True)
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


def _pooled(
    workers: int, runs: Sequence[RunConfig], study: Path, manner: Manner
) -> Iterator[Event]:
    waiting = deque(jobs(runs))
    workers = min(workers, len(waiting))
    context = multiprocessing.get_context("spawn")
    crew = [_Worker(context, study, manner) for _ in range(workers)]
    later: deque[tuple[float, RunConfig]] = deque()  # runs that are made elsewhere
    try:
        while waiting or later or any(worker.left for worker in crew):
            due = []
            while later and later[0][0] <= time.monotonic():
                due.append(later.popleft()[1])
            waiting.extend(jobs(due))
            for index, worker in enumerate(crew):
                if not worker.left and waiting:
                    if not worker.process.is_alive():
                        crew[index] = worker = _Worker(context, study, manner)
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
                        yield Event(config, mark(study / config.run_id, "failed", error))
                    continue
                if event.elsewhere:
                    later.append((time.monotonic() + LOOK_S, event.config))
                yield event
    finally:
        for worker in crew:
            worker.ask_to_end()
        for worker in crew:
            worker.end()
            for run_id in worker.left:
                mark(study / run_id, "interrupted")


def _work(connection: Connection, study: Path, manner: Manner) -> None:
    """Make the jobs that come over the connection until it is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job: list[RunConfig] = connection.recv()
        except EOFError:
            return
        for event in _execute_job(job, study, manner):
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
