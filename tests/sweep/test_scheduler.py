import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from helpers.tiny_runs import DIVERGING, TINY, tiny

from nsrelu_bench import training
from nsrelu_bench.errors import UsageError
from nsrelu_bench.records.status import read_status
from nsrelu_bench.sweep.execution import Event, RunPolicy
from nsrelu_bench.sweep.scheduler import run_all

TINY_RUNS = [tiny(act=act, seed=seed) for act in ("relu", "nsrelu(0.1)") for seed in (0, 1)]


def last_events(events: list[Event]) -> dict[str, Event]:
    return {event.config.run_id: event for event in events}


def files(study: Path) -> dict[str, bytes]:
    return {
        f"{folder.name}/{name}": (folder / name).read_bytes()
        for folder in study.iterdir()
        for name in ("config.yaml", "metrics.csv", "layers.csv")
    }


@pytest.mark.slow
def test_the_numbers_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    for workers in (0, 2):
        events = list(run_all(TINY_RUNS, tmp_path / str(workers), workers=workers))
        assert [e.status.state for e in last_events(events).values()] == ["completed"] * 4
    assert files(tmp_path / "0") == files(tmp_path / "2")


def test_runs_that_are_done_are_kept(tmp_path: Path) -> None:
    list(run_all(TINY_RUNS[:2], tmp_path))
    before = (tmp_path / TINY_RUNS[0].run_id / "metrics.csv").stat().st_mtime_ns
    events = last_events(list(run_all(TINY_RUNS, tmp_path)))
    assert [events[run.run_id].kept for run in TINY_RUNS] == [True, True, False, False]
    assert (tmp_path / TINY_RUNS[0].run_id / "metrics.csv").stat().st_mtime_ns == before


def test_what_was_interrupted_under_fresh_is_not_repeated_again(tmp_path: Path) -> None:
    """One run is repeated and another begins, before Ctrl-C; the third is an old one."""
    list(run_all(TINY_RUNS[:3], tmp_path))
    policy = RunPolicy(fresh=True, before=datetime.now(UTC), checkpoint_after=0)
    events = run_all(TINY_RUNS[:3], tmp_path, policy=policy)
    for event in events:
        if (event.config, event.status.epoch) == (TINY_RUNS[1], 1):
            break
    events.close()
    again = list(run_all(TINY_RUNS[:3], tmp_path, policy=policy))
    assert [event.kept for event in last_events(again).values()] == [True, False, False]
    first = {run: next(e.status.epoch for e in again if e.config == run) for run in TINY_RUNS[1:3]}
    assert first == {TINY_RUNS[1]: 1, TINY_RUNS[2]: None}
    assert all(event.kept for event in run_all(TINY_RUNS[:3], tmp_path, policy=policy))


def test_a_checkpoint_from_before_is_not_fresh(tmp_path: Path) -> None:
    events = run_all(TINY_RUNS[:1], tmp_path, policy=RunPolicy(checkpoint_after=0))
    for event in events:
        if event.status.epoch == 1:
            break
    events.close()
    policy = RunPolicy(fresh=True, before=datetime.now(UTC))
    assert next(run_all(TINY_RUNS[:1], tmp_path, policy=policy)).status.epoch is None


def test_a_damaged_run_is_set_aside_and_rerun(tmp_path: Path) -> None:
    list(run_all(TINY_RUNS[:1], tmp_path))
    path = tmp_path / TINY_RUNS[0].run_id / "metrics.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    list(run_all(TINY_RUNS[:1], tmp_path))
    assert path.read_bytes() == whole
    assert path.with_name("metrics.csv.damaged").read_bytes() == whole[:-20]


def test_events_come_for_every_epoch_and_the_end(tmp_path: Path) -> None:
    events = list(run_all(TINY_RUNS[:1], tmp_path))
    assert [event.status.state for event in events] == ["running"] * 4 + ["completed"]
    assert [event.status.epoch for event in events] == [None, 0, 1, 2, 2]
    assert events[-1].metrics["test_accuracy"] > 0


def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.run

    def failing(config: object, _: object) -> object:
        if config == TINY_RUNS[0]:
            raise ValueError("no luck")
        return real(TINY_RUNS[1])

    monkeypatch.setattr(training, "run", failing)
    events = last_events(list(run_all(TINY_RUNS[:2], tmp_path)))
    assert [events[run.run_id].status.state for run in TINY_RUNS[:2]] == ["failed", "completed"]
    failed = events[TINY_RUNS[0].run_id]
    assert failed.status.error == "ValueError: no luck"
    assert "Traceback" in str(failed.traceback)
    status = read_status(tmp_path / TINY_RUNS[0].run_id)
    assert (status.state, status.error) == ("failed", "ValueError: no luck")


@pytest.mark.slow
def test_a_worker_that_is_killed_fails_only_its_run(tmp_path: Path) -> None:
    runs = [tiny(epochs=2000, seed=7), *TINY_RUNS[:2]]
    killed = False
    events = []
    for event in run_all(runs, tmp_path, workers=2):
        events.append(event)
        if event.config == runs[0] and event.status.epoch and not killed:
            killed = True
            (child,) = (pid for pid in children() if str(runs[0].run_id) in open_files(pid))
            os.kill(child, signal.SIGKILL)
    states = {id_: event.status.state for id_, event in last_events(events).items()}
    assert states.pop(runs[0].run_id) == "failed"
    assert set(states.values()) == {"completed"}
    status = read_status(tmp_path / runs[0].run_id)
    assert (status.state, status.error) == ("failed", "its process ended with exit code -9")


def children() -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True)
    return [int(pid) for pid in listed.stdout.split()]


def open_files(pid: int) -> str:
    folder = Path(f"/proc/{pid}/fd")
    try:
        return " ".join(str(link.readlink()) for link in folder.iterdir())
    except OSError:
        return ""


@pytest.mark.slow
def test_an_iterator_that_is_closed_ends_its_runs_as_interrupted(tmp_path: Path) -> None:
    runs = [tiny(epochs=5000, seed=seed) for seed in (0, 1, 2)]
    events = run_all(runs, tmp_path, workers=2)
    started = {next(events).config.run_id for _ in range(6)}
    before = time.monotonic()
    events.close()
    assert time.monotonic() - before < 5
    for folder in (tmp_path / run_id for run_id in started):
        assert read_status(folder).state == "interrupted"


LONG = f"""
from pathlib import Path
import sys
from nsrelu_bench.config import RunConfig
from nsrelu_bench.sweep import run_all
if __name__ == "__main__":
    settings = {TINY!r} | {{"epochs": 100000}}
    runs = [RunConfig(**settings, seed=seed) for seed in (0, 1)]
    for event in run_all(runs, Path(sys.argv[1]), workers=2):
        print(event.status.epoch, flush=True)
"""


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "long.py"
    script.write_text(LONG)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "study")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    while parent.stdout.readline().strip() != "3":
        pass
    workers = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent.pid)], capture_output=True, text=True
    ).stdout.split()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert workers
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def test_retry_reruns_only_runs_with_that_status(tmp_path: Path) -> None:
    list(run_all(TINY_RUNS[:3], tmp_path))
    mark_(tmp_path / TINY_RUNS[0].run_id, "failed")
    mark_(tmp_path / TINY_RUNS[1].run_id, "interrupted")
    events = list(run_all(TINY_RUNS, tmp_path, policy=RunPolicy(retry=["failed"])))
    assert {event.config.run_id for event in events if not event.kept} == {TINY_RUNS[0].run_id}
    assert read_status(tmp_path / TINY_RUNS[3].run_id).state == "new"
    reported = (
        "--retry: must be one of running, completed, diverged, failed, interrupted, got 'all'"
    )
    with pytest.raises(UsageError, match=reported):
        RunPolicy(retry=["all"])


def test_retry_reruns_diverged_runs(tmp_path: Path) -> None:
    config = tiny(**DIVERGING)
    list(run_all([config], tmp_path))
    (kept,) = run_all([config], tmp_path)
    assert kept.kept
    *_, last = run_all([config], tmp_path, policy=RunPolicy(retry=["diverged"]))
    assert not last.kept
    assert last.status.state == "diverged"


def mark_(folder: Path, state: str) -> None:
    (folder / "status.json").write_text(f'{{"state": "{state}"}}')


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_in_another_process_is_waited_for(workers: int, tmp_path: Path) -> None:
    long = tiny(epochs=60, seed=9)
    events = run_all([long, *TINY_RUNS[:1]], tmp_path, workers=workers)
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    other.stdout.readline()  # it has begun
    reported = list(events)
    assert other.wait(60) == 0
    other.stdout.close()
    mine = [event for event in reported if event.config == long]
    assert mine[0].elsewhere
    assert mine[-1].kept
    assert mine[-1].status.state == "completed"
    assert all(event.elsewhere for event in mine[:-1])


OTHER_PROCESS = f"""
import sys
from pathlib import Path
from nsrelu_bench.config import RunConfig
from nsrelu_bench.sweep import run_all
config = RunConfig(**{TINY | {"epochs": 60, "seed": 9}!r})
for event in run_all([config], Path(sys.argv[1])):
    print(event.status, flush=True)
"""


HELD = """
import signal, sys
from pathlib import Path
from nsrelu_bench.config import RunConfig
from nsrelu_bench.sweep import RunPolicy
from nsrelu_bench.sweep.executors.local import ProcessPool
if __name__ == "__main__":
    pool = ProcessPool(2)
    pool.start(Path(sys.argv[1]), RunPolicy(), [RunConfig(seed=0), RunConfig(seed=1)])
    for worker in pool._workers:
        text = Path(f"/proc/{worker.process.pid}/status").read_text()
        print(text.split("SigBlk:")[1].split()[0])
    pool.stop()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_signals_do_not_reach_the_workers(tmp_path: Path) -> None:
    # A process of its own: what is done for its first worker alone can let signals through.
    script = tmp_path / "held.py"
    script.write_text(HELD)
    command = [sys.executable, str(script), str(tmp_path)]
    reported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    assert len(reported) == 2
    assert all(int(mask, 16) >> number - 1 & 1 for mask in reported for number in ending)
