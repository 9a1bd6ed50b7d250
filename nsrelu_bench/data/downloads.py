"""Published data sets: find, fetch, check and read their files.

A file is checked before it is read, through the same handle. Archives are read without unpacking
them, so nothing can be written outside a folder.
"""

import hashlib
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from nsrelu_bench.data.cache import cached, lock_folder, stamp_of
from nsrelu_bench.data.dataset import Parts
from nsrelu_bench.data.formats import (
    EMNIST_FILES,
    Reader,
    cifar_archive,
    cifar_files,
    emnist_archive,
    idx_files,
    svhn,
    unzipped,
)
from nsrelu_bench.errors import BenchError, describe_error, error_reason

#: Seconds to wait for a silent server.
TIMEOUT_S = 60


@dataclass(frozen=True)
class File:
    """A file below the data folder; its digest, such as ``"md5:..."``, where one is known."""

    path: str
    digest: str | None = None


@dataclass(frozen=True)
class Form:
    """One of the forms of a data set on disk, and its reader.

    `slow`: reading takes seconds, so the images are cached.
    """

    files: tuple[File, ...]
    read: Reader
    slow: bool = False


@dataclass(frozen=True)
class Source:
    """A published data set: torchvision's name, number of classes, and forms.

    The first form is the one that is published and fetched; `val` training examples validate.
    """

    name: str
    classes: int
    val: int
    forms: tuple[Form, ...]


def read_published(name: str, data_dir: Path) -> Parts:
    """Check and read a data set, and fetch it first if it is missing.

    Raises:
        BenchError: A file is missing and can't be fetched, or is damaged.
    """

    def is_valid(parts: Parts) -> bool:
        classes = SOURCES[name].classes
        return parts.keys() == {"train", "test"} and all(
            labels.min() >= 0 and labels.max() < classes for _, labels in parts.values()
        )

    form = find_form(name, data_dir)
    if form is None:
        _fetch(name, data_dir)
        form = SOURCES[name].forms[0]
    paths = [data_dir / file.path for file in form.files]
    try:
        if not form.slow:
            return _check_and_read(name, form, paths)
        stamp = "".join(stamp_of(path.name, path.stat()) for path in paths)
        key = cache_key(name, data_dir)
        return cached(key, stamp, lambda: _check_and_read(name, form, paths), is_valid)
    except OSError as error:
        raise BenchError(f"{error.filename or data_dir}: {error_reason(error)}") from error


def cache_key(name: str, data_dir: Path) -> str:
    """Return the key of a data set in the cache."""
    return f"{name} {data_dir.resolve()}"


def find_form(name: str, data_dir: Path) -> Form | None:
    """Return the first form whose files all exist."""
    for form in SOURCES[name].forms:
        if all((data_dir / file.path).is_file() for file in form.files):
            return form
    return None


def local_files(name: str, data_dir: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of a data set that exist, and those that are missing.

    They are of the form with the fewest missing files.
    """
    files = []
    for form in SOURCES[name].forms:
        paths = [data_dir / file.path for file in form.files]
        there = [path for path in paths if path.is_file()]
        files.append((there, [path for path in paths if path not in there]))
    return max(files, key=lambda pair: (not pair[1], len(pair[0])))


def _check_and_read(name: str, form: Form, paths: Sequence[Path]) -> Parts:
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in paths]
        for file, known in zip(files, form.files, strict=True):
            if differs := _differs(file, known.digest):
                raise BenchError(
                    f"{file.name}: is damaged, or not a file of {name}: {differs};"
                    " delete it to fetch it again"
                )
        return form.read(files)


def _differs(file: IO[bytes], digest: str | None) -> str:
    """Return how an open file differs from its known digest; nothing if it does not."""
    if digest is None:
        return ""
    algorithm, _, expected = digest.partition(":")
    found = hashlib.file_digest(file, algorithm).hexdigest()  # type: ignore[arg-type]
    file.seek(0)
    return "" if found == expected else f"its {algorithm} is {found}, not {expected}"


def _fetch(name: str, data_dir: Path) -> None:
    """Fetch the missing files; one process at a time."""
    source = SOURCES[name]
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise BenchError(
            f"{name} is not in {str(data_dir)!r}, and fetching it needs torchvision, which does"
            f" not load ({error_reason(error)}); install the version that matches your torch,"
            " or use mnist5k, which needs none"
        ) from error
    with lock_folder(data_dir, "nsrelu-bench"):
        for file in source.forms[0].files:
            path = data_dir / file.path
            if path.is_file():
                continue
            reasons = []
            for url in _urls(getattr(datasets, source.name), path.name):
                try:
                    _download(url, data_dir, path, file.digest)
                    break
                except (OSError, RuntimeError, HTTPException, BenchError) as error:
                    reasons.append(describe_error(error))
            else:
                files = ", ".join(file.path for file in source.forms[0].files)
                raise BenchError(
                    f"{name} is not in {str(data_dir)!r} and could not be fetched"
                    f" ({'; '.join(dict.fromkeys(reasons))}); put {files} there (--data-dir),"
                    " or use mnist5k, which needs no download"
                )


def _urls(published: Any, file: str) -> list[str]:
    """Return the addresses where torchvision finds a file of a data set."""
    if hasattr(published, "split_list"):
        return [url for url, name, _ in published.split_list.values() if name == file]
    if hasattr(published, "url"):
        return [published.url]
    return [mirror + file for mirror in published.mirrors]


def _download(url: str, data_dir: Path, path: Path, digest: str | None) -> None:
    """Download a file into a temporary folder, check it, and only then move it to its place."""
    from torchvision.datasets.utils import download_url

    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".fetching-") as folder, _timeout():
        fresh = Path(folder) / path.name
        download_url(url, folder, path.name)
        with fresh.open("rb") as file:
            if differs := _differs(file, digest):
                raise BenchError(f"the answer of {url} is cut off or changed: {differs}")
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.replace(path)


@contextmanager
def _timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _like_mnist(name: str, md5s: Sequence[str], sha256s: Sequence[str] | None = None) -> Source:
    """Return a data set of four files, as published and as torchvision unpacks them."""
    paths = [f"{name}/raw/{file}-ubyte" for file in MNIST_FILES]
    packed = zip(paths, md5s, strict=True)
    known = [None] * 4 if sha256s is None else [f"sha256:{digest}" for digest in sha256s]
    read = idx_files(10)
    return Source(
        name,
        classes=10,
        val=5000,
        forms=(
            Form(tuple(File(f"{path}.gz", f"md5:{md5}") for path, md5 in packed), unzipped(read)),
            Form(tuple(map(File, paths, known)), read),
        ),
    )


def _cifar(
    name: str, folder: str, archive: File, batches: Sequence[tuple[str, str]], classes: int
) -> Source:
    members = [f"{folder}/{batch}" for batch, _ in batches]
    unpacked = tuple(File(f"{folder}/{batch}", f"md5:{md5}") for batch, md5 in batches)
    return Source(
        name,
        classes,
        val=5000,
        forms=(
            Form((archive,), cifar_archive(members, classes), slow=True),
            Form(unpacked, cifar_files(classes)),
        ),
    )


MNIST_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")

#: The md5 sums are torchvision's, which has none for unpacked files. The SHA-256 sums of those are
#: published by several other projects; MNIST's were also computed from the files.
SOURCES: dict[str, Source] = {
    "mnist": _like_mnist(
        "MNIST",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": _like_mnist(
        "FashionMNIST",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    "kmnist": _like_mnist(
        "KMNIST",
        (
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
    ),
    "emnist": Source(
        "EMNIST",
        classes=47,
        val=18_800,
        forms=(
            Form(
                (File("EMNIST/raw/gzip.zip", "md5:58c8d27c78d21e728a6bc7b3cc06412e"),),
                emnist_archive,
                slow=True,
            ),
            Form(tuple(File(f"EMNIST/raw/{name}") for name in EMNIST_FILES), idx_files(47)),
        ),
    ),
    "svhn": Source(
        "SVHN",
        classes=10,
        val=7325,
        forms=(
            Form(
                (
                    File("train_32x32.mat", "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
                    File("test_32x32.mat", "md5:eb5a983be6a315427106f1b164d9cef3"),
                ),
                svhn,
                slow=True,
            ),
        ),
    ),
    "cifar10": _cifar(
        "CIFAR10",
        "cifar-10-batches-py",
        File("cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a"),
        (
            ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            ("test_batch", "40351d587109b95175f43aff81a1287e"),
        ),
        classes=10,
    ),
    "cifar100": _cifar(
        "CIFAR100",
        "cifar-100-python",
        File("cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85"),
        (
            ("train", "16019d7e3df5f24257cddd939b257f8d"),
            ("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
        ),
        classes=100,
    ),
}
