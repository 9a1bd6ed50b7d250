"""Workers start whatever the working folder holds and however the program was started."""

import subprocess
import sys
from pathlib import Path

import pytest

ARGUMENTS = ["train", "--dataset", "digits", "--epochs", "1", "--seeds", "2", "--workers", "2"]

MAIN_SCRIPT = f"""
import sys
from nsrelu_bench.cli import main
open("started", "a").write("x")
sys.argv = ["nsrelu-bench", *{ARGUMENTS}]
main()
"""


def run(source: Path | str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, source], input=MAIN_SCRIPT, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "started").read_text() == "x"  # once, without a main guard


@pytest.mark.slow
def test_modules_of_the_working_folder_are_not_pythons(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(MAIN_SCRIPT)
    (tmp_path / "here").mkdir()
    for name in ("types", "select", "socket", "struct", "random", "queue"):
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit('not the one of Python')\n")
    run(program, tmp_path / "here")


@pytest.mark.slow
def test_a_program_may_come_from_standard_input(tmp_path: Path) -> None:
    run("-", tmp_path)
