"""Import a user's own parts, named ``package.module:name``, and hash their source."""

import ast
import functools
import hashlib
import importlib
import importlib.util
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from nsrelu_bench.errors import BenchError, UsageError, describe_error


def load_plugin(setting: str, name: str) -> Callable[..., Any]:
    """Import a user's own part, also from the current folder, as ``python -m`` does.

    Args:
        setting: The setting that names it, such as "model"; messages begin with it.
        name: As ``package.module:name``.

    Raises:
        UsageError: There is no such module or name, or it can't be called.
        BenchError: The module fails to import, or its source was changed since it was imported.
    """
    module_name, _, attribute = name.partition(":")
    here = _search_here()
    before = _digest(module_name)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise UsageError(
                f"{setting}: no module {missing!r} in {here} or among the installed packages"
            ) from error
        raise BenchError(
            f"{setting}: {module_name} can't be imported: {describe_error(error)}"
        ) from error
    _check_source(setting, module, before)
    file = getattr(module, "__file__", None) or "built in"
    if not hasattr(module, attribute):
        raise UsageError(f"{setting}: module {module_name!r} ({file}) has no {attribute!r}")
    plugin = getattr(module, attribute)
    if not callable(plugin):
        raise UsageError(
            f"{setting}: {name} must be a function, got {type(plugin).__name__} ({file})"
        )
    return plugin  # type: ignore[no-any-return]


@contextmanager
def blame(setting: str, name: str) -> Iterator[None]:
    """Name the user's part in any error that it raises.

    Raises:
        BenchError: In place of another error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, BenchError) and str(error).startswith(f"{setting}: {name} "):
            raise
        raise BenchError(f"{setting}: {name} failed: {describe_error(error)}") from error


def _check_source(setting: str, module: ModuleType, before: str) -> None:
    """Check that the source of a module is still the one that it was imported from.

    A module runs as it was when it was imported, whatever its file says now. `before` is the digest
    of its source right before it was imported, if it had not been imported already.
    """
    spec, then = _imported.get(module.__name__, (None, before))
    if spec is not module.__spec__:  # imported now for the first time, by the user, or again
        then = "" if _is_older(module) else before
        _imported[module.__name__] = module.__spec__, then
    if then != _digest(module.__name__):
        raise BenchError(
            f"{setting}: the source of {module.__name__} was changed since it was imported:"
            " start Python again, or reload it"
        )


#: By name, the modules that were imported, as their specs (one reloaded has another), and the
#: SHA-256 of the source that they run.
_imported: dict[str, tuple[ModuleSpec | None, str]] = {}


def _is_older(module: ModuleType) -> bool:
    """Return whether a module's file is known to be newer than what was compiled of it."""
    spec = module.__spec__
    if spec is None or not spec.has_location or not spec.cached or not spec.origin:
        return False
    try:
        with open(spec.cached, "rb") as file:  # noqa: PTH123
            _, flags, time, size = struct.unpack("<4L", file.read(16))
        state = Path(spec.origin).stat()
    except (OSError, struct.error):
        return False
    compiled_of = int(state.st_mtime) & 0xFFFFFFFF, state.st_size & 0xFFFFFFFF
    return not flags and (time, size) != compiled_of


def source_digest(name: str) -> str:
    """Return the SHA-256 of the source of a user's own part, without running it.

    The source is the file of its module and of every module that it imports, directly or not, from
    the same folder, except for this package, which may be there in a checkout. Of an installed
    package, which has a version, it is the module's file alone.

    Raises:
        UsageError: There is no such module.
    """
    module_name = name.partition(":")[0]
    here = _search_here()
    digest = _digest(module_name)
    if not digest:
        raise UsageError(
            f"{name}: no module {module_name!r} in {here} or among the installed packages"
        )
    return digest


def _digest(module_name: str) -> str:
    """Return the SHA-256 of a module's source, or an empty text if it has no source."""
    digest = hashlib.sha256()
    for path, content in sorted(_sources(module_name)):
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    if digest.digest() != hashlib.sha256().digest():
        return digest.hexdigest()
    if module_name.partition(".")[0] in sys.stdlib_module_names:  # `builtins` and `os` have no file
        return hashlib.sha256(f"{module_name} of Python {sys.version}".encode()).hexdigest()
    return ""


def _search_here() -> str:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    return here


def _sources(module_name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a module and of its imports from the same folder, by path from there."""
    top = module_name.partition(".")[0]
    root = _root(top)
    if root is None:
        return
    # By name too: an environment can take packages from another one.
    installed = root in {Path(path) for path in sysconfig.get_paths().values()} or (
        root.name in ("site-packages", "dist-packages")
    )
    waiting, names, seen = {module_name}, {module_name}, set[Path]()
    while waiting:
        for file in set(_files(root, waiting.pop())) - seen:
            seen.add(file)
            content = file.read_bytes()
            yield file.relative_to(root).as_posix(), content
            if file.suffix == ".py" and not installed:
                new = _imports(content, file.relative_to(root).parent.parts) - names
                names |= new
                waiting |= {name for name in new if not _is_ours(name) or _is_ours(top)}


def _is_ours(module_name: str) -> bool:
    """Return whether a module is one of this package, which a run records by its version."""
    return module_name.partition(".")[0] == __package__


def _root(top: str) -> Path | None:
    """Return the folder that a top-level module or package is imported from."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # ValueError: __main__
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).parent
    return Path(spec.origin).parent if spec.origin and spec.has_location else None


def _files(root: Path, dotted: str) -> Iterator[Path]:
    """Yield the files that importing a module runs: its own and its packages' ``__init__.py``."""
    parts = dotted.split(".")
    for length in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:length])
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if file.is_file():
                yield file
        yield from sorted(place.parent.glob(f"{place.name}.*so"))
        if not place.is_dir():
            return  # and no package


@functools.lru_cache(maxsize=1024)
def _imports(source: bytes, package: tuple[str, ...]) -> frozenset[str]:
    """Return the dotted names that a module of a package may import.

    Parsing takes most of the time of a digest, and each run takes several digests.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return frozenset()
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            base = (*base, *node.module.split(".")) if node.module else base
            names += (".".join([*base, alias.name]) for alias in node.names)
    return frozenset(names)
