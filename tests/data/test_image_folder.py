"""A folder of one's own images as a data set."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.data import Dataset, cache, image_folder, load_dataset
from nsrelu_bench.data.image_folder import SUFFIXES, read_folder
from nsrelu_bench.errors import BenchError

Pixels = npt.NDArray[np.uint8]


def picture(seed: int, *shape: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape or (6, 5, 3), dtype=np.uint8)


def save(path: Path, pixels: Pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, with 10 + 2 images each, of 5x6 pixels in colour."""
    for label, name in enumerate(("cat", "dog")):
        for index in range(12):
            part = "train" if index < 10 else "test"
            folder = tmp_path / "mine" / part / name
            save(folder / f"{index:02}.png", picture(100 * label + index))
    return tmp_path / "mine"


def load(root: Path) -> Dataset:
    return load_dataset(RunConfig(dataset=f"folder:{root}"))


def test_images_are_sorted_by_name_with_the_class_as_label(root: Path) -> None:
    parts, names = read_folder(root)
    assert names == ["cat", "dog"]
    assert list(parts) == ["train", "test"]
    images, labels = parts["train"]
    expected = [picture(100 * label + index) for label in range(2) for index in range(10)]
    assert np.array_equal(images, np.stack(expected).transpose(0, 3, 1, 2))
    assert labels.tolist() == [0] * 10 + [1] * 10
    assert parts["test"][1].tolist() == [0, 0, 1, 1]


def test_a_tenth_of_the_training_images_validates(root: Path) -> None:
    loaded = load(root)
    assert [len(s) for s in (loaded.train, loaded.val, loaded.test)] == [18, 2, 4]
    assert sorted(loaded.val.labels.tolist()) == [0, 1]
    assert (loaded.shape, loaded.classes) == ((3, 6, 5), 2)


def test_a_folder_val_validates_where_there_is_one(root: Path) -> None:
    for name in ("cat", "dog"):
        save(root / "val" / name / "a.png", picture(50))
    loaded = load(root)
    assert [len(s) for s in (loaded.train, loaded.val, loaded.test)] == [20, 2, 4]
    assert loaded.val.images[1].numpy().tolist() == picture(50).transpose(2, 0, 1).tolist()
    assert loaded.inputs(loaded.train.images).double().mean((0, 2, 3)).abs().max() < 1e-6


def test_it_agrees_with_torchvisions_imagefolder(root: Path) -> None:
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    save(root / "train" / "cat" / "more" / "deep.png", picture(3))
    theirs = ImageFolder(str(root / "train"))
    (images, labels), names = read_folder(root)[0]["train"], read_folder(root)[1]
    assert names == theirs.classes
    assert set(SUFFIXES) == set(IMG_EXTENSIONS)
    both = list(zip(images, labels.tolist(), strict=True))
    assert len(both) == len(theirs) == 21
    key = {image.tobytes(): label for image, label in both}
    for image, label in theirs:
        assert key[np.asarray(image).transpose(2, 0, 1).tobytes()] == label


def test_one_image_in_colour_makes_all_rgb(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for index in range(4):
            save(tmp_path / part / "only" / f"{index}.png", picture(index, 6, 5))
    save(tmp_path / "train" / "only" / "bits.png", picture(5, 6, 5) > 127)
    (images, _), _ = read_folder(tmp_path)[0]["train"], None
    assert images.shape == (5, 1, 6, 5)
    assert np.array_equal(images[0, 0], picture(0, 6, 5))
    assert set(np.unique(images[4])) == {0, 255}

    save(tmp_path / "test" / "only" / "2.png", picture(2))
    parts, _ = read_folder(tmp_path)
    assert parts["train"][0].shape == (5, 3, 6, 5)
    for channel in range(3):
        assert np.array_equal(parts["test"][0][3, channel], picture(3, 6, 5))
        assert np.array_equal(parts["test"][0][2, channel], picture(2)[:, :, channel])


def test_other_files_and_hidden_ones_are_left_out(root: Path) -> None:
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / "._00.png").write_text("x")
    (root / "train" / ".hidden").mkdir()
    assert len(read_folder(root)[0]["train"][1]) == 20


def remove(path: Path) -> None:
    for image in path.iterdir():
        image.unlink()


MISTAKES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no folder": (lambda r: r.rename(r.with_name("x")), "train", "No such file or directory; a fo"),
    "no test": (
        lambda r: (r / "test").rename(r / "t"),
        "test",
        "No such file or directory; a fold",
    ),
    "a file": (
        lambda r: ((r / "test").rename(r / "t"), (r / "test").touch()),
        "test",
        "Not a directory; a folder of images needs train/<class>/ and test/<class>/",
    ),
    "no class": (
        lambda r: ((r / "test").rename(r / "t"), (r / "test").mkdir()),
        "test",
        "has no folder for a class; a folder of images needs train/<class>/ and test/<class>/",
    ),
    "empty class": (lambda r: remove(r / "train" / "dog"), "train/dog", "has no image (.jpg, .jpe"),
    "class of test alone": (
        lambda r: save(r / "test" / "bat" / "1.png", picture(1)),
        "test",
        "must have the classes of train/; only one of them has 'bat'",
    ),
    "mixed sizes": (
        lambda r: save(r / "train" / "dog" / "03.png", picture(1, 5, 5, 3)),
        "train/dog/03.png",
        "images must have one size, got 5x5 and 5x6 (of ",
    ),
    "another size to test": (
        lambda r: save(r / "test" / "dog" / "10.png", picture(1, 6, 7, 3)),
        "test/dog/10.png",
        "images must have one size, got 7x6 and 5x6 (of ",
    ),
    "no image": (
        lambda r: (r / "train" / "cat" / "05.png").write_text("not an image"),
        "train/cat/05.png",
        "is no image that can be read (cannot identify image file ",
    ),
    "empty": (
        lambda r: (r / "train" / "cat" / "05.png").write_bytes(b""),
        "train/cat/05.png",
        "is no image that can be read (cannot identify image file ",
    ),
    "cut": (
        lambda r: (p := r / "train" / "cat" / "05.png").write_bytes(p.read_bytes()[:-40]),
        "train/cat/05.png",
        "is no image that can be read (",
    ),
    "16 bits": (
        lambda r: save(r / "train" / "cat" / "05.png", picture(1, 6, 5).astype(np.uint16)),  # type: ignore[arg-type]
        "train/cat/05.png",
        "is no image that can be read (I;16 has more than 8 bits a channel)",
    ),
    "dangling link": (
        lambda r: (r / "train" / "cat" / "zz.png").symlink_to(r / "gone"),
        "train/cat/zz.png",
        "No such file or directory; a folder",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_data_is_one_line_that_names_the_file(mistake: str, root: Path) -> None:
    spoil, place, told = MISTAKES[mistake]
    spoil(root)
    for _ in range(2):  # nothing of it is left in the cache
        with pytest.raises(BenchError) as error:
            load(root)
        assert str(error.value).startswith(f"{root / place}: {told}")
        assert "\n" not in str(error.value)


def test_a_repaired_image_is_read(root: Path) -> None:
    path = root / "train" / "cat" / "05.png"
    path.write_text("not an image")
    with pytest.raises(BenchError):
        load(root)
    save(path, picture(5))
    assert len(load(root).train) == 18


def test_a_class_of_which_all_images_would_validate_is_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / part / "one" / "1.png", picture(1))
    with pytest.raises(BenchError, match="train/one: has too few images to train and to validate"):
        load(tmp_path)


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are decoded from now on."""
    seen: list[str] = []
    true = image_folder._pixels

    def counting(paths: list[str]) -> list[Pixels]:
        seen.extend(paths)
        return true(paths)

    monkeypatch.setattr(image_folder, "_pixels", counting)
    return seen


def test_images_are_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = decoded(monkeypatch)
    first, _ = read_folder(root)
    assert len(seen) == 24
    monkeypatch.chdir(root.parent)
    for again in (read_folder(root)[0], read_folder(Path("mine"))[0]):
        for part, arrays in first.items():
            for array, other in zip(arrays, again[part], strict=True):
                assert np.array_equal(array, other)
    assert len(seen) == 24


def change(root: Path) -> None:
    """Put other pixels into a file of the same size, and its time back."""
    path = root / "train" / "cat" / "05.bmp"
    before = path.stat()
    save(path, picture(77))
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "alter",
    [
        change,
        lambda root: (root / "train" / "cat" / "05.bmp").unlink(),
        lambda root: save(root / "train" / "cat" / "99.png", picture(9)),
        lambda root: (root / "train" / "cat" / "05.bmp").rename(root / "train" / "dog" / "05.bmp"),
        lambda root: (
            save(root / "val" / "cat" / "1.png", picture(9))
            and save(root / "val" / "dog" / "1.png", picture(9))
        ),
    ],
)
def test_a_change_in_the_folder_is_seen(
    alter: Callable[[Path], object], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(root / "train" / "cat" / "05.bmp", picture(5))
    before, _ = read_folder(root)
    alter(root)
    after, _ = read_folder(root)
    monkeypatch.setattr(cache, "cache_place", lambda _: None)
    truth, _ = read_folder(root)
    assert list(after) == list(truth)
    for part, arrays in truth.items():
        for array, other in zip(arrays, after[part], strict=True):
            assert np.array_equal(array, other)
    assert any(
        part not in before or not np.array_equal(a, b)
        for part in after
        for a, b in zip(after[part], before.get(part, after[part]), strict=True)
    )
