"""A folder of images as a data set: `train/<class>/`, `test/<class>/`, perhaps `val/<class>/`."""

import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nsrelu_bench.data.cache import cached, stamp_of
from nsrelu_bench.data.dataset import Parts
from nsrelu_bench.errors import BenchError, describe_error, error_reason
from nsrelu_bench.files import open_regular

Pixels = npt.NDArray[np.uint8]

#: A path, and the state of the file there.
File = tuple[str, os.stat_result]

#: File names that count as images, as for torchvision's ImageFolder, and the formats that are
#: decoded: no other one, whatever the name. Pillow would start Ghostscript for an EPS file.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
IMAGE_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")

LAYOUT = "a folder of images needs train/<class>/ and test/<class>/"

BITS_PER_SAMPLE = 258  # a tag of TIFF

#: Images that a thread decodes per task: a small image costs less than a task.
IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class ImageFolder:
    """What is in a folder: the images of each part and class; equal if no file changed.

    `stamp` is a digest of the names, sizes and times of all files.
    """

    root: Path
    classes: tuple[str, ...]
    paths: Mapping[str, Sequence[Sequence[str]]] = field(compare=False)
    stamp: str

    @property
    def key(self) -> str:
        """What names the folder in the cache."""
        return f"folder {self.root.resolve()}"

    @property
    def labels(self) -> dict[str, npt.NDArray[np.int64]]:
        """The label of each image, by part."""
        return {
            part: np.repeat(np.arange(len(classes)), [len(images) for images in classes])
            for part, classes in self.paths.items()
        }


def scan_folder(root: Path) -> ImageFolder:
    """Find the images of a folder, without reading them.

    Raises:
        BenchError: A folder is missing, a class is empty or not in every part, or an image is not a
            regular file.
    """
    try:
        found = {
            part: _classes(root / part)
            for part in ("train", "val", "test")
            if part != "val" or (root / part).is_dir()
        }
    except OSError as error:
        raise BenchError(f"{error.filename}: {error_reason(error)}; {LAYOUT}") from error
    names = tuple(found["train"])
    for part, classes in found.items():
        odd = sorted(set(classes) ^ set(names))
        if odd:
            raise BenchError(
                f"{root / part}: must have the classes of train/; only one of them has {odd[0]!r}"
            )
    stamp = sha256()
    for classes in found.values():
        for image, state in itertools.chain(*classes.values()):
            stamp.update(os.fsencode(stamp_of(image.removeprefix(str(root)), state)))
    paths = {
        part: [[path for path, _ in images] for images in classes.values()]
        for part, classes in found.items()
    }
    return ImageFolder(root, names, paths, stamp.hexdigest())


def read_folder(folder: ImageFolder) -> Parts:
    """Read the images of a folder; they are decoded again only if a file changed.

    Images are gray, or in colour if one of them is.

    Raises:
        BenchError: An image can't be decoded, or has another size.
    """
    from PIL import __version__ as decoder

    def is_valid(parts: Parts) -> bool:
        return parts.keys() == labels.keys() and all(
            np.array_equal(parts[part][1], labels[part]) for part in labels
        )

    labels = folder.labels
    stamp = f"{folder.stamp} Pillow {decoder}"
    return cached(folder.key, stamp, lambda: _decode(folder), is_valid)


def _classes(folder: Path) -> dict[str, list[File]]:
    """Find the images of every class.

    In each folder they are sorted by name, before those of the folders in it: torchvision's order.
    """
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise BenchError(f"{folder}: has no folder for a class; {LAYOUT}")
    found = {
        name: sorted(_images(folder / name, ()), key=lambda file: os.path.split(file[0]))
        for name in names
    }
    for name, images in found.items():
        if not images:
            raise BenchError(
                f"{folder / name}: has no image ({', '.join(SUFFIXES)}); add some, or remove it"
            )
    return found


def _images(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[File]:
    state = folder.stat()
    here = (state.st_dev, state.st_ino)
    if here in above:
        raise BenchError(f"{folder}: is a link to a folder above it; remove it")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # the system's own, such as ._1.jpg
                continue
            if entry.is_dir():
                yield from _images(Path(entry.path), (*above, here))
            elif entry.name.lower().endswith(SUFFIXES):
                state = entry.stat()
                if not stat.S_ISREG(state.st_mode):
                    raise BenchError(
                        f"{entry.path}: is not a regular file; replace it or take it out"
                    )
                yield entry.path, state


def _decode(folder: ImageFolder) -> Parts:
    """Decode all images, to gray or, if one is in colour, to RGB."""
    paths = [path for part in folder.paths.values() for path in itertools.chain(*part)]
    pool = ThreadPoolExecutor()
    try:
        starts = range(0, len(paths), IMAGES_AT_ONCE)
        chunks = pool.map(_pixels, [paths[start : start + IMAGES_AT_ONCE] for start in starts])
        whole = _stack(paths, itertools.chain.from_iterable(chunks))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error the others are not needed
    parts, start = {}, 0
    for part, labels in folder.labels.items():
        parts[part] = whole[start : start + len(labels)], labels
        start += len(labels)
    return parts


def _stack(paths: Sequence[str], images: Iterator[Pixels]) -> Pixels:
    """Put images `(C, H, W)` of one size, with 1 or 3 channels, into one array."""
    first = next(images)
    whole = np.empty((len(paths), *first.shape), dtype=np.uint8)
    for index, image in enumerate(itertools.chain([first], images)):
        if image.shape[1:] != whole.shape[2:]:
            sizes = " and ".join(f"{w}x{h}" for h, w in (image.shape[1:], whole.shape[2:]))
            raise BenchError(
                f"{paths[index]}: images must have one size, got {sizes} (of {paths[0]});"
                " bring all to one size"
            )
        if len(image) > whole.shape[1]:
            whole = np.repeat(whole, len(image), axis=1)
        whole[index] = image
    return whole


def _pixels(paths: Sequence[str]) -> list[Pixels]:
    return [_decode_image(path) for path in paths]


def _decode_image(path: str) -> Pixels:
    """Decode an image to `(C, H, W)`, with 1 channel for gray and 3 for colour.

    A palette is colour. Transparency is dropped: what it hides becomes visible, as in torchvision.

    Raises:
        BenchError: It can't be decoded, or has more than 8 bits per channel.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    try:
        with open_regular(Path(path)) as file, Pillow.open(file, formats=IMAGE_FORMATS) as image:
            if _is_deep(image):
                raise BenchError("more than 8 bits per channel")
            if image.mode == "P":  # with transparency, Pillow warns of the direct way
                pixels = np.asarray(image.convert("RGBA").convert("RGB"))
            else:
                gray = image.mode in ("1", "L", "LA", "La")
                pixels = np.asarray(image.convert("L" if gray else "RGB"))
    except UnidentifiedImageError as error:
        raise BenchError(
            f"{path}: is not an image in one of the formats {', '.join(IMAGE_FORMATS)};"
            " replace it or take it out"
        ) from error
    except Exception as error:  # a damaged file raises anything
        raise BenchError(
            f"{path}: can't be decoded ({describe_error(error)}); replace it or take it out"
        ) from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _is_deep(image: Any) -> bool:
    """Return whether an image has more than 8 bits per channel, of which Pillow drops some."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "TIFF":
        return bool(max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8)
    coding = image.tile[0].args if image.tile else ""
    if image.format == "PPM":
        return isinstance(coding, tuple) and int(coding[1]) > 255  # the largest value
    return image.format == "PNG" and ";16" in str(coding)
