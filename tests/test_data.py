import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nsrelu_bench import data
from nsrelu_bench.config import RunConfig
from nsrelu_bench.data import load_dataset
from nsrelu_bench.errors import BenchError


def test_mnist5k_has_its_published_stratified_splits() -> None:
    digits = load_dataset(RunConfig())
    for split, per_class in ((digits.train, 350), (digits.val, 50), (digits.test, 100)):
        assert torch.bincount(split.labels).tolist() == [per_class] * 10
    assert digits.shape == (1, 28, 28)
    assert digits.train.images.dtype == torch.uint8


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_splits_share_no_example_and_lose_none(name: str) -> None:
    splits = load_dataset(RunConfig(dataset=name))
    rows = [
        tuple(row) for s in (splits.train, splits.val, splits.test) for row in s.images.flatten(1)
    ]
    whole = sum(map(len, (splits.train, splits.val, splits.test)))
    assert len(rows) == whole == {"mnist5k": 5000, "digits": 1797}[name]
    keys = {bytes(image.flatten().tolist()) for image in splits.train.images}
    assert not any(bytes(image.flatten().tolist()) in keys for image in splits.test.images)


def test_inputs_are_normalised_over_the_training_split() -> None:
    digits = load_dataset(RunConfig())
    inputs = digits.inputs(digits.train.images)
    assert inputs.dtype == torch.float32
    assert inputs.double().mean().item() == pytest.approx(0, abs=1e-5)
    assert inputs.double().std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert digits.train.images.dtype == torch.uint8  # not changed in place


def test_a_constant_channel_stays_finite() -> None:
    mean, std = data._moments(torch.full((3, 2, 4, 4), 9, dtype=torch.uint8))
    assert mean.flatten().tolist() == [9, 9]
    assert std.flatten().tolist() == [1, 1]


def test_a_part_of_the_training_split_is_stratified_and_the_same_every_time() -> None:
    part = load_dataset(RunConfig(train_size=1000)).train
    assert torch.bincount(part.labels).tolist() == [100] * 10
    assert torch.equal(part.images, load_dataset(RunConfig(train_size=1000)).train.images)


def test_more_training_examples_than_there_are_is_an_error() -> None:
    with pytest.raises(BenchError, match="digits has 1257 training examples, got 5000"):
        load_dataset(RunConfig(dataset="digits", train_size=5000))


def test_the_probe_set_is_a_stratified_part_of_the_training_split() -> None:
    digits = load_dataset(RunConfig())
    probe = digits.probe(2000)
    assert torch.bincount(probe.labels).tolist() == [200] * 10
    train = {bytes(image.flatten().tolist()) for image in digits.train.images}
    assert all(bytes(image.flatten().tolist()) in train for image in probe.images)
    assert len(digits.probe(10**6)) == len(digits.train)


def test_digits_that_are_not_those_the_splits_were_made_for_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = np.zeros((5000, 785), dtype=np.uint8)
    monkeypatch.setattr(data, "_read_packaged", lambda *_: table)
    with pytest.raises(BenchError, match="not those that the splits were made for"):
        data._mnist5k(Path())


def write_mnist(folder: Path, train: int = 5050, test: int = 20) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        images = np.arange(count * 784, dtype=np.uint32).astype(np.uint8).tobytes()
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, count, 28, 28) + images
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels)


def test_mnist_that_lies_there_is_used_as_it_is(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    mnist = load_dataset(RunConfig(dataset="mnist", data_dir=str(tmp_path)))
    assert (len(mnist.train), len(mnist.val), len(mnist.test)) == (50, 5000, 20)
    assert mnist.shape == (1, 28, 28)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_blocked_download_says_so_where_the_files_would_lie_and_what_needs_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.error import URLError

    from torchvision.datasets import utils

    def blocked(*_: object, **__: object) -> None:
        raise URLError("blocked")

    monkeypatch.setattr(utils, "_urlretrieve", blocked)
    with pytest.raises(BenchError) as error:
        load_dataset(RunConfig(dataset=name, data_dir=str(tmp_path)))
    line = str(error.value)
    assert "could not be fetched" in line
    assert str(tmp_path) in line
    assert "mnist5k, which needs no download" in line
    assert "\n" not in line


def test_a_torchvision_that_does_not_load_is_told_and_mnist5k_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BenchError, match=r"torchvision::nms does not exist.*mnist5k"):
        load_dataset(RunConfig(dataset="mnist", data_dir=str(tmp_path / "none")))
    data._load.cache_clear()
    assert len(load_dataset(RunConfig()).train) == 3500


def test_a_damaged_table_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carrier"
    package.mkdir()
    (package / "__init__.py").touch()
    with gzip.open(package / "table.csv.gz", "wt") as file:
        file.write("1,2,three\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BenchError, match=r"table\.csv\.gz: can't be read"):
        data._read_packaged("carrier", "table.csv.gz")
    with pytest.raises(BenchError, match="package absent_one is not installed"):
        data._read_packaged("absent_one", "table.csv.gz")


RACE = """
import sys, time
from torchvision.datasets import MNIST
from nsrelu_bench import data
from nsrelu_bench.config import RunConfig

def download(self):
    with open(sys.argv[1] + "/log", "a") as log:
        log.write("begin\\n"); log.flush(); time.sleep(0.3); log.write("end\\n")
    raise RuntimeError("Error downloading:\\nno network")

MNIST.download = download
try:
    data.load_dataset(RunConfig(dataset="mnist", data_dir=sys.argv[1]))
except data.BenchError as error:
    assert "Error downloading: no network" in str(error)
"""


def test_one_process_fetches_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    racers = [subprocess.Popen(command) for _ in range(2)]
    assert [racer.wait() for racer in racers] == [0, 0]
    assert (tmp_path / "log").read_text().split() == ["begin", "end"] * 2
