from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.tiny_runs import tiny

from nsrelu_bench.training import epoch as measuring
from nsrelu_bench.training import gradient_watch, run, run_ensemble
from nsrelu_bench.training.epoch import Monitor
from nsrelu_bench.training.steps import Task, load_data, make_task

GUESSING = torch.tensor(10.0).log().item()  # all classes of the probe set equally often


@pytest.fixture(scope="module")
def task() -> Task:
    config = tiny()
    whole = make_task(load_data(config), config, 0)
    labels = torch.arange(100) % 10
    return Task(whole.data, whole.probe_inputs[:100], labels)


def verdict(monitor: Monitor, task: Task, accuracy: float, loss: float, epoch: int = 1) -> int:
    metrics = {"epoch": epoch, "val_accuracy": accuracy, "train_loss": loss}
    monitor._note_best(metrics)
    return monitor._collapsed(metrics, task)


@pytest.mark.parametrize(
    ("accuracy", "loss", "collapsed"),
    [
        (0.9, 0.3, 0),
        (0.3, 2.2, 0),
        (0.05, 2.2, 1),  # no better than the most frequent class
        (0.8, GUESSING + 0.4, 0),  # large logits, and yet usable
        (0.55, 10 * GUESSING + 0.1, 1),  # an exploded loss
        (0.3, 1340.0, 1),
    ],
)
def test_a_network_no_better_than_guessing_has_collapsed(
    task: Task, accuracy: float, loss: float, collapsed: int
) -> None:
    assert verdict(Monitor(tiny()), task, accuracy, loss) == collapsed
    assert verdict(Monitor(tiny()), task, accuracy, loss, epoch=0) == 0


def test_less_than_half_of_the_best_accuracy_is_a_collapse(task: Task) -> None:
    monitor = Monitor(tiny())
    found = [verdict(monitor, task, accuracy, 1.0) for accuracy in (0.5, 0.9, 0.46, 0.44, 0.8)]
    assert found == [0, 0, 0, 1, 0]
    resumed = Monitor(tiny(), monitor.state())
    assert verdict(resumed, task, 0.44, 1.0) == 1


def test_a_network_with_one_class_has_nothing_to_collapse_from(task: Task) -> None:
    one_class = Task(task.data, task.probe_inputs, torch.zeros(100, dtype=torch.long))
    assert verdict(Monitor(tiny()), one_class, 1.0, 0.0) == 0


def test_only_measuring_waits_for_the_device(task: Task) -> None:
    on_meta = torch.empty(2, 4, device="meta")  # has no values to wait for
    monitor = Monitor(tiny(probe_every=3))
    assert [step for step in range(1, 102) if monitor.due(step)] == [*range(3, 100, 3), 100]
    with pytest.raises(NotImplementedError):
        monitor.after_step(torch.nn.Linear(4, 2), on_meta, on_meta[:, 0], task, 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("stack", [1, 3])
def test_measuring_between_steps_is_no_time_of_training(
    stack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def slow(function: Any, seconds: float) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            clock[0] += seconds
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(measuring, "measure", slow(measuring.measure, 100.0))
    monkeypatch.setattr(measuring, "evaluate", slow(measuring.evaluate, 7.0))
    config = tiny(probe_every=3, stack=stack > 1, epochs=2)
    watched = gradient_watch.first_layer_cosine
    monkeypatch.setattr(gradient_watch, "first_layer_cosine", slow(watched, 10.0))
    monkeypatch.setattr(gradient_watch, "WATCH_EVERY", 10)
    seeds = [config.model_copy(update={"seed": seed}) for seed in range(stack)]
    epochs = run_ensemble(seeds, [None] * stack) if stack > 1 else ({0: e} for e in run(config))
    before, *after = [records[stack - 1] for records in epochs]
    assert list(before.timing.values()) == [0, 114, 0, 100, 14]
    for number, record in enumerate(after, 1):
        steps = range(1 + after[0].metrics["step"] * (number - 1), record.metrics["step"] + 1)
        between = 100 * sum(s % 3 == 0 for s in steps) + 10 * sum(s % 10 == 0 for s in steps)
        assert between > 100
        spent = {"time_s": between + 114, "train_s": 0, "measure_s": between + 100}
        assert record.timing == {"epoch": number, "evaluate_s": 14, **spent}


@pytest.mark.parametrize(
    ("settings", "collapsed"),
    [({"width": 32}, 0), ({"act": "relu", "optimizer": "adam", "lr": 3.0}, 1)],
    ids=["trains", "breaks"],
)
def test_a_run_says_whether_its_network_collapsed(settings: dict[str, Any], collapsed: int) -> None:
    *_, last = run(tiny(**settings))
    assert last.diverged_step is None
    assert last.metrics["collapsed"] == collapsed


@pytest.mark.parametrize("most_frequent", [561, 601, 667, 723])
def test_a_network_with_one_answer_has_always_collapsed(task: Task, most_frequent: int) -> None:
    labels = torch.arange(5000) % 9 + 1
    labels[:most_frequent] = 0
    data = replace(task.data, val=replace(task.data.val, labels=labels))
    accuracy = (labels == labels.mode().values).double().mean().item()
    assert verdict(Monitor(tiny()), replace(task, data=data), accuracy, 2.2) == 1
