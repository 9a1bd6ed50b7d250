import io
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers.tiny_runs import tiny
from rich.console import Console

from nsrelu_bench.records import STATES, Status
from nsrelu_bench.sweep import Event, RunPolicy, run_all, scheduler
from nsrelu_bench.sweep.execution import Job
from nsrelu_bench.sweep.executors import Executor
from nsrelu_bench.sweep.progress import _View, closing_lines, follow

LOST_ROW = {"val_accuracy": 0.5, "gradient_lost_step": 20, "collapsed": 1}


def events(seed: int) -> list[Event]:
    config = tiny(seed=seed)
    return [
        Event(config, Status("running", epoch=1), LOST_ROW),
        Event(config, Status("running", epoch=2), LOST_ROW),
        Event(config, Status("completed", epoch=2), LOST_ROW),
    ]


def test_a_single_run_is_warned_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    follow(events(0), 1)
    assert capsys.readouterr().err.count("gradient lost at step 20: the first layer") == 1


def test_of_several_runs_the_line_of_each_has_the_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    follow([*events(0), *events(1)], 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("completed, but collapsed, gradient lost at step 20" in line for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for stream, has_bar in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        follow(events(0), 1)
        assert ("━" in stream.getvalue()) == has_bar
        assert "epoch 1/2" in stream.getvalue()


def test_the_bar_counts_the_runs_that_ended() -> None:
    view = _View(Console(quiet=True), 3, [])
    assert view.counts() == "0 of 3 ended"
    for event in (*events(0), Event(tiny(seed=1), Status("failed", error="why"), {})):
        view.take(event)
    assert view.counts() == "2 of 3 ended, 1 failed"


#: How the runs of a study are before a sweep, and what is said of them after it.
KEPT = {
    "completed": "done before",
    "diverged": "done before",
    "failed": "not retried",
    "interrupted": "not retried",
    "running": "not retried",
    "new": None,
}


@pytest.mark.parametrize("retry", [(), *((state,) for state in STATES), ("failed", "completed")])
@pytest.mark.parametrize("fresh", [False, True])
def test_runs_are_counted_by_what_became_of_them(
    retry: tuple[str, ...],
    fresh: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {tiny(seed=seed).run_id: state for seed, state in enumerate(KEPT)}
    known = {run_id: Status(state) for run_id, state in before.items()}
    monkeypatch.setattr(scheduler, "read_status", lambda folder: known[folder.name])
    runs = [tiny(seed=seed) for seed in range(len(KEPT))]
    events = list(run_all(runs, tmp_path, policy=RunPolicy(fresh, retry), executor=Instant()))
    ended = follow(events, len(runs))
    again = [event for event in ended if not event.kept]
    due = set(retry) or set(KEPT) - (set() if fresh else {"completed", "diverged"})
    assert {before[event.config.run_id] for event in again} == due
    assert len(ended) == len(KEPT) - ("new" not in due)

    shown = capsys.readouterr().err.splitlines()
    first = len(ended) - len(again)
    for number, line in enumerate(shown, first + 1):
        assert line.startswith(f"[{number}/{len(ended)}] ")
    assert len(shown) == len(again)

    table = pd.DataFrame(index=[run.run_id for run in runs])
    (line,) = closing_lines(ended, table, tmp_path)
    for why in ("done before", "not retried"):
        count = sum(KEPT[state] == why for state in set(KEPT) - due)
        assert (f"{count} {why}" in line) == (count > 0)
    assert ("1 new run, not started because of --retry" in line) == ("new" not in due)


class Instant(Executor):
    """Completes every run at once."""

    def start(self, *_: object) -> None:
        self._jobs: list[Job] = []

    def stop(self) -> None:
        assert not self._jobs

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self, timeout_s: float | None) -> list[Event]:
        jobs, self._jobs = self._jobs, []
        return [Event(run, Status("completed")) for job in jobs for run in job.runs]

    def room(self) -> int:
        return 1


def test_nothing_to_retry_is_said_plainly(tmp_path: Path) -> None:
    (line,) = closing_lines([], pd.DataFrame(index=["one", "two"]), tmp_path)
    assert line == f"0 runs in {tmp_path}; 2 new runs, not started because of --retry"


def test_a_single_failed_run_that_is_not_retried_is_not_done(tmp_path: Path) -> None:
    event = Event(tiny(), Status("failed", error="why"), kept=True)
    first = closing_lines([event], pd.DataFrame(index=[tiny().run_id]), tmp_path)[0]
    assert first.endswith("failed: why (not retried)")
