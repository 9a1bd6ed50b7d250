"""The time of an epoch, from a short one that is thrown away."""

import math

from nsrelu_bench.config import RunConfig

#: Training examples of a timed epoch; that of all of them takes longer in proportion.
TIMED_EXAMPLES = 2000


def time_epoch(config: RunConfig) -> float:
    """Return about how many seconds an epoch takes on this machine, without writing anything.

    Two short epochs are run, since the first has to warm up.

    Raises:
        BenchError: The data set, the model or the device can't be had.
    """
    from nsrelu_bench.data import load_dataset
    from nsrelu_bench.training import run

    total = len(load_dataset(config).train)
    batches = math.ceil(max(TIMED_EXAMPLES, config.probe_size) / config.batch_size)
    examples = min(batches * config.batch_size, total)
    changes = {"epochs": 2, "tasks": 1, "train_size": None if examples == total else examples}
    *_, last = run(config.model_copy(update=changes))
    measuring = last.timing["measure_s"] + last.timing["evaluate_s"]
    return float(last.timing["train_s"] * total / examples + measuring)
