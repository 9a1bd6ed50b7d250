"""A folder of one's own images as a data set."""

import io
import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.data import Dataset, cache, data_digest, image_folder, load_dataset, loading
from nsrelu_bench.data.dataset import Parts
from nsrelu_bench.data.image_folder import IMAGE_FORMATS, SUFFIXES, read_folder, scan_folder
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


def read(root: Path) -> Parts:
    return read_folder(scan_folder(root))


def same(first: Parts, second: Parts) -> bool:
    return list(first) == list(second) and all(
        np.array_equal(a, b)
        for part in first
        for a, b in zip(first[part], second[part], strict=True)
    )


def test_images_are_sorted_by_name_with_the_class_as_label(root: Path) -> None:
    assert scan_folder(root).classes == ("cat", "dog")
    parts = read(root)
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


@pytest.mark.parametrize(
    "nested",
    [
        [],
        ["more/deep.png", "zz.png", "a/z.png", "a-b/1.png", "a/b/1.png", "A/x.png", "more/0/9.png"],
    ],
)
def test_it_agrees_with_torchvisions_imagefolder(nested: list[str], root: Path) -> None:
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    for seed, name in enumerate(nested):
        save(root / "train" / "cat" / name, picture(50 + seed))
    theirs = ImageFolder(str(root / "train"))
    folder = scan_folder(root)
    assert list(folder.classes) == theirs.classes
    assert set(SUFFIXES) == set(IMG_EXTENSIONS)
    images, labels = read_folder(folder)["train"]
    assert labels.tolist() == theirs.targets
    for image, (expected, _) in zip(images, theirs, strict=True):
        assert np.array_equal(image, np.asarray(expected).transpose(2, 0, 1))


def test_one_image_in_colour_makes_all_rgb(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for index in range(4):
            save(tmp_path / part / "only" / f"{index}.png", picture(index, 6, 5))
    save(tmp_path / "train" / "only" / "bits.png", picture(5, 6, 5) > 127)
    images, _ = read(tmp_path)["train"]
    assert images.shape == (5, 1, 6, 5)
    assert np.array_equal(images[0, 0], picture(0, 6, 5))
    assert set(np.unique(images[4])) == {0, 255}

    save(tmp_path / "test" / "only" / "2.png", picture(2))
    parts = read(tmp_path)
    assert parts["train"][0].shape == (5, 3, 6, 5)
    for channel in range(3):
        assert np.array_equal(parts["test"][0][3, channel], picture(3, 6, 5))
        assert np.array_equal(parts["test"][0][2, channel], picture(2)[:, :, channel])


def test_other_files_and_hidden_ones_are_left_out(root: Path) -> None:
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / "._00.png").write_text("x")
    (root / "train" / ".hidden").mkdir()
    assert len(read(root)["train"][1]) == 20


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
        "is not an image in one of the formats JPEG, PNG, PPM, BMP, TIFF, WEBP; rep",
    ),
    "empty": (
        lambda r: (r / "train" / "cat" / "05.png").write_bytes(b""),
        "train/cat/05.png",
        "is not an image in one of the formats JPEG, PNG, PPM, BMP, TIFF, WEBP; rep",
    ),
    "cut": (
        lambda r: (p := r / "train" / "cat" / "05.png").write_bytes(p.read_bytes()[:-40]),
        "train/cat/05.png",
        "can't be decoded (",
    ),
    "16 bits": (
        lambda r: save(r / "train" / "cat" / "05.png", picture(1, 6, 5).astype(np.uint16)),  # type: ignore[arg-type]
        "train/cat/05.png",
        "can't be decoded (more than 8 bits per channel); replace it or take it out",
    ),
    "pipe": (
        lambda r: os.mkfifo(r / "train" / "cat" / "zz.png"),
        "train/cat/zz.png",
        "is not a regular file; replace it or take it out",
    ),
    "endless device": (
        lambda r: (r / "train" / "cat" / "zz.png").symlink_to("/dev/zero"),
        "train/cat/zz.png",
        "is not a regular file; replace it or take it out",
    ),
    "link to a folder above": (
        lambda r: (r / "train" / "cat" / "more").symlink_to(r / "train" / "cat"),
        "train/cat/more",
        "is a link to a folder above it; remove it",
    ),
    "dangling link": (
        lambda r: (r / "train" / "cat" / "zz.png").symlink_to(r / "gone"),
        "train/cat/zz.png",
        "No such file or directory; a folder",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_data_is_one_line_that_names_the_file(mistake: str, root: Path) -> None:
    spoil, place, message = MISTAKES[mistake]
    spoil(root)
    for _ in range(2):  # nothing of it is left in the cache
        with pytest.raises(BenchError) as error:
            load(root)
        assert str(error.value).startswith(f"{root / place}: {message}")
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
    first = read(root)
    assert len(seen) == 24
    monkeypatch.chdir(root.parent)
    assert same(first, read(root))
    assert same(first, read(Path("mine")))
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
    before, digest = read(root), data_digest(RunConfig(dataset=f"folder:{root}"))
    loaded = load(root)
    assert load(root) is loaded
    alter(root)
    after = read(root)
    assert load(root) is not loaded  # in one process, too
    assert data_digest(RunConfig(dataset=f"folder:{root}")) == load(root).digest != digest
    monkeypatch.setattr(cache, "cache_entry", lambda _: None)
    assert same(after, read(root))
    assert not same(after, before)


def test_a_digest_is_kept_while_no_file_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(dataset=f"folder:{root}")
    digest = load(root).digest
    assert data_digest(config) == digest
    monkeypatch.setattr(image_folder, "read_folder", lambda _: pytest.fail("was read"))
    loading._load_folder.cache_clear()
    assert data_digest(config) == digest


def png(color: int, depth: int, channels: int, palette: bytes = b"", alpha: bytes = b"") -> bytes:
    """A PNG of 5x6 random pixels, also of kinds that Pillow can't write."""
    row = 5 * channels * depth // 8
    rows = np.random.default_rng(0).integers(0, 256, (6, row), dtype=np.uint8)
    if palette:
        rows %= len(palette) // 3
    pixels = b"".join(b"\0" + line.tobytes() for line in rows)
    header = struct.pack(">IIBBBBB", 5, 6, depth, color, 0, 0, 0)
    chunks = {b"IHDR": header, b"PLTE": palette, b"tRNS": alpha, b"IDAT": zlib.compress(pixels)}
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks.items(), (b"IEND", b""))
        if data or kind == b"IEND"
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(dtype: str) -> bytes:
    """An uncompressed RGB TIFF of 5x6 pixels."""
    pixels = np.arange(90).astype(dtype)
    bits = struct.pack("<3H", *[pixels.itemsize * 8] * 3)
    tags = [(256, 3, 1, 5), (257, 3, 1, 6), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 14), (277, 3, 1, 3), (278, 3, 1, 6), (279, 4, 1, pixels.nbytes)]
    start = 14 + pixels.nbytes
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = struct.pack("<2sHI", b"II", 42, start) + bits
    return head + pixels.tobytes() + struct.pack("<H", len(tags)) + entries + bytes(4)


def saved(mode: str, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(3)).convert(mode).save(stream, kind)
    return stream.getvalue()


RED_GREEN = bytes([200, 0, 0, 0, 100, 0])

#: Images of 5x6 pixels, and the channels that they are decoded to; None where they are refused.
KINDS: dict[str, tuple[bytes, int | None]] = {
    "gray.png": (png(0, 8, 1), 1),
    "gray-16.png": (png(0, 16, 1), None),
    "colour.png": (png(2, 8, 3), 3),
    "colour-16.png": (png(2, 16, 3), None),
    "gray-alpha.png": (png(4, 8, 2), 1),
    "gray-alpha-16.png": (png(4, 16, 2), None),
    "colour-alpha.png": (png(6, 8, 4), 3),
    "colour-alpha-16.png": (png(6, 16, 4), None),
    "palette.png": (png(3, 8, 1, RED_GREEN), 3),
    "palette-alpha.png": (png(3, 8, 1, RED_GREEN, b"\0\x7f"), 3),
    "colour.ppm": (b"P6 5 6 255\n" + bytes(90), 3),
    "colour-16.ppm": (b"P6 5 6 65535\n" + bytes(180), None),
    "colour-10.ppm": (b"P6 5 6 1023\n" + bytes(180), None),
    "colour-plain-16.ppm": (b"P3 5 6 65535\n" + b"9 " * 90, None),
    "gray-16.pgm": (b"P5 5 6 65535\n" + bytes(60), None),
    "colour.tiff": (tiff("<u1"), 3),
    "colour-16.tiff": (tiff("<u2"), None),
    "cmyk.jpg": (saved("CMYK", "JPEG"), 3),
    "gray.jpg": (saved("L", "JPEG"), 1),
    "colour.webp": (saved("RGB", "WEBP"), 3),
    "colour.bmp": (saved("RGB", "BMP"), 3),
    "a-gif.png": (saved("RGB", "GIF"), None),
    "an-eps.png": (saved("RGB", "EPS"), None),
    "an-eps-of-text.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\nshowpage\n", None),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_image_is_decoded_or_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("starts a program"))
    path = tmp_path / name
    content, channels = KINDS[name]
    path.write_bytes(content)
    if channels is None:
        with pytest.raises(BenchError, match=r"8 bits per channel|one of the formats JPEG, PNG"):
            image_folder._decode_image(str(path))
        return
    pixels = image_folder._decode_image(str(path))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (channels, 6, 5))
    with Image.open(path) as image:
        opaque = image.convert("RGBA").convert("RGB") if image.mode == "P" else image
        expected = np.asarray(opaque.convert("L" if channels == 1 else "RGB"))
    assert np.array_equal(pixels.transpose(1, 2, 0).squeeze(), expected)


def test_transparency_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "palette-alpha.png"
    path.write_bytes(KINDS[path.name][0])
    colours = image_folder._decode_image(str(path)).reshape(3, -1).T
    assert {tuple(colour) for colour in colours.tolist()} == {(200, 0, 0), (0, 100, 0)}


def test_the_formats_are_those_of_the_file_names() -> None:
    Image.init()
    named = {Image.EXTENSION[suffix] for suffix in SUFFIXES}
    assert named == set(IMAGE_FORMATS)
