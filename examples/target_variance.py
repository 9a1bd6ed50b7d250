"""Do more units die as the variance of a regression's targets goes to 0?

Arnekvist et al. 2020 (arXiv 2005.06195) say so of ReLU, and that momentum and depth add to it. Here
an MLP learns targets of mean 0 and of five variances. ``findings/target_variance`` was made by::

    python -m examples.target_variance run
    python -m examples.target_variance table

All seeds and variances of a setting learn at once, side by side. A setting that is in ``runs.csv``
already is not run again.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor

from examples.slow_regression import (
    format_table,
    half_width,
    mean_and_half,
    read,
    write,
)
from nsrelu_bench.activations import build
from nsrelu_bench.text import format_fixed

FOUR = ("relu", "leaky_relu(0.1)", "nsrelu(0.1)", "rescue(0.1)")
DEPTHS = (1, 3)
#: Optimizer and learning rate; each with momentum, or beta1, 0 and 0.9.
OPTIMIZERS_AND_RATES = (("sgd", 0.003), ("sgd", 0.01), ("adam", 0.001), ("adam", 0.01))
MOMENTA = (0.0, 0.9)
VARIANCES = (1.0, 0.1, 0.01, 0.001, 0.0)
LOW = 0.001  # the variance of the plan's comparisons
INPUTS, WIDTH, EXAMPLES, BATCH = 10, 64, 1000, 64
SETTING_NAMES = ["act", "depth", "optimizer", "lr", "momentum"]
TARGET_VARIANCE = Path("findings/target_variance")


def make_data(seeds: int) -> tuple[Tensor, Tensor]:
    """Return inputs (seeds, examples, inputs), and targets of a random network, of variance 1."""
    x, y = [], []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 0])
        x.append(rng.normal(size=(EXAMPLES, INPUTS)))
        hidden = np.tanh(x[-1] @ rng.normal(size=(INPUTS, 20)) / INPUTS**0.5)
        target = hidden @ rng.normal(size=20)
        y.append((target - target.mean()) / target.std())
    return torch.from_numpy(np.stack(x)).float(), torch.from_numpy(np.stack(y)).float()


def make_layers(depth: int, seeds: int) -> list[tuple[Tensor, Tensor]]:
    """Return weights and biases of one network per seed and variance, by He's rule."""
    sizes = [INPUTS, *[WIDTH] * depth, 1]
    layers = []
    for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        rngs = [np.random.default_rng([seed, 1, number]) for seed in range(seeds)]
        drawn = np.stack([r.normal(size=(fan_in, fan_out)) for r in rngs]) * (2 / fan_in) ** 0.5
        weight = torch.from_numpy(drawn).float().repeat(len(VARIANCES), 1, 1)
        bias = torch.zeros(len(weight), 1, fan_out)
        layers.append((weight.requires_grad_(), bias.requires_grad_()))
    return layers


def forward(
    x: Tensor, layers: list[tuple[Tensor, Tensor]], activate: Callable[[Tensor], Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the outputs (networks, examples), and those of each hidden layer."""
    posts = []
    for weight, bias in layers[:-1]:
        # Examples first, then all units of all networks: each unit's batch is that of its network.
        pre = torch.baddbmm(bias, x, weight).transpose(0, 1)
        x = activate(pre.flatten(1)).view(pre.shape).transpose(0, 1)
        posts.append(x)
    weight, bias = layers[-1]
    return torch.baddbmm(bias, x, weight)[..., 0], posts


def make_optimizer(
    name: str, layers: list[tuple[Tensor, Tensor]], lr: float, momentum: float
) -> torch.optim.Optimizer:
    """Return an optimizer of all networks: each weight has a step of its own."""
    weights = list(itertools.chain(*layers))
    if name == "sgd":
        return torch.optim.SGD(weights, lr=lr, momentum=momentum)
    return torch.optim.Adam(weights, lr=lr, betas=(momentum, 0.999))


def train(
    act: str, depth: int, optimizer: str, lr: float, momentum: float, seeds: int, steps: int
) -> pd.DataFrame:
    """Train a setting; return a row per variance and seed, without numbers where it diverged."""
    activate = build(act)
    x, y = make_data(seeds)
    x = x.repeat(len(VARIANCES), 1, 1)
    y = torch.cat([y * variance**0.5 for variance in VARIANCES])
    layers = make_layers(depth, seeds)
    step = make_optimizer(optimizer, layers, lr, momentum)
    rngs = [np.random.default_rng([seed, 2]) for seed in range(seeds)]
    order = torch.from_numpy(np.stack([r.integers(EXAMPLES, size=(steps, BATCH)) for r in rngs]))
    order, rows = order.repeat(len(VARIANCES), 1, 1), torch.arange(len(x))[:, None]
    for batch in order.unbind(1):
        outputs, _ = forward(x[rows, batch], layers, activate)
        step.zero_grad()
        (outputs - y[rows, batch]).square().mean(1).sum().backward()
        step.step()
    with torch.no_grad():
        outputs, posts = forward(x, layers, activate)
        error = (outputs - y).square().mean(1).double()
        dead = torch.cat([(post == 0).all(1) for post in posts], dim=1).double().mean(1)
    finite = error.isfinite()
    error[~finite] = dead[~finite] = torch.nan
    setting = dict(zip(SETTING_NAMES, (act, depth, optimizer, lr, momentum), strict=True))
    index = pd.MultiIndex.from_product([VARIANCES, range(seeds)], names=["variance", "seed"])
    table = pd.DataFrame({"error": error, "dead": dead, "diverged": (~finite).int()}, index)
    return table.reset_index().assign(**setting)[[*SETTING_NAMES, *index.names, *table.columns]]


app = typer.Typer(add_completion=False, no_args_is_help=True)
Folder = Annotated[Path, typer.Option(help="Where runs.csv is.")]


@app.command()
def run(
    out: Folder = TARGET_VARIANCE,
    seeds: Annotated[int, typer.Option(min=1)] = 10,
    steps: Annotated[int, typer.Option(min=1)] = 2000,
) -> None:
    """Train all settings, one after another, and save each as it ends."""
    torch.set_num_threads(1)
    grid = list(itertools.product(FOUR, DEPTHS, OPTIMIZERS_AND_RATES, MOMENTA))
    for number, (act, depth, (optimizer, lr), momentum) in enumerate(grid, start=1):
        setting = dict(zip(SETTING_NAMES, (act, depth, optimizer, lr, momentum), strict=True))
        done = read(out / "runs.csv", SETTING_NAMES)
        if (done[SETTING_NAMES] == pd.Series(setting)).all(axis=1).any():
            continue
        started = time.monotonic()
        table = train(**setting, seeds=seeds, steps=steps)
        write(pd.concat([done, table], ignore_index=True), out / "runs.csv")
        words = " ".join(f"{name}={value}" for name, value in setting.items())
        seconds = time.monotonic() - started
        print(f"{number} of {len(grid)}: {words}, {seconds:.0f} s", file=sys.stderr)


@app.command()
def table(out: Folder = TARGET_VARIANCE) -> None:
    """Print the study's tables: the share of dead units, means over the eight optimizers."""
    runs = read(out / "runs.csv", SETTING_NAMES).assign(dead=lambda r: 100 * r["dead"])
    for depth, part in runs.groupby("depth"):
        print(f"**dead units, %, with {depth} hidden layer{'s' * (depth > 1)}**", end="\n\n")
        print(format_table([describe(act, part) for act in FOUR]), end="\n\n")
    low = runs[(runs["variance"] == LOW) & (runs["act"] == "relu")]
    print(f"**dead units of ReLU at variance {LOW:g}, %**", end="\n\n")
    print(format_table(list(describe_optimizers(low))), end="\n\n")
    print("**differences, with 95 % intervals**", end="\n\n")
    print(format_table(list(hypotheses(runs))), end="\n\n")


def describe(act: str, runs: pd.DataFrame) -> dict[str, str]:
    """Return an activation's line: dead units by variance, and how many runs diverged."""
    mine = runs[runs["act"] == act]
    line = {"activation": act}
    for variance in VARIANCES:
        by_seed = mine[mine["variance"] == variance].groupby("seed")["dead"].mean()
        line[f"variance {variance:g}"] = mean_and_half(by_seed, 1)
    return line | {"diverged": f"{mine['diverged'].sum()} of {len(mine)}"}


def describe_optimizers(runs: pd.DataFrame) -> Iterator[dict[str, str]]:
    """Yield a line per optimizer, rate and depth: dead units without and with momentum."""
    for (depth, optimizer, lr), part in runs.groupby(["depth", "optimizer", "lr"]):
        by_momentum = {
            f"momentum {momentum:g}": mean_and_half(rows["dead"].dropna(), 1)
            for momentum, rows in part.groupby("momentum")
        }
        yield {"optimizer": f"{optimizer} {lr:g}", "layers": str(depth), **by_momentum}


def hypotheses(runs: pd.DataFrame) -> Iterator[dict[str, str]]:
    """Yield a line per hypothesis of the plan: a difference paired by seed, and its interval."""
    relu, low = runs[runs["act"] == "relu"], runs[runs["variance"] == LOW]
    relu_low, deep = low[low["act"] == "relu"], low[low["depth"] == max(DEPTHS)]
    for depth, part in relu.groupby("depth"):
        name = f"V1: variance {LOW:g} less 1, {depth} layer{'s' * (depth > 1)}"
        yield dead_units(name, part, "variance", LOW, 1.0)
    harsh = relu.query("optimizer == 'adam' and lr == 0.01 and momentum == 0.9 and depth == 3")
    name = "not planned: V1 with adam 0.01, momentum 0.9, 3 layers"
    yield dead_units(name, harsh, "variance", LOW, 1.0)
    for optimizer, part in relu_low.groupby("optimizer"):
        yield dead_units(f"V2: momentum 0.9 less 0, {optimizer}", part, "momentum", 0.9, 0.0)
    yield dead_units("V3: 3 layers less 1", relu_low, "depth", 3, 1)
    for act in ("nsrelu(0.1)", "rescue(0.1)"):
        yield dead_units(f"V4: {act} less relu", deep, "act", act, "relu")
    fitted = deep.assign(log_error=np.log10(deep["error"] / deep["variance"]))
    mean, half = difference(fitted, "log_error", "act", "rescue(0.1)", "relu")
    yield verdict("V5: rescue(0.1) less relu, log10 of error over variance", mean, half, 2)


def dead_units(
    name: str, runs: pd.DataFrame, factor: str, of: object, against: object
) -> dict[str, str]:
    """Return the line of a hypothesis on the share of dead units, in percentage points."""
    return verdict(f"{name}, points", *difference(runs, "dead", factor, of, against), 1)


def difference(
    runs: pd.DataFrame, measure: str, factor: str, of: object, against: object
) -> tuple[float, float]:
    """Return the mean difference between two values of a factor, and its half-width.

    It is taken within each cell and seed; cells of which one side diverged are left out.
    """
    cells = [name for name in [*SETTING_NAMES, "variance", "seed"] if name != factor]
    sides = runs.pivot_table(index=cells, columns=factor, values=measure)
    by_seed = (sides[of] - sides[against]).dropna().groupby("seed").mean()
    return float(by_seed.mean()), half_width(by_seed)


def verdict(name: str, mean: float, half: float, places: int) -> dict[str, str]:
    """Return a hypothesis's line."""
    low, high = (format_fixed(end, places) for end in (mean - half, mean + half))
    word = "above 0" if mean > half else "below 0" if mean < -half else "not shown"
    found = f"{format_fixed(mean, places, '+')} [{low}, {high}]"
    return {"hypothesis": name, "difference": found, "verdict": word}


if __name__ == "__main__":
    app()
