"""Time a training step computed in different ways, relative to the way a run computes it.

    python benchmarks/training_speed.py [--models mlp cnn resnet18] [--rounds 9] [--device cpu]

A run uses channels last for convolutions, fp32, no compilation, fused SGD with momentum, 1 thread,
batches cut from tensors in memory, and does not wait for the loss. All ways use nsrelu(0.1), and
batch norm in the ResNet.

All ways take turns in one process. A round is one turn of each, and a turn is the number of steps
that takes about --turn seconds the way a run computes them. The table has the median time of a step
over that of another way, half its interquartile range, and "=" where the weights after 3 steps are
the same bits as with that way. A DataLoader script is what people write: a DataLoader without
workers, and `loss.item()` after every step. For stacked seeds, a step is divided by the seeds.

On cuda every turn ends with a synchronisation, and there are no threads to vary.
"""

import argparse
import itertools
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.models import build_model
from nsrelu_bench.training.ensemble import Ensemble
from nsrelu_bench.training.steps import train_step

Batch = tuple[Tensor, Tensor]
SHAPES = {"mlp": (1, 28, 28), "cnn": (1, 28, 28), "resnet18": (3, 32, 32)}
#: At 64 a step of ResNet-18 on one core would take a second.
BATCH_SIZES = {"cpu": {"mlp": 64, "cnn": 64, "resnet18": 16}, "cuda": dict.fromkeys(SHAPES, 64)}
BATCHES = 40


@dataclass(frozen=True)
class Way:
    """How a step is computed; the defaults are those of a run."""

    channels_last: bool = True
    precision: str = "fp32"
    compiled: bool = False
    optimizer: str = "SGD"
    update: str = "fused"
    threads: int = 1
    loader: bool = False
    seeds: int = 1


RUN, ADAM = Way(), Way(optimizer="Adam")
#: Each way by name, and the way that it is compared with.
WAYS: dict[str, tuple[Way, Way]] = {
    "as a run": (RUN, RUN),
    "contiguous": (Way(channels_last=False), RUN),
    "bf16": (Way(precision="bf16"), RUN),
    "bf16, contiguous": (Way(channels_last=False, precision="bf16"), RUN),
    "compiled": (Way(compiled=True), RUN),
    "compiled, bf16": (Way(compiled=True, precision="bf16"), RUN),
    "2 threads": (Way(threads=2), RUN),
    "DataLoader script": (Way(loader=True), RUN),
    "4 seeds stacked": (Way(seeds=4), RUN),
    "16 seeds stacked": (Way(seeds=16), RUN),
    "SGD, foreach": (Way(update="foreach"), RUN),
    "SGD, for loop": (Way(update="for loop"), RUN),
    "Adam, fused": (ADAM, RUN),
    "Adam, foreach": (Way(optimizer="Adam", update="foreach"), ADAM),
    "Adam, for loop": (Way(optimizer="Adam", update="for loop"), ADAM),
}


class Trainer:
    """A model that is trained in one way."""

    def __init__(self, name: str, way: Way, device: str, batch_size: int) -> None:
        torch.manual_seed(0)
        shape, examples = SHAPES[name], BATCHES * batch_size
        self.way, self.device = way, device
        vmapped = way.seeds > 1 and device != "cpu"  # see `to_device`
        last = way.channels_last and name != "mlp" and not vmapped
        memory_format = torch.channels_last if last else torch.contiguous_format
        config = RunConfig(model=name, batch_norm=name == "resnet18")
        models = [build_model(config, shape, 10) for _ in range(way.seeds)]
        models = [model.to(device).to(memory_format=memory_format) for model in models]
        if way.seeds > 1:
            ensemble = Ensemble(models)
            self.forward, self.parameters = ensemble.forward, ensemble.parameters()
        else:
            self.forward = torch.compile(models[0]) if way.compiled else models[0]
            self.parameters = list(models[0].parameters())
        self.optimizer = optimizer(self.parameters, way)
        images = torch.randn(examples, *shape).to(device, memory_format=memory_format)
        self.data = images, torch.arange(examples, device=device) % 10
        self.batches = self._batches(batch_size)

    def _batches(self, size: int) -> Iterator[Batch]:
        while True:
            if self.way.loader:
                yield from DataLoader(TensorDataset(*(t.cpu() for t in self.data)), size)
            else:
                yield from zip(*(torch.split(t, size) for t in self.data), strict=True)

    def steps(self, count: int) -> float:
        """Take `count` steps; return the seconds per step and seed."""
        torch.set_num_threads(self.way.threads)
        self._wait()
        start = time.perf_counter()
        for images, labels in itertools.islice(self.batches, count):
            self.step(images.to(self.device), labels.to(self.device))
        self._wait()
        return (time.perf_counter() - start) / count / self.way.seeds

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take one step."""
        if self.way.seeds > 1:
            images, labels = (torch.stack([part] * self.way.seeds) for part in (images, labels))
        loss = train_step(self.forward, self.optimizer, images, labels, self.way.precision)
        if self.way.loader:
            loss.item()

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def weights(self) -> list[Tensor]:
        """Return a copy of the weights, of the first seed."""
        first = 0 if self.way.seeds > 1 else ...
        return [parameter[first].detach().clone() for parameter in self.parameters]


def optimizer(parameters: list[nn.Parameter], way: Way) -> torch.optim.Optimizer:
    """Return the optimizer of a way."""
    kinds: dict[str, Any] = {"fused": way.update == "fused", "foreach": way.update == "foreach"}
    if way.optimizer == "SGD":
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, **kinds)
    return torch.optim.Adam(parameters, lr=1e-4, **kinds)


def compare(name: str, given: argparse.Namespace) -> dict[str, str]:
    """Measure one model; return its column of the table."""
    ways = {
        label: pair
        for label, pair in WAYS.items()
        if (name != "mlp" or pair[0].channels_last)
        and not (given.device == "cuda" and pair[0].threads > 1)
    }
    size = given.batch_size or BATCH_SIZES[given.device][name]
    trainers = {way: Trainer(name, way, given.device, size) for way, _ in ways.values()}
    weights = {}
    for way, trainer in trainers.items():
        trainer.steps(3)
        weights[way] = trainer.weights()
        trainer.steps(2)
    count = max(1, round(given.turn / trainers[RUN].steps(2)))
    times: dict[Way, list[float]] = {way: [] for way in trainers}
    for _ in range(given.rounds):
        for way, trainer in trainers.items():
            times[way].append(trainer.steps(count))
    middle = {way: statistics.median(taken) for way, taken in times.items()}
    print(
        f"{name}: batches of {size}, {given.rounds} rounds of {count} steps;"
        f" as a run {middle[RUN] * 1e3:.2f} ms a step",
        flush=True,
    )
    column = {}
    for label, (way, base) in ways.items():
        low, _, high = (taken / middle[base] for taken in statistics.quantiles(times[way], n=4))
        same = all(map(torch.equal, weights[way], weights[base]))
        ratio = f"{middle[way] / middle[base]:.2f} ±{(high - low) / 2:.2f}"
        column[label] = ratio + " =" * same
    return column


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turn", type=float, default=0.2)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    place = torch.cuda.get_device_name() if given.device == "cuda" else platform.machine()
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"torch {torch.__version__}, {given.device}: {place}, {load}")
    columns = {name: compare(name, given) for name in given.models}
    names = {way: label for label, (way, _) in reversed(WAYS.items())}
    print(f"\n| way | over | {' | '.join(columns)} |")
    print("|---|---|" + "---|" * len(columns))
    for label, (_, base) in WAYS.items():
        cells = [column.get(label, "") for column in columns.values()]
        print(f"| {label} | {names[base]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
