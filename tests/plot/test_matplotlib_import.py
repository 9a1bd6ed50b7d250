"""Broken settings for matplotlib in the environment do no harm, and working ones stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

IMPORT_CODE = """
import os, sys, warnings
import nsrelu_bench.plot
import matplotlib, matplotlib.colors, matplotlib.figure
assert matplotlib.colors is sys.modules["matplotlib.colors"]
print(matplotlib.rcParams["lines.linewidth"], os.environ.get("MPLBACKEND"), os.getcwd())
"""


def imported(cwd: Path, **variables: str) -> list[str]:
    command, environment = (
        [sys.executable, "-W", "error", "-c", IMPORT_CODE],
        os.environ | variables,
    )
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://nowhere.backend_inline", "qtagg", "nope", ""])
def test_any_backend_may_be_set(backend: str, tmp_path: Path) -> None:
    assert imported(tmp_path, MPLBACKEND=backend)[1:] == [*filter(None, [backend]), str(tmp_path)]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["working folder", "MATPLOTLIBRC", "MPLCONFIGDIR", "stylelib"])
def test_settings_that_are_not_text_are_ignored(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "settings"
    path = folder / ("stylelib/my.mplstyle" if place == "stylelib" else "matplotlibrc")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"lines.linewidth: 7\n# \xff\xfe\n")
    variable = {"stylelib": "MPLCONFIGDIR", "working folder": "UNUSED"}.get(place, place)
    cwd = folder if place == "working folder" else tmp_path
    assert imported(cwd, **{variable: str(folder)}) == ["1.5", "None", str(cwd)]


@pytest.mark.slow
def test_settings_that_work_stay(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 7\n")
    assert imported(tmp_path)[0] == "7.0"
