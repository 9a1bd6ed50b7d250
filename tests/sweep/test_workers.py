"""The processes that compute the runs of a study on this machine."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from helpers.tiny_runs import tiny

from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.records.status import read_status
from nsrelu_bench.sweep.execution import Event, execute_run
from nsrelu_bench.sweep.executors import local
from nsrelu_bench.sweep.scheduler import run_all

OWN = """
import time

def twice(x):
    return 2 * x

def sleepy(*_):
    time.sleep(120)
"""

KNOWN_AND_OWN = ("relu", "of_workers:twice")
BUSY = RunConfig(dataset="digits", model="of_workers:sleepy")
ELSEWHERE = tiny(seed=9)
ALONE = [tiny(act=act) for act in KNOWN_AND_OWN]
DOOMED = [tiny(stack=True, seed=seed, epochs=100_000) for seed in (0, 1)]
STACKED = [tiny(act=act, stack=True, seed=seed) for act in KNOWN_AND_OWN for seed in (0, 1)]


def files(study: Path, run: RunConfig) -> list[bytes]:
    names = ("config.yaml", "metrics.csv", "layers.csv")
    return [(study / run.run_id / name).read_bytes() for name in names]


def kill_worker(run: RunConfig) -> None:
    """Kill the worker that has a file of the run open."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True)
    (worker,) = (pid for pid in map(int, listed.stdout.split()) if run.run_id in open_files(pid))
    os.kill(worker, signal.SIGKILL)


def open_files(pid: int) -> str:
    folder = Path(f"/proc/{pid}/fd")
    try:
        return " ".join(str(link.readlink()) for link in folder.iterdir())
    except OSError:
        return ""


@pytest.mark.covers
@pytest.mark.slow
def test_a_worker_waits_is_killed_and_replaced_beside_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE_S", 60.0)  # for an idle worker, not for a busy one
    monkeypatch.chdir(tmp_path)
    Path("of_workers.py").write_text(OWN)
    study = tmp_path / "study"
    study.mkdir()
    other = execute_run(ELSEWHERE, study / ELSEWHERE.run_id)
    next(other)  # the run is locked
    reported: dict[str, list[Event]] = {}
    with closing(run_all([BUSY, ELSEWHERE, *ALONE, *DOOMED, *STACKED], study, workers=2)) as all_:
        for event in all_:
            mine = reported.setdefault(event.config.run_id, [])
            mine.append(event)
            if event.elsewhere:
                list(other)  # it ends there
            if event.config == DOOMED[0] and [e.status.epoch for e in mine][1:] == [0]:
                kill_worker(event.config)
            if sum(events[-1].ended for events in reported.values()) == len(reported) - 1 == 9:
                break
        before = time.monotonic()
    assert time.monotonic() - before < 30
    last = {run_id: events[-1] for run_id, events in reported.items()}
    first, *_, end = reported[ELSEWHERE.run_id]
    assert (first.elsewhere, end.kept, end.status.state) == (True, True, "completed")
    assert '"interrupted"' in (study / BUSY.run_id / "status.json").read_text()
    for run in DOOMED:
        status = read_status(study / run.run_id)
        assert status == last[run.run_id].status
        assert (status.state, status.error) == ("failed", "its process ended with exit code -9")
    list(run_all([*ALONE, *STACKED], tmp_path / "here"))
    for run in (*ALONE, *STACKED):
        assert last[run.run_id].status.state == "completed"
        assert files(study, run) == files(tmp_path / "here", run)


LEFT_ALONE = """
import sys
from pathlib import Path
from nsrelu_bench.config import RunConfig
from nsrelu_bench.sweep import RunPolicy
from nsrelu_bench.sweep.execution import Job
from nsrelu_bench.sweep.executors.local import ProcessPool
if __name__ == "__main__":
    runs = [RunConfig(model="of_workers:sleepy", seed=seed) for seed in (0, 1)]
    pool = ProcessPool(2)
    pool.start(Path(sys.argv[1]), RunPolicy(), runs)
    for worker in pool._workers:
        pid = worker.process.pid
        print(pid, Path(f"/proc/{pid}/status").read_text().split("SigBlk:")[1].split()[0])
    pool.submit(Job((runs[0],)))
    pool.wait(None)
    print("begun", flush=True)
    input()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_get_no_signal_and_end_with_their_parent(tmp_path: Path) -> None:
    # A process of its own: what is done for its first worker alone can let signals through.
    (tmp_path / "alone.py").write_text(LEFT_ALONE)
    (tmp_path / "of_workers.py").write_text(OWN)
    command = [sys.executable, "alone.py", "study"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        reported = [parent.stdout.readline().split() for _ in range(3)]
        parent.kill()
    assert reported.pop() == ["begun"]
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    assert all(int(mask, 16) >> number - 1 & 1 for _, mask in reported for number in ending)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid, _ in reported):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
