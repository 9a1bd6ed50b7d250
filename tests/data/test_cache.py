"""The cache of decoded images: what may go wrong with a file that many processes share."""

import io
import os
import pickle
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import filelock
import numpy as np
import numpy.typing as npt
import pytest

from nsrelu_bench.data import cache
from nsrelu_bench.data.cache import cache_entry, cache_file, cache_problem, cached, cached_text
from nsrelu_bench.data.dataset import Parts


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NSRELU_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(value: int = 1) -> Parts:
    images = np.full((5, 3, 8, 8), value, dtype=np.uint8)
    return {part: (images, np.arange(5)) for part in ("train", "test")}


def never() -> NoReturn:
    raise AssertionError("is in the cache already")


def same(found: Parts, value: int = 1) -> bool:
    return found.keys() == make().keys() and all(
        np.array_equal(a, b) and a.dtype == b.dtype
        for part, arrays in make(value).items()
        for a, b in zip(arrays, found[part], strict=True)
    )


def entry() -> Path:
    found = cache_entry("it")
    assert found is not None
    return found


def test_an_entry_is_found_by_source_and_stamp(folder: Path) -> None:
    assert same(cached("it", "1", make))
    assert same(cached("it", "1", never))
    assert same(cached("it", "2", lambda: make(2)), 2)
    assert same(cached("it", "1", lambda: make(3)), 3)  # a source has one entry
    assert same(cached("other", "1", lambda: make(4)), 4)
    assert same(cached("it", "1", never), 3)
    assert len(list(folder.glob("*.images"))) == 2
    assert not list(folder.glob(".*.tmp"))


def test_a_damaged_entry_is_never_read_wrong() -> None:
    cached("it", "1", make)
    whole = entry().read_bytes()
    for position in (*range(300), *range(300, len(whole), 7)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x20
        entry().write_bytes(damaged)
        found = cache._read(entry(), "1", lambda _: True)
        assert found is None or same(found), position  # not all of a file's header matters


@pytest.mark.parametrize("length", [0, 1, 100, 1000, -1])
def test_a_cut_file_is_replaced(length: int) -> None:
    cached("it", "1", make)
    entry().write_bytes(entry().read_bytes()[:length])
    assert same(cached("it", "1", make))
    assert same(cached("it", "1", never))


def test_a_failure_leaves_no_file(folder: Path) -> None:
    folder.mkdir()
    left = folder / f".{entry().name}.4711-0a1b2c.tmp"
    left.write_bytes(b"what a killed process left")

    def fails() -> NoReturn:
        raise ValueError("it stops here")

    with pytest.raises(ValueError, match="it stops here"):
        cached("it", "1", fails)
    assert not entry().exists()
    assert same(cached("it", "1", make))
    assert not list(folder.glob(".*.tmp"))


def test_a_disk_that_is_full_leaves_no_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def full(_: int) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert same(cached("it", "1", make))
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def fake(images: npt.NDArray[Any], *parts: str) -> bytes:
    """An entry with the right stamp, whatever it holds."""
    arrays: dict[str, Any] = {"stamp": f"{cache.CACHE_FORMAT} 1"}
    for part in parts:
        arrays |= {f"{part}_images": images, f"{part}_labels": np.zeros(len(images), np.int64)}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pickle.dumps(print),
        fake(np.zeros((1, 1, 2, 2), np.uint8), "train")[:100],
        fake(np.array([print]), "train", "test"),
        fake(np.zeros((1, 1, 2, 2), np.uint8)),
        fake(np.zeros((1, 1, 2, 2), np.uint8), "train"),
        fake(np.zeros((1, 1, 2, 2), np.uint8), "train", "test"),
    ],
)
def test_a_forged_entry_is_not_used(content: bytes, folder: Path) -> None:
    def is_valid(parts: Parts) -> bool:
        return bool(parts) and all(
            labels.tolist() == list(range(5)) for _, labels in parts.values()
        )

    folder.mkdir(mode=0o700)
    entry().write_bytes(content)
    assert same(cached("it", "1", make, is_valid))
    assert same(cached("it", "1", never, is_valid))


def test_an_entry_is_private_to_this_user(folder: Path) -> None:
    cached("it", "1", make)
    cached_text("it", "1", lambda: "text")
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert (modes[".images"], modes[".txt"]) == (0o600, 0o600)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    entry().chmod(0o620)
    assert same(cached("it", "1", lambda: make(2)), 2)


def test_an_entry_of_another_user_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cached("it", "1", make)
    cached_text("it", "1", lambda: "text")
    path, me = entry(), os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert cache._read(path, "1", lambda _: True) is None
    assert cached_text("it", "1", lambda: "other") == "other"
    assert cache_entry("it") is None  # nor its folder


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_where_others_can_write_is_not_used(mode: int, folder: Path) -> None:
    cached("it", "1", make)
    folder.chmod(mode)
    problem = f"{folder}: others can write there; chmod go-w it, or set NSRELU_CACHE_DIR"
    assert cache_problem(folder) == problem
    assert same(cached("it", "1", lambda: make(2)), 2)
    folder.chmod(0o755)
    assert cache_problem(folder) == ""
    assert same(cached("it", "1", never))


def test_nothing_is_written_or_read_through_a_link(folder: Path, tmp_path: Path) -> None:
    cached("it", "1", make)
    stolen = entry().rename(tmp_path / "stolen")
    entry().symlink_to(stolen)
    content = stolen.read_bytes()
    assert same(cached("it", "1", lambda: make(2)), 2)
    assert not entry().is_symlink()
    assert stolen.read_bytes() == content


def test_a_pipe_in_the_place_of_an_entry_is_replaced(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.mkfifo(entry())
    assert same(cached("it", "1", make))
    assert same(cached("it", "1", never))


def test_a_text_is_found_by_source_and_stamp(folder: Path) -> None:
    assert cached_text("it", "1", lambda: "a b") == "a b"
    assert cached_text("it", "1", never) == "a b"
    assert cached_text("it", "2", lambda: "c") == "c"
    entry().with_suffix(".txt").write_bytes(b"\xff\xff")
    assert cached_text("it", "2", lambda: "d") == "d"


def test_of_two_at_once_one_makes_it() -> None:
    # The lock of a file belongs to whoever opened it: threads compete as processes do.
    made = []

    def make_slowly() -> Parts:
        made.append("once")
        time.sleep(0.2)
        return make()

    with ThreadPoolExecutor(2) as racers:
        found = list(racers.map(lambda _: cached("it", "1", make_slowly), range(2)))
    assert all(map(same, found))
    assert made == ["once"]


def test_variables_choose_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert entry().parent == tmp_path / "cache"
    monkeypatch.delenv("NSRELU_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert entry().parent == tmp_path / "xdg" / "nsrelu-bench"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert entry().parent == tmp_path / "home" / ".cache" / "nsrelu-bench"
    assert not (tmp_path / "home").exists()


def test_without_a_folder_it_is_made_every_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NSRELU_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert same(cached("it", "1", lambda: make(2)), 2)
    assert same(cached("it", "1", lambda: make(3)), 3)

    def homeless() -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("NSRELU_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_entry("it") is None
    assert same(cached("it", "1", lambda: make(4)), 4)


def test_a_cache_that_can_only_be_read_is_read(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    cached("it", "1", make)

    def read_only(*_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", read_only)
    monkeypatch.setattr(cache, "replacing", read_only)
    assert same(cached("it", "1", never))
    assert same(cached("it", "2", lambda: make(2)), 2)


def test_the_file_of_an_entry_is_named_if_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_file("it") is None
    cached("it", "1", make)
    assert cache_file("it") == entry()

    def denied(_: Path) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", denied)
    assert cache_file("it") is None
