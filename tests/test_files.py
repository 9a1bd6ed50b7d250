import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nsrelu_bench.files import file_sha256, read_bytes, replace_file, shortest_ends

HANG = """
import os, sys
from pathlib import Path
from nsrelu_bench import files
os.fsync = lambda _: (print("writing", flush=True), sys.stdin.readline())
files.replace_file(Path(sys.argv[1]), "new")
"""


def drafts(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".*.tmp")]


@pytest.fixture
def writer(tmp_path: Path) -> "subprocess.Popen[str]":
    """A process in the middle of replacing a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANG, str(tmp_path / "file")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_killed_writers_draft_is_removed(tmp_path: Path, writer: "subprocess.Popen[str]") -> None:
    (draft,) = drafts(tmp_path)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    replace_file(tmp_path / "another", "text")
    assert drafts(tmp_path) == [draft]  # it is another file's
    replace_file(tmp_path / "file", "text")
    assert drafts(tmp_path) == []
    assert (tmp_path / "file").read_text() == "text"


def test_a_running_writers_draft_is_kept(tmp_path: Path, writer: "subprocess.Popen[str]") -> None:
    (draft,) = drafts(tmp_path)
    replace_file(tmp_path / "file", "text")
    assert drafts(tmp_path) == [draft]
    writer.communicate("\n")
    assert writer.returncode == 0
    assert (drafts(tmp_path), (tmp_path / "file").read_text()) == ([], "new")


def test_a_failed_write_leaves_the_old_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file(tmp_path / "file", "old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("read", [read_bytes, file_sha256])
def test_only_regular_files_are_read(tmp_path: Path, read: object) -> None:
    assert callable(read)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    began = time.monotonic()
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match=f"{name} is not a regular file"):
            read(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    assert time.monotonic() - began < 5


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(101))
    assert read_bytes(tmp_path / "file", 101) == bytes(101)
    with pytest.raises(OSError, match="file is larger than 100 bytes"):
        read_bytes(tmp_path / "file", 100)


def test_the_shortest_endings_distinguish_paths() -> None:
    def ends(*paths: str) -> list[str]:
        return list(map(str, shortest_ends([Path(path) for path in paths])))

    assert ends("/r/A/small", "/r/B/large") == ["small", "large"]
    assert ends("/r/A/x/small", "/q/A/x/small") == ["r/A/x/small", "q/A/x/small"]
    assert ends("/small", "/A/small") == ["small", "A/small"]
