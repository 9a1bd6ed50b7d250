"""A data set of the user's own, by ``package.module:name``."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from helpers.command_line import ask

from nsrelu_bench.config import RunConfig
from nsrelu_bench.data import data_digest, describe, format_description, load_dataset, own
from nsrelu_bench.errors import BenchError, UsageError

ROOT = Path(__file__).parents[2]

OWN_DATA = """
    import numpy as np
    import torch

    def blobs(data_dir):
        labels = torch.arange(60) % 3
        images = torch.randn(60, 2, 5, 4, generator=torch.Generator().manual_seed(0))
        images += labels[:, None, None, None]
        return {"train": (images, labels), "test": (images[:9], labels[:9])}

    def table(data_dir):
        features = np.load(data_dir / "table.npy")
        labels = np.arange(len(features)) % 2
        return {part: (features, labels) for part in ("train", "val", "test")}

    def gray(data_dir):
        images = np.arange(40 * 30, dtype=np.uint8).reshape(40, 6, 5)
        return {part: (images, [0, 1] * 20) for part in ("train", "test")}

    def sulks(data_dir):
        raise ValueError("no such\\nthing")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the user's module in it."""
    (tmp_path / "my_data.py").write_text(dedent(OWN_DATA))
    np.save(tmp_path / "table.npy", np.arange(80.0).reshape(20, 4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    sys.modules.pop("my_data", None)


def config(name: str, **settings: object) -> RunConfig:
    return RunConfig(dataset=f"my_data:{name}", data_dir=".", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "sizes"),
    [
        ("blobs", (2, 5, 4), torch.float32, [54, 6, 9]),
        ("table", (4, 1, 1), torch.float32, [20, 20, 20]),
        ("gray", (1, 6, 5), torch.uint8, [36, 4, 40]),
    ],
)
def test_a_users_data_set_is_loaded_and_normalised(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, sizes: list[int], folder: Path
) -> None:
    data = load_dataset(config(name))
    assert data.shape == shape
    assert data.train.images.dtype == dtype
    assert [len(split) for split in (data.train, data.val, data.test)] == sizes
    kept = data.train.images.clone()
    inputs = data.inputs(data.train.images)
    assert torch.equal(data.train.images, kept)
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-6
    assert (inputs.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    about = describe(config(name))
    assert about["sha256"] == data_digest(config(name))
    assert (" (of 1)" in format_description(about)) == (dtype == torch.uint8)


def test_its_source_is_read_again_when_it_changes(folder: Path) -> None:
    before = data_digest(config("gray"))
    assert load_dataset(config("gray")) is load_dataset(config("gray"))
    source = (folder / "my_data.py").read_text()
    # Of another size: of the same one within a second, Python would run what it compiled before.
    (folder / "my_data.py").write_text(source.replace("[0, 1] * 20", "[1, 0, 1, 0] * 10"))
    del sys.modules["my_data"]
    assert data_digest(config("gray")) != before


def test_a_users_data_set_trains_and_a_change_is_noticed(folder: Path) -> None:
    command = ["train", "--dataset", "my_data:blobs", "--epochs", "1", "--results", "out"]
    assert ask(*command, "--augment", "crop+flip+cutout").code == 0
    (run,) = (folder / "out").rglob("my_data-blobs-mlp-*-s0-*")
    recorded = json.loads((run / "env.json").read_text())
    assert recorded["data_digest"] == data_digest(config("blobs"))
    assert recorded["classes"] == load_dataset(config("blobs")).classes
    assert re.fullmatch("my_data:blobs [0-9a-f]{64}", recorded["source_digest"])
    with (folder / "my_data.py").open("a") as file:
        file.write("# changed\n")
    del sys.modules["my_data"]
    again = ask(*command, "--augment", "crop+flip+cutout")
    assert again.code == 1
    assert "is done, but its source has changed" in again.err


IMAGES, LABELS = np.zeros((20, 1, 2, 2), np.uint8), np.arange(20) % 2
PAIR = (IMAGES, LABELS)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "must return a dict with train, test and perhaps val, got NoneType"),
        ({"train": PAIR}, "must return a dict with train, test and perhaps val, got ['train']"),
        ({"train": PAIR, "test": IMAGES}, "test: must be a pair of images and labels, got ndarray"),
        ({"train": PAIR, "test": ([[1], [1, 2]], [0, 1])}, "test: must be tensors or arrays: "),
        (
            {"train": PAIR, "test": (IMAGES.astype(int), LABELS)},
            "test: images must be uint8 or flo",
        ),
        ({"train": PAIR, "test": (IMAGES[0, 0, 0], LABELS)}, "test: images must be (N, C, H, W), "),
        ({"train": PAIR, "test": (IMAGES[:0], LABELS[:0])}, "test: images must be (N, C, H, W), "),
        ({"train": PAIR, "test": (IMAGES, LABELS[1:])}, "test: labels must be 20 whole numbers, "),
        ({"train": PAIR, "test": (IMAGES, LABELS / 1)}, "test: labels must be 20 whole numbers, "),
        ({"train": PAIR, "test": (IMAGES, LABELS - 1)}, "test: labels must be from 0, got -1"),
        ({"train": PAIR, "test": (IMAGES / np.nan, LABELS)}, "test: images must be finite, and "),
        ({"train": PAIR, "test": (IMAGES + 1e300, LABELS)}, "test: images must be finite, and "),
        (
            {"train": PAIR, "test": (IMAGES[:, :, 1:], LABELS)},
            "test: images must be like those of train, uint8 [1, 2, 2], got uint8 [1, 1, 2]",
        ),
        (
            {"train": PAIR, "test": (IMAGES, LABELS + 2)},
            "label 2 of 0 to 3 has too few examples to train and to validate",
        ),
        (
            {"train": PAIR, "test": (IMAGES, LABELS - 1 + 10**9)},
            "label 2 of 0 to 1000000000 has too few examples to train and to validate",
        ),
    ],
)
def test_a_wrong_data_set_is_one_line(
    found: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "load_plugin", lambda *_: lambda _: found)
    with pytest.raises(BenchError) as error:
        own.load_own("my_data:it", Path())
    line = str(error.value).replace("my_data:it: ", "my_data:it ")
    assert line.startswith(f"dataset: my_data:it {message}")
    assert "\n" not in line


def test_a_function_that_fails_or_is_missing_is_one_line(folder: Path) -> None:
    with pytest.raises(BenchError, match=r"^dataset: my_data:sulks failed: ValueError: no such th"):
        load_dataset(config("sulks"))
    with pytest.raises(UsageError, match=r"^dataset: module 'my_data' .* has no 'blob'$"):
        load_dataset(config("blob"))


def test_the_example_of_the_page_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    code = re.search(r"as spirals\.py -->\n```python\n(.*?)```", page, re.DOTALL)
    assert code
    (folder / "spirals.py").write_text(code[1])
    answer = ask("train", "--dataset", "spirals:two", "--epochs", "1", "--results", "out")
    assert answer.code == 0, answer.err
