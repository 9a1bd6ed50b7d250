"""Parts of the user's own: activations, optimizers, schedules, measures; docs/own_parts.md."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.tiny_runs import stop_after, tiny
from torch import nn

from nsrelu_bench import ActivationProbe, swap_activations
from nsrelu_bench.activations import OwnActivation, build
from nsrelu_bench.compare import compare, select
from nsrelu_bench.config import RunConfig
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.measures import measure
from nsrelu_bench.models import build_model
from nsrelu_bench.plot.figures import draw_all
from nsrelu_bench.records import check_inputs, load, read_status
from nsrelu_bench.sweep import execute_run, run_all
from nsrelu_bench.training import run

OWN_PARTS_PAGE = (Path(__file__).parents[1] / "docs" / "own_parts.md").read_text(encoding="utf-8")
PAGE_EXAMPLES = [
    (dict(part.split("=", 1) for part in settings.split()), code)
    for settings, code in re.findall(
        r"<!-- run by tests/test_own_parts.py: (.*?) -->\n```python\n(.*?)```",
        OWN_PARTS_PAGE,
        re.DOTALL,
    )
]

OWN_SOURCE = """
    import torch
    from torch import nn

    def twice(x, factor=2.0):
        return factor * x

    def two_leaks(x):
        return torch.where(x > 0, x, 0.1 * x)

    class Slope(nn.Module):
        def __init__(self, slope=0.25):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(slope))
            self.noise = torch.rand(3)

        def forward(self, x):
            return torch.where(x > 0, x, self.slope * x)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Linear(1, 1)
            self.also = nn.ReLU()
            nn.init.ones_(self.inside.weight)

        def forward(self, x):
            return self.also(x) * self.inside.weight.squeeze()

    made = nn.ReLU()
    number = 3

    def makes_a_module(x):
        return nn.ReLU()

    def sums(x):
        return x.sum(1)

    def logs(x):
        return x.log()

    def raises(x):
        raise ValueError("no\\nway")

    def detaches(x):
        return x.detach()

    def doubles(x):
        return x.double()

    def looks(x):
        return x if x.sum() > 0 else -x

    class Momentum(torch.optim.SGD):
        def __init__(self, parameters, lr):
            super().__init__(parameters, lr, momentum=0.9, fused=True)

    def groups(parameters, lr):
        slow = {"params": parameters[:1], "lr": lr / 10}
        return torch.optim.SGD([slow, {"params": parameters[1:]}], lr)

    class Forgets(torch.optim.SGD):
        def step(self):
            super().step()
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["kept"] = object()

    class Tires(torch.optim.SGD):
        def step(self):
            super().step()
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps == 3:
                raise RuntimeError("tired")

    def no_optimizer(parameters, lr):
        return lr

    def steady(step, steps):
        return 1

    def falls(step, steps):
        return 1 - step / steps

    def negative(step, steps):
        return -1.0

    def not_a_number(step, steps):
        return float("nan")

    def text(step, steps):
        return "half"

    def divides(step, steps):
        return 1 / step

    class Zeros:
        def update(self, pre, post):
            return torch.tensor([(post == 0).sum(), post.numel()])

        def compute(self, *sums):
            zeros, count = torch.stack(sums).sum(0).tolist()
            return zeros / count

    class Inputs(Zeros):
        def update(self, pre, post):
            return torch.tensor([(pre <= 0).sum(), pre.numel()])

    class NoValue(Zeros):
        def compute(self, *sums):
            return float("nan")

    class Counts(Zeros):
        def compute(self, *sums):
            return len(sums)

    class Words(Zeros):
        def compute(self, *sums):
            return "many"

    class Breaks(Zeros):
        def update(self, pre, post):
            raise KeyError("k")

    class Half:
        def update(self, pre, post):
            return 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the user's module in it."""
    (tmp_path / "mine.py").write_text(dedent(OWN_SOURCE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    sys.modules.pop("mine", None)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("mine", None)


def files(config: RunConfig, folder: Path) -> dict[str, bytes]:
    """Run, and return the files with the numbers."""
    list(execute_run(config, folder))
    status = read_status(folder)
    assert status.done, status.error
    return {name: (folder / name).read_bytes() for name in ("metrics.csv", "layers.csv")}


def error_of(folder: Path, **settings: Any) -> str | None:
    """Return the error of a run that fails."""
    config = tiny(**settings)
    *_, last = execute_run(config, folder / config.run_id)
    assert last.status.state == "failed"
    return last.status.error


def same_numbers(one: RunConfig, other: RunConfig, folder: Path) -> bool:
    return files(one, folder / "one") == files(other, folder / "other")


@pytest.mark.parametrize(
    ("settings", "code"), PAGE_EXAMPLES, ids=[min(s) for s, _ in PAGE_EXAMPLES]
)
def test_an_example_of_the_page_runs(settings: dict[str, str], code: str, folder: Path) -> None:
    (folder / "mine.py").write_text(code)
    given = {name: float(text) if name == "lr" else text for name, text in settings.items()}
    files(tiny(**given), folder / "run")
    (name,) = re.findall(r"mine:\w+", str(settings))
    assert f'"{name} ' in (folder / "run" / "env.json").read_text()
    if "measures" in settings:
        assert pd.read_csv(folder / "run" / "layers.csv")[name].between(1, 20).all()


def test_the_page_has_an_example_of_each_kind() -> None:
    kinds = {name for settings, _ in PAGE_EXAMPLES for name in settings}
    assert kinds == {"act", "optimizer", "lr", "schedule", "measures"}


@pytest.mark.slow
def test_all_parts_of_the_examples_run_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    kinds = {"dataset": "rings", "model": "two_layers", "act": "Swish(0.5)", "optimizer": "Sign"}
    parts = {kind: f"examples.own_parts:{name}" for kind, name in kinds.items()}
    parts |= {"schedule": "examples.own_parts:warm_up", "measures": "examples.own_parts:Kurtosis"}
    config = RunConfig(epochs=10, lr=0.01, batch_size=16, probe_size=100, **parts)
    list(execute_run(config, tmp_path / "run"))
    table = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert table["test_accuracy"].iloc[-1] > 0.9
    assert table["examples.own_parts:Kurtosis"].notna().all()


# Activations ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "known"),
    [("mine:Slope", "prelu"), ("mine:Slope(0.1)", "prelu(0.1)"), ("relu/mine:two_leaks", "nsrelu")],
)
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_an_own_activation_is_trained_as_the_same_one(
    own: str, known: str, model: str, folder: Path
) -> None:
    (mine, theirs) = (list(run(tiny(act=act, model=model))) for act in (own, known))
    for one, other in zip(mine, theirs, strict=True):
        assert one.metrics["test_loss"] == pytest.approx(other.metrics["test_loss"], rel=1e-4)
        assert [row["layer"] for row in one.layers] == ["act1", "act2"]
        for measured, expected in zip(one.layers, other.layers, strict=True):
            assert measured["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


def test_each_site_has_parameters_of_its_own(folder: Path) -> None:
    network = build_model(tiny(act="mine:Slope"), (1, 8, 8), 10)
    sites = [module for module in network.modules() if isinstance(module, OwnActivation)]
    assert len({id(parameter) for site in sites for parameter in site.parameters()}) == 2


def test_the_weights_do_not_depend_on_what_a_module_draws(folder: Path) -> None:
    weights = []
    for act in ("relu", "mine:Slope"):
        torch.manual_seed(0)
        network = build_model(tiny(act=act, init="default"), (1, 8, 8), 10)
        weights.append([m.weight for m in network.modules() if isinstance(m, nn.Linear)])
    assert all(map(torch.equal, *weights))


@pytest.mark.parametrize("init", ["he", "default", "rai"])
def test_what_is_inside_a_site_is_no_site_and_not_initialised(init: str, folder: Path) -> None:
    config = tiny(act="mine:Mixed", init=init)
    network = build_model(config, (1, 8, 8), 10)
    assert network.act1.module.inside.weight.item() == 1
    with ActivationProbe(network) as probe:
        network(torch.rand(4, 1, 8, 8)).sum().backward()
    assert list(probe.frame()["layer"]) == ["act1", "act2"]


def test_an_own_activation_goes_into_any_model(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU())
    swapped = swap_activations(model, nn.ReLU, build("mine:twice(3)"))
    x = torch.rand(5, 4)
    assert torch.allclose(swapped(x), 3 * model[2](3 * model[0](x)))


@pytest.mark.parametrize(
    ("act", "line"),
    [
        ("made", "no two sites may share one; name its class, ReLU"),
        ("number", "act: mine:number must be a function, got int"),
        ("nothing", "has no 'nothing'"),
        ("makes_a_module", "a tensor like its input, float32 of shape (2, 8), got ReLU"),
        ("sums", "got float32 of shape (2,)"),
        ("doubles", "got float64 of shape (2, 8)"),
        ("logs", "act: mine:logs gave values that are not finite for finite ones"),
        ("raises", "act: mine:raises failed: ValueError: no way"),
        ("detaches", "act: mine:detaches gives no gradient"),
        ("Slope(1, 2)", "act: mine:Slope(1, 2) failed: TypeError: "),
    ],
    ids=lambda value: value.split(" ")[0],
)
def test_a_wrong_activation_is_one_line(act: str, line: str, folder: Path) -> None:
    error = str(error_of(folder, act=f"mine:{act}"))
    assert line in error
    assert "\n" not in error


@pytest.mark.parametrize("pair", ["relu/mine:Slope", "mine:Slope/relu"])
def test_a_module_makes_no_pair(pair: str, folder: Path) -> None:
    assert "act: mine:Slope is a module, and makes no pair" in str(error_of(folder, act=pair))


def test_no_gate_goes_with_an_own_activation() -> None:
    with pytest.raises(UsageError, match=r"gate 'up' needs a forward of relu .* got mine:twice"):
        build("mine:twice@up")


@pytest.mark.parametrize("act", ["mine:Slope", "mine:two_leaks", "relu/mine:two_leaks"])
def test_an_own_activation_can_be_stacked(act: str, folder: Path) -> None:
    stacked = run_all([tiny(act=act, stack=True, seed=s) for s in (0, 1)], folder / "s")
    losses = [event.metrics["test_loss"] for event in stacked if event.ended]
    alone = [list(run(tiny(act=act, seed=s)))[-1].metrics["test_loss"] for s in (0, 1)]
    assert sorted(losses) == pytest.approx(sorted(alone), rel=1e-3)


def test_what_cannot_be_stacked_says_so(folder: Path) -> None:
    assert str(error_of(folder, act="mine:looks", stack=True)).startswith(
        "stack: this model can't be computed stacked (vmap: "
    )


@pytest.mark.slow
@pytest.mark.parametrize("act", ["mine:Slope", "mine:twice", "relu/mine:two_leaks"])
def test_an_own_activation_can_be_compiled(act: str, folder: Path) -> None:
    compiled, eager = (list(run(tiny(act=act, compile=c)))[-1].metrics for c in (True, False))
    assert compiled["test_loss"] == pytest.approx(eager["test_loss"], rel=1e-3)


# Optimizers and schedules -----------------------------------------------------------------------


def test_an_own_optimizer_has_the_numbers_of_the_same_one(folder: Path) -> None:
    own = tiny(optimizer="mine:Momentum", lr=0.02)
    assert same_numbers(own, tiny(optimizer="sgd"), folder)


def test_groups_keep_their_share_of_the_rate(folder: Path) -> None:
    shares = []
    for schedule in ("constant", "mine:falls"):
        *_, last = run(tiny(optimizer="mine:groups", lr=0.1, schedule=schedule))
        groups = last.checkpoint()["optimizer"]["param_groups"]
        shares.append(groups[0]["lr"] / groups[1]["lr"])
    assert shares == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("no_optimizer", "optimizer: mine:no_optimizer must return a torch.optim.Optimizer"),
        ("Forgets", "optimizer: mine:Forgets has a state that a checkpoint can't hold: "),
        ("Tires", "optimizer: mine:Tires failed: RuntimeError: tired"),
        ("twice", "optimizer: mine:twice failed: TypeError: "),
    ],
    ids=lambda value: value.split(" ")[0],
)
def test_a_wrong_optimizer_is_one_line(name: str, line: str, folder: Path) -> None:
    assert str(error_of(folder, optimizer=f"mine:{name}")).startswith(line)


def test_an_optimizer_that_needs_a_closure_is_refused(folder: Path) -> None:
    error = error_of(folder, optimizer="torch.optim:LBFGS")
    assert str(error).startswith("optimizer: torch.optim:LBFGS failed: TypeError: ")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"weight_decay": 0.1}, "optimizer: works without weight decay only, got weight_decay"),
        ({"stack": True}, "stack: takes no optimizer of your own, got mine:Momentum"),
    ],
    ids=["weight-decay", "stack"],
)
def test_what_an_own_optimizer_excludes(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        tiny(optimizer="mine:Momentum", **settings)


def test_a_schedule_of_one_is_the_constant_one(folder: Path) -> None:
    assert same_numbers(tiny(schedule="mine:steady"), tiny(), folder)


def test_a_schedule_is_asked_for_each_step(folder: Path) -> None:
    rates = [epoch.metrics["lr"] for epoch in run(tiny(schedule="mine:falls", lr=0.1))]
    assert rates == pytest.approx([0.1, 0.1 * (1 - 19 / 40), 0.1 * (1 - 39 / 40)])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("negative", "schedule: mine:negative must return a number from 0, got '-1.0' for step 0 "),
        ("not_a_number", "schedule: mine:not_a_number must return a number from 0, got 'nan'"),
        ("text", "schedule: mine:text must return a number from 0, got 'half'"),
        ("divides", "schedule: mine:divides failed: ZeroDivisionError: "),
    ],
    ids=lambda value: value.split(" ")[0],
)
def test_a_wrong_schedule_is_one_line(name: str, line: str, folder: Path) -> None:
    assert str(error_of(folder, schedule=f"mine:{name}")).startswith(line)


# Measures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["relu", "nsrelu(0.1)", "mine:Slope"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_an_own_measure_is_taken_as_the_known_one(act: str, model: str, folder: Path) -> None:
    pairs = {"mine:Zeros": "zero_fraction", "mine:Inputs": "negative_fraction"}
    config = tiny(act=act, model=model, measures=",".join([*pairs, *pairs.values()]))
    for epoch in run(config):
        for row in (epoch.metrics, *epoch.layers):
            for own, known in pairs.items():
                assert row[own] == pytest.approx(row[known], abs=1e-9)


def test_an_own_measure_changes_nothing_else(folder: Path) -> None:
    with_it, without = (
        [epoch.metrics for epoch in run(tiny(measures=m))] for m in ("all,mine:Zeros", "all")
    )
    assert [{k: v for k, v in row.items() if k != "mine:Zeros"} for row in with_it] == without


def test_own_measures_end_the_columns(folder: Path) -> None:
    config = tiny(measures="mine:NoValue,all,mine:Counts", probe_every=10)
    files(config, folder / "run")
    assert config.measures == "all,mine:Counts,mine:NoValue"
    for name in ("metrics.csv", "layers.csv", "steps.csv"):
        table = pd.read_csv(folder / "run" / name)
        assert list(table)[-2:] == ["mine:Counts", "mine:NoValue"]
        assert set(table["mine:Counts"]) == {1 if name == "layers.csv" else 2}
        assert table["mine:NoValue"].isna().all()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Words", "measures: mine:Words must compute a number or None, got str"),
        ("Breaks", "measures: mine:Breaks failed: KeyError: 'k'"),
        ("Half", "measures: mine:Half must be a class with the methods update and compute"),
        ("twice", "measures: mine:twice must be a class with the methods update and compute"),
    ],
    ids=lambda value: value.split(" ")[0],
)
def test_a_wrong_measure_is_one_line(name: str, line: str, folder: Path) -> None:
    assert str(error_of(folder, measures=f"mine:{name}")).startswith(line)


def test_an_own_measure_of_any_model(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    inputs, labels = torch.randn(20, 4), torch.arange(20) % 2
    found = measure(model, inputs, labels, measures=["zero_fraction", "mine:Zeros"], batch_size=7)
    assert found.totals["mine:Zeros"] == pytest.approx(found.totals["zero_fraction"])
    with ActivationProbe(model, measures=["mine:Inputs", "negative_fraction"]) as probe:
        for part in inputs.split(6):
            model(part)
    (row,) = probe.frame().to_dict("records")
    assert row["mine:Inputs"] == pytest.approx(row["negative_fraction"])


# All kinds --------------------------------------------------------------------------------------

OWN_SETTINGS = {
    "act": "mine:Slope(0.2)",
    "optimizer": "mine:Momentum",
    "schedule": "mine:falls",
    "measures": "all,mine:Zeros",
}


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(folder: Path) -> None:
    config = tiny(**OWN_SETTINGS, epochs=4)
    stop_after(1, config, folder / "stopped")
    assert files(config, folder / "stopped") == files(config, folder / "whole")
    assert '"resumed_after": 1' in (folder / "stopped" / "env.json").read_text()


@pytest.mark.parametrize("kind", OWN_SETTINGS)
def test_a_changed_source_is_another_run(kind: str, folder: Path) -> None:
    config = tiny(**{kind: OWN_SETTINGS[kind]})
    files(config, folder / "run")
    check_inputs(folder / "run", config)
    with (folder / "mine.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(BenchError, match="is done, but its source has changed"):
        check_inputs(folder / "run", config)


@pytest.mark.slow
def test_own_parts_are_chosen_and_drawn_like_others(folder: Path) -> None:
    names = ("mine:twice", "mine:twice(3)", "relu")
    list(run_all([tiny(act=act, measures="all,mine:Zeros") for act in names], folder / "r"))
    frames = load(folder / "r")
    chosen = select(frames.runs, ["act=mine:twice"])
    assert set(chosen["act"]) == {"mine:twice", "mine:twice(3)"}
    assert set(select(frames.runs, ["act=mine:twice(3)"])["act"]) == {"mine:twice(3)"}
    table = compare(frames.runs, frames.config_columns, metrics=["mine:Zeros"]).rows
    assert set(table["group"]) == set(names)
    assert set(table["metric"]) == {"mine:Zeros"}
    assert draw_all(frames, folder / "f", ["curves", "layers"], metric="mine:Zeros")
