"""Broken settings for matplotlib in the environment do no harm, and working ones stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nsrelu_bench.plot.style import activation_style

#: Not by a hash, which another process has otherwise.
BSILU_STYLE = str(activation_style("relu/bsilu"))

IMPORT_CODE = """
import os, sys, warnings
import nsrelu_bench.plot
import matplotlib, matplotlib.colors, matplotlib.figure
assert matplotlib.colors is sys.modules["matplotlib.colors"]
print(matplotlib.rcParams["lines.linewidth"], os.environ.get("MPLBACKEND"), os.getcwd(), sep="\\n")
print(nsrelu_bench.plot.style.activation_style("relu/bsilu"))
"""


def imported(cwd: Path, **variables: str) -> list[str]:
    command, environment = (
        [sys.executable, "-W", "error", "-c", IMPORT_CODE],
        os.environ | variables,
    )
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.covers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "backend"),
    [("matplotlibrc", "module://nowhere.backend_inline"), ("stylelib/my.mplstyle", "nope")],
)
def test_any_backend_and_settings_that_are_no_text(
    broken: str, backend: str, tmp_path: Path
) -> None:
    """Settings wherever matplotlib looks for them: here, and where two variables say."""
    path = tmp_path / broken
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"lines.linewidth: 7\n# \xff\xfe\n")
    variables = dict.fromkeys(("MATPLOTLIBRC", "MPLCONFIGDIR"), str(tmp_path))
    shown = imported(tmp_path, MPLBACKEND=backend, **variables)
    assert shown == ["1.5", backend, str(tmp_path), BSILU_STYLE]


@pytest.mark.slow
def test_settings_that_work_stay_and_colours_too(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 7\n")
    assert imported(tmp_path) == ["7.0", "None", str(tmp_path), BSILU_STYLE]
