import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"


@pytest.mark.slow
def test_a_study_killed_at_a_random_moment_gives_the_same_files() -> None:
    short = "--kills 1 --span 0.3 --epochs 3 --dataset digits --model mlp --workers 1"
    made = subprocess.run(
        [sys.executable, str(BENCHMARK), *short.split()], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout + made.stderr
    kill, _, summary = made.stdout.splitlines()[1:]
    assert kill.startswith("kill 1, ")
    assert summary.startswith("1 kills, ")
    assert summary.endswith(": 0 files differ")
