"""The time of a training step of the project's models, over that with ReLU.

    python benchmarks/ops_models.py

Activations take turns in one process, 15 rounds of 4 steps; shown are medians and half the
interquartile range. One thread.
"""

import statistics
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer

from nsrelu_bench import models
from nsrelu_bench.activations import build
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.models import build_model

STEP_ACTS = (
    *("relu", "leaky_relu(0.1)", "nsrelu(0.1)", "up(0.1)", "rescue(0.1)"),
    *("relu/bsilu(1.67)", "relu/gelu"),
)
OTHER_IMPLS = ("detach", "function", "mismatch")


def step_timer(config: RunConfig) -> Timer:
    """Return what times a training step: forward, backward and SGD."""
    model = build_model(config, (1, 28, 28), 10)
    images, labels = torch.randn(config.batch_size, 1, 28, 28), torch.arange(config.batch_size) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return Timer("step()", globals={"step": step})


def compare(**settings: Any) -> None:
    """Print one model's times."""
    timers = {act: step_timer(RunConfig(act=act, **settings)) for act in STEP_ACTS}
    for impl in OTHER_IMPLS:
        timers[f"nsrelu(0.1) {impl}"] = step_timer(RunConfig(**settings | {"impl": impl}))
    with patch.object(models, "build", lambda spec, impl, **_: build(spec, impl)):
        for act in STEP_ACTS[:3]:
            timers[f"{act} out of place"] = step_timer(RunConfig(act=act, **settings))
    times: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(15):
        for name, timer in timers.items():
            times[name].append(timer.timeit(4).mean)
    relu = statistics.median(times["relu"])
    print(settings, f"relu {relu * 1e3:.2f} ms a step")
    for name, taken in times.items():
        low, middle, high = statistics.quantiles(taken, n=4)
        print(f"  {name:28} {middle / relu:.2f} ±{(high - low) / 2 / middle:.0%}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    compare(model="mlp", batch_size=64)
    compare(model="mlp", batch_size=256, width=512)
    compare(model="cnn", batch_size=64)
