import pytest
from helpers.tiny_runs import tiny

from nsrelu_bench.records import Status
from nsrelu_bench.sweep import Event
from nsrelu_bench.sweep.progress import follow

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
