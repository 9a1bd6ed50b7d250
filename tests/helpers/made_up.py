"""Made-up runs for the tests of what comes after training."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from nsrelu_bench.compare.comparison import Comparison
from nsrelu_bench.compare.grouping import parse_act

MADE_UP_CONFIG = ["act", "leak", "impl", "dataset", "model", "epochs", "lr", "seed"]
RELU = [0.90, 0.91, 0.92, 0.93, 0.94, 0.95]
BETTER = [0.92, 0.92, 0.93, 0.95, 0.95, 0.97]  # differences 2 1 1 2 1 2 pp


def make_runs(act: str, accuracies: list[float], **settings: object) -> pd.DataFrame:
    """Made-up runs of one group, one a seed."""
    leak = parse_act(act)[1]
    rows = []
    for seed, accuracy in enumerate(accuracies):
        row = {"study": "s", "run_id": f"{act}-{settings}-{seed}", "state": "completed"}
        row |= {"act": act, "leak": np.nan if leak is None else leak, "impl": "native"}
        row |= {"dataset": "digits", "model": "mlp", "epochs": 5, "lr": 0.1, "seed": seed}
        row |= {"test_accuracy": accuracy, "val_accuracy": accuracy, "zero_fraction": 0.5}
        row |= {"dead_fraction": 0.1, "grad_norm": 1 + accuracy}
        rows.append(row | settings)
    return pd.DataFrame(rows)


def lose(runs: pd.DataFrame, seeds: list[int], state: str = "diverged") -> pd.DataFrame:
    """Give the runs of some seeds another state and no final metrics."""
    lost = runs["seed"].isin(seeds)
    metrics = ["test_accuracy", "val_accuracy", "zero_fraction", "dead_fraction", "grad_norm"]
    result = runs.copy()
    result.loc[lost, "state"] = state
    result.loc[lost, metrics] = np.nan
    return result


def study(*parts: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)


def row(comparison: Comparison, group: str, metric: str = "test_accuracy") -> pd.Series:
    rows = comparison.rows
    return rows[(rows["group"] == group) & (rows["metric"] == metric)].iloc[0]


TWO = study(make_runs("relu", RELU), make_runs("nsrelu(0.1)", BETTER))


# With a history, for figures.

MADE_UP_ACTS = ("relu", "leaky_relu(0.1)", "nsrelu(0.01)", "nsrelu(0.1)", "nsrelu(1)")
EPOCHS = 4


@dataclass(frozen=True)
class MadeUp:
    runs: pd.DataFrame
    metrics: pd.DataFrame
    layers: pd.DataFrame
    quantiles: pd.DataFrame
    config_columns: list[str]


def made_up(acts=MADE_UP_ACTS, lrs=(0.1,), seeds=3, epochs=EPOCHS, diverged=()) -> MadeUp:
    """Runs that learn; those whose (act, lr, seed) is in `diverged` stop after epoch 1."""
    runs, metrics, layers, quantiles = [], [], [], []
    for act in acts:
        for lr in lrs:
            for seed in range(seeds):
                lost = (act, lr, seed) in diverged
                run_id, leak = f"{act}-{lr}-{seed}", parse_act(act)[1]
                state = {"state": "diverged", "diverged_epoch": 2} if lost else {}
                row = {"study": "s", "run_id": run_id, "state": "completed"} | state
                row |= {"act": act, "leak": leak, "impl": "native", "dataset": "digits"}
                row |= {"model": "mlp", "epochs": epochs, "lr": lr, "seed": seed}
                for epoch in range(2 if lost else epochs + 1):
                    values = made_up_metrics(act, lr, seed, epoch)
                    metrics.append({"run_id": run_id, "epoch": epoch} | values)
                    for depth, layer in enumerate(["fc1", "fc2", "fc10"]):
                        place = {"run_id": run_id, "epoch": epoch, "layer": layer, "units": 8}
                        values_of_layer = {"grad_norm": 10.0 ** -(depth + epoch)}
                        layers.append(place | values_of_layer | {"dead_fraction": depth / 10})
                if lost:
                    metrics.append({"run_id": run_id, "epoch": 2})
                runs.append(row | ({} if lost else values))
                for layer in ("fc1", "fc2") if not lost else ():
                    place = {"run_id": run_id, "layer": layer}
                    quantiles += [place | {"quantile": q / 8, "value": q - 3.0} for q in range(8)]
    frames = map(pd.DataFrame, (runs, metrics, layers, quantiles))
    return MadeUp(*frames, MADE_UP_CONFIG)


def made_up_metrics(act: str, lr: float, seed: int, epoch: int) -> dict[str, float]:
    family, leak = parse_act(act)
    return {
        "train_loss": 2.0 / (1 + epoch),
        "test_accuracy": 1 - 0.9 / (1 + epoch) - 0.01 * seed + 0.01 * (leak or 0) - 0.1 * lr,
        "zero_fraction": 0.0 if family == "leaky_relu" else 0.5 + 0.01 * seed,
        "dead_fraction": 0.1,
        "dead_units": 5 + epoch,
        "dormant_units": 7 + epoch,
        "revived_units": seed,
        "surrogate_cosine": 1 - (leak or 0) / 2 if family == "nsrelu" else 1.0,
        "grad_norm": 1.0,
    }


FRAMES = made_up()
LOST_RUNS = made_up(diverged=[("nsrelu(1)", 0.1, 0), ("nsrelu(1)", 0.1, 1)])
GONE = made_up(diverged=[("nsrelu(1)", 0.1, seed) for seed in range(3)])
GRID_RUNS = made_up(
    lrs=(0.1, 0.2), diverged=[("nsrelu(1)", 0.2, 0), *(("nsrelu(0.1)", 0.2, s) for s in range(3))]
)
