"""Real Ray on loopback: a head and a second node, and the study in a process of its own.

Ray takes over signals, warnings and environment of a process, so that none is imported here.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from symtable import symtable
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.tiny_runs import DIVERGING, make, tiny

from nsrelu_bench.config import make_study
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.records import save_study
from nsrelu_bench.records.status import read_status
from nsrelu_bench.sweep.execution import DEFAULT_POLICY, Event, Job
from nsrelu_bench.sweep.executors import ray as ray_engine
from nsrelu_bench.sweep.executors.ray import RayExecutor
from nsrelu_bench.sweep.scheduler import run_all

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Ray clusters are for Linux"),
    pytest.mark.xdist_group("ray"),  # one cluster at a time
]

#: How long to wait for what takes seconds on a quiet machine.
PATIENCE_S = 120

CLUSTER_SCRIPT = """
import json, sys
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
cluster = Cluster(True, head_node_args=node | {"include_dashboard": False}, shutdown_at_exit=False)
print(json.dumps(cluster.address), flush=True)
for line in sys.stdin:
    added = cluster.add_node(**node)
    print(added.all_processes[PROCESS_TYPE_RAYLET][0].process.pid, flush=True)
cluster.shutdown()
"""

RAY_STUDY = """
import json, signal, sys
from pathlib import Path
from nsrelu_bench.config import RunConfig
from nsrelu_bench.errors import BenchError
from nsrelu_bench.sweep import RunPolicy, run_all
from nsrelu_bench.sweep.executors.ray import RayExecutor
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
order = json.loads(sys.argv[1])
executor = RayExecutor(**order["options"])
runs = [RunConfig(**settings) for settings in order["runs"]]
try:
    # Without checkpoints a run that is made again begins at its first epoch.
    policy = RunPolicy(checkpoint_after=1e6)
    for event in run_all(runs, Path(order["study"]), policy=policy, executor=executor):
        status = event.status
        reported = [event.config.run_id, status.state, status.epoch, status.error]
        print(json.dumps(reported), flush=True)
except BenchError as error:
    sys.exit(str(error))
"""


@contextmanager
def session(script: str, *arguments: str, **settings: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a script in a session of its own, and end all that is left of it afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        with process:
            try:
                yield process
            finally:
                process.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                for pid in left_of(process):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
    finally:
        assert not left_of(process)


def left_of(process: "subprocess.Popen[str]") -> list[int]:
    """The processes of a session that have not ended."""
    listing = subprocess.run(["ps", "-eo", "pid=,sess=,stat="], capture_output=True, text=True)
    rows = [line.split() for line in listing.stdout.splitlines()]
    return [int(pid) for pid, sid, stat in rows if int(sid) == process.pid and stat[0] != "Z"]


@pytest.fixture(scope="module")
def settings() -> Iterator[dict[str, str]]:
    """The environment of all processes of a cluster."""
    # Not of pytest's: the path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch:
        yield {
            "HOME": scratch,
            "RAY_TMPDIR": scratch,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "of-this-test-and-long-enough-to-be-one",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback
        }


@pytest.fixture(scope="module")
def head(settings: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    with session(CLUSTER_SCRIPT, **settings) as process:
        process.address = json.loads(process.stdout.readline())
        yield process


def study_of(
    study: Path, runs: list[dict[str, Any]], settings: dict[str, str], **options: Any
) -> Any:
    configs = [tiny(**run).settings for run in runs]
    order = json.dumps({"study": str(study), "runs": configs, "options": options})
    return session(RAY_STUDY, order, **settings)


def finished(process: "subprocess.Popen[str]") -> tuple[int, list[Any], str]:
    """Wait for a study to end: its exit code, its events, and what it says in the end."""
    output, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, [json.loads(line) for line in output.splitlines()], errors


def same_numbers(study: Path, expected: Path) -> bool:
    names = ("config.yaml", "metrics.csv", "layers.csv", "quantiles.csv")
    folder = study / expected.name
    return all((folder / n).read_bytes() == (expected / n).read_bytes() for n in names)


WAITING_SCHEDULE = """
import time
from pathlib import Path

def steady(step, steps):
    while not Path("go").exists():
        time.sleep(0.02)
    return 1
"""


@pytest.mark.slow
def test_runs_of_a_lost_node_are_repeated_with_the_same_bits(
    head: "subprocess.Popen[str]",
    settings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("of_ray.py").write_text(WAITING_SCHEDULE)
    runs = [{"seed": seed, "schedule": "of_ray:steady"} for seed in range(3)]
    head.stdin.write("add\n")
    head.stdin.flush()
    raylet = int(head.stdout.readline())
    with study_of(tmp_path / "ray", runs, settings, address=head.address) as process:
        events = []
        under_way: set[str] = set()
        while len(under_way) < 2:  # with a CPU a node: one on either
            events.append(json.loads(process.stdout.readline()))
            run_id, _, epoch, _ = events[-1]
            if epoch == 0:
                under_way.add(run_id)
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(raylet)], capture_output=True, text=True, check=True
        )
        for pid in [raylet, *map(int, children.stdout.split())]:
            os.kill(pid, signal.SIGKILL)
        Path("go").touch()
        code, rest, errors = finished(process)
    assert (code, errors) == (0, "")
    states = Counter(state for _, state, *_ in events + rest if state != "running")
    assert states == {"completed": 3}
    begun = Counter(run_id for run_id, _, epoch, _ in events + rest if epoch is None)
    assert sorted(begun.values()) == [1, 1, 2]
    for run in runs:
        assert same_numbers(tmp_path / "ray", make(tmp_path / "local", **run))
    assert not list((tmp_path / "ray").glob(".ray-*"))


@pytest.mark.covers
@pytest.mark.slow
def test_collected_runs_have_all_files_of_local_ones(
    head: "subprocess.Popen[str]", settings: dict[str, str], tmp_path: Path
) -> None:
    runs = [{"seed": 1}, {**DIVERGING}, {"dataset": "mnist", "data_dir": str(tmp_path / "none")}]
    options = {"address": head.address, "collect": True}
    with study_of(tmp_path / "ray", runs, settings, **options) as process:
        code, events, errors = finished(process)
    assert (code, errors) == (0, "")
    ended = [(state, error) for _, state, _, error in events if state != "running"]
    assert [state for state, _ in ended] == ["completed", "diverged", "failed"]
    assert str(tmp_path / "none") in ended[2][1]
    for run in runs[:2]:
        expected = make(tmp_path / "local", **run)
        folder = tmp_path / "ray" / expected.name
        assert {p.name for p in folder.iterdir()} == {p.name for p in expected.iterdir()}
        assert read_status(folder) == read_status(expected)
        if run != DIVERGING:
            assert same_numbers(tmp_path / "ray", expected)
    failed = read_status(tmp_path / "ray" / tiny(**runs[2]).run_id)
    assert (failed.state, failed.error) == ended[2]


@pytest.mark.covers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "reported"),
    [("", "no authentication token was found"), ("wrong", "refuses this token")],
    ids=["missing", "wrong"],
)
def test_a_missing_cluster_token_is_one_line(
    head: "subprocess.Popen[str]",
    settings: dict[str, str],
    tmp_path: Path,
    token: str,
    reported: str,
) -> None:
    theirs = settings | {"RAY_AUTH_TOKEN": token}
    with study_of(tmp_path, [{}], theirs, address=head.address) as process:
        code, events, errors = finished(process)
    assert (code, events) == (1, [])
    assert errors.startswith(f"--address: {head.address}")
    assert reported in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / tiny().run_id).exists()


@pytest.mark.covers
@pytest.mark.slow
def test_a_run_that_no_node_has_room_for_is_refused(
    head: "subprocess.Popen[str]", settings: dict[str, str], tmp_path: Path
) -> None:
    run = {"threads": 64, "device": "cuda"}
    options = {"address": head.address, "gpus": 0.25}
    with study_of(tmp_path, [run], settings, **options) as process:
        code, _, errors = finished(process)
    assert code == 1
    assert errors.startswith(f"{tiny(**run).run_id}: needs a node with 64 CPU and 0.25 GPU; ")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for temporary files whose path leaves room for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.covers
@pytest.mark.slow
def test_an_interrupted_study_leaves_nothing_of_its_ray(
    settings: dict[str, str], tmp_path: Path, short_folder: Path
) -> None:
    own = {"HOME": settings["HOME"], "TMPDIR": str(short_folder)}
    with study_of(tmp_path / "ray", [{"epochs": 5000}], own) as process:
        while json.loads(process.stdout.readline())[2] is None:
            pass
        assert len(list(short_folder.glob("ray-*"))) == 1
        os.killpg(process.pid, signal.SIGTERM)  # as `timeout` and batch systems do
        code, _, errors = finished(process)
        assert (code, errors) == (143, "")
        assert left_of(process) == []
    assert read_status(tmp_path / "ray" / tiny(epochs=5000).run_id).state == "interrupted"
    assert list(short_folder.glob("ray-*")) == []
    assert not (Path(settings["HOME"]) / ".ray").exists()  # its token is in no file


@pytest.mark.slow
def test_a_killed_study_leaves_no_process_and_no_folder(
    settings: dict[str, str], tmp_path: Path, short_folder: Path
) -> None:
    own = {"HOME": settings["HOME"], "TMPDIR": str(short_folder)}
    study = tmp_path / "ray"
    with study_of(study, [{"epochs": 5000}], own) as process:
        while json.loads(process.stdout.readline())[2] is None:
            pass
        (folder,) = short_folder.glob("ray-*")
        assert len(list(study.glob(".ray.*"))) == 1
        process.kill()
        deadline = time.monotonic() + PATIENCE_S
        while left_of(process) or processes_with(folder) or folder.exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
    save_study(make_study({"dataset": "digits"}, "ray"), study)  # as the next sweep does
    assert list(study.glob(".ray.*")) == []


def processes_with(folder: Path) -> list[Path]:
    """The processes on whose command line a folder is."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += [line] * (bytes(folder) in line.read_bytes())
    return found


class Loser:
    """A Ray on which the process of every run is lost."""

    class LostError(Exception):
        pass

    exceptions = SimpleNamespace(RayError=LostError, RayTaskError=())

    def remote(self, order: object) -> object:
        return iter([1])

    def options(self, **_: object) -> "Loser":
        return self

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def get(self, _: object) -> None:
        raise self.LostError("gone")

    def wait(self, streams: list[object], **_: object) -> tuple[list[object], list[object]]:
        return streams, []

    def cancel(self, *_: object, **__: object) -> None:
        pass


def collecting(study: Path, monkeypatch: pytest.MonkeyPatch) -> RayExecutor:
    """An executor that collects, without a Ray."""
    executor = RayExecutor(collect=True)

    def start(*_: object) -> None:
        executor._study, executor._policy, executor._marker = study, DEFAULT_POLICY, None
        executor._ray = executor._remote = Loser()

    monkeypatch.setattr(executor, "start", start)
    return executor


def test_a_run_whose_process_is_lost_each_time_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []
    monkeypatch.setattr(time, "sleep", delays.append)
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    (event,) = run_all([tiny()], tmp_path, executor=collecting(tmp_path, monkeypatch))
    assert event.status == read_status(tmp_path / tiny().run_id)
    assert event.status.state == "failed"
    assert event.status.error == "its process or its node was lost 4 times (LostError: gone)"


def test_an_interrupted_run_to_be_collected_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = collecting(tmp_path, monkeypatch)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(executor, "wait", interrupt)
    monkeypatch.setattr(
        executor, "stop", lambda: [executor._forget(t) for t in [*executor._tasks.values()]]
    )
    with pytest.raises(KeyboardInterrupt):
        list(run_all([tiny()], tmp_path, executor=executor))
    assert read_status(tmp_path / tiny().run_id).state == "interrupted"


def test_a_run_to_be_collected_is_left_to_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = collecting(tmp_path, monkeypatch)
    executor.start(tmp_path, DEFAULT_POLICY, [tiny()])
    lock = ray_engine._claim(tmp_path / tiny().run_id, DEFAULT_POLICY)
    executor.submit(Job((tiny(),)))
    (event,) = executor.wait(0)
    assert isinstance(event, Event)
    assert event.elsewhere
    lock.release()
    done = make(tmp_path)
    executor.submit(Job((tiny(),)))
    (event,) = executor.wait(0)
    assert isinstance(event, Event)
    assert (event.kept, event.status) == (True, read_status(done))


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"run_id": "other"}, "has another version of nsrelu-bench"),
        ({"marker": Path("/nowhere/.ray-1")}, "does not see /nowhere: share that folder"),
    ],
    ids=["version", "folder"],
)
def test_a_node_that_would_lose_or_change_the_results_is_refused(
    change: dict[str, Any], reported: str
) -> None:
    config = tiny()
    usual = {"config": config, "run_id": config.run_id, "study": Path("/nowhere"), "marker": None}
    others = {"policy": DEFAULT_POLICY, "working_dir": Path.cwd(), "command": []}
    order = ray_engine._Order(**(usual | others | change))
    with pytest.raises(BenchError, match=reported):
        next(ray_engine._run_task(order))


def test_a_missing_ray_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BenchError) as reported:
        next(run_all([tiny()], tmp_path, executor=RayExecutor()))
    assert str(reported.value) == (
        "engine ray needs ray, which is not installed; pip install 'nsrelu-bench[ray]'"
    )


def test_an_address_without_a_cluster_is_reported_at_once(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(BenchError, match=f"no Ray cluster answers at {address}"):
            next(run_all([tiny()], tmp_path, executor=RayExecutor(address=address)))


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "head:", "head:65536", "auto"])
def test_an_address_is_host_and_port(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match=r"--address: must be host:port of the head node, got "):
        next(run_all([tiny()], tmp_path, executor=RayExecutor(address=address)))


@pytest.mark.parametrize("gpus", [0.0, -1.0, 1.5, float("nan")])
def test_a_run_takes_at_most_one_gpu(gpus: float) -> None:
    with pytest.raises(UsageError, match="--gpus-per-run: must be above 0 and at most 1, got"):
        RayExecutor(gpus=gpus)


def test_runs_on_cuda_take_a_gpu_and_others_none() -> None:
    executor = RayExecutor()
    assert executor.needs(tiny(device="cuda", threads=2)) == {"CPU": 2.0, "GPU": 1.0}
    assert executor.needs(tiny(threads=2)) == {"CPU": 2.0}


@pytest.mark.parametrize(
    ("module", "name"),
    [("worker", "_worker_logs_enabled"), ("utils", "set_kill_on_parent_death_linux")],
)
def test_private_names_that_are_set_in_ray_exist(module: str, name: str) -> None:
    # In Ray 2.54 to 2.60. A later version without them needs another way, or none.
    ray = find_spec("ray")
    assert ray
    assert ray.origin
    source = Path(ray.origin).with_name("_private") / f"{module}.py"
    names = symtable(source.read_text(encoding="utf-8"), str(source), "exec")
    assert names.lookup(name).is_assigned()
