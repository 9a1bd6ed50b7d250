"""The cache of decoded images: what may go wrong with a file that many processes share."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
import pytest

from nsrelu_bench.data import cache
from nsrelu_bench.data.cache import Parts, cache_file, cache_place, cached


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NSRELU_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(value: int = 1) -> Parts:
    images = np.full((5, 3, 8, 8), value, dtype=np.uint8)
    return {part: (images, np.arange(5)) for part in ("train", "test")}


def never() -> NoReturn:
    raise AssertionError("is in the cache and need not be made")


def same(found: Parts, value: int = 1) -> bool:
    return found.keys() == make().keys() and all(
        np.array_equal(a, b) and a.dtype == b.dtype
        for part, arrays in make(value).items()
        for a, b in zip(arrays, found[part], strict=True)
    )


def place() -> Path:
    found = cache_place("it")
    assert found is not None
    return found


def test_an_entry_is_found_by_source_and_stamp(folder: Path) -> None:
    assert same(cached("it", "1", make))
    assert same(cached("it", "1", never))
    assert same(cached("it", "2", lambda: make(2)), 2)
    assert same(cached("it", "1", lambda: make(3)), 3)  # a source has one place
    assert same(cached("other", "1", lambda: make(4)), 4)
    assert same(cached("it", "1", never), 3)
    assert len(list(folder.glob("*.npz"))) == 2
    assert not list(folder.glob("*.part"))


def test_an_entry_of_another_version_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    cached("it", "1", make)
    monkeypatch.setattr(cache, "FORMAT", 2)
    assert same(cached("it", "1", lambda: make(2)), 2)


def test_a_damaged_entry_is_not_used() -> None:
    cached("it", "1", make)
    whole = place().read_bytes()
    seen = 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x20
        place().write_bytes(damaged)
        found = cache._read(place(), f"{cache.FORMAT} 1")
        assert found is None or same(found), position
        seen += found is None
    assert seen > 0.8 * len(whole) / 7  # the others lie in the times of zip's entries and the like


@pytest.mark.parametrize("length", [0, 1, 100, 1000, -1])
def test_a_cut_file_is_made_again(length: int) -> None:
    cached("it", "1", make)
    place().write_bytes(place().read_bytes()[:length])
    assert same(cached("it", "1", make))
    assert same(cached("it", "1", never))


def test_a_failure_leaves_no_file(folder: Path) -> None:
    folder.mkdir()
    place().with_suffix(".part").write_bytes(b"half")

    def fails() -> NoReturn:
        raise ValueError("it stops here")

    with pytest.raises(ValueError, match="it stops here"):
        cached("it", "1", fails)
    assert not place().exists()
    assert same(cached("it", "1", make))
    assert not list(folder.glob("*.part"))


def test_a_disk_that_is_full_leaves_no_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def full(file: object, **_: object) -> NoReturn:
        file.write(b"the first bytes")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert same(cached("it", "1", make))
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.path,)


def test_a_pickle_in_the_cache_is_not_loaded(tmp_path: Path, folder: Path) -> None:
    folder.mkdir()
    evil = np.array([Evil(tmp_path / "done")], dtype=object)
    with place().open("wb") as file:
        np.savez(file, stamp=np.array("1 1"), train_labels=evil, train_images=evil)
    assert same(cached("it", "1", make))
    place().write_bytes(pickle.dumps(Evil(tmp_path / "done")))
    assert same(cached("it", "1", make))
    assert not (tmp_path / "done").exists()


RACE = """
import sys, time
import numpy as np
from nsrelu_bench.data.cache import cached

def make():
    with open(sys.argv[1], "a") as log:
        log.write("made\\n")
    time.sleep(0.5)
    return {"train": (np.ones((1, 1, 2, 2), np.uint8), np.zeros(1, int))}

assert cached("it", "1", make)["train"][0].sum() == 4
"""


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path / "log")]
    racers = [subprocess.Popen(command) for _ in range(2)]
    assert [racer.wait() for racer in racers] == [0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_variables_choose_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert place().parent == tmp_path / "cache"
    monkeypatch.delenv("NSRELU_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert place().parent == tmp_path / "xdg" / "nsrelu-bench"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert place().parent == tmp_path / "home" / ".cache" / "nsrelu-bench"
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
    assert cache_place("it") is None
    assert same(cached("it", "1", lambda: make(4)), 4)


def test_a_cache_that_can_only_be_read_is_read(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    cached("it", "1", make)

    def read_only(*_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    def open_to_read(path: Path, mode: str) -> IO[bytes]:
        return read_only() if mode == "wb" else true_open(path, mode)

    true_open = Path.open
    monkeypatch.setattr(cache.FileLock, "acquire", read_only)
    monkeypatch.setattr(Path, "open", open_to_read)
    monkeypatch.setattr(Path, "unlink", read_only)
    assert same(cached("it", "1", never))
    assert same(cached("it", "2", lambda: make(2)), 2)


def test_the_file_of_an_entry_is_named_if_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_file("it") is None
    cached("it", "1", make)
    assert cache_file("it") == place()

    def denied(_: Path) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", denied)
    assert cache_file("it") is None
