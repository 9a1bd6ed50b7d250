"""Decoded images on disk, so that they are decoded once.

An entry is one file of NumPy's, with a stamp of the source, images and labels. It is used only if
all of that is intact, and if only this user can write to the file and its folder; otherwise it is
replaced. One process writes an entry, under a temporary name, and then renames it; other processes
wait for it.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nsrelu_bench.data.dataset import Parts
from nsrelu_bench.files import file_lock, open_regular, replacing

#: Goes up by one when the format, or the decoding, changes.
CACHE_FORMAT = 3
MAX_TEXT_BYTES = 1 << 16
MAX_ENTRY_BYTES = 1 << 40


def cached(
    source: str,
    stamp: str,
    make: Callable[[], Parts],
    is_valid: Callable[[Parts], bool] = lambda _: True,
) -> Parts:
    """Return what `make` returned for the same source and stamp, now or in an earlier process.

    A cache that can't be read or written is not an error: then `make` is called every time.

    Args:
        source: What it is made from, such as a folder; it has one entry.
        stamp: The state of the source; an entry with another stamp is replaced.
        make: Reads the source; images are uint8.
        is_valid: Returns whether an entry's images and labels can be those of this source.
    """
    entry = cache_entry(source)
    if entry is None:
        return make()
    parts = _read(entry, stamp, is_valid)
    if parts is None:
        with lock_folder(entry.parent, entry.stem):
            parts = _read(entry, stamp, is_valid)  # another process may have written it meanwhile
            if parts is None:
                made = make()
                _write(entry, lambda file: _pack(file, stamp, made))
                return made
    return parts


def cached_text(source: str, stamp: str, make: Callable[[], str]) -> str:
    """Return the short text that `make` returned for the same source and stamp."""
    entry = cache_entry(source)
    if entry is None:
        return make()
    entry, name = entry.with_suffix(".txt"), sha256(os.fsencode(stamp)).hexdigest()
    with suppress(OSError, ValueError), _open_own(entry) as file:
        found, _, text = file.read(MAX_TEXT_BYTES).decode().partition(" ")
        if found == name:
            return text
    text = make()
    _write(entry, lambda file: file.write(f"{name} {text}".encode()))
    return text


def cache_folder() -> Path | None:
    """Return the folder of the cache; None if this user has no home."""
    folder = os.environ.get("NSRELU_CACHE_DIR", "")
    shared = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if folder:
            return Path(folder).expanduser()
        if Path(shared).is_absolute():
            return Path(shared) / "nsrelu-bench"
        return Path.home() / ".cache" / "nsrelu-bench"
    except RuntimeError:  # no home
        return None


def cache_problem(folder: Path) -> str:
    """Return why a folder can't hold the cache; nothing if it can, or does not exist yet."""
    try:
        state = folder.stat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{folder}: {error.strerror}"
    if not stat.S_ISDIR(state.st_mode):
        return f"{folder}: is not a folder"
    if not _is_own(state):
        return f"{folder}: others can write there; chmod go-w it, or set NSRELU_CACHE_DIR"
    return ""


def cache_entry(source: str) -> Path | None:
    """Return the place of a source in the cache; None if there is no cache."""
    folder = cache_folder()
    if folder is None or cache_problem(folder):
        return None
    readable = re.sub(r"[^A-Za-z0-9]+", "-", source)[-40:].strip("-")
    return folder / f"{readable}-{sha256(os.fsencode(source)).hexdigest()[:16]}.images"


def cache_file(source: str) -> Path | None:
    """Return the file of a source in the cache; None if it is not there."""
    entry = cache_entry(source)
    with suppress(OSError):
        if entry is not None and entry.is_file():
            return entry
    return None


def stamp_of(path: str, state: os.stat_result) -> str:
    """Return a text that differs between any two states of a file, without reading it.

    The time of the last change of a file's metadata can't be set, unlike that of its content:
    files of the same size that were unpacked with the same time differ in it.
    """
    return f"{path}\0{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}\n"


@contextmanager
def lock_folder(folder: Path, name: str) -> Iterator[None]:
    """Let one process at a time work on `name` in a folder; a read-only folder needs no lock."""
    lock = file_lock(folder / f".{name}.lock", timeout_s=-1)
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()  # nothing, if it is not held


def _read(entry: Path, stamp: str, is_valid: Callable[[Parts], bool]) -> Parts | None:
    try:
        with _open_own(entry) as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["stamp"]) != f"{CACHE_FORMAT} {stamp}":
                return None
            parts = {
                part: (arrays[f"{part}_images"], arrays[f"{part}_labels"])
                for part in ("train", "val", "test")
                if f"{part}_images" in arrays
            }
            is_whole = len(arrays.files) == 1 + 2 * len(parts)  # no name is damaged
            return parts if is_whole and is_valid(parts) else None
    except Exception:  # missing, or damaged in any way: it is replaced
        return None


def _open_own(path: Path) -> BinaryIO:
    """Open a regular file that only this user can have written."""
    file = open_regular(path, MAX_ENTRY_BYTES, follow=False)
    if not _is_own(os.fstat(file.fileno())):
        file.close()
        raise PermissionError(f"{path} may be another user's")
    return file


def _is_own(state: os.stat_result) -> bool:
    """Return whether only this user can write there; Windows has no such bits."""
    if not hasattr(os, "geteuid"):
        return True
    return state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _pack(file: BinaryIO, stamp: str, parts: Parts) -> None:
    arrays = {"stamp": np.array(f"{CACHE_FORMAT} {stamp}")}
    for part, (images, labels) in parts.items():
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    np.savez(file, allow_pickle=False, **arrays)


def _write(entry: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write an entry, readable only by this user; what can't be written is not."""
    with suppress(OSError):
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(entry, mode=0o600) as file:
            write(file)
