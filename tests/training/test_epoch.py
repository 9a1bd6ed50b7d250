from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.tiny_runs import tiny

from nsrelu_bench.training import run
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
