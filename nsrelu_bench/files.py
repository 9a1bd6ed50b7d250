"""Careful use of the disk: write then rename, hashes, errors in one line."""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nsrelu_bench.errors import BenchError, error_reason


def file_sha256(path: Path, length: int | None = None) -> str:
    """Hash a file, or as much of its beginning."""
    return hashlib.sha256(path.read_bytes()[:length]).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and the folder that it is to lie in.

    Raises:
        BenchError: It can't be written.
    """
    with wrap_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_text(text, encoding="utf-8")  # a device is written to, never replaced
        else:
            replace_file(path, text)


def replace_file(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all.

    Args:
        path: The file; its folder is there.
        content: What it is to hold.
        durable: Return only when it would outlast a loss of power.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring to disk which files a folder has; Windows has no such thing."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def wrap_write_errors(path: Path) -> Iterator[None]:
    """Say in one line what can't be written."""
    try:
        yield
    except OSError as error:
        raise BenchError(f"{path}: can't be written ({error_reason(error)})") from error
