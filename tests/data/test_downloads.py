"""Published data sets, with tiny files in their formats and the digests of those files."""

import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from helpers import published_files
from helpers.published_files import (
    FILE_FORMS,
    Pair,
    batches,
    digest_like,
    examples,
    idx,
    publish,
    tar,
)
from torchvision import datasets
from torchvision.datasets import utils

from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.data import downloads, load_dataset
from nsrelu_bench.data.downloads import SOURCES, File, read_published
from nsrelu_bench.errors import BenchError


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def blocked(*_: object, **__: object) -> None:
        raise URLError("blocked")

    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr(socket, "getaddrinfo", blocked)


@pytest.mark.parametrize(("name", "form"), FILE_FORMS)
def test_each_form_is_read_and_nothing_else_is_written(
    name: str, form: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    publish(monkeypatch, name, tmp_path, form)
    there = sorted(tmp_path.rglob("*"))
    for _ in range(2):  # the second time it may come from the cache
        parts = read_published(name, tmp_path)
        assert list(parts) == ["train", "test"]
        for part, (images, labels) in parts.items():
            expected = examples(name, part)
            assert np.array_equal(images, expected[0])
            assert np.array_equal(labels, expected[1])
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize("name", SOURCES)
def test_a_published_data_set_has_its_splits_and_classes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, name, tmp_path)
    loaded = load_dataset(RunConfig(dataset=name, data_dir=str(tmp_path)))
    classes = {"emnist": 47, "cifar100": 100}.get(name, 10)
    assert loaded.classes == classes
    assert [len(s) for s in (loaded.train, loaded.val, loaded.test)] == [
        2 * classes,
        *[classes] * 2,
    ]
    assert np.array_equal(loaded.test.images.numpy(), examples(name, "test")[0])
    assert loaded.test.labels.tolist() == examples(name, "test")[1].tolist()
    assert loaded.inputs(loaded.train.images).double().mean((0, 2, 3)).abs().max() < 1e-5


@pytest.mark.parametrize("name", SOURCES)
def test_files_and_sums_are_those_of_torchvision(name: str) -> None:
    source = SOURCES[name]
    theirs = getattr(datasets, source.name)
    ours = [
        {Path(file.path).name: file.digest for file in form.files if "md5" in (file.digest or "")}
        for form in source.forms
    ]
    if name == "svhn":
        assert ours == [{f: f"md5:{md5}" for _, f, md5 in list(theirs.split_list.values())[:2]}]
    elif name == "emnist":
        assert ours[0] == {theirs.url.rpartition("/")[2]: f"md5:{theirs.md5}"}
        assert source.classes == len(theirs.classes_split_dict["balanced"])
    elif name.startswith("cifar"):
        assert ours[0] == {theirs.filename: f"md5:{theirs.tgz_md5}"}
        assert ours[1] == {f: f"md5:{md5}" for f, md5 in theirs.train_list + theirs.test_list}
        assert {Path(f.path).parent.name for f in source.forms[1].files} == {theirs.base_folder}
    else:
        assert ours[0] == {file: f"md5:{md5}" for file, md5 in theirs.resources}
        assert [Path(f.path).parts[:2] for f in source.forms[1].files] == [(source.name, "raw")] * 4
    for file in source.forms[0].files:
        assert downloads._urls(theirs, Path(file.path).name)


def test_sums_of_unpacked_mnist_are_those_of_the_real_files() -> None:
    real = Path(__file__).parents[3] / "shared" / "data"
    if not (real / "MNIST").is_dir():
        pytest.skip("the real MNIST is not here")
    for file in SOURCES["mnist"].forms[1].files:
        digest = hashlib.sha256((real / file.path).read_bytes()).hexdigest()
        assert file.digest == f"sha256:{digest}"


@pytest.mark.parametrize(
    ("name", "form"),
    [(n, f) for n, f in FILE_FORMS if SOURCES[n].forms[f].files[0].digest is not None],
)
def test_a_flipped_byte_names_its_file(
    name: str, form: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    path = publish(monkeypatch, name, tmp_path, form)[-1]
    flip_a_byte(path)
    with pytest.raises(BenchError) as error:
        read_published(name, tmp_path)
    line = str(error.value)
    assert line.startswith(f"{path}: is damaged, or not a file of {name}: its ")
    assert line.endswith("; delete it to fetch it again")
    assert "\n" not in line


def test_a_flipped_byte_is_found_despite_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = publish(monkeypatch, "cifar10", tmp_path)
    read_published("cifar10", tmp_path)
    before = path.stat()
    flip_a_byte(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BenchError, match="is damaged"):
        read_published("cifar10", tmp_path)


def test_an_archive_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    (path,) = publish(monkeypatch, "cifar100", folder)
    members = [file.path for file in SOURCES["cifar100"].forms[1].files]
    outside = {"../out": b"x", f"{tmp_path}/out": b"x", "in": b"x"}
    content = tar(outside | dict(zip(members, batches("cifar100"), strict=True)))
    path.write_bytes(content)
    form = SOURCES["cifar100"].forms[0]
    known = File(form.files[0].path, digest_like("md5:", content))
    source = replace(SOURCES["cifar100"], forms=(replace(form, files=(known,)),))
    monkeypatch.setitem(SOURCES, "cifar100", source)
    there = sorted(tmp_path.rglob("*"))
    assert len(read_published("cifar100", folder)["test"][1]) == 100
    assert sorted(tmp_path.rglob("*")) == there


LABEL_FILE = "KMNIST/raw/t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("damage", "reported"),
    [
        (
            lambda content: content[:-1],
            "is cut off or damaged: its header does not match its 17 by",
        ),
        (lambda _: b"", "is cut off or damaged: its header does not match its 0 bytes"),
        (lambda content: b"\1" + content[1:], "is cut off or damaged"),
        (lambda content: content[:-1] + b"\x0a", "label 10 is out of range, 0 to 9; delete"),
        (lambda _: idx(np.arange(9)), "has 9 labels for 10 images; delete"),
    ],
)
def test_damage_is_found_without_a_known_sum(
    damage: Callable[[bytes], bytes],
    reported: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(monkeypatch, "kmnist", tmp_path, chosen=1)
    path = tmp_path / LABEL_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BenchError) as error:
        read_published("kmnist", tmp_path)
    assert str(error.value).startswith(f"{path}: {reported}")
    assert "to fetch " in str(error.value)


def test_a_label_out_of_range_is_found_in_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(name: str, part: str) -> Pair:
        images, labels = right(name, part)
        labels[0] = -100
        return images, labels

    right = examples
    monkeypatch.setattr(published_files, "examples", wrong)
    publish(monkeypatch, "cifar10", tmp_path, chosen=1)
    with pytest.raises(BenchError, match=r"data_batch_1: label -100 is out of range, 0 to 9"):
        read_published("cifar10", tmp_path)
    publish(monkeypatch, "svhn", tmp_path)
    with pytest.raises(BenchError, match=r"train_32x32.mat: label 156 is out of range, 0 to 9"):
        read_published("svhn", tmp_path)


def serve(patch: pytest.MonkeyPatch, shelf: Path, cut: int = 0) -> list[str]:
    """Let torchvision fetch from a folder; the first files are cut short."""
    asked: list[str] = []

    def fetch(url: str, filename: str, *_: object) -> None:
        asked.append(url)
        (path,) = shelf.rglob(url.rpartition("/")[2])
        content = path.read_bytes()
        Path(filename).write_bytes(content[:-5] if len(asked) <= cut else content)

    patch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    patch.setattr(utils, "_urlretrieve", fetch)
    return asked


@pytest.mark.parametrize("name", SOURCES)
def test_missing_files_are_fetched_once_to_torchvisions_places(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, folder = tmp_path / "shelf", tmp_path / "data"
    files = publish(monkeypatch, name, shelf)
    asked = serve(monkeypatch, shelf)
    for _ in range(2):
        assert np.array_equal(read_published(name, folder)["test"][0], examples(name, "test")[0])
    assert len(asked) == len(files)
    left = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert left - {Path(".nsrelu-bench.lock")} == {path.relative_to(shelf) for path in files}


def test_a_cut_download_leaves_nothing_and_the_next_mirror_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, folder = tmp_path / "shelf", tmp_path / "data"
    publish(monkeypatch, "mnist", shelf)
    mirrors = len(datasets.MNIST.mirrors)
    assert mirrors > 1
    asked = serve(monkeypatch, shelf, cut=1)
    read_published("mnist", folder)
    assert len(asked) == 5

    shutil.rmtree(folder)
    asked = serve(monkeypatch, shelf, cut=mirrors)
    with pytest.raises(BenchError) as error:
        read_published("mnist", folder)
    line = str(error.value)
    assert len(asked) == mirrors
    assert f"mnist is not in '{folder}' and could not be fetched (the answer of https://" in line
    assert "train-images-idx3-ubyte.gz is cut off or changed: its md5 is" in line
    assert "; put MNIST/raw/train-images-idx3-ubyte.gz, " in line
    assert "\n" not in line
    assert [path.name for path in folder.rglob("*")] == [".nsrelu-bench.lock"]
    read_published("mnist", folder)  # and now it comes


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(datasets.KMNIST, "mirrors", [url])
        monkeypatch.setattr(downloads, "TIMEOUT_S", 0.2)
        monkeypatch.setenv("no_proxy", "*")
        with pytest.raises(BenchError, match=r"could not be fetched \(TimeoutError: timed out\)"):
            read_published("kmnist", tmp_path)
    assert socket.getdefaulttimeout() is None


def test_a_data_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match=r"could not be fetched \(NotADirectoryError: .*Not a dir"):
        read_published("kmnist", tmp_path / "file" / "data")


def test_one_at_a_time_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = []

    def fetch(*_: object) -> None:
        log.append("begin")
        time.sleep(0.1)
        log.append("end")
        raise RuntimeError("Error downloading:\nno network")

    def read(_: int) -> None:
        with pytest.raises(BenchError, match=r"\(RuntimeError: Error downloading: no network\)"):
            read_published("kmnist", tmp_path)

    monkeypatch.setattr(datasets.KMNIST, "mirrors", ["http://nowhere/"])
    monkeypatch.setattr(utils, "download_url", fetch)
    with ThreadPoolExecutor(2) as racers:  # the lock of a file excludes them as it does processes
        list(racers.map(read, range(2)))
    assert log == ["begin", "end"] * 2
