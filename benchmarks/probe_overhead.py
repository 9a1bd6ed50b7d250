"""What measuring costs: in a whole run, and in a training step with a probe open.

    python benchmarks/probe_overhead.py [--rounds 7] [--epochs 3] [--probe-size 2000]
    python benchmarks/probe_overhead.py --step [--rounds 200]

A run: for the MLP and the CNN on mnist5k, with one thread and the default settings, the median
time of the epochs for each choice of measures over that with no measures. The losses and
accuracies of every epoch are computed in each.

A step: forward, backward and SGD for some models, with an `ActivationProbe` open over without.

All runs and steps are interleaved in one process. The numbers are ratios of medians, with those of
the fastest and the slowest quarter behind.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torchvision
from torch import Tensor, nn

from nsrelu_bench.config.registry import SITE_MEASURES
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.measures.probe import ActivationProbe
from nsrelu_bench.measures.sites import GRADIENT_MEASURES, PROBE_MEASURES
from nsrelu_bench.training.loop import run

NO_GRADIENT = set(PROBE_MEASURES) - GRADIENT_MEASURES
RUN_CHOICES = {
    "none": "none",
    "all": "all",
    "all but effective_rank": "-effective_rank",
    "all but the true gradient": "-surrogate_cosine,-sign_disagreement",
    "no gradient": ",".join(f"-{name}" for name in SITE_MEASURES if name in GRADIENT_MEASURES),
    "zeros and dead units": "zero_fraction,negative_fraction,dead_units,dead_fraction",
    "those of the mechanism alone": "living_zero_fraction,pre_rms,weight_norm,submerged_depth,"
    "extra_grad_up,extra_grad_down,extra_grad_fraction",
}
STEP_CHOICES = {
    "no probe": None,
    "all that need no gradient": NO_GRADIENT,
    "and not effective_rank": NO_GRADIENT - {"effective_rank"},
    "zeros and dead units": {"zero_fraction", "dead_units"},
    "all": set(PROBE_MEASURES),
}


def mlp() -> tuple[nn.Module, Tensor]:
    """784-128-128-128-10 on 64 images, the default of `train`."""
    layers = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)), torch.randn(
        64, 784
    )


def cnn() -> tuple[nn.Module, Tensor]:
    """Two convolutions on 64 images of 28 x 28."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1568, 10)), torch.randn(64, 1, 28, 28)


def resnet18() -> tuple[nn.Module, Tensor]:
    """Torchvision's ResNet-18 on 16 images of 64 x 64."""
    return torchvision.models.resnet18(num_classes=10), torch.randn(16, 3, 64, 64)


def transformer() -> tuple[nn.Module, Tensor]:
    """Four encoder layers of 128 features on 16 sequences of 64 tokens."""
    layer = nn.TransformerEncoderLayer(128, 4, 512, activation=nn.ReLU(), batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), torch.randn(16, 64, 128)


def run_seconds(config: RunConfig) -> float:
    """Time the epochs of a run, without the measurement before the first step."""
    return sum(float(epoch.timing["time_s"]) for epoch in list(run(config))[1:])


def step_of(model: nn.Module, inputs: Tensor) -> Callable[[], None]:
    """Return a training step of a model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    return step


def show(title: str, times: dict[str, list[float]]) -> None:
    """Print the ratios to the first choice."""
    print(title)
    base = next(iter(times.values()))
    quarters = statistics.quantiles(base, n=4)
    for name, values in times.items():
        low, middle, high = (
            value / of
            for value, of in zip(statistics.quantiles(values, n=4), quarters, strict=True)
        )
        print(f"  {name:36} {middle:5.2f}  ({low:.2f} and {high:.2f})", flush=True)


def time_runs(rounds: int, epochs: int, probe_size: int) -> None:
    """Time runs of two models and activations."""
    for model in ("mlp", "cnn"):
        for act in ("relu", "nsrelu(0.1)"):
            times = defaultdict(list)
            for _ in range(rounds):
                for name, measures in RUN_CHOICES.items():
                    config = RunConfig(
                        model=model,
                        act=act,
                        epochs=epochs,
                        probe_size=probe_size,
                        measures=measures,
                    )
                    times[name].append(run_seconds(config))
            show(f"{model}, {act}: {rounds} rounds of {epochs} epochs", times)


def time_steps(rounds: int) -> None:
    """Time training steps with a probe open, after one in which it finds its way."""
    for make in (mlp, cnn, transformer, resnet18):
        torch.manual_seed(0)
        model, inputs = make()
        step, times = step_of(model, inputs), defaultdict(list)
        for _ in range(rounds if make is mlp else max(3, rounds // 10)):
            for name, measures in STEP_CHOICES.items():
                with ActivationProbe(model, measures=measures) if measures else nullcontext():
                    step()
                    began = time.perf_counter()
                    for _ in range(16):  # so many small batches are summed together
                        step()
                    times[name].append((time.perf_counter() - began) / 16)
        show(f"a step of {make.__doc__ or make.__name__}", times)


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--probe-size", type=int, default=2000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.step:
        time_steps(given.rounds or 200)
    else:
        time_runs(given.rounds or 7, given.epochs, given.probe_size)


if __name__ == "__main__":
    main()
