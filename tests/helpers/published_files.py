"""Tiny files in the formats of published data sets."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.io

from nsrelu_bench.data.downloads import SOURCES, File, Form
from nsrelu_bench.data.formats import EMNIST_FILES

Pair = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

SIDE = {"svhn": 32, "cifar10": 32, "cifar100": 32}
IMAGE_COUNTS = {"train": 3, "test": 1}  # times the number of classes
FILE_FORMS = [(name, form) for name in SOURCES for form in range(len(SOURCES[name].forms))]


def examples(name: str, part: str) -> Pair:
    """Random images, and labels in which every class is equally frequent."""
    classes, side = SOURCES[name].classes, SIDE.get(name, 28)
    rng = np.random.default_rng([len(name), len(part)])
    count = IMAGE_COUNTS[part] * classes
    channels = 3 if side == 32 else 1
    images = rng.integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    return images, rng.permutation(np.arange(count) % classes)


def idx(array: npt.NDArray[Any]) -> bytes:
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def idx_contents(name: str) -> list[bytes]:
    (images, labels), (test_images, test_labels) = (examples(name, part) for part in IMAGE_COUNTS)
    arrays = (images[:, 0], labels, test_images[:, 0], test_labels)
    return [idx(array) for array in arrays]


def batches(name: str) -> list[bytes]:
    """The pickles of CIFAR: the training examples in one batch or five, and those to test."""
    (images, labels), test = (examples(name, part) for part in IMAGE_COUNTS)
    key, count = ("labels", 5) if name == "cifar10" else ("fine_labels", 1)
    pairs = list(zip(np.array_split(images, count), np.array_split(labels, count), strict=True))
    return [
        pickle.dumps({"data": i.reshape(len(i), -1), key: [int(label) for label in t]})
        for i, t in [*pairs, test]
    ]


def tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def contents(name: str, form: Form) -> list[bytes]:
    """What the files of a data set hold in one of its forms."""
    first = form.files[0].path
    if name == "emnist" and first.endswith(".zip"):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for member, content in zip(EMNIST_FILES, idx_contents(name), strict=True):
                archive.writestr(f"gzip/{member}.gz", gzip.compress(content))
        return [stream.getvalue()]
    if name == "svhn":
        files = []
        for part in IMAGE_COUNTS:
            images, labels = examples(name, part)
            stream = io.BytesIO()
            y = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
            scipy.io.savemat(stream, {"X": images.transpose(2, 3, 1, 0), "y": y})
            files.append(stream.getvalue())
        return files
    if first.endswith(".tar.gz"):
        members = [file.path for file in SOURCES[name].forms[1].files]
        pairs = list(zip(members, batches(name), strict=True))
        return [tar(dict(pairs[3:] + pairs[:3]))]  # not in their order, as in the real one
    if name.startswith("cifar"):
        return batches(name)
    packed = first.endswith(".gz")
    return [gzip.compress(c) if packed else c for c in idx_contents(name)]


def publish(patch: pytest.MonkeyPatch, name: str, folder: Path, chosen: int = 0) -> list[Path]:
    """Write a data set in one of its forms, and make its digests those of what is written."""
    source = SOURCES[name]
    form = source.forms[chosen]
    files = []
    for file, content in zip(form.files, contents(name, form), strict=True):
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        files.append(File(file.path, digest_like(file.digest, content)))
    forms = list(source.forms)
    forms[chosen] = replace(form, files=tuple(files))
    patch.setitem(SOURCES, name, replace(source, val=source.classes, forms=tuple(forms)))
    return [folder / file.path for file in files]


def digest_like(digest: str | None, content: bytes) -> str | None:
    algorithm = digest and digest.partition(":")[0]
    return algorithm and f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
