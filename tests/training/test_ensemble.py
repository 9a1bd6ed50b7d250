import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import ask
from helpers.tiny_runs import TINY, stop_after, tiny
from torch import Tensor, nn

from nsrelu_bench.compare.comparison import compare
from nsrelu_bench.compare.notes import notes
from nsrelu_bench.config.reading import run_config
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.errors import UsageError
from nsrelu_bench.models import build_model
from nsrelu_bench.records import CONFIG_COLUMNS, load_runs
from nsrelu_bench.records.status import read_status
from nsrelu_bench.records.writer import RunWriter
from nsrelu_bench.sweep.execution import Event, RunPolicy, group_into_jobs
from nsrelu_bench.sweep.executors.ray import RayExecutor
from nsrelu_bench.sweep.scheduler import run_all
from nsrelu_bench.training import Epoch, ensemble, run, run_ensemble, steps
from nsrelu_bench.training.ensemble import Ensemble

SEEDS = range(3)


def stacked(**settings: Any) -> list[RunConfig]:
    return [tiny(stack=True, seed=seed, **settings) for seed in SEEDS]


def rows(study: Path, config: RunConfig, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (study / config.run_id / name).open() as file:
        return list(csv.DictReader(file))


def made(study: Path, runs: list[RunConfig], **settings: Any) -> dict[str, Event]:
    """Make runs; returns the last event of each, by run id."""
    return {event.config.run_id: event for event in run_all(runs, study, **settings)}


def states(events: dict[str, Event]) -> list[str]:
    return [event.status.state for event in events.values()]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mlp", {}),
        ("mlp", {"batch_norm": True, "act": "relu/bsilu"}),
        ("cnn", {}),
        ("cnn", {"batch_norm": True}),
        ("vgg11", {"batch_norm": True}),
        ("resnet18", {}),
        ("resnet18", {"batch_norm": True, "impl": "function"}),
        ("deep_narrow", {"impl": "detach", "act": "nsrelu(0.3)"}),
        ("mlp", {"impl": "mismatch"}),
        ("mlp", {"act": "leaky_relu(0.1)"}),
    ],
)
def test_stacked_networks_have_the_gradients_of_single_ones(
    name: str, settings: dict[str, Any]
) -> None:
    def networks() -> list[nn.Module]:
        built = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            config = RunConfig(model=name, **({"width": 4} | settings))
            built.append(build_model(config, (1, 16, 16), 10).double())
        return built

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.0)

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(len(SEEDS), 8, 1, 16, 16, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (len(SEEDS), 8), generator=generator)
    together = Ensemble(networks())
    parameters = together.parameters()
    losses = steps.train_step(together.forward, optimizer(parameters), inputs, labels, "fp32")
    for number, network in enumerate(networks()):
        own = list(network.parameters())
        loss = steps.train_step(network, optimizer(own), inputs[number], labels[number], "fp32")
        torch.testing.assert_close(losses[number], loss)
        assert any(bool(weights.grad.any()) for weights in own)
        for of_all, weights in zip(parameters, own, strict=True):
            torch.testing.assert_close(of_all.grad[number], weights.grad)
        states = together.network(number).state_dict().items(), network.state_dict().values()
        for (key, ours), theirs in zip(*states, strict=True):
            torch.testing.assert_close(ours, theirs, msg=key)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "augment": "crop+flip", "train_size": 640},
        {"schedule": "cosine", "momentum": 0.0, "weight_decay": 0.01, "epochs": 1},
        {"tasks": 2, "epochs": 1, "probe_every": 20, "optimizer": "adamw", "train_size": 640},
        {"model": "cnn", "train_size": 200, "batch_size": 100, "epochs": 1},
        {"batch_norm": True, "precision": "bf16", "epochs": 1},
    ],
    ids=str,
)
def test_a_seed_has_the_files_of_a_single_run(tmp_path: Path, settings: dict[str, Any]) -> None:
    runs = stacked(**settings)
    assert states(made(tmp_path / "stacked", runs)) == ["completed"] * 3
    for config in runs:
        by_itself = config.model_copy(update={"stack": False})
        made(tmp_path / "alone", [by_itself])
        names = {path.name for path in (tmp_path / "stacked" / config.run_id).iterdir()}
        assert names == {path.name for path in (tmp_path / "alone" / by_itself.run_id).iterdir()}
        for name in sorted(names & {"metrics.csv", "layers.csv", "steps.csv", "quantiles.csv"}):
            ours = rows(tmp_path / "stacked", config, name)
            theirs = rows(tmp_path / "alone", by_itself, name)
            assert len(ours) == len(theirs) > 0
            for row, expected in zip(ours, theirs, strict=True):
                assert row.keys() == expected.keys()
                for column, value in row.items():
                    if column == "layer" or not value:
                        assert value == expected[column]
                    else:
                        exact = 1e-4 if config.precision == "fp32" else 0.1
                        close = pytest.approx(float(expected[column]), rel=exact, abs=exact)
                        assert float(value) == close, column


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18"])
def test_a_step_waits_for_no_value_of_the_device(name: str) -> None:
    # Tensors on `meta` have none: what asks for one, and would make a GPU wait, fails there.
    config = RunConfig(model=name, width=4, batch_norm=True)
    networks = [build_model(config, (1, 16, 16), 10).to("meta") for _ in SEEDS]
    inputs = torch.empty(len(SEEDS), 8, 1, 16, 16, device="meta")
    together = Ensemble(networks)
    optimizer = torch.optim.SGD(together.parameters(), lr=0.0)
    labels = torch.empty(len(SEEDS), 8, device="meta").long()
    losses = steps.train_step(together.forward, optimizer, inputs, labels, "fp32")
    assert losses.shape == (len(SEEDS),)
    assert all(p.grad is not None and p.grad.is_meta for p in together.parameters())


def test_seeds_differ_in_ids_and_numbers() -> None:
    first, second, _ = stacked()
    assert first.run_id != second.run_id
    assert first.run_id != first.model_copy(update={"stack": False}).run_id
    epochs = [list(run(config))[-1].metrics["train_loss"] for config in (first, second)]
    assert epochs[0] != epochs[1]


def test_ids_are_those_from_before_ensembles() -> None:
    assert RunConfig().run_id == "mnist5k-mlp-nsrelu-0.1-s0-4f07e200"


def scale_weights(patch: pytest.MonkeyPatch, seed: int, factor: float) -> None:
    """Build the network of one seed with its first weights scaled."""
    build = steps.build_model

    def scaled(config: RunConfig, *rest: Any) -> nn.Module:
        network = build(config, *rest)
        if config.seed == seed:
            with torch.no_grad():
                next(network.parameters()).mul_(factor)
        return network

    patch.setattr(steps, "build_model", scaled)


@pytest.mark.slow
def test_a_seed_that_diverges_does_not_change_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = stacked(probe_every=10, epochs=3)
    made(tmp_path / "well", runs)
    scale_weights(monkeypatch, 1, 1e38)
    events = made(tmp_path / "broken", runs)
    assert states(events) == ["completed", "diverged", "completed"]
    assert read_status(tmp_path / "broken" / runs[1].run_id).diverged_epoch == 0
    assert len(rows(tmp_path / "broken", runs[1])) == 1
    for config in (runs[0], runs[2]):
        assert rows(tmp_path / "broken", config) == rows(tmp_path / "well", config)


def test_epochs_come_in_turn_without_those_that_diverged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scale_weights(monkeypatch, 1, float("nan"))
    runs = stacked(epochs=2)
    reported = list(run_ensemble(runs, [None] * 3))
    assert [list(epochs) for epochs in reported] == [[0, 1, 2], [0, 2], [0, 2]]
    assert [epochs[2].metrics["epoch"] for epochs in reported] == [0, 1, 2]


def test_the_time_of_the_steps_is_shared_among_the_seeds() -> None:
    runs = stacked(train_size=64, epochs=1)
    _, last = run_ensemble(runs, [None] * 3)
    shares = {epoch.timing["train_s"] for epoch in last.values()}
    assert len(shares) == 1
    assert shares.pop() > 0


def test_all_seeds_may_diverge(tmp_path: Path) -> None:
    runs = stacked(act="nsrelu(1)", lr=1e4, epochs=5)
    assert states(made(tmp_path, runs)) == ["diverged"] * 3
    assert all(len(rows(tmp_path, config)) < 6 for config in runs)


@pytest.mark.covers
@pytest.mark.slow
def test_a_resumed_ensemble_gives_the_same_bits(tmp_path: Path) -> None:
    settings = {"model": "cnn", "batch_norm": True, "train_size": 100, "probe_every": 2}
    runs = stacked(optimizer="adam", epochs=3, **settings)
    made(tmp_path / "whole", runs)
    stopped = run_all(runs, tmp_path / "stopped", policy=RunPolicy(checkpoint_after=0))
    for event in stopped:
        if event.status.epoch == 2:
            break
    stopped.close()
    found = [read_status(tmp_path / "stopped" / config.run_id) for config in runs]
    assert [status and status.state for status in found] == ["interrupted"] * 3
    for config in runs:
        assert (tmp_path / "stopped" / config.run_id / "checkpoint.pt").exists()
    assert states(made(tmp_path / "stopped", runs)) == ["completed"] * 3
    for config in runs:
        for name in ("metrics.csv", "layers.csv", "steps.csv"):
            assert rows(tmp_path / "stopped", config, name) == rows(
                tmp_path / "whole", config, name
            )


KILLED = f"""
import os, signal, sys
from pathlib import Path
import sympy  # once for all, like torch: stacking would import it
from nsrelu_bench import training
from nsrelu_bench.config import RunConfig
from nsrelu_bench.records.writer import RunWriter
from nsrelu_bench.sweep import RunPolicy, run_all

append = RunWriter.append

def append_and_die(writer, epoch):
    global left
    append(writer, epoch)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

RunWriter.append = append_and_die
runs = [RunConfig(**{TINY!r}, stack=True, seed=seed) for seed in {[*SEEDS]}]
for left in map(int, sys.argv[2:]):
    child = os.fork()
    if not child:
        list(run_all(runs, Path(sys.argv[1], str(left)), policy=RunPolicy(checkpoint_after=0)))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""

#: By the number of epochs that are written before the process is killed: what was stacked.
STACKED_WITH = {
    7: ["seeds 0-2"] * 3,
    5: [
        *["seeds 0-2 until epoch 1, then seeds 0-1"] * 2,
        "seeds 0-2 until epoch 0, then seeds 2",
    ],
    8: ["seeds 0-2", *["seeds 0-2 until epoch 1, then seeds 1-2"] * 2],
}


@pytest.mark.slow
def test_a_killed_stack_gives_the_same_bits_or_records_it(tmp_path: Path) -> None:
    runs = stacked()
    made(tmp_path / "whole", runs)
    killed_after = map(str, STACKED_WITH)
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), *killed_after], check=True)
    for appended, stacked_with in STACKED_WITH.items():
        study = tmp_path / str(appended)
        assert states(made(study, runs)) == ["completed"] * 3
        for config, expected in zip(runs, stacked_with, strict=True):
            said = json.loads((study / config.run_id / "env.json").read_text())
            assert said["stacked"] == expected
            if expected == "seeds 0-2":
                assert rows(study, config) == rows(tmp_path / "whole", config)
        foot = notes(compare(load_runs(study), CONFIG_COLUMNS))
        warned = any(line.startswith("Careful") and "in stacked (seeds" in line for line in foot)
        assert warned == (stacked_with != ["seeds 0-2"] * 3)


def test_seeds_stopped_at_other_epochs_resume_from_their_own(tmp_path: Path) -> None:
    runs = stacked(epochs=3)
    for config, last in zip(runs, (0, 1, 1), strict=True):
        stop_after(last, config, tmp_path / config.run_id)
    events = list(run_all(runs, tmp_path))
    began = {e.config.seed: e.status.epoch for e in reversed(events) if e.status.epoch is not None}
    assert began == {0: 0, 1: 1, 2: 1}
    assert states({event.config.run_id: event for event in events}) == ["completed"] * 3
    for config in runs:
        assert [row["epoch"] for row in rows(tmp_path, config)] == ["0", "1", "2", "3"]


def test_seeds_that_are_done_are_kept(tmp_path: Path) -> None:
    runs = stacked()
    made(tmp_path, runs[:1])
    events = made(tmp_path, runs)
    assert [event.kept for event in events.values()] == [True, False, False]


def test_a_seed_that_runs_elsewhere_is_waited_for(tmp_path: Path) -> None:
    runs = stacked()
    events = []
    with RunWriter(tmp_path / runs[1].run_id, runs[1]):
        following = run_all(runs, tmp_path)
        for event in following:
            events.append(event)
            if [e.status.state for e in events].count("completed") == 2:
                break
        assert [e.config.seed for e in events if e.elsewhere] == [1]
    events += following
    assert states({event.config.run_id: event for event in events}) == ["completed"] * 3


def test_an_error_in_training_fails_all_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Tensor:
        raise MemoryError("no room for this")

    monkeypatch.setattr(ensemble, "train_step", broken)
    events = made(tmp_path, stacked())
    assert states(events) == ["failed"] * 3
    assert {e.status.error for e in events.values()} == {"MemoryError: no room for this"}
    assert all("Traceback" in str(event.traceback) for event in events.values())


def test_only_a_seed_that_can_not_be_written_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunWriter.append

    def full(writer: RunWriter, epoch: Epoch) -> None:
        if writer.config.seed == 1 and epoch.metrics["epoch"] == 1:
            raise OSError(28, "No space left on device")
        append(writer, epoch)

    monkeypatch.setattr(RunWriter, "append", full)
    assert states(made(tmp_path, stacked())) == ["completed", "failed", "completed"]


def test_ctrl_c_interrupts_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = stacked()

    def interrupt(*_: object) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ensemble, "train_step", interrupt)
        with pytest.raises(KeyboardInterrupt) as kept:  # as a notebook keeps it
            list(run_all(runs, tmp_path))
    for config in runs:
        assert read_status(tmp_path / config.run_id).state == "interrupted"
    assert states(made(tmp_path, runs)) == ["completed"] * 3
    assert kept.value is not None


def test_an_ensemble_has_a_largest_size() -> None:
    runs = [tiny(seed=seed, stack=True) for seed in range(100)] + [tiny(), tiny(seed=1)]
    assert [len(job.runs) for job in group_into_jobs(runs)] == [1, 1, 64, 36]
    together = [run for job in group_into_jobs(runs) for run in job.runs]
    assert sorted(run.run_id for run in together) == sorted(run.run_id for run in runs)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"act": "rrelu"}, "stack: works without random slopes only, got act: rrelu"),
        ({"dropout": 0.2}, "stack: works without dropout only, got dropout: 0.2"),
        ({"compile": True}, "stack: can't be compiled, got compile: true"),
    ],
)
def test_what_can_not_be_stacked_is_refused(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as refused:
        run_config({"stack": True} | settings)
    assert line in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_ray_refuses_a_stack(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stack: Ray runs each seed by itself"):
        list(run_all(stacked(), tmp_path, executor=RayExecutor()))


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "noisy.py").write_text(
        "import torch\n"
        "class Noisy(torch.nn.Module):\n"
        "    def __init__(self, activation, pixels, classes):\n"
        "        super().__init__()\n"
        "        self.layers = torch.nn.Sequential(\n"
        "            torch.nn.Flatten(), activation(), torch.nn.Linear(pixels, classes))\n"
        "    def forward(self, x):\n"
        "        return self.layers(x + torch.rand_like(x) if self.training else x)\n"
        "def make(activation, shape, classes):\n"
        "    return Noisy(activation, shape[0] * shape[1] * shape[2], classes)\n"
        "class Masked(Noisy):\n"
        "    def __init__(self, *given):\n"
        "        super().__init__(*given)\n"
        "        self.mask = torch.rand(given[1]) > 0.5\n"
        "    def forward(self, x):\n"
        "        return self.layers(x.flatten(1) * self.mask)\n"
        "def masked(activation, shape, classes):\n"
        "    return Masked(activation, shape[0] * shape[1] * shape[2], classes)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "noisy"
    sys.modules.pop("noisy", None)


@pytest.mark.parametrize(
    ("factory", "line"),
    [
        ("make", "stack: this model can't be computed stacked (vmap: "),
        ("masked", "stack: only parameters and buffers may depend on the seed, "),
    ],
)
def test_a_model_that_can_not_be_stacked_fails_in_one_line(
    tmp_path: Path, own_model: str, factory: str, line: str
) -> None:
    name = f"{own_model}:{factory}"
    runs = [RunConfig(dataset="digits", model=name, stack=True, seed=seed) for seed in SEEDS]
    events = made(tmp_path / "study", runs)
    assert states(events) == ["failed"] * 3
    (error,) = {event.status.error for event in events.values()}
    assert str(error).startswith(line)


def test_train_and_sweep_stack_the_seeds(tmp_path: Path) -> None:
    small = ["--dataset", "digits", "--width", "8", "--epochs", "1", "--seeds", "2", "--stack"]
    shared = ["--results", str(tmp_path), "--quiet"]
    ended = ask("train", *small, *shared)
    assert ended.code == 0, ended.err
    configs = sorted((tmp_path / "runs").glob("*/config.yaml"))
    assert len(configs) == 2
    assert all("stack: true" in config.read_text() for config in configs)

    study = tmp_path / "runs.yaml"
    study.write_text("dataset: digits\nwidth: 8\nepochs: 1\nseeds: 2\n")
    ended = ask("sweep", str(study), "--stack", "--dry-run", *shared)
    assert ended.code == 0, ended.err
    assert ended.out.count("completed") >= 2
    assert all(config.parent.name in ended.out for config in configs)
