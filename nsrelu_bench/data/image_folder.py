"""A folder of one's own images as a data set: `train/<class>/`, `test/<class>/`, maybe `val/`."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nsrelu_bench.data.cache import cached, stamp_of
from nsrelu_bench.data.dataset import Parts
from nsrelu_bench.errors import BenchError, error_reason

Pixels = npt.NDArray[np.uint8]

#: A path, and the state of the file there.
Image = tuple[str, os.stat_result]

#: What counts as an image, as for torchvision's ImageFolder.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

LAYOUT = "a folder of images needs train/<class>/ and test/<class>/"

#: Images that a thread decodes at a time: many are small, and a task costs more than one of them.
CHUNK = 256


def read_folder(root: Path) -> tuple[Parts, list[str]]:
    """Read the images of a folder, decoded anew only where a file changed, and its classes' names.

    Images are gray, or in colour if one of them is.

    Raises:
        BenchError: A folder is missing, a class is empty or not in every part, an image does not
            decode or has another size.
    """
    try:
        found = {
            part: _classes(root / part)
            for part in ("train", "val", "test")
            if part != "val" or (root / part).is_dir()
        }
    except OSError as error:
        raise BenchError(f"{error.filename}: {error_reason(error)}; {LAYOUT}") from error
    names = list(found["train"])
    for part, classes in found.items():
        odd = sorted(set(classes) ^ set(names))
        if odd:
            raise BenchError(
                f"{root / part}: must have the classes of train/; only one of them has {odd[0]!r}"
            )
    from PIL import __version__ as decoder

    stamp = sha256()
    for classes in found.values():
        for image, state in itertools.chain(*classes.values()):
            stamp.update(os.fsencode(stamp_of(image.removeprefix(str(root)), state)))
    parts = cached(
        cache_key(root),
        f"{stamp.hexdigest()} Pillow {decoder}",
        lambda: _decode(found),
    )
    return parts, names


def cache_key(root: Path) -> str:
    """What stands for a folder in the cache."""
    return f"folder {root.resolve()}"


def _classes(folder: Path) -> dict[str, list[Image]]:
    """Find the images of every class, sorted by path."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise BenchError(f"{folder}: has no folder for a class; {LAYOUT}")
    found = {name: sorted(_images(folder / name), key=lambda image: image[0]) for name in names}
    for name, images in found.items():
        if not images:
            raise BenchError(
                f"{folder / name}: has no image ({', '.join(SUFFIXES)}); add some, or remove it"
            )
    return found


def _images(folder: Path) -> Iterator[Image]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # the system's own, such as ._1.jpg
                continue
            if entry.is_dir():
                yield from _images(Path(entry.path))
            elif entry.name.lower().endswith(SUFFIXES):
                yield entry.path, entry.stat()


def _decode(found: Mapping[str, Mapping[str, Sequence[Image]]]) -> Parts:
    """Decode all images, to gray or, where one is in colour, to RGB."""
    paths = [path for classes in found.values() for path, _ in itertools.chain(*classes.values())]
    pool = ThreadPoolExecutor()
    try:
        starts = range(0, len(paths), CHUNK)
        chunks = pool.map(_pixels, [paths[start : start + CHUNK] for start in starts])
        whole = _stack(paths, itertools.chain.from_iterable(chunks))
    finally:
        pool.shutdown(cancel_futures=True)  # after a mistake the others are in vain
    parts, start = {}, 0
    for part, classes in found.items():
        sizes = [len(images) for images in classes.values()]
        stop = start + sum(sizes)
        parts[part] = whole[start:stop], np.repeat(np.arange(len(sizes)), sizes)
        start = stop
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
    """Decode images to `(C, H, W)`, with 1 channel for gray and 3 for colour."""
    from PIL import Image as Pillow

    decoded = []
    for path in paths:
        try:
            with Pillow.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"{image.mode} has more than 8 bits a channel")
                gray = image.mode in ("1", "L", "LA")
                pixels = np.asarray(image.convert("L" if gray else "RGB"))
        except Exception as error:  # a damaged file raises anything
            raise BenchError(
                f"{path}: is no image that can be read ({error_reason(error)}); replace it"
                " or take it out"
            ) from error
        decoded.append(pixels[None] if gray else pixels.transpose(2, 0, 1))
    return decoded
