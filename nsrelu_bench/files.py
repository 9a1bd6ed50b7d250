"""Safe use of the disk: hashes, locks, writing then renaming, errors in one line."""

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from nsrelu_bench.errors import BenchError, error_reason

if TYPE_CHECKING:
    from filelock import FileLock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: The end of the name of a temporary file.
DRAFT = re.compile(r"\.\d+-[0-9a-f]{6}\.tmp$")

#: Larger files are refused: what is read into memory, and what is only hashed.
MAX_READ_BYTES = 1 << 30
MAX_HASHED_BYTES = 1 << 36


def read_bytes(path: Path, limit: int = MAX_READ_BYTES) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises:
        OSError: It can't be read, is larger, or is something else: a pipe or a device might
            never end.
    """
    with open_regular(path, limit) as file:
        return file.read()


def shortest_ends(paths: Sequence[Path]) -> list[Path]:
    """Return the shortest endings that distinguish some paths: A/small and B/small."""
    parts = [path.resolve().parts[1:] for path in paths]
    for length in range(1, max(map(len, parts), default=0)):
        ends = [Path(*part[-length:]) for part in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [Path(*part) for part in parts]


def file_sha256(path: Path, length: int | None = None) -> str:
    """Return the SHA-256 of a regular file, or of its first `length` bytes."""
    digest = hashlib.sha256()
    with open_regular(path, MAX_HASHED_BYTES) as file:
        left = MAX_HASHED_BYTES if length is None else length
        while left and (chunk := file.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def open_regular(path: Path, limit: int = MAX_READ_BYTES, *, follow: bool = True) -> BinaryIO:
    """Open a regular file of at most `limit` bytes to read; without `follow`, not through a link.

    Raises:
        OSError: It can't be opened, is larger, or is something else: a pipe or a device might
            never end.
    """
    no_link = 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    file = open(path, "rb", opener=lambda name, flags: _open_at_once(name, flags | no_link))  # noqa: SIM115 -- Path has no opener
    state = os.fstat(file.fileno())
    problem = "is not a regular file" if not stat.S_ISREG(state.st_mode) else ""
    if problem or state.st_size > limit:
        file.close()
        raise OSError(errno.EINVAL, f"{path.name} {problem or f'is larger than {limit} bytes'}")
    return file


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; if it is a pipe, without waiting for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def file_lock(path: Path, timeout_s: float = 0.0) -> "FileLock":
    """Return the lock of a file, which is released however its process ends."""
    from filelock import FileLock  # takes time that --help does not have

    return FileLock(path, timeout=timeout_s, poll_interval=0.01)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file, as far as this process can find out."""
    if not path.exists():
        return False
    try:
        with file_lock(path):
            return False
    except PermissionError:
        return _is_claimed(path)
    except OSError:  # it is held, or the folder is read-only
        return True


def _is_claimed(path: Path) -> bool:
    """Return whether a process holds a lock that this one may not take, but perhaps look at."""
    if fcntl is None:
        return True
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # it is held, or may not even be read
        return True
    return False


def write_file(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing, and create its folder.

    A device or a link is written through and never replaced.

    Raises:
        BenchError: It can't be written.
    """
    data = content.encode() if isinstance(content, str) else content
    with wrap_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_bytes(data)
        else:
            replace_file(path, data)


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Write a whole JSON file or nothing.

    Raises:
        ValueError: A number is not finite.
    """
    replace_file(path, json.dumps(content, indent=2, allow_nan=False) + "\n", durable=durable)


def replace_file(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a whole file or nothing, into a folder that exists, as `replacing` does."""
    with replacing(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to `path` at the end, unless there is an error.

    Args:
        path: The file; its folder must exist.
        durable: Return only once the file would survive a loss of power.
        mode: The file's permissions, of which the umask takes some away.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    remove_drafts(path.parent, path.name)
    draft, file = _create_draft(path, mode)
    try:
        with file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            if fcntl is not None:  # while it is locked
                draft.replace(path)
        if fcntl is None:
            draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def remove_drafts(folder: Path, name: str = "") -> None:
    """Remove the temporary files in a folder, of `name` or any, whose processes are gone."""
    with suppress(OSError), os.scandir(folder) as entries:
        drafts = [e.path for e in entries if e.name.startswith(f".{name}") and DRAFT.search(e.name)]
        for draft in drafts:
            with suppress(OSError), open(draft, "rb", opener=_open_at_once) as file:
                if _claim(file):
                    Path(draft).unlink()


@contextmanager
def held_draft(path: Path) -> Iterator[Path]:
    """Keep an empty temporary file next to `path`; if this process is killed, it can be removed."""
    draft, file = _create_draft(path)
    with file:
        try:
            yield draft
        finally:
            draft.unlink(missing_ok=True)


def _create_draft(path: Path, mode: int = 0o666) -> tuple[Path, BinaryIO]:
    """Create a temporary file next to `path`, locked so that `remove_drafts` leaves it alone."""
    while True:
        draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
        file = open(draft, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115 -- Path has no opener
        if _claim(file) and draft.exists():
            return draft, file
        file.close()  # another process removed it before it was locked


def _claim(file: IO[bytes]) -> bool:
    """Lock an open file unless another process has; return whether it is locked, or can't be."""
    if fcntl is None:  # Windows, where a file that is open can't be removed
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Write the list of a folder's files to disk; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def wrap_read_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk, or of what is in a file, into one line that names the file."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:  # pandas raises the latter two
        raise BenchError(f"{path}: can't be read ({error_reason(error)})") from error


@contextmanager
def wrap_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into one line that names what can't be written."""
    try:
        yield
    except OSError as error:
        reason = find_broken_link(path) or _find_obstacle(error) or error_reason(error)
        raise BenchError(f"{path}: can't be written ({reason})") from error


def _find_obstacle(error: OSError) -> str:
    """Return which file of another user, or folder, was in the way; empty where none was."""
    path = Path(os.fsdecode(error.filename or "."))
    if isinstance(error, IsADirectoryError) and path.name.startswith("."):
        return f"{path.name} is a folder"
    with suppress(OSError, KeyError, NotImplementedError):  # gone, an unknown user, Windows
        effective = os.access in os.supports_effective_ids
        writable = os.access(path, os.W_OK, effective_ids=effective)
        if isinstance(error, PermissionError) and path.is_file() and not writable:
            return f"{path.name} belongs to {path.owner()}: {error_reason(error)}"
    return ""


def find_broken_link(path: Path) -> str:
    """Return which link in a path is broken, and where it points; empty if none is."""
    with suppress(OSError):  # of a name that is too long, the system's own reason says more
        for place in (path, *path.parents):
            if place.is_symlink() and not place.exists():
                return f"{place} is a link to {place.readlink()}, which does not exist"
    return ""
