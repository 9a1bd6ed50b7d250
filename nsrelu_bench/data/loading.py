"""Load the data set that a configuration names, once per process."""

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from nsrelu_bench.config import RunConfig, is_own
from nsrelu_bench.data.cache import cached_text
from nsrelu_bench.data.dataset import Dataset, from_parts
from nsrelu_bench.data.downloads import SOURCES, read_published
from nsrelu_bench.data.embedded import digits, mnist5k, synthetic
from nsrelu_bench.data.image_folder import ImageFolder, read_folder, scan_folder
from nsrelu_bench.data.own import load_own
from nsrelu_bench.errors import BenchError, lookup
from nsrelu_bench.plugins import source_digest

#: Precedes the path of a folder of images.
FOLDER = "folder:"


def load_dataset(config: RunConfig) -> Dataset:
    """Load the data set of a run; a process loads it again only if its files changed.

    Raises:
        BenchError: It is missing and can't be fetched, or is smaller than `train_size`.
    """
    data = _load(config)
    if config.train_size is None:
        return data
    if config.train_size > len(data.train):
        raise BenchError(
            f"train_size: {config.dataset} has {len(data.train)} training examples,"
            f" got {config.train_size}"
        )
    return replace(data, train=data.part_of_train(config.train_size))


def data_digest(config: RunConfig) -> str:
    """Return the SHA-256 of all images and labels of a run's data set, in the order of the splits.

    It is that of the whole data set, independent of `train_size`. That of a folder of images is
    cached: while no file changes, no image is read.

    Raises:
        BenchError: As `load_dataset`.
    """
    if config.dataset.startswith(FOLDER):
        folder = scan_folder(folder_path(config.dataset))
        key = f"SHA-256 of {folder.key}"
        return cached_text(key, folder.stamp, lambda: _load_folder(folder).digest)
    return _load(config).digest


def count_classes(config: RunConfig) -> int:
    """Return the number of classes of a run's data set.

    Raises:
        BenchError: As `load_dataset`.
    """
    return _load(config).classes


def folder_path(name: str) -> Path:
    """Return the folder that `folder:PATH` names."""
    return Path(name.removeprefix(FOLDER)).expanduser()


def _load(config: RunConfig) -> Dataset:
    name = config.dataset
    if name.startswith(FOLDER):
        return _load_folder(scan_folder(folder_path(name)))
    source = source_digest(name) if is_own(name) else ""
    return _load_named(name, config.data_dir, _working_folder(), source)


def _working_folder() -> str:
    """Return what a relative path starts from; nothing if the folder was deleted."""
    try:
        return os.getcwd()  # noqa: PTH109 -- part of a key
    except OSError:
        return ""


@functools.lru_cache(maxsize=2)
def _load_folder(folder: ImageFolder) -> Dataset:
    """Load a folder of images; a tenth of the training images validates unless there is `val/`."""
    data = from_parts(read_folder(folder), len(folder.classes))
    counts = torch.bincount(data.train.labels, minlength=data.classes)
    for name, count in zip(folder.classes, counts, strict=True):
        if not count:
            raise BenchError(
                f"{folder.root / 'train' / name}: has too few images to train and to validate"
            )
    return data


@functools.lru_cache(maxsize=2)
def _load_named(name: str, data_dir: str, _working_folder: str, _source: str) -> Dataset:
    if is_own(name):
        return load_own(name, Path(data_dir))
    return lookup(LOADERS, name, "dataset")(Path(data_dir))


def _load_published(name: str, data_dir: Path) -> Dataset:
    source = SOURCES[name]
    return from_parts(read_published(name, data_dir), source.classes, source.val)


#: Data sets by name; each is loaded from a folder of data, which embedded ones do not need.
LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "mnist5k": mnist5k,
    "digits": digits,
    "synthetic": synthetic,
    **{name: functools.partial(_load_published, name) for name in SOURCES},
}
