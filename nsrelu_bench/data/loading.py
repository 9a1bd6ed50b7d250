"""The data set that a configuration names, loaded once per process."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch

from nsrelu_bench.config import RunConfig
from nsrelu_bench.data.dataset import Dataset, from_parts
from nsrelu_bench.data.downloads import SOURCES, read_published
from nsrelu_bench.data.embedded import digits, mnist5k, synthetic
from nsrelu_bench.data.image_folder import read_folder
from nsrelu_bench.errors import BenchError, lookup

#: Precedes the path of a folder of images.
FOLDER = "folder:"


def load_dataset(config: RunConfig) -> Dataset:
    """Load the data set of a run.

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
    return data.with_train_size(config.train_size)


def data_digest(config: RunConfig) -> str:
    """Return the SHA-256 of all images and labels of a run's data set, in the order of the splits.

    It is that of the whole data set as it was read, whatever `train_size` takes of it.

    Raises:
        BenchError: As `load_dataset`.
    """
    return _load(config.dataset, config.data_dir).digest


@functools.lru_cache(maxsize=2)
def _load(name: str, data_dir: str) -> Dataset:
    if name.startswith(FOLDER):
        return _load_folder(folder_path(name))
    return lookup(LOADERS, name, "dataset")(Path(data_dir))


def folder_path(name: str) -> Path:
    """Return the folder that `folder:PATH` names."""
    return Path(name.removeprefix(FOLDER)).expanduser()


def _load_published(name: str, data_dir: Path) -> Dataset:
    source = SOURCES[name]
    return from_parts(read_published(name, data_dir), source.classes, source.val)


def _load_folder(root: Path) -> Dataset:
    """Load a folder of images; a tenth of the training images validates unless there is `val/`."""
    parts, names = read_folder(root)
    data = from_parts(parts, len(names), val=max(1, len(parts["train"][1]) // 10))
    counts = torch.bincount(data.train.labels, minlength=len(names))
    for name, count in zip(names, counts, strict=True):
        if not count:
            raise BenchError(
                f"{root / 'train' / name}: has too few images to train and to validate"
            )
    return data


#: Data sets by name; each is loaded from a folder of data, which embedded ones do not need.
LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "mnist5k": mnist5k,
    "digits": digits,
    "synthetic": synthetic,
    **{name: functools.partial(_load_published, name) for name in SOURCES},
}
