"""Connecting to Ray, a cluster or one of this process's own. Ray is imported here alone."""

import importlib
import ipaddress
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from nsrelu_bench.errors import BenchError, UsageError, error_reason
from nsrelu_bench.machine import available_cores
from nsrelu_bench.sweep.executors.ray_cleanup import cleanup_process

#: Seconds to wait for the cluster's port to answer.
CONNECT_S = 5.0

#: What Ray is told by its environment; what the user has set stays.
RAY_VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # to connect: one takes up to 40 s, and Ray's own is 20
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns of what it will do some day
}
HINT = "put the cluster's into ~/.ray/auth_token, RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
#: Ray's least, in bytes: the files of a run are small.
OBJECT_STORE = 80 * 2**20

#: Private names of Ray that are set here, by module; tests/sweep/test_ray.py says for which
#: versions they are there.
PRIVATE = {
    "ray._private.worker": "_worker_logs_enabled",
    "ray._private.utils": "set_kill_on_parent_death_linux",
}


def reach(address: str) -> bool:
    """Return whether an address is on loopback, after something has answered there.

    Raises:
        UsageError: It is not host:port.
        BenchError: Nothing answers.
    """
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
def connected(address: str | None, *, loopback: bool) -> Iterator[Any]:
    """Import Ray, and connect to a cluster or start a Ray of this process' own."""
    for name, value in RAY_VARIABLES.items():
        os.environ.setdefault(name, value)
    if loopback:
        # Or Ray takes the address of another interface in its place.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    options: dict[str, Any] = {"address": address}
    cleanup = None
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
                "num_cpus": available_cores(),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE,
                "_temp_dir": stack.enter_context(logs),
            }
            cleanup = stack.enter_context(cleanup_process(Path(logs.name)))
        try:
            ray = importlib.import_module("ray")
        except ImportError as error:
            raise BenchError(
                "engine ray needs ray, which is not installed; pip install 'nsrelu-bench[ray]'"
            ) from error
        stack.callback(ray.shutdown)
        # log_to_driver is not all: Ray prints what it has to say of a lost node to stdout.
        ray._private.worker._worker_logs_enabled = False
        with _sigterm_restored(), _stderr_silenced(), _own_process_groups(ray, cleanup):
            try:
                ray.init(**options, log_to_driver=False, logging_level="CRITICAL")
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise BenchError(_refusal(error, address)) from error
        yield ray


def _refusal(error: Exception, address: str | None) -> str:
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


@contextmanager
def _sigterm_restored() -> Iterator[None]:
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
def _stderr_silenced() -> Iterator[None]:
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
def _own_process_groups(ray: Any, cleanup: int | None) -> Iterator[None]:
    """Let Ray's processes begin in process groups of their own, and report these to `cleanup`.

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
        if cleanup is not None:
            os.write(cleanup, b"%d\n" % os.getpid())
        before()

    setattr(utils, name, begin)
    try:
        yield
    finally:
        setattr(utils, name, before)
