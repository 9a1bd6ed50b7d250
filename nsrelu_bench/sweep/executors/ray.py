"""Compute jobs on Ray: one task per run, on this machine or on a cluster.

The study's process submits the runs. A task writes its run's folder if all nodes share the results;
with `collect` it sends the files back instead.
"""

import functools
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nsrelu_bench.config import RunConfig
from nsrelu_bench.errors import BenchError, UsageError, describe_error
from nsrelu_bench.files import held_draft, remove_drafts, replace_file, wrap_write_errors
from nsrelu_bench.records import RunDoneError, RunLockedError, Status, failed, read_status
from nsrelu_bench.sweep.execution import Event, Job, RunPolicy, execute_run
from nsrelu_bench.sweep.executors import POLL_S, Executor, Lost
from nsrelu_bench.sweep.executors.ray_connection import connected, reach

#: Seconds that a cancelled task may take to end before it is killed, and then to be gone.
CANCEL_S = 1.5


@dataclass(frozen=True)
class _Order:
    """What a task needs to run like the study's process."""

    config: RunConfig
    run_id: str
    study: Path
    marker: Path | None  # a file that a node sees if it shares the results; None: collect
    policy: RunPolicy
    working_dir: Path
    command: list[str]


@dataclass(eq=False)
class _Task:
    """A job that Ray has."""

    job: Job
    stream: Any
    lock: FileLock | None

    @property
    def config(self) -> RunConfig:
        return self.job.runs[0]


class RayExecutor(Executor):
    """Computes runs as tasks of Ray.

    Args:
        address: The cluster that this machine is a node of, as host:port; None: a new Ray on this
            machine that ends with the study.
        collect: The nodes share no results folder: send the files here.
        gpus: The share of a GPU that a run on cuda takes; 1 if not given.

    Raises:
        UsageError: The share of a GPU is out of range.
    """

    attempts = 4

    def __init__(
        self, *, address: str | None = None, collect: bool = False, gpus: float | None = None
    ) -> None:
        if gpus is not None and not 0 < gpus <= 1:
            raise UsageError(f"--gpus-per-run: must be above 0 and at most 1, got {gpus:g}")
        self._address, self._collect, self._gpus = address, collect, gpus
        self._resources = ExitStack()
        self._tasks: dict[Any, _Task] = {}  # by stream
        self._reports: list[Event | Lost] = []

    def start(self, study: Path, policy: RunPolicy, runs: Sequence[RunConfig]) -> None:
        """Connect to Ray.

        Raises:
            BenchError: Ray is not installed, can't be reached, or has no node for the runs.
            UsageError: The address is malformed, or the runs are an ensemble.
        """
        if any(config.stack for config in runs):
            raise UsageError("stack: Ray runs each seed by itself; leave out stack or --engine ray")
        loopback = self._address is None or reach(self._address)
        self._study, self._policy = study.resolve(), policy
        with self._resources as resources:
            self._ray = resources.enter_context(connected(self._address, loopback=loopback))
            self._marker = resources.enter_context(_marked(study, collect=self._collect))
            # Ray's own retries would repeat the events of a run from the first.
            self._remote = self._ray.remote(max_retries=0)(_run_task)
            self._find_room(runs)
            self._resources = resources.pop_all()

    def room(self) -> int:
        """Return how many more runs to submit: more than Ray can compute, so that no core waits."""
        cores = int(self._ray.cluster_resources().get("CPU", 0))
        return max(0, 2 + 2 * cores - len(self._tasks))

    def submit(self, job: Job) -> None:
        """Hand a run to Ray, unless it is done or run elsewhere."""
        (config,) = job.runs
        lock = None
        if self._marker is None:
            try:
                lock = _claim(self._study / config.run_id, self._policy)
            except RunLockedError:
                self._reports.append(Event(config, Status("running"), elsewhere=True))
                return
            except RunDoneError as done:
                self._reports.append(Event(config, done.status, kept=True))
                return
        place = self._study, self._marker, self._policy, Path.cwd(), sys.argv
        order = _Order(config, config.run_id, *place)
        needs = self.needs(config)
        remote = self._remote.options(num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0))
        stream = remote.remote(order)
        self._tasks[stream] = _Task(job, stream, lock)

    def wait(self, timeout_s: float | None) -> list[Event | Lost]:
        """Return an event of each run that has one."""
        reports, self._reports = self._reports, []
        if reports:
            return reports
        pause_s = POLL_S if timeout_s is None else min(timeout_s, POLL_S)
        streams = list(self._tasks)
        if not streams:
            time.sleep(pause_s)
            return []
        self._ray.wait(streams, timeout=pause_s)
        # That returns only the first of them: the last one would have to wait for all others.
        ready, _ = self._ray.wait(streams, num_returns=len(streams), timeout=0)
        return [self._receive(self._tasks[stream]) for stream in ready]

    def _receive(self, task: _Task) -> Event | Lost:
        errors = self._ray.exceptions
        event: Event
        files: dict[str, str]
        try:
            event, files = self._ray.get(next(task.stream))
        except errors.RayTaskError as error:
            raise BenchError(f"engine ray: {describe_error(error.cause)}") from error
        except (StopIteration, errors.RayError) as error:
            self._forget(task)
            times = f"{self.attempts} times ({describe_error(error)})"
            return Lost(task.job, f"its process or its node was lost {times}")
        if task.lock is not None and event.ended:
            try:
                _write_files(self._study / task.config.run_id, files)
            except BenchError as error:
                event = Event(task.config, failed(event.status, error))
        if event.ended or event.elsewhere:
            self._forget(task)
        return event

    def _forget(self, task: _Task) -> None:
        self._tasks.pop(task.stream, None)
        if task.lock is not None:
            task.lock.release()

    def stop(self) -> None:
        """Cancel the runs, kill those that do not end, and disconnect from Ray."""
        with self._resources:
            tasks = list(self._tasks.values())
            left = [task.stream.completed() for task in tasks]
            for force in (False, True):
                if left:
                    for task in tasks:
                        self._ray.cancel(task.stream, force=force)
                    left = self._ray.wait(left, num_returns=len(left), timeout=CANCEL_S)[1]
            for task in tasks:
                self._forget(task)

    def needs(self, config: RunConfig) -> dict[str, float]:
        """Return what a run takes of a node, in Ray's names."""
        gpu = {"GPU": self._gpus or 1.0} if config.device == "cuda" else {}
        return {"CPU": float(config.threads), **gpu}

    def _find_room(self, runs: Sequence[RunConfig]) -> None:
        """Refuse a run that no node has room for: Ray would wait for one without end."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        for config in runs:
            needs = self.needs(config)
            if not any(all(node.get(k, 0) >= n for k, n in needs.items()) for node in nodes):
                has = "; ".join(_amounts({k: node.get(k, 0) for k in needs}) for node in nodes)
                raise BenchError(
                    f"{config.run_id}: needs a node with {_amounts(needs)}; there is {has}"
                )


@contextmanager
def _marked(study: Path, *, collect: bool) -> Iterator[Path | None]:
    """Put a file into the study's folder by which a node can check that it sees this folder."""
    if collect:
        yield None
        return
    with ExitStack() as stack:
        with wrap_write_errors(study):
            remove_drafts(study, "ray")
            marker = stack.enter_context(held_draft(study.resolve() / "ray"))
        yield marker


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _claim(folder: Path, policy: RunPolicy) -> FileLock:
    """Lock the folder of a run that this process will write.

    Raises:
        RunLockedError: Another process is running it.
        RunDoneError: It is done, and the policy does not rerun it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    with wrap_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise RunLockedError(f"{folder}: running in another process") from None
    status = read_status(folder)
    if status.done and not policy.starts_over(folder):
        lock.release()
        raise RunDoneError(status)
    return lock


def _write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files of a run that a node has sent, its status last."""
    with wrap_write_errors(folder):
        if files:
            # A status with the hashes of other files must not outlive them.
            (folder / "status.json").unlink(missing_ok=True)
        for name in sorted(files, key="status.json".__eq__):
            replace_file(folder / name, files[name])


def _run_task(order: _Order) -> Iterator[tuple[Event, dict[str, str]]]:
    """Run on a node; with the last event come the run's files if they are not shared."""
    _check_node(order)
    _end_with_node()
    sys.argv = order.command
    if order.working_dir.is_dir():
        os.chdir(order.working_dir)
    if order.marker is not None:
        for event in execute_run(order.config, order.study / order.run_id, order.policy):
            yield event, {}
        return
    with tempfile.TemporaryDirectory(prefix="nsrelu-bench-") as scratch:
        folder = Path(scratch) / order.run_id
        for event in execute_run(order.config, folder, order.policy):
            yield event, {} if event.status.state == "running" else _files(folder)


def _check_node(order: _Order) -> None:
    here = socket.gethostname()
    if order.config.run_id != order.run_id:
        raise BenchError(
            f"node {here} has another version of nsrelu-bench: its numbers would be others"
        )
    if order.marker is not None and not order.marker.exists():
        raise BenchError(
            f"node {here} does not see {order.study}: share that folder, or give --collect"
        )


@functools.cache
def _end_with_node() -> None:
    """End this process soon after its node's process; Ray takes half a minute."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _files(folder: Path) -> dict[str, str]:
    """Read the files of a run, without its checkpoint."""
    return {
        path.name: path.read_bytes().decode()
        for path in folder.iterdir()
        if path.suffix in (".yaml", ".json", ".csv")
    }
