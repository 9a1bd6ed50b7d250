"""The formats in which data sets are published: MNIST's, CIFAR's and SVHN's.

A reader takes open files, already checked where a digest is known.
"""

import gzip
import math
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from nsrelu_bench.data.dataset import Parts
from nsrelu_bench.errors import BenchError

Reader = Callable[[Sequence[IO[bytes]]], Parts]

EMNIST_FILES = tuple(
    f"emnist-balanced-{part}-{kind}-ubyte"
    for part in ("train", "test")
    for kind in ("images-idx3", "labels-idx1")
)


def idx_files(classes: int) -> Reader:
    """Return the reader of MNIST's four files: images and labels, to train and to test."""

    def read(files: Sequence[IO[bytes]]) -> Parts:
        return {
            "train": _idx_pair(files[0], files[1], classes),
            "test": _idx_pair(files[2], files[3], classes),
        }

    return read


def _idx_pair(
    images_file: IO[bytes], labels_file: IO[bytes], classes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    images, labels = _idx(images_file, 3), _idx(labels_file, 1)
    _check_labels(labels, classes, labels_file.name)
    if len(images) != len(labels):
        raise BenchError(
            f"{labels_file.name}: has {len(labels)} labels for {len(images)} images;"
            f" delete it and {images_file.name} to fetch them again"
        )
    return images[:, None], labels


def _idx(file: IO[bytes], dims: int) -> npt.NDArray[np.uint8]:
    """Read an array in MNIST's format: a header with its shape, and one byte per element."""
    content = bytearray(file.read())
    start = 4 + 4 * dims
    if len(content) >= start and content[:4] == bytes([0, 0, 8, dims]):
        shape = struct.unpack(f">{dims}I", content[4:start])
        if len(content) - start == math.prod(shape):
            return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
    raise BenchError(
        f"{file.name}: is cut off or damaged: its header does not match its {len(content)} bytes;"
        " delete it to fetch it again"
    )


def _check_labels(labels: npt.NDArray[Any], classes: int, name: str) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise BenchError(
            f"{name}: label {wrong[0]} is out of range, 0 to {classes - 1};"
            " delete the file to fetch it again"
        )


def unzipped(read: Reader) -> Reader:
    """Return a reader of the same files, each compressed as .gz."""
    return lambda files: read([gzip.open(file) for file in files])  # type: ignore[misc]


def emnist_archive(files: Sequence[IO[bytes]]) -> Parts:
    """Read the balanced classes from EMNIST's zip file of .gz files."""
    with zipfile.ZipFile(files[0]) as archive:
        members = [archive.open(f"gzip/{name}.gz") for name in EMNIST_FILES]
        return unzipped(idx_files(47))(members)


def cifar_archive(members: Sequence[str], classes: int) -> Reader:
    """Return the reader of CIFAR's archive, in one pass: its batches are in another order."""

    def read(files: Sequence[IO[bytes]]) -> Parts:
        found: dict[str, bytes] = {}
        with tarfile.open(fileobj=files[0], mode="r:gz") as archive:
            for entry in archive:
                if entry.name in members and (content := archive.extractfile(entry)):
                    found[entry.name] = content.read()
        return _cifar_batches({member: found[member] for member in members}, classes)

    return read


def cifar_files(classes: int) -> Reader:
    """Return the reader of CIFAR's batches, unpacked."""
    return lambda files: _cifar_batches({file.name: file.read() for file in files}, classes)


def _cifar_batches(batches: Mapping[str, bytes], classes: int) -> Parts:
    """Read the batches of CIFAR; the last is the test split.

    They are pickles: the caller must have compared them, or their archive, with the published md5.
    """
    pairs = []
    for name, content in batches.items():
        batch = pickle.loads(content, encoding="latin1")  # noqa: S301
        labels = np.asarray(batch["labels" if "labels" in batch else "fine_labels"])
        _check_labels(labels, classes, name)
        pairs.append((batch["data"].reshape(-1, 3, 32, 32), labels))
    images, labels = (np.concatenate(arrays) for arrays in zip(*pairs[:-1], strict=True))
    return {"train": (images, labels), "test": pairs[-1]}


def svhn(files: Sequence[IO[bytes]]) -> Parts:
    """Read the files of SVHN, where the digit 0 has the label 10."""
    from scipy.io import loadmat

    parts = {}
    for part, file in zip(("train", "test"), files, strict=True):
        content = loadmat(file)  # type: ignore[arg-type]  # its stubs want a name
        labels = content["y"].ravel().astype(np.int64)
        labels[labels == 10] = 0
        _check_labels(labels, 10, file.name)
        parts[part] = np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1)), labels
    return parts
