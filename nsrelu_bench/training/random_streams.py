"""Random streams of a run: independent of each other, all decided by its seed."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nsrelu_bench.config import RunConfig


def stream_seed(seed: int, stream: str) -> int:
    """Return the seed of one stream, such as "weights" or "batches/3", of a run's seed."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def generator(seed: int, stream: str) -> torch.Generator:
    """Return a generator for one stream of a run's seed."""
    return torch.Generator().manual_seed(stream_seed(seed, stream))


@contextmanager
def isolated(config: RunConfig, stream: str) -> Iterator[None]:
    """Compute with the run's threads and one of its streams; leave the process as it was.

    Dropout and PyTorch's own initializations draw from the global generators.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    devices = range(torch.cuda.device_count()) if config.device == "cuda" else ()
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(stream_seed(config.seed, stream))
            yield
    finally:
        torch.set_num_threads(threads)
