import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_runs import TINY, tiny

from nsrelu_bench import models
from nsrelu_bench.config import activation_spec as labels
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.data import load_dataset
from nsrelu_bench.errors import BenchError
from nsrelu_bench.records.schema import COLUMNS
from nsrelu_bench.training import loop, steps
from nsrelu_bench.training.epoch import Epoch, evaluate, first_non_finite
from nsrelu_bench.training.loop import run
from nsrelu_bench.training.steps import permute_pixels

EVERY_KIND: list[dict[str, Any]] = [
    {"act": "relu"},
    {"act": "nsrelu(0.1)", "optimizer": "adamw", "weight_decay": 0.01},
    {"act": "leaky_relu(0.1)", "model": "cnn", "dropout": 0.2, "batch_norm": True},
    {"act": "nsrelu(1)", "schedule": "cosine", "init": "default", "dropout": 0.5},
    {"act": "rescue(0.1)", "leak_schedule": "linear", "layer_norm": True, "clip_norm": 0.5},
    {"act": "relu", "optimizer": "adam", "lr": 0.03, "redo": 7},
]


def numbers(epochs: list[Epoch]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    return [(epoch.metrics, epoch.layers) for epoch in epochs]


@pytest.mark.slow
@pytest.mark.parametrize("settings", EVERY_KIND)
def test_bits_do_not_depend_on_what_ran_before(
    settings: dict[str, Any],
) -> None:
    first = numbers(list(run(tiny(**settings))))
    torch.rand(7)
    list(run(tiny(seed=5)))
    assert numbers(list(run(tiny(**settings)))) == first


ANOTHER_PROCESS = f"""
import sys
from pathlib import Path
from nsrelu_bench.config import RunConfig
from nsrelu_bench.sweep import execute_run
list(execute_run(RunConfig(**{TINY!r}), Path("run")))
print(*{{"pandas", "sympy", "torch._dynamo", "torchvision"}} & set(sys.modules))
"""


@pytest.mark.slow
def test_bits_are_the_same_in_another_process(tmp_path: Path, study: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('broken')")
    slow_imports = subprocess.check_output([sys.executable, "-c", ANOTHER_PROCESS], cwd=tmp_path)
    for name in ("metrics.csv", "layers.csv", "quantiles.csv"):
        ours, theirs = study / tiny().run_id / name, tmp_path / "run" / name
        assert theirs.read_bytes() == ours.read_bytes()
    assert not slow_imports.strip()


@pytest.mark.slow
def test_training_leaves_the_process_as_it_was() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    for _ in run(tiny(dropout=0.5, threads=2)):
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == threads


def test_two_runs_at_a_time_do_not_disturb_each_other() -> None:
    one, other = tiny(dropout=0.5), tiny(dropout=0.5, seed=1)
    together = list(zip(run(one), run(other), strict=True))
    assert numbers([pair[0] for pair in together]) == numbers(list(run(one)))
    assert numbers([pair[1] for pair in together]) == numbers(list(run(other)))


def test_a_run_has_a_record_per_epoch_from_epoch_0() -> None:
    config = tiny(epochs=3, batch_size=100)
    epochs = list(run(config))
    assert [epoch.metrics["epoch"] for epoch in epochs] == [0, 1, 2, 3]
    assert [epoch.metrics["step"] for epoch in epochs] == [0, 13, 26, 39]
    assert [row["layer"] for row in epochs[0].layers] == ["act1", "act2"]


def test_every_column_of_the_files_is_given() -> None:
    epoch = list(run(tiny()))[-1]
    assert set(epoch.metrics) >= set(COLUMNS["metrics.csv"])
    assert set(epoch.layers[0]) == set(COLUMNS["layers.csv"])
    assert set(epoch.timing) == set(COLUMNS["timing.csv"])
    empty = {name for name in COLUMNS["metrics.csv"] if epoch.metrics[name] is None}
    assert empty <= {"gradient_lost_step"}


def test_training_learns() -> None:
    first, *_, last = run(tiny(epochs=5, width=32))
    assert first.metrics["test_accuracy"] < 0.3
    assert last.metrics["test_accuracy"] > 0.85
    assert last.metrics["train_loss"] < first.metrics["train_loss"]


@pytest.mark.parametrize("seed", [0, 1])
def test_activations_share_weights_and_batches_of_a_seed(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    step = loop.train_step

    def recording(model: Any, optimizer: Any, inputs: torch.Tensor, *rest: Any) -> Any:
        seen[act].append(inputs.clone())
        return step(model, optimizer, inputs, *rest)

    monkeypatch.setattr(loop, "train_step", recording)
    start = {}
    for act in ("relu", "nsrelu(0.1)"):
        seen[act] = []
        start[act] = next(iter(epochs := list(run(tiny(act=act, seed=seed))))).metrics
        assert len(epochs) == 3
    assert start["relu"]["train_loss"] == start["nsrelu(0.1)"]["train_loss"]
    assert len(seen["relu"]) == 40
    assert all(map(torch.equal, seen["relu"], seen["nsrelu(0.1)"]))


def test_every_epoch_sees_every_example_once_in_a_new_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    orders = []
    batches = loop.batches

    def recording(*arguments: Any) -> Any:
        cut = list(batches(*arguments))
        orders.append(torch.cat([images for images, _ in cut]).flatten(1))
        return cut

    monkeypatch.setattr(loop, "batches", recording)
    list(run(tiny()))
    first, second = (sorted(map(tuple, order.tolist())) for order in orders)
    assert first == second
    assert not torch.equal(orders[0], orders[1])


def test_the_implementations_of_nsrelu_train_to_the_same_bits() -> None:
    finals = [list(run(tiny(impl=impl)))[-1].metrics for impl in ("native", "detach", "function")]
    assert finals[0] == finals[1] == finals[2]


def test_the_learning_rate_follows_its_schedule() -> None:
    constant = [epoch.metrics["lr"] for epoch in run(tiny(lr=0.1))]
    cosine = [epoch.metrics["lr"] for epoch in run(tiny(lr=0.1, schedule="cosine"))]
    assert constant == [0.1, 0.1, 0.1]
    assert cosine[0] == 0.1
    assert cosine[1] == pytest.approx(0.1 * (1 + torch.pi * 0 + 0.0785) / 2, rel=0.01)
    assert 0 < cosine[2] < 0.001


POSITION = {"epoch", "step", "task", "lr", "gradient_lost_step"}
DIVERGING_WITH_MOMENTUM = {"act": "nsrelu(1)", "lr": 1e4, "epochs": 3, "momentum": 0.9}


#: Seen: a naive count reports this network as sparsity 0.000 and no dead unit.
DIVERGING_WITH_DEPTH = {"act": "nsrelu(0.5)", "depth": 20, "width": 16, "lr": 0.05, "epochs": 3}


@pytest.mark.parametrize(
    "config",
    [
        tiny(**DIVERGING_WITH_MOMENTUM),
        RunConfig(**DIVERGING_WITH_DEPTH, probe_size=100),
    ],
    ids=["momentum", "depth"],
)
def test_a_run_that_diverges_says_when_and_has_no_numbers_after(config: RunConfig) -> None:
    *_, last = epochs = list(run(config))
    assert last.diverged_step is not None
    assert 0 < last.diverged_step <= last.metrics["step"]
    assert len(epochs) - 1 == last.metrics["epoch"] <= 3
    assert set(last.metrics) == POSITION
    assert [set(row) for row in last.layers] == [{"epoch", "layer", "units"}] * config.depth
    assert all(epoch.diverged_step is None for epoch in epochs[:-1])


def test_divergence_is_at_the_first_loss_not_finite() -> None:
    model = torch.nn.Linear(2, 2)
    losses = torch.tensor([1.0, 2.0, float("nan"), float("inf")])
    assert first_non_finite(model, losses, 14) == 13
    assert first_non_finite(model, losses[:2], 12) is None
    assert first_non_finite(model, None, 0) is None
    with torch.no_grad():
        model.weight[0, 0] = float("inf")
    assert first_non_finite(model, losses[:2], 12) == 12


def test_logits_that_are_not_finite_have_no_accuracy() -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 10), torch.nan)

    data = load_dataset(tiny())
    assert evaluate(Broken(), data, data.test) == (None, None)


def final_weights(monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> list[torch.Tensor]:
    built: list[torch.nn.Module] = []

    def remember(*arguments: Any) -> torch.nn.Module:
        built.append(models.build_model(*arguments))
        return built[-1]

    with monkeypatch.context() as patch:
        patch.setattr(steps, "build_model", remember)
        list(run(config))
    return [value.clone() for value in built[0].state_dict().values()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        {"model": "mlp"},
        pytest.param(
            {"model": "cnn", "batch_norm": True, "dropout": 0.3, "width": 4},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["mlp", "cnn"],
)
@pytest.mark.parametrize("act", labels.ACTIVATION_NAMES)
def test_measuring_never_changes_training(
    act: str, shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"act": act, "epochs": 1, "train_size": 130, "probe_size": 20, **shape}
    off = final_weights(monkeypatch, tiny(**settings, measures="none"))
    every_step = final_weights(monkeypatch, tiny(**settings, probe_every=1))
    assert all(map(torch.equal, off, every_step))


def test_measures_between_epochs_have_a_row_each() -> None:
    epochs = list(run(tiny(probe_every=5)))
    steps = [row["step"] for epoch in epochs for row in epoch.steps]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [row["epoch"] for epoch in epochs for row in epoch.steps] == [1] * 4 + [2] * 4
    # The measurement after the last step of an epoch is the epoch's own.
    last = epochs[1].steps[-1]
    for name in ("train_loss", "dead_units", "grad_norm", "effective_rank"):
        assert last[name] == epochs[1].metrics[name]


def test_measures_left_out_are_empty_and_others_unchanged() -> None:
    everything = list(run(tiny()))[-1].metrics
    some = list(run(tiny(measures="-effective_rank,-surrogate_cosine")))[-1].metrics
    assert some["effective_rank"] is None
    assert some["surrogate_cosine"] is None
    left = set(COLUMNS["metrics.csv"]) - {
        "effective_rank",
        "surrogate_cosine",
        "gradient_lost_step",
    }
    assert all(some[name] == everything[name] for name in left)


def test_batch_norm_of_one_example_is_refused_before_training() -> None:
    reported = (
        "batch_norm: needs two examples per batch, and 65 examples by batch_size 64 leave one alone"
    )
    with pytest.raises(BenchError, match=reported):
        next(run(tiny(batch_norm=True, train_size=65)))
    assert next(run(tiny(batch_norm=True, train_size=66))).metrics["epoch"] == 0


def test_the_last_epoch_has_quantiles_of_the_pre_activations() -> None:
    *before, last = run(tiny())
    assert [row["layer"] for row in last.quantiles] == ["act1"] * 200 + ["act2"] * 200
    assert not any(epoch.quantiles for epoch in before)
    assert not list(run(tiny(measures="none")))[-1].quantiles
    assert not list(run(tiny(**DIVERGING_WITH_MOMENTUM)))[-1].quantiles


def test_a_device_that_is_not_there_is_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BenchError, match="device: 'cuda' can't be used here") as error:
        list(run(tiny(device="cuda")))
    assert "\n" not in str(error.value)


def test_convolutions_run_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def remember(config: RunConfig, *rest: Any) -> torch.nn.Module:
        built.append(models.build_model(config, *rest))
        return built[-1]

    monkeypatch.setattr(steps, "build_model", remember)
    next(run(tiny(model="cnn")))
    weight = built[0].get_submodule("conv2").weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        *EVERY_KIND,
        {"optimizer": "adam", "tasks": 2, "probe_every": 7},
        {"model": "cnn", "augment": "crop+flip+cutout", "width": 4, "train_size": 300},
    ],
)
def test_a_resumed_run_gives_the_same_bits(
    settings: dict[str, Any],
) -> None:
    config = tiny(**settings)
    whole = list(run(config))
    for stop in {0, 1, config.total_epochs - 1}:
        saved = io.BytesIO()
        for epoch in run(config):
            if epoch.metrics["epoch"] == stop:
                torch.save(epoch.checkpoint(), saved)
                break
        saved.seek(0)
        rest = list(run(config, torch.load(saved, weights_only=True)))
        assert numbers(rest) == numbers(whole[stop + 1 :])
        assert [epoch.steps for epoch in rest] == [epoch.steps for epoch in whole[stop + 1 :]]
        assert rest[-1].quantiles == whole[-1].quantiles


def test_a_later_task_permutes_the_pixels_of_all_images() -> None:
    data = load_dataset(tiny())
    one, other = permute_pixels(data, 0, 1), permute_pixels(data, 0, 2)
    pixels = [split.images.flatten(1).sort(1)[0] for split in (data.test, one.test, other.test)]
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])
    assert not torch.equal(one.test.images, other.test.images)
    assert torch.equal(one.test.labels, data.test.labels)
    # One order for all images and splits of a task.
    moved = permute_pixels(replace(data, test=data.train), 0, 1)
    assert torch.equal(moved.test.images, one.train.images)


def test_tasks_follow_each_other_and_each_is_learned() -> None:
    epochs = [epoch.metrics for epoch in run(tiny(epochs=2, tasks=3, width=32))]
    assert [metrics["task"] for metrics in epochs] == [1, 1, 1, 2, 2, 3, 3]
    assert [metrics["epoch"] for metrics in epochs] == [0, 1, 2, 3, 4, 5, 6]
    alone = [epoch.metrics for epoch in run(tiny(epochs=2, width=32))]
    assert epochs[:3] == alone


def test_mixed_precision_changes_training_not_measuring() -> None:
    full, mixed = (list(run(tiny(precision=name, width=32))) for name in ("fp32", "bf16"))
    assert full[0].metrics == mixed[0].metrics
    assert full[1].metrics["train_loss"] != mixed[1].metrics["train_loss"]
    assert full[1].metrics["train_loss"] == pytest.approx(mixed[1].metrics["train_loss"], rel=0.1)


def test_a_replicate_differs_in_the_last_digit_of_its_weights() -> None:
    data = load_dataset(tiny())
    plain, one, again, two = (
        steps.build_network(tiny(replicate=number), data) for number in (0, 1, 1, 2)
    )
    for weights, changed, same, other in zip(
        plain.parameters(), one.parameters(), again.parameters(), two.parameters(), strict=True
    ):
        neighbours = [
            torch.nextafter(weights, torch.full_like(weights, end))
            for end in (-torch.inf, torch.inf)
        ]
        assert ((changed == neighbours[0]) | (changed == neighbours[1])).all()
        assert torch.equal(changed, same)
        assert not torch.equal(changed, other)


def test_only_further_replicates_have_new_ids() -> None:
    assert tiny(replicate=0).run_id == tiny().run_id
    assert len({tiny(replicate=number).run_id for number in range(3)}) == 3
    first, second = (list(run(tiny(replicate=number)))[-1].metrics for number in (0, 1))
    assert first["train_loss"] == pytest.approx(second["train_loss"], rel=0.1)


def test_a_clipped_step_has_a_gradient_of_that_norm() -> None:
    network = torch.nn.Linear(4, 3)
    before = network.weight.clone(), network.bias.clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    inputs, labels = 100 * torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    steps.train_step(network, optimizer, inputs, labels, "fp32", clip_norm=0.25)
    change = torch.cat(
        [(old - new).flatten() for old, new in zip(before, network.parameters(), strict=True)]
    )
    assert change.norm().item() == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("act", ["nsrelu(0.4)", "leaky_relu(0.4)", "up(0.4)"])
def test_a_scheduled_leak_falls_to_zero_over_the_run(
    act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaks = []

    def step(forward: Any, *_: Any, **__: Any) -> torch.Tensor:
        leaks.append(getattr(forward.act1, "leak", getattr(forward.act1, "negative_slope", None)))
        return torch.tensor(1.0)

    monkeypatch.setattr(loop, "train_step", step)
    *_, last = run(tiny(act=act, leak_schedule="linear"))
    assert leaks[0] == 0.4
    assert leaks == pytest.approx([0.4 * (1 - k / len(leaks)) for k in range(len(leaks))])
    assert last.metrics["zero_fraction"] == last.metrics["negative_fraction"] > 0
