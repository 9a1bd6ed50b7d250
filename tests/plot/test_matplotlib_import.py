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


@pytest.mark.covers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "backend"),
    [
        ("working folder", "module://nowhere.backend_inline"),
        ("MATPLOTLIBRC", "qtagg"),
        ("MPLCONFIGDIR", "nope"),
        ("stylelib", ""),
    ],
)
def test_any_backend_and_settings_that_are_no_text(
    place: str, backend: str, tmp_path: Path
) -> None:
    folder = tmp_path / "settings"
    path = folder / ("stylelib/my.mplstyle" if place == "stylelib" else "matplotlibrc")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"lines.linewidth: 7\n# \xff\xfe\n")
    variable = {"stylelib": "MPLCONFIGDIR", "working folder": "UNUSED"}.get(place, place)
    cwd = folder if place == "working folder" else tmp_path
    shown = imported(cwd, MPLBACKEND=backend, **{variable: str(folder)})
    assert shown == ["1.5", *filter(None, [backend]), str(cwd)]


@pytest.mark.slow
def test_settings_that_work_stay(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 7\n")
    assert imported(tmp_path) == ["7.0", "None", str(tmp_path)]
