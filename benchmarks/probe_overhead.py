"""What measuring costs: the wall time of training with measures over that of the loop with none.

    python benchmarks/probe_overhead.py [--rounds 7] [--epochs 3] [--probe-size 2000]

For the MLP and the CNN on mnist5k, with one thread and the default settings: interleaved runs in
one process, the median over the rounds for each choice of measures, and its ratio to the median
with none. The loop with none still computes the losses and accuracies of every epoch.
"""

import argparse
import statistics
from collections import defaultdict

from nsrelu_bench.config.registry import MEASURES
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.training.loop import run

GRADIENT = (
    *("grad_norm", "pre_grad_norm", "zero_grad_units"),
    *("surrogate_cosine", "sign_disagreement"),
)
CHOICES = {
    "none": "none",
    "all": "all",
    "all but effective_rank": "-effective_rank",
    "all but the true gradient": "-surrogate_cosine,-sign_disagreement",
    "no gradient": ",".join(f"-{name}" for name in MEASURES if name in GRADIENT),
    "zeros and dead units": "zero_fraction,negative_fraction,dead_units,dead_fraction",
}


def seconds(config: RunConfig) -> float:
    """Time the epochs of a run, without the measurement before the first step."""
    return sum(epoch.timing["time_s"] for epoch in list(run(config))[1:])


def main() -> None:
    """Print a table for each model and activation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--probe-size", type=int, default=2000)
    given = parser.parse_args()
    for model in ("mlp", "cnn"):
        for act in ("relu", "nsrelu(0.1)"):
            times = defaultdict(list)
            for _ in range(given.rounds):
                for name, measures in CHOICES.items():
                    config = RunConfig(
                        model=model,
                        act=act,
                        epochs=given.epochs,
                        measures=measures,
                        probe_size=given.probe_size,
                    )
                    times[name].append(seconds(config))
            print(f"{model}, {act}: {given.rounds} rounds of {given.epochs} epochs")
            base = statistics.median(times["none"])
            for name, values in times.items():
                middle = statistics.median(values)
                spread = f"{min(values) / base:.2f} to {max(values) / base:.2f}"
                print(f"  {name:28} {middle / base:5.2f}  ({spread})", flush=True)


if __name__ == "__main__":
    main()
