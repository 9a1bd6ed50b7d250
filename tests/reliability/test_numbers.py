"""Numbers that are not finite, and data and models at the edge of what makes sense.

docs/reliability.md lists all cases, and the tests that hold the others.
"""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command_line import ask
from helpers.tiny_runs import tiny
from torch import Tensor, nn

from nsrelu_bench import NSReLU, training
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.data.dataset import Dataset, Split, moments
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.files import write_json
from nsrelu_bench.measures.measurement import measure
from nsrelu_bench.measures.probe import ActivationProbe
from nsrelu_bench.plot.panel_data import means
from nsrelu_bench.sweep.execution import execute_run
from nsrelu_bench.training import steps
from nsrelu_bench.training.loop import Epoch

FEW_CLASSES = 4


def made_up(
    examples: int = 48, labels: Tensor | None = None, images: Tensor | None = None
) -> Dataset:
    """Bytes without a pattern in three splits of one size."""
    generator = torch.Generator().manual_seed(0)
    if images is None:
        images = torch.randint(256, (examples, 1, 6, 6), generator=generator).to(torch.uint8)
    if labels is None:
        labels = torch.arange(len(images)) % FEW_CLASSES
    split = Split(images, labels)
    return Dataset(split, split, split, FEW_CLASSES, *moments(images))


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that trains on a made-up data set, and gives the records."""

    def run(dataset: Dataset, **settings: Any) -> list[Epoch]:
        monkeypatch.setattr(steps, "load_dataset", lambda _: dataset)
        return list(training.run(tiny(**({"batch_size": 16} | settings))))

    return run


def finite(epochs: list[Epoch]) -> bool:
    values = [value for epoch in epochs for value in epoch.metrics.values() if value is not None]
    return all(math.isfinite(value) for value in values)


# What is not finite.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("act", ["relu", "nsrelu(0.1)", "leaky_relu(0.1)"])
def test_a_non_finite_input_has_no_measures(act: str, value: float) -> None:
    make = {"relu": nn.ReLU, "nsrelu(0.1)": NSReLU, "leaky_relu(0.1)": nn.LeakyReLU}[act]
    model = nn.Sequential(nn.Linear(6, 5), make(), nn.Linear(5, FEW_CLASSES))
    images = torch.randn(8, 6)
    images[3, 2] = value
    found = measure(model, images, torch.arange(8) % FEW_CLASSES)
    assert not found.finite
    assert set(found.totals.values()) == {None}
    (row,) = found.layers
    assert {key: cell for key, cell in row.items() if cell is not None} == {
        "layer": "1",
        "units": 5,
    }


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_hidden_non_finite_weight_is_noticed(value: float) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, FEW_CLASSES))
    with torch.no_grad():
        model[2].weight[0, 0] = value
        model[0].bias[0] = -1e9  # the unit that it weighs is 0
    found = measure(model, torch.randn(8, 6), torch.arange(8) % FEW_CLASSES)
    assert not found.finite
    assert set(found.totals.values()) == {None}


def test_a_run_with_nan_weights_diverged_with_empty_cells(
    trained_on: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(steps, "load_dataset", lambda _: made_up())
    config = tiny(lr=1e6, act="nsrelu(1)", epochs=3)
    *_, event = execute_run(config, tmp_path / "run")
    assert event.status.state == "diverged"
    assert event.status.error is None
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        *_, last = csv.DictReader(file)
    known = {name for name, cell in last.items() if cell}
    assert known <= {"epoch", "step", "lr", "task", "gradient_lost_step"}
    text = (tmp_path / "run" / "metrics.csv").read_text()
    assert "nan" not in text
    assert "inf" not in text


@pytest.mark.parametrize(("dtype", "large"), [(torch.float16, 300.0), (torch.bfloat16, 1e30)])
def test_an_overflow_in_half_precision_is_not_finite(dtype: torch.dtype, large: float) -> None:
    model = nn.Sequential(nn.Linear(4, 3), NSReLU(0.1), nn.Linear(3, 2)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(large)
    images = torch.full((5, 4), large, dtype=dtype)
    found = measure(model, images, torch.zeros(5, dtype=torch.int64))
    assert not found.finite
    assert found.totals["dead_units"] is None
    assert found.totals["zero_fraction"] is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_in_half_precision_do_not_overflow(dtype: torch.dtype) -> None:
    """The mean of 4,000 values of 60 is 60, though fp16 ends at 65,504."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU()).to(dtype)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[60.0], [-60.0]]))
    with ActivationProbe(model) as probe:
        model(torch.ones(4000, 1, dtype=dtype))
    (row,) = probe.frame().to_dict("records")
    assert (row["zero_fraction"], row["dead_units"], row["units"]) == (0.5, 1, 2)
    assert row["dormant_units"] == 1
    assert row["effective_rank"] == pytest.approx(1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_overflows_has_diverged(trained_on: Any, precision: str) -> None:
    epochs = trained_on(made_up(), lr=1e6, act="relu", epochs=3, precision=precision)
    assert epochs[-1].diverged_step is not None
    assert finite(epochs)


# Data and models at the edge.


def test_a_class_without_an_example_is_allowed(trained_on: Any) -> None:
    epochs = trained_on(made_up(labels=torch.arange(48) % (FEW_CLASSES - 1)))
    assert epochs[-1].diverged_step is None
    assert finite(epochs)
    assert epochs[-1].metrics["test_accuracy"] is not None


def test_images_of_only_one_class_have_an_accuracy_of_one(trained_on: Any) -> None:
    epochs = trained_on(made_up(labels=torch.zeros(48, dtype=torch.int64)), epochs=5)
    assert epochs[-1].metrics["test_accuracy"] == 1
    assert finite(epochs)


def test_constant_images_are_finite(trained_on: Any) -> None:
    images = torch.full((48, 1, 6, 6), 255, dtype=torch.uint8)
    epochs = trained_on(made_up(images=images))
    assert finite(epochs)
    first = epochs[0].metrics
    assert first["dead_fraction"] == first["zero_fraction"]  # a unit is 0 for all, or for none
    assert first["test_accuracy"] == 1 / FEW_CLASSES


def test_a_probe_set_of_one_example_measures_it(trained_on: Any) -> None:
    epochs = trained_on(made_up(), probe_size=1)
    assert finite(epochs)
    metrics = epochs[-1].metrics
    assert metrics["train_accuracy"] in (0.0, 1.0)
    assert metrics["dead_fraction"] == metrics["zero_fraction"]
    assert metrics["lifetime_sparsity"] is None  # it is over examples: 0/0 for one


def test_a_probe_set_larger_than_the_data_is_all_of_it(trained_on: Any) -> None:
    whole = trained_on(made_up(), probe_size=48)
    larger = trained_on(made_up(), probe_size=1_000_000_000)
    assert [epoch.metrics for epoch in whole] == [epoch.metrics for epoch in larger]


def test_a_probe_set_of_no_example_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(UsageError, match="a probe set needs one label per image, got 0 labels"):
        measure(model, torch.empty(0, 2), torch.empty(0, dtype=torch.int64))


def test_a_batch_larger_than_the_data_is_one_step(trained_on: Any) -> None:
    epochs = trained_on(made_up(), batch_size=1_000_000_000)
    assert [epoch.metrics["step"] for epoch in epochs] == [0, 1, 2]
    assert finite(epochs)


def test_batches_of_one_train(trained_on: Any) -> None:
    epochs = trained_on(made_up(12), batch_size=1)
    assert epochs[-1].metrics["step"] == 24
    assert finite(epochs)


@pytest.mark.parametrize(("examples", "batch"), [(49, 16), (3, 1), (1, 16)])
def test_batch_norm_with_a_batch_of_one_is_refused(
    trained_on: Any, examples: int, batch: int
) -> None:
    with pytest.raises(BenchError, match="batch_norm: needs two examples per batch, and "):
        trained_on(made_up(examples), batch_norm=True, batch_size=batch)


def test_batch_norm_with_a_last_batch_of_two_trains(trained_on: Any) -> None:
    assert finite(trained_on(made_up(50), batch_norm=True))


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("size", [{"width": 1}, {"depth": 1}, {"width": 1, "depth": 1}])
def test_the_smallest_networks_train_and_are_measured(
    trained_on: Any, model: str, size: dict[str, int]
) -> None:
    epochs = trained_on(made_up(), model=model, epochs=1, **size)
    assert finite(epochs)
    assert all(row["units"] >= 1 for row in epochs[-1].layers)
    for row in epochs[-1].layers:
        if row["units"] == 1:
            assert row["population_sparsity"] is None  # it is over units: 0/0 for one


@pytest.mark.parametrize("size", [{"width": 0}, {"depth": 0}, {"depth": -1}])
def test_a_network_of_nothing_is_refused(size: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        RunConfig(**size)


def test_a_network_of_dead_units_has_not_diverged() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].bias.fill_(-1e9)
    found = measure(model, torch.randn(8, 4), torch.arange(8) % 2)
    assert found.finite
    assert found.totals["dead_units"] == found.totals["zero_grad_units"] == 3
    assert found.totals["zero_fraction"] == 1
    assert found.layers[0]["grad_norm"] == 0
    values = [value for value in found.totals.values() if value is not None]
    assert np.isfinite(values).all()


def test_json_never_has_nan(tmp_path: Path) -> None:
    answer = ask("born-dead", "--width", "1", "--depth", "2", "--trials", "10", "--json")
    assert answer.code == 0
    json.loads(answer.out, parse_constant=lambda name: pytest.fail(name))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"time_s": math.nan})


def test_the_interval_of_a_fraction_is_drawn_within_its_bounds() -> None:
    values = pd.DataFrame({"key": 0, "value": [90.0, 99.0]})
    for metric, ends in {"test_accuracy": (37.3, 100), "grad_norm": (37.3, 151.7)}.items():
        drawn = means(values, ["key"], metric, log=False)[["low", "high"]].iloc[0]
        assert tuple(drawn) == pytest.approx(ends, abs=0.05)
    one = means(values.iloc[:1], ["key"], "dead_fraction", log=False)
    assert one[["low", "high"]].isna().all(axis=None)
