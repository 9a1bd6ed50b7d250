"""Time the same 12 trainings by a sweep and by plain scripts, in turns.

4 activations x 3 seeds on mnist5k, 5 epochs:

- `plain`: `plain_script.py`, one process per run, as many at once as there are cores;
- `bare`: the same loop on tensors in memory, without measures, one process per core; a lower bound;
- `sweep`: nsrelu-bench with all measures, and with none.

Prints medians and ratios.

    python benchmarks/throughput.py [--rounds 3] [--models mlp,cnn]
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

SCRIPT = str(Path(__file__).with_name("plain_script.py"))
ACTS = {
    "relu": "relu",
    "leaky_relu": "leaky_relu(0.1)",
    "nsrelu": "nsrelu(0.1)",
    "nsrelu_0.3": "nsrelu(0.3)",
}
SEED_NAMES = ("0", "1", "2")
EPOCH_COUNT = "5"
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def at_once(commands: list[list[str]], processes: int) -> list[float]:
    """Run commands, at most `processes` at a time; return the accuracies that they print."""
    waiting, printed = list(commands), list[float]()
    running: list[subprocess.Popen[str]] = []
    while waiting or running:
        while waiting and len(running) < processes:
            running.append(
                subprocess.Popen(waiting.pop(0), env=ONE_THREAD, stdout=subprocess.PIPE, text=True)
            )
        done = next((process for process in running if process.poll() is not None), None)
        if done is None:
            time.sleep(0.005)
            continue
        running.remove(done)
        if done.returncode:
            sys.exit("a plain script failed")
        printed += [float(line) for line in done.communicate()[0].split()]
    return printed


def plain(model: str, cores: int) -> float:
    """Start one script per run; return the mean test accuracy."""
    base = [sys.executable, SCRIPT, "--model", model, "--epochs", EPOCH_COUNT]
    runs = itertools.product(ACTS, SEED_NAMES)
    found = at_once([[*base, "--act", act, "--seeds", seed] for act, seed in runs], cores)
    return statistics.mean(found)


def bare(model: str, cores: int) -> float:
    """Train on tensors without measures, one process per core; return the mean test accuracy."""
    base = [sys.executable, SCRIPT, "--model", model, "--epochs", EPOCH_COUNT, "--bare"]
    parts = [",".join(list(ACTS)[first::cores]) for first in range(cores)]
    seeds = ",".join(SEED_NAMES)
    return statistics.mean(
        at_once([[*base, "--act", act, "--seeds", seeds] for act in parts if act], cores)
    )


def sweep(model: str, cores: int, measures: str = "all") -> float:
    """Run the study with nsrelu-bench; return the mean test accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "throughput.yaml"
        acts = ", ".join(ACTS.values())
        study.write_text(
            f"model: {model}\nepochs: {EPOCH_COUNT}\nmeasures: {measures}\nseeds: {len(SEED_NAMES)}"
            f"\ngrid: {{act: [{acts}]}}\n"
        )
        command = [sys.executable, "-m", "nsrelu_bench", "sweep", str(study), "--quiet"]
        command += ["--results", folder, "--workers", str(cores)]
        subprocess.run(command, env=ONE_THREAD, check=True, stdout=subprocess.DEVNULL)
        summary = pd.read_csv(Path(folder) / "throughput" / "summary.csv")
        return float(summary["test_accuracy"].mean())


def main() -> None:
    """Time all ways in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="mlp,cnn")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    ways: dict[str, Callable[[str, int], float]] = {
        "plain": plain,
        "bare": bare,
        "sweep": sweep,
        "sweep, no measures": lambda model, cores: sweep(model, cores, "none"),
    }
    for model in given.models.split(","):
        times: dict[str, list[float]] = {way: [] for way in ways}
        accuracy = {}
        for _ in range(given.rounds):
            for way, run in ways.items():
                before = time.perf_counter()
                accuracy[way] = run(model, given.cores)
                times[way].append(time.perf_counter() - before)
        medians = {way: statistics.median(spent) for way, spent in times.items()}
        print(f"{model}: 12 trainings of {EPOCH_COUNT} epochs on {given.cores} cores")
        for way, spent in medians.items():
            print(
                f"  {way:20} {spent:6.1f} s   {medians['plain'] / spent:5.2f} x plain"
                f"   {spent / medians['bare']:5.2f} of bare   accuracy {accuracy[way]:.4f}"
            )


if __name__ == "__main__":
    main()
