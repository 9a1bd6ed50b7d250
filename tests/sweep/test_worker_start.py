"""Workers start whatever the working folder holds and however the program was started."""

import subprocess
import sys
from pathlib import Path

import pytest

from nsrelu_bench.config import RunConfig

ARGUMENTS = ["train", "--dataset", "digits", "--epochs", "1", "--workers", "1"]

MAIN_SCRIPT = f"""
import sys
from nsrelu_bench.cli import main
open("started", "a").write("x")
sys.argv = ["nsrelu-bench", *{ARGUMENTS}]
main()
"""


def run(source: Path | str, folder: Path) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, source], input=MAIN_SCRIPT, cwd=folder, capture_output=True, text=True
    )
    assert (folder / "started").read_text() == "x", done.stderr  # once, without a main guard
    return done


@pytest.mark.slow
def test_modules_of_the_working_folder_are_not_pythons(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(MAIN_SCRIPT)
    (tmp_path / "here").mkdir()
    for name in ("types", "select", "socket", "struct", "random", "queue"):
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit('not the one of Python')\n")
    done = run(program, tmp_path / "here")
    assert done.returncode == 0, done.stderr


def test_a_program_may_come_from_standard_input(tmp_path: Path) -> None:
    # Its worker has to say that a file is in the way, without a training that takes seconds.
    folder = Path("results", "runs", RunConfig(dataset="digits", epochs=1).run_id)
    (tmp_path / folder.parent).mkdir(parents=True)
    (tmp_path / folder).touch()
    done = run("-", tmp_path)
    assert done.stderr == f"nsrelu-bench: {folder}: can't be written (File exists)\n"
    assert done.returncode == 1
