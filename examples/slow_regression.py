"""The slowly changing regression of Dohare et al. 2024, as lop_analysis sets it up.

Who goes on learning? Twenty bits: fifteen keep their values for a task of 10,000 steps, then one of
them flips; the other five are drawn anew at each step. The targets come from a fixed network of
threshold units. A network with one hidden layer learns them by SGD, one example a step.
``findings/slow_regression`` was made by::

    python -m examples.slow_regression run
    python -m examples.slow_regression table

All seeds learn side by side, and every arm gets the same examples. An arm that is in ``runs.csv``
already is not run again.
"""

import io
import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from nsrelu_bench.compare.statistics import LEAST_VALUES, t_half_width
from nsrelu_bench.files import write_file
from nsrelu_bench.text import format_fixed

FIXED, FREE = 15, 5
HIDDEN = 100
BETA = 0.7
STEP_SIZE = 0.01
LOST = 0.05  # of the targets' variance: from there on plasticity is lost
MARGIN = 0.5  # of log10 of the unfit share: within it two arms are equivalent
BIN = 10  # tasks
#: All values of the free bits.
PATTERNS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=FREE)), dtype=torch.float64)

relu_backward = torch.ops.aten.threshold_backward
leaky_backward = torch.ops.aten.leaky_relu_backward


@dataclass(frozen=True)
class Arm:
    """An activation whose slopes below 0 are given, and a decay; above 0 both slopes are 1."""

    forward: float = 0.0
    up: float = 0.0  # of the backward pass, where descent raises the unit
    down: float = 0.0  # where it lowers it
    steeper: float = 0.0  # the slope of the backward pass is this times x
    dead_only: bool = False  # only at units that are off for all 32 inputs of the task
    projected: bool = False  # below 0 without the bias and the component along the mean input
    weight_decay: float = 0.0
    bias_decay: float = 0.0

    def activate(self, x: Tensor) -> Tensor:
        """Return the activation of x."""
        return F.leaky_relu(x, self.forward) if self.forward else x.relu()

    def backward(self, grad: Tensor, x: Tensor, highest: Tensor | None = None) -> Tensor:
        """Return the gradient at x for one at the output; `highest` is x at most in the task.

        Written with PyTorch's own backward passes of ReLU and LeakyReLU: `torch.where` is slower.
        """
        if self.steeper:
            return relu_backward(grad, x, 0) + grad * x.clamp(max=0) * self.steeper
        if self.up == self.down:
            return leaky_backward(grad, x, self.up, False)
        if self.dead_only:
            raising = grad.clamp(max=0) * self.up
            return relu_backward(grad, x, 0) + raising - relu_backward(raising, highest, 0)
        raising, lowering = grad.clamp(max=0), grad.clamp(min=0)
        return leaky_backward(raising, x, self.up, False) + leaky_backward(
            lowering, x, self.down, False
        )


NSRELU = {"up": 0.1, "down": 0.1}
#: In the order in which they run.
ARMS = {
    "relu": Arm(),
    "leaky_relu(0.1)": Arm(forward=0.1, **NSRELU),
    "leaky_relu(0.1)/relu": Arm(forward=0.1),
    "nsrelu(0.1)": Arm(**NSRELU),
    "up(0.1)": Arm(up=0.1),
    "up(0.1) if off for all inputs": Arm(up=0.1, dead_only=True),
    "relu bias_decay=0.001": Arm(bias_decay=0.001),
    "nsrelu(0.1) bias_decay=0.001": Arm(**NSRELU, bias_decay=0.001),
    "relu weight_decay=0.0001": Arm(weight_decay=0.0001),
    "down(0.1)": Arm(down=0.1),
    "reflected(0.1)": Arm(up=-0.1, down=-0.1),
    "quadratic(0.01)": Arm(steeper=0.01),
    "projected(0.1)": Arm(**NSRELU, projected=True),
    "reflected(0.1) weight_decay=0.0001": Arm(up=-0.1, down=-0.1, weight_decay=0.0001),
    "quadratic(0.01) weight_decay=0.0001": Arm(steeper=0.01, weight_decay=0.0001),
    "projected(0.1) weight_decay=0.0001": Arm(**NSRELU, projected=True, weight_decay=0.0001),
}


@dataclass
class Task:
    """The inputs and targets of one task, for all seeds; a pattern is a value of the free bits."""

    fixed: Tensor  # (seeds, FIXED), shifted
    free: Tensor  # (seeds, patterns, FREE), shifted
    targets: Tensor  # (seeds, patterns)
    order: npt.NDArray[np.int64]  # (seeds, steps): which pattern comes when


def stream(seeds: Sequence[int], tasks: int, steps: int, mean_norm: float) -> Iterator[Task]:
    """Yield the tasks of all seeds; each seed's are its own and the same in any company."""
    draws = [np.random.default_rng([seed, 1]) for seed in seeds]
    teachers = [Teacher(np.random.default_rng([seed, 2])) for seed in seeds]
    bits = np.stack([rng.integers(0, 2, FIXED) for rng in draws]).astype(float)
    for task in range(tasks):
        if task:
            for row, rng in zip(bits, draws, strict=True):
                flipped = rng.integers(FIXED)
                row[flipped] = 1 - row[flipped]
        shift = np.array([mean_shift(row.sum(), mean_norm) for row in bits])[:, None]
        targets = [teacher(row) for teacher, row in zip(teachers, bits, strict=True)]
        yield Task(
            torch.from_numpy(bits - shift),
            PATTERNS - torch.from_numpy(shift)[:, None],
            torch.from_numpy(np.stack(targets)),
            np.stack([rng.integers(len(PATTERNS), size=steps) for rng in draws]),
        )


def mean_shift(ones: float, mean_norm: float) -> float:
    """Return what to subtract from all inputs, so that their mean has the norm `mean_norm`.

    `ones` of the fixed bits are 1, and free bits are 1/2 on average. A norm of 0 means no shift.
    """
    if not mean_norm:
        return 0.0
    bits, total = FIXED + FREE, ones + FREE / 2
    room = total**2 - bits * (ones + FREE / 4 - mean_norm**2)
    if room < 0:
        raise typer.BadParameter(f"no shift gives {ones:.0f} ones a mean of norm {mean_norm}")
    return (total - math.sqrt(room)) / bits


class Teacher:
    """A network of threshold units, all of whose weights are 1 or -1."""

    def __init__(self, rng: np.random.Generator) -> None:
        shapes = [(HIDDEN, FIXED + FREE), (HIDDEN,), (HIDDEN,), ()]
        self.weight, self.bias, self.out, self.out_bias = (
            2.0 * rng.integers(0, 2, shape) - 1 for shape in shapes
        )
        negative = (FIXED + FREE - self.weight.sum(1) + self.bias) / 2
        self.threshold = BETA * (FIXED + FREE + 1) - negative

    def __call__(self, fixed: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the targets of all patterns of the free bits."""
        x = np.hstack([np.tile(fixed, (len(PATTERNS), 1)), PATTERNS.numpy()])
        on = x @ self.weight.T + self.bias >= self.threshold
        target: npt.NDArray[np.float64] = on @ self.out + self.out_bias
        return target


class Learner:
    """Networks of one hidden layer, one per seed, that learn with an arm's activation.

    Within a task the fixed bits are one constant vector. SGD does not mind a rotation of its
    inputs, so they are turned into a single number, their norm: seven inputs instead of 21, the
    bias's included, and the same network but for rounding.
    """

    def __init__(self, arm: Arm, seeds: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        self.arm, self.dtype = arm, dtype
        rngs = [np.random.default_rng([seed, 0]) for seed in seeds]
        scales = [((FIXED + FREE, HIDDEN), 6 / (FIXED + FREE)), ((1, HIDDEN), 3 / HIDDEN)]
        drawn = [[r.uniform(-1, 1, shape) * s**0.5 for shape, s in scales] for r in rngs]
        self.weight, self.out = (
            torch.from_numpy(np.stack(w)).to(dtype) for w in zip(*drawn, strict=True)
        )
        self.bias = torch.zeros_like(self.out)
        self.out_bias = torch.zeros_like(self.out[..., :1])
        self.inner = self.weight[:, : 2 + FREE].clone()  # the seven-input network of a task

    def learn(self, task: Task) -> Tensor:
        """Learn a task, example by example; return the squared errors (steps, seeds)."""
        norm = task.fixed.norm(dim=1)[:, None, None]
        unit = (task.fixed[:, None] / norm.clamp(min=1e-12)).to(self.dtype)
        along = unit @ self.weight[:, :FIXED]
        across = self.weight[:, :FIXED] - unit.mT * along
        self.inner = torch.cat([along, self.bias, self.weight[:, FIXED:]], dim=1)
        one = torch.ones_like(task.free[..., :1])
        inputs = torch.cat([norm * one, one, task.free], dim=2)
        errors = self._learn_inner(inputs.to(self.dtype), task)
        kept = (1 - STEP_SIZE * self.arm.weight_decay) ** len(errors)
        self.bias = self.inner[:, 1:2]
        fixed = across * kept + unit.mT * self.inner[:, :1]
        self.weight = torch.cat([fixed, self.inner[:, 2:]], dim=1)
        return errors

    def _learn_inner(self, inputs: Tensor, task: Task) -> Tensor:
        """Learn from the seven inputs of each pattern (seeds, patterns, 7)."""
        arm, weight, out, out_bias = self.arm, self.inner, self.out, self.out_bias
        decay = torch.full((weight.shape[1], 1), STEP_SIZE * arm.weight_decay, dtype=self.dtype)
        decay[1] = STEP_SIZE * arm.bias_decay
        decays = bool(decay.any())
        rows, order = torch.arange(len(inputs))[:, None], torch.from_numpy(task.order)
        x = inputs[rows, order].transpose(0, 1).contiguous().unsqueeze(2)  # (steps, seeds, 1, 7)
        y = task.targets.to(self.dtype)[rows, order].T.contiguous()[..., None, None]
        leaked = (
            project(inputs)[rows, order].transpose(0, 1).unsqueeze(3) if arm.projected else x.mT
        )
        lowest = inputs[:, :1]  # the pattern of zeros
        twice_step_size = torch.tensor(2 * STEP_SIZE, dtype=self.dtype)
        out_t, errors, highest = out.mT, [], None
        for example, column, target, leak_column in zip(
            x.unbind(), x.mT.unbind(), y.unbind(), leaked.unbind(), strict=True
        ):
            pre = torch.bmm(example, weight)
            post = arm.activate(pre)
            error = torch.baddbmm(out_bias, post, out_t).sub_(target)
            errors.append(error)
            step = error * twice_step_size
            if arm.dead_only:
                highest = torch.bmm(lowest, weight) + weight[:, 2:].relu().sum(1, keepdim=True)
            grad = out * step
            below = arm.backward(grad, pre, highest)
            out.addcmul_(post, step, value=-1)
            out_bias.sub_(step)
            if decays:
                weight.addcmul_(weight, decay, value=-1)
            if arm.projected:
                on = relu_backward(grad, pre, 0)
                weight.baddbmm_(column, on, alpha=-1)
                weight.baddbmm_(leak_column, below - on, alpha=-1)
            else:
                weight.baddbmm_(column, below, alpha=-1)
        return torch.stack(errors).squeeze(2, 3).double() ** 2

    def measure(self, task: Task) -> dict[str, Tensor]:
        """Return what the networks are like on all 32 inputs of the task, one number per seed."""
        x = torch.cat([task.fixed[:, None].expand(-1, len(PATTERNS), -1), task.free], dim=2)
        pre = x @ self.weight.double() + self.bias.double()
        post = self.arm.activate(pre)
        residual = (post @ self.out.double().mT + self.out_bias.double())[..., 0] - task.targets
        return {
            "unfit": residual.var(1, correction=0) / task.targets.var(1, correction=0),
            "off": (pre <= 0).all(1).double().mean(1),
            "weight_norm": self.weight.double().flatten(1).norm(dim=1),
        }


def project(inputs: Tensor) -> Tensor:
    """Return the seven inputs without the bias's and without the component along their mean."""
    x = inputs.clone()
    x[..., 1] = 0
    mean = x.mean(1, keepdim=True)
    return x - (x @ mean.mT) * mean / (mean @ mean.mT)


def learn_all(
    arm: Arm, seeds: Sequence[int], tasks: int, steps: int, mean_norm: float
) -> pd.DataFrame:
    """Let an arm learn all tasks; return a row per seed and task."""
    learner, rows = Learner(arm, seeds), []
    started = time.monotonic()
    for number, task in enumerate(stream(seeds, tasks, steps, mean_norm), start=1):
        errors = learner.learn(task)
        finite = errors.isfinite()
        at = torch.where(finite.all(0), -1, finite.int().argmin(0) + 1 + (number - 1) * steps)
        values = {"error": errors.mean(0), **learner.measure(task), "not_finite": at}
        rows.append(pd.DataFrame({"seed": list(seeds), "task": number, **values}))
        if not finite.all(0).any():
            break  # all have diverged
        if number % BIN == 0 or number == tasks:
            pace = (time.monotonic() - started) / number * (tasks - number)
            print(f"\r  task {number} of {tasks}, {pace:.0f} s left ", end="", file=sys.stderr)
    print(file=sys.stderr)
    return pd.concat(rows, ignore_index=True)


OF_A_RUN = ["unfit", "error", "off", "weight_norm"]


def summarise(learned: pd.DataFrame, tasks: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row per seed, and one per seed and bin of ten tasks; empty where it has diverged."""
    learned = learned.replace([np.inf, -np.inf], np.nan)
    steps_at = learned["not_finite"].where(learned["not_finite"] > 0)
    diverged = steps_at.groupby(learned["seed"]).min()
    learned[OF_A_RUN] = learned[OF_A_RUN].where(steps_at.isna(), np.nan)
    windows = {"first": (2, BIN + 1), "1m": (91, 100), "last": (tasks - BIN + 1, tasks)}
    runs = {"diverged_step": diverged.astype("Int64")}
    for name, (start, end) in windows.items():
        window = learned[learned["task"].between(start, end)].groupby("seed")
        runs |= {f"{m}_{name}": window[m].agg(lambda v: v.mean(skipna=False)) for m in OF_A_RUN}
    bins = learned.assign(bin=(learned["task"] - 1) // BIN + 1).groupby(["seed", "bin"])
    return pd.DataFrame(runs), bins[OF_A_RUN].agg(lambda v: v.mean(skipna=False))


app = typer.Typer(add_completion=False, no_args_is_help=True)
Folder = Annotated[Path, typer.Option(help="Where runs.csv and bins.csv are.")]
SLOW_REGRESSION = Path("findings/slow_regression")
ARM_SETTING = ["arm", "mean_norm", "tasks", "steps_per_task"]


@app.command()
def run(
    out: Folder = SLOW_REGRESSION,
    arms: Annotated[str, typer.Option(help="Which arms, by name, separated by commas.")] = "",
    seeds: Annotated[int, typer.Option(min=1)] = 10,
    tasks: Annotated[int, typer.Option(min=1)] = 500,
    steps: Annotated[int, typer.Option(min=1, help="Steps per task.")] = 10_000,
    mean_norm: Annotated[
        float, typer.Option(min=0, help="Norm of the mean input; 0: inputs of 0 and 1.")
    ] = 3.041,
) -> None:
    """Let the arms learn, one after another, and save each as it ends."""
    torch.set_num_threads(1)
    chosen = [arm.strip() for arm in arms.split(",")] if arms else list(ARMS)
    for arm in chosen:
        if arm not in ARMS:
            raise typer.BadParameter(f"--arms has no {arm!r}; it has {', '.join(ARMS)}")
    for arm in chosen:
        setting = dict(zip(ARM_SETTING, (arm, mean_norm, tasks, steps), strict=True))
        done = of_setting(read(out / "runs.csv", [*ARM_SETTING, "seed"]), setting)
        if set(range(seeds)) <= set(done["seed"]):
            print(f"{arm}: done before", file=sys.stderr)
            continue
        print(arm, file=sys.stderr)
        with torch.no_grad():
            runs, bins = summarise(
                learn_all(ARMS[arm], range(seeds), tasks, steps, mean_norm), tasks
            )
        for path, rows in (
            (out / "bins.csv", bins),
            (out / "runs.csv", runs),
        ):  # the last says: done
            before = read(path, ARM_SETTING)
            kept = before.drop(of_setting(before, setting).index)
            rows = rows.reset_index().assign(**setting)
            rows = rows[[*ARM_SETTING, *(c for c in rows if c not in ARM_SETTING)]]
            write(pd.concat([kept, rows], ignore_index=True), path)


def of_setting(table: pd.DataFrame, setting: dict[str, object]) -> pd.DataFrame:
    """Return the rows of one arm in one setting."""
    return table[(table[ARM_SETTING] == pd.Series(setting)).all(axis=1)]


def read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return a table that was saved before, or an empty one."""
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    return pd.read_csv(path, dtype={"diverged_step": "Int64"})


def write(table: pd.DataFrame, path: Path) -> None:
    """Save a table at once, or not at all."""
    text = io.StringIO()
    table.to_csv(text, index=False, float_format="%.6g")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.getvalue())


@app.command()
def table(out: Folder = SLOW_REGRESSION) -> None:
    """Print a table for each norm of the mean input: means over the runs that did not diverge."""
    runs = read(out / "runs.csv", ARM_SETTING)
    for mean_norm, part in sorted(runs.groupby("mean_norm"), reverse=True):
        by_arm = {arm: rows.set_index("seed") for arm, rows in part.groupby("arm")}
        print(f"**mean input of norm {mean_norm:g}**", end="\n\n")
        lines = [describe(arm, by_arm) for arm in ARMS if arm in by_arm]
        print(format_table(lines), end="\n\n")


def describe(arm: str, by_arm: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Return an arm's line of the table."""
    runs = by_arm[arm]
    at, alive = runs["diverged_step"].dropna(), runs[runs["diverged_step"].isna()]
    lost = (alive["unfit_last"] >= LOST).sum()
    log = {end: np.log10(alive[f"unfit_{end}"].astype(float)) for end in ("1m", "last")}
    return {
        "arm": arm,
        "diverged": f"{len(at)} of {len(runs)}",
        "first at step": f"{at.min():,}" if len(at) else "-",
        "lost plasticity": f"{lost} of {len(alive)}" if len(alive) else "-",
        "log10 unfit, 1M": mean_and_half(log["1m"], 2),
        "log10 unfit, 5M": mean_and_half(log["last"], 2),
        "off %": mean_and_half(100 * alive["off_last"], 1),
        "weight norm": mean_and_half(alive["weight_norm_last"], 1),
        "vs leaky_relu": compare(arm, by_arm, log["last"]),
    }


def compare(arm: str, by_arm: dict[str, pd.DataFrame], log: "pd.Series[float]") -> str:
    """Return the difference to LeakyReLU, paired by seed, and its verdict as planned."""
    reference = by_arm.get("leaky_relu(0.1)")
    if reference is None or reference is by_arm[arm] or len(log) < len(by_arm[arm]):
        return "-"
    difference = log - np.log10(reference["unfit_last"].astype(float))
    mean, half = difference.mean(), half_width(difference)
    low, high = mean - half, mean + half
    holds = {"worse": low > 0, "better": high < 0, "equivalent": max(-low, high) < MARGIN}
    words = [word for word, true in holds.items() if true]
    return f"{mean:+.2f} [{low:.2f}, {high:.2f}] {', '.join(words) or 'not shown'}"


def half_width(values: "pd.Series[float]") -> float:
    """Return the half-width of the 95 % t interval of a mean."""
    return float(t_half_width(values.std(), len(values)))


def mean_and_half(values: "pd.Series[float]", places: int) -> str:
    """Write a mean and the half-width of its interval, if there are at least five values."""
    if len(values) < LEAST_VALUES:
        return "-"
    return f"{format_fixed(values.mean(), places)} ± {format_fixed(half_width(values), places)}"


def format_table(lines: list[dict[str, str]]) -> str:
    """Write lines as a table of Markdown."""
    head = list(lines[0])
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *(list(line.values()) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    app()
