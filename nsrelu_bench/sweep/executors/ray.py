"""A study on Ray: a task a run, on this machine or on a cluster. Ray is imported here alone.

The study's process hands out the runs and does those again whose node was lost. A task writes its
run's folder where all nodes share the results; with `collect` it sends the files back instead.
"""

import functools
import importlib
import ipaddress
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nsrelu_bench.config import RunConfig
from nsrelu_bench.errors import BenchError, UsageError, describe_error, error_reason
from nsrelu_bench.files import replace_file, wrap_write_errors
from nsrelu_bench.records import (
    RunDoneError,
    RunLockedError,
    Status,
    failed,
    read_status,
    write_status,
)
from nsrelu_bench.sweep.execution import DEFAULT_POLICY, POLL_S, Event, RunPolicy, execute_run

#: How often a run is begun whose node or process is lost each time.
ATTEMPTS = 4
#: How long to wait for the cluster's port to answer.
CONNECT_S = 5.0
#: How long a task may take to end by itself before its process is killed, and then to be gone.
GRACE_S = 1.5

#: What Ray is told by its environment; what the user set stands.
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # to connect: one takes up to 40 s, and Ray's own is 20
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns of what it will do some day
}
HINT = "put the cluster's into ~/.ray/auth_token, RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
#: Ray's least, in bytes: a run's files are small.
OBJECT_STORE = 80 * 2**20


@dataclass(frozen=True)
class _Order:
    """What a task needs to make a run as the study's process would."""

    config: RunConfig
    run_id: str
    study: Path
    marker: Path | None  # a file that a node sees if it shares the results; None: collect
    policy: RunPolicy
    working_dir: Path
    command: list[str]


@dataclass(eq=False)
class _Job:
    """A run in the hands of the study's process, and its task while it has one."""

    config: RunConfig
    attempt: int = 1
    stream: Any = None
    lock: FileLock | None = None
    begun: bool = False


class _UnfitError(BenchError):
    """A node can't make the study's runs; another run would fare no better there."""


def on_ray(
    runs: Sequence[RunConfig],
    study: Path,
    policy: RunPolicy = DEFAULT_POLICY,
    *,
    address: str | None = None,
    collect: bool = False,
    gpus: float | None = None,
) -> Generator[Event, None, None]:
    """Make runs on Ray, each into its folder below `study`; an engine of `run_all`.

    Closing the iterator cancels the runs that are under way and marks them interrupted.

    Args:
        runs: What to run.
        study: The study's folder.
        policy: How.
        address: Of a cluster that this machine is a node of, as host:port; None: a Ray of its
            own, on this machine alone, that goes with the study.
        collect: The nodes share no results folder: bring the files here.
        gpus: What part of a GPU a run on cuda takes; 1 if not told.

    Raises:
        BenchError: Ray is not installed, can't be reached, or has no node fit for the runs.
        UsageError: The address or the part of a GPU makes no sense.
    """
    if gpus is not None and not 0 < gpus <= 1:
        raise UsageError(f"--gpus-per-run: must be above 0 and at most 1, got {gpus:g}")
    if any(config.stack for config in runs):
        raise UsageError("stack: Ray makes each run by itself; leave it out, or --engine ray")
    if not runs:
        return
    loopback = address is None or _reach(address)
    with _connected(address, loopback=loopback) as ray, _marked(study, collect=collect) as marker:
        # Ray's own retries would go through the events of a run again from the first.
        task = ray.remote(max_retries=0)(_make)
        cluster = _Cluster(ray, task, study.resolve(), marker, policy, gpus)
        cluster.find_room(runs)
        yield from _make_all(cluster, runs)


def _reach(address: str) -> bool:
    """Find out quickly that something answers at an address; tell whether it is on loopback."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--address: must be host:port of the head node, got {address!r}")
    try:
        with socket.create_connection((host, int(port)), CONNECT_S) as connection:
            peer = connection.getpeername()[0]
    except OSError as error:
        reason = error_reason(error)
        raise BenchError(f"--address: no Ray cluster answers at {address} ({reason})") from error
    return ipaddress.ip_address(peer.partition("%")[0]).is_loopback


@contextmanager
def _connected(address: str | None, *, loopback: bool) -> Iterator[Any]:
    """Import Ray, and connect to a cluster or start a Ray of this process' own."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if loopback:
        # Or Ray takes the address of another interface in its place.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    options: dict[str, Any] = {"address": address}
    with ExitStack() as stack:
        if address is None:
            # Nobody else is to use this Ray: its token is a secret of its own processes.
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            # Ray leaves its logs behind; these go with it.
            logs = tempfile.TemporaryDirectory(
                prefix="ray-", dir=_short_folder(), ignore_cleanup_errors=True
            )
            options = {
                "address": "local",
                "num_cpus": _cores(),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE,
                "_temp_dir": stack.enter_context(logs),
            }
        try:
            ray = importlib.import_module("ray")
        except ImportError as error:
            raise BenchError(
                "engine ray needs ray, which is not installed; pip install 'nsrelu-bench[ray]'"
            ) from error
        stack.callback(ray.shutdown)
        # log_to_driver is not all: Ray prints what it has to say of a lost node to stdout.
        ray._private.worker._worker_logs_enabled = False
        with _sigterm_kept(), _stderr_shut(), _apart(ray):
            try:
                ray.init(**options, log_to_driver=False, logging_level="CRITICAL")
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise BenchError(_why_not(error, address)) from error
        yield ray


def _why_not(error: Exception, address: str | None) -> str:
    """Say in one line why Ray can't be had."""
    place = "engine ray" if address is None else f"--address: {address}"
    # Ray 2.54 tells it in the context alone.
    text = f"{error} {error.__cause__ or error.__context__ or ''}".strip()
    if "InvalidAuthToken" in text:
        return f"{place} refuses this token; {HINT}"
    if "token" in text:
        return f"{place}: {text.partition('. ')[0]}; {HINT}"
    if "No node info found" in text:
        return f"{place}: this machine is no node of that cluster (ray start --address={address})"
    return f"{place}: {error_reason(text)}"


def _short_folder() -> str | None:
    """Where Ray's sockets fit: their paths may have about a hundred bytes, and Ray adds eighty."""
    return "/tmp" if len(tempfile.gettempdir()) > 24 else None  # noqa: S108


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Put this process' answer to SIGTERM back after Ray put its own in its place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # Ray's answer, while it starts
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _marked(study: Path, *, collect: bool) -> Iterator[Path | None]:
    """Put a file into the study's folder by which a node knows that it sees this very folder."""
    if collect:
        yield None
        return
    marker = study.resolve() / f".ray-{secrets.token_hex(8)}"
    with wrap_write_errors(study):
        marker.touch()
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)


@contextmanager
def _stderr_shut() -> Iterator[None]:
    """Keep from the screen what Ray's C++ part writes of a failure that an error tells, too."""
    before = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(nowhere)
        os.close(before)


@contextmanager
def _apart(ray: Any) -> Iterator[None]:
    """Let Ray's processes begin in process groups of their own.

    A SIGTERM for all of the study's group, as of `timeout` or a batch system, would take Ray from
    under this process, which is to end the runs and then it; Ray provides for SIGINT alone.
    """
    utils, name = ray._private.utils, "set_kill_on_parent_death_linux"
    before = getattr(utils, name, None)
    if before is None or sys.platform != "linux":
        yield
        return

    def begin() -> None:
        os.setpgid(0, 0)
        before()

    setattr(utils, name, begin)
    try:
        yield
    finally:
        setattr(utils, name, before)


def _make_all(cluster: "_Cluster", runs: Sequence[RunConfig]) -> Iterator[Event]:
    waiting = deque(_Job(config) for config in runs)
    later: list[tuple[float, _Job]] = []  # runs that are made elsewhere, or whose node was lost
    jobs: dict[Any, _Job] = {}
    try:
        while waiting or later or jobs:
            now = time.monotonic()
            waiting.extend(job for when, job in later if when <= now)
            later = [(when, job) for when, job in later if when > now]
            room = cluster.room() - len(jobs)
            for job in [waiting.popleft() for _ in range(min(room, len(waiting)))]:
                event = cluster.begin(job)
                if event is None:
                    jobs[job.stream] = job
                    continue
                if event.elsewhere:
                    later.append((now + POLL_S, job))
                yield event
            for stream in cluster.ready(list(jobs)):
                event = cluster.receive(job := jobs[stream])
                if event is None:
                    later.append((now + 2.0**job.attempt, job))
                    job.attempt += 1
                elif event.elsewhere:
                    later.append((now + POLL_S, job))
                if event is None or event.elsewhere or event.status.state != "running":
                    del jobs[stream]
                if event is not None:
                    yield event
    finally:
        cluster.cancel(list(jobs.values()))
        for job in (*jobs.values(), *(job for _, job in later)):
            cluster.note_interrupted(job)


@dataclass(frozen=True)
class _Cluster:
    """A Ray that this process is connected to, and what all runs of the study share."""

    ray: Any
    task: Any  # _make, as Ray calls it
    study: Path
    marker: Path | None
    policy: RunPolicy
    gpus: float | None

    def needs(self, config: RunConfig) -> dict[str, float]:
        """What a run takes of a node, in Ray's names."""
        gpu = {"GPU": self.gpus or 1.0} if config.device == "cuda" else {}
        return {"CPU": float(config.threads), **gpu}

    def find_room(self, runs: Sequence[RunConfig]) -> None:
        """Refuse a run that no node has room for: Ray would wait for one without end."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        for config in runs:
            needs = self.needs(config)
            if not any(all(node.get(k, 0) >= n for k, n in needs.items()) for node in nodes):
                has = "; ".join(_amounts({k: node.get(k, 0) for k in needs}) for node in nodes)
                raise BenchError(
                    f"{config.run_id}: needs a node with {_amounts(needs)}; there is {has}"
                )

    def room(self) -> int:
        """How many runs to have with Ray at once: more than it can make, so that none waits."""
        return 2 + 2 * int(self.ray.cluster_resources().get("CPU", 0))

    def begin(self, job: _Job) -> Event | None:
        """Hand a run to Ray; an event if there is no need, since it is done or made elsewhere."""
        config = job.config
        if self.marker is None:
            try:
                job.lock = _claim(self.study / config.run_id, self.policy)
            except RunLockedError:
                return Event(config, Status("running"), kept=True)
            except RunDoneError as done:
                return Event(config, done.status, kept=True)
        order = _Order(
            config, config.run_id, self.study, self.marker, self.policy, Path.cwd(), sys.argv
        )
        needs = self.needs(config)
        task = self.task.options(num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0))
        job.stream = task.remote(order)
        return None

    def ready(self, streams: list[Any]) -> list[Any]:
        """Wait a moment for any run's next event; which runs have one."""
        if not streams:
            time.sleep(POLL_S)
            return []
        self.ray.wait(streams, timeout=POLL_S)
        # That gives the first of them alone: the last one's turn would come at the end.
        ready: list[Any]
        ready, _ = self.ray.wait(streams, num_returns=len(streams), timeout=0)
        return ready

    def receive(self, job: _Job) -> Event | None:
        """Take a run's next event; None if its process was lost and it is to be made again."""
        errors = self.ray.exceptions
        event: Event
        files: dict[str, str]
        try:
            event, files = self.ray.get(next(job.stream))
        except errors.RayTaskError as error:
            raise _UnfitError(f"engine ray: {describe_error(error.cause)}") from error
        except (StopIteration, errors.RayError) as error:
            return self._lost(job, error)
        job.begun = not event.elsewhere
        if job.lock is not None and event.status.state != "running":
            try:
                _keep(self.study / job.config.run_id, files)
            except BenchError as error:
                event = Event(job.config, failed(event.status, error))
            job.lock.release()
        return event

    def _lost(self, job: _Job, error: Exception) -> Event | None:
        if job.lock is not None:
            job.lock.release()
        if job.attempt < ATTEMPTS:
            return None
        told = f"its process or its node was lost {ATTEMPTS} times ({describe_error(error)})"
        return Event(job.config, write_status(self.study / job.config.run_id, "failed", told))

    def cancel(self, jobs: Sequence[_Job]) -> None:
        """End the tasks of runs: ask first, then kill what is left."""
        left = [job.stream.completed() for job in jobs]
        for force in (False, True):
            if left:
                for job in jobs:
                    self.ray.cancel(job.stream, force=force)
                left = self.ray.wait(left, num_returns=len(left), timeout=GRACE_S)[1]

    def note_interrupted(self, job: _Job) -> None:
        """Write down of a run that it did not end."""
        if job.lock is not None:
            job.lock.release()
        if job.begun or job.lock is not None:
            write_status(self.study / job.config.run_id, "interrupted")


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _claim(folder: Path, policy: RunPolicy) -> FileLock:
    """Take a run whose folder this process is to write.

    Raises:
        RunLockedError: Another process has it.
        RunDoneError: It is done, and is not to be done again.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    with wrap_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise RunLockedError(f"{folder}: another process has this run") from None
    status = None if policy.anew else read_status(folder)
    if status is not None and status.done:
        lock.release()
        raise RunDoneError(status)
    return lock


def _keep(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files of a run that was made elsewhere, its status last."""
    with wrap_write_errors(folder):
        if files:
            # A status that vouches for other files must not outlive them.
            (folder / "status.json").unlink(missing_ok=True)
        for name in sorted(files, key="status.json".__eq__):
            replace_file(folder / name, files[name])


def _make(order: _Order) -> Iterator[tuple[Event, dict[str, str]]]:
    """Make a run on a node; with the last event come the run's files if they are not shared."""
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
    """End this process soon after the node's own, whose child it is; Ray takes half a minute."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _files(folder: Path) -> dict[str, str]:
    """Read what a run left; a checkpoint stays behind."""
    return {
        path.name: path.read_bytes().decode()
        for path in folder.iterdir()
        if path.suffix in (".yaml", ".json", ".csv")
    }
