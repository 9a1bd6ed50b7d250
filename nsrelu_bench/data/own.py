"""A data set of the user's own, by ``package.module:name``.

The function gets the folder of data and returns images and labels of "train", "test" and perhaps
"val"; docs/datasets.md describes it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nsrelu_bench.data.dataset import Dataset, Parts, from_parts
from nsrelu_bench.errors import BenchError, describe_error
from nsrelu_bench.plugins import blame, load_plugin

SPLIT_NAMES = ("train", "val", "test")


def load_own(name: str, data_dir: Path) -> Dataset:
    """Load the data set of a user's function; without "val", a tenth of "train" is used for it.

    Raises:
        UsageError: There is no such function.
        BenchError: It fails, or returns something else.
    """
    load = load_plugin("dataset", name)
    with blame("dataset", name):
        found = load(data_dir)
    if not isinstance(found, Mapping) or not {"train", "test"} <= set(found) <= set(SPLIT_NAMES):
        got = list(found) if isinstance(found, Mapping) else type(found).__name__
        raise BenchError(
            f"dataset: {name} must return a dict with train, test and perhaps val, got {got}"
        )
    parts = {part: _arrays(f"dataset: {name}: {part}", found[part]) for part in found}
    shapes = {part: (images.dtype, *images.shape[1:]) for part, (images, _) in parts.items()}
    for part, (dtype, *shape) in shapes.items():
        if shapes[part] != shapes["train"]:
            first, *train = shapes["train"]
            raise BenchError(
                f"dataset: {name}: {part}: images must be like those of train, {first} {train},"
                f" got {dtype} {shape}"
            )
    return _dataset(f"dataset: {name}", parts)


def _dataset(where: str, parts: Parts) -> Dataset:
    classes = 1 + max(int(labels.max()) for _, labels in parts.values())
    data = from_parts(parts, classes)
    found = np.unique(data.train.labels.numpy()).tolist()
    if len(found) < classes:
        missing = next((i for i, label in enumerate(found) if label != i), len(found))
        raise BenchError(
            f"{where}: label {missing} of 0 to {classes - 1} has too few examples to train and to"
            " validate"
        )
    return data


def _arrays(where: str, pair: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Check one part; return images `(N, C, H, W)`, uint8 or float32, and labels `(N,)`."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise BenchError(f"{where}: must be a pair of images and labels, got {type(pair).__name__}")
    try:
        images, labels = (
            np.array(part.numpy(force=True) if isinstance(part, Tensor) else part) for part in pair
        )
    except Exception as error:  # lists of several lengths, sparse tensors
        raise BenchError(f"{where}: must be tensors or arrays: {describe_error(error)}") from error
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise BenchError(f"{where}: images must be uint8 or floats, got {images.dtype}")
    if images.ndim not in (2, 3, 4) or not images.size:
        raise BenchError(
            f"{where}: images must be (N, C, H, W), (N, H, W) or (N, F), got {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise BenchError(
            f"{where}: labels must be {len(images)} whole numbers, got {labels.dtype} of shape"
            f" {labels.shape}"
        )
    if labels.min() < 0:
        raise BenchError(f"{where}: labels must be from 0, got {labels.min()}")
    if images.dtype.kind == "f":
        with np.errstate(over="ignore"):
            images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise BenchError(f"{where}: images must be finite, and fit into float32")
    count, *rest = images.shape
    shape = {1: (*rest, 1, 1), 2: (1, *rest), 3: rest}[len(rest)]
    return images.reshape(count, *shape), labels.astype(np.int64)
