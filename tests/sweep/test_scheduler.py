from datetime import UTC, datetime
from pathlib import Path

import pytest
from helpers.tiny_runs import DIVERGING, tiny

from nsrelu_bench import training
from nsrelu_bench.errors import UsageError
from nsrelu_bench.records.status import read_status
from nsrelu_bench.sweep.execution import Event, RunPolicy, execute_run
from nsrelu_bench.sweep.scheduler import run_all

TINY_RUNS = [tiny(act=act, seed=seed) for act in ("relu", "nsrelu(0.1)") for seed in (0, 1)]


def last_events(events: list[Event]) -> dict[str, Event]:
    return {event.config.run_id: event for event in events}


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


def test_a_run_that_is_locked_is_waited_for(tmp_path: Path) -> None:
    locked, free = TINY_RUNS[:2]
    other = execute_run(locked, tmp_path / locked.run_id)
    next(other)  # it has begun
    reported = []
    for event in run_all([locked, free], tmp_path):
        reported.append(event)
        if event.config == free and event.ended:
            list(other)  # it ends
    first, *_, last = [event for event in reported if event.config == locked]
    assert first.elsewhere
    assert (last.kept, last.status.state) == (True, "completed")
    assert all(event.elsewhere or event.kept for event in reported if event.config == locked)
