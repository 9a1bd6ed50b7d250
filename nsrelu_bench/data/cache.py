"""Decoded images on disk, so that they are decoded once.

An entry is one uncompressed .npz file without pickles. It holds a stamp that says what it was made
of, and zip's checksum of every array: one of another stamp, or damaged, is made again. It is put in
place by a rename, and one process makes it while the others wait.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from nsrelu_bench.data.dataset import Parts

#: Raised by one when what is stored, or how it is decoded, changes.
FORMAT = 1


def cached(source: str, stamp: str, make: Callable[[], Parts]) -> Parts:
    """Return what `make` made for the same source and stamp, now or in an earlier process.

    A cache that can't be read or written is no error: then it is made every time.

    Args:
        source: What it is made of, such as a folder; it has one place in the cache.
        stamp: The state of the source; another stamp replaces what is there.
        make: Reads the source.
    """
    place = cache_place(source)
    if place is None:
        return make()
    stamp = f"{FORMAT} {stamp}"
    found = _read(place, stamp)
    if found is None:
        with alone_in(place.parent, place.stem):
            found = _read(place, stamp)  # another process may have made it meanwhile
            if found is None:
                found = make()
                _write(place, stamp, found)
    return found


def cache_place(source: str) -> Path | None:
    """Where the cache keeps what is made of a source; None where there is no place for a cache."""
    folder = os.environ.get("NSRELU_CACHE_DIR", "")
    shared = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if folder:
            chosen = Path(folder).expanduser()
        elif Path(shared).is_absolute():
            chosen = Path(shared) / "nsrelu-bench"
        else:
            chosen = Path.home() / ".cache" / "nsrelu-bench"
    except RuntimeError:  # nobody's home
        return None
    readable = re.sub(r"[^A-Za-z0-9]+", "-", source)[-40:].strip("-")
    return chosen / f"{readable}-{sha256(os.fsencode(source)).hexdigest()[:16]}.npz"


def cache_file(source: str) -> Path | None:
    """The file that the cache holds of a source; None where there is none."""
    place = cache_place(source)
    with suppress(OSError):
        if place is not None and place.is_file():
            return place
    return None


def stamp_of(path: str, state: os.stat_result) -> str:
    """Tell a state of a file from all others without reading it.

    The time of the last change of the file's record, unlike that of its content, can't be set:
    files of the same size unpacked with the same time differ in it.
    """
    return f"{path}\0{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}\n"


@contextmanager
def alone_in(folder: Path, name: str) -> Iterator[None]:
    """Let one process at a time work on `name` in a folder; nothing to guard if it is read-only."""
    lock = FileLock(folder / f".{name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _read(place: Path, stamp: str) -> Parts | None:
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["stamp"]) != stamp:
                return None
            return {
                str(part): (arrays[f"{part}_images"], arrays[f"{part}_labels"])
                for part in arrays["parts"]
            }
    except Exception:  # not there, or damaged, which raises anything: it is made again
        return None


def _write(place: Path, stamp: str, parts: Parts) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {"stamp": np.array(stamp), "parts": np.array([*parts])}
    for part, (images, labels) in parts.items():
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    begun = place.with_suffix(".part")
    with suppress(OSError):
        try:
            with begun.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            begun.replace(place)
        finally:
            begun.unlink(missing_ok=True)
