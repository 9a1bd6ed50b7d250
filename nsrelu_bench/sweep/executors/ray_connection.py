"""Connect to a Ray cluster, or start Ray on this machine. Only this module imports Ray."""

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

#: Settings for Ray; those that the user has set take precedence.
RAY_VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # to connect: one takes up to 40 s, and Ray's own is 20
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about a future default
}
HINT = "put the cluster's into ~/.ray/auth_token, RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
#: Ray's least, in bytes: the files of a run are small.
OBJECT_STORE = 80 * 2**20


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
    """Import Ray, and connect to a cluster or start one for this process."""
    for name, value in RAY_VARIABLES.items():
        os.environ.setdefault(name, value)
    if loopback:
        # Otherwise Ray replaces it by the address of another interface.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    options: dict[str, Any] = {"address": address}
    cleanup = None
    with ExitStack() as stack:
        if address is None:
            # No one else may use this Ray: only its own processes know its token.
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            # Ray does not remove its logs.
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
        # In spite of log_to_driver Ray prints messages about a lost node to stdout.
        ray._private.worker._worker_logs_enabled = False
        with _sigterm_restored(), _stderr_silenced(), _own_process_groups(ray, cleanup):
            try:
                ray.init(**options, log_to_driver=False, logging_level="CRITICAL")
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise BenchError(_refusal(error, address)) from error
        yield ray


def _refusal(error: Exception, address: str | None) -> str:
    """Return in one line why Ray can't be used."""
    place = "engine ray" if address is None else f"--address: {address}"
    # Ray 2.54 has the reason only in the context.
    text = f"{error} {error.__cause__ or error.__context__ or ''}".strip()
    if "InvalidAuthToken" in text:
        return f"{place} refuses this token; {HINT}"
    if "token" in text:
        return f"{place}: {text.partition('. ')[0]}; {HINT}"
    if "No node info found" in text:
        return f"{place}: this machine is no node of that cluster (ray start --address={address})"
    return f"{place}: {error_reason(text)}"


def _short_folder() -> str | None:
    """Return a folder for Ray's sockets: paths have at most about 100 bytes, and Ray adds 80."""
    return "/tmp" if len(tempfile.gettempdir()) > 24 else None  # noqa: S108


@contextmanager
def _sigterm_restored() -> Iterator[None]:
    """Restore this process's handler of SIGTERM after Ray has replaced it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # Ray's handler raises it while Ray starts
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Hide what Ray's C++ code prints about a failure that raises an error as well."""
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
    """Start Ray's processes in their own process groups, and report these to `cleanup`.

    A SIGTERM for the whole group of the study, as from `timeout` or a batch system, would end Ray
    before this process can end the runs; Ray handles only SIGINT.
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
