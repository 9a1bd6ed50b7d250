"""Import matplotlib even if the user's settings for it are broken.

`import matplotlib` fails if a matplotlibrc or style file is not text, or if the package of an
`MPLBACKEND` is not installed. No figure here depends on these settings. They are kept if they work,
since a notebook relies on them.
"""

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from importlib.util import find_spec
from pathlib import Path


def import_matplotlib() -> None:
    """Import matplotlib, with fewer of the user's settings if it fails with them."""
    try:
        _import()
    except (ValueError, OSError):  # what is not text raises a UnicodeDecodeError, a ValueError
        try:
            with _own_settings():
                _import()
        except (ValueError, OSError):
            # Last, because matplotlib searches for fonts again in a new configuration folder.
            with tempfile.TemporaryDirectory() as folder, _own_settings(MPLCONFIGDIR=folder):
                _import()


def _import() -> None:
    try:
        importlib.import_module("matplotlib.style")
    except BaseException:
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]
        raise


@contextmanager
def _own_settings(**variables: str) -> Iterator[None]:
    """Let matplotlib find its own matplotlibrc: it searches the working folder first."""
    spec = find_spec("matplotlib")
    [package] = list(spec.submodule_search_locations or []) if spec else []
    kept = {name: os.environ.get(name) for name in ("MPLBACKEND", *variables)}
    os.environ.pop("MPLBACKEND", None)
    os.environ.update(variables)
    try:
        with chdir(Path(package) / "mpl-data"):
            yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


import_matplotlib()
