import pytest
from helpers.tiny_runs import tiny
from rich.console import Console

from nsrelu_bench.records import Status
from nsrelu_bench.sweep import Event
from nsrelu_bench.sweep.progress import _View, follow

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


def test_the_bar_counts_the_runs_that_ended() -> None:
    view = _View(Console(quiet=True), 3, [])
    assert view.counts() == "0 of 3 ended"
    for event in (*events(0), Event(tiny(seed=1), Status("failed", error="why"), {})):
        view.take(event)
    assert view.counts() == "2 of 3 ended, 1 failed"
