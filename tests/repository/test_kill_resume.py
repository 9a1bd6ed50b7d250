import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"


@pytest.mark.slow
def test_a_study_killed_at_random_moments_gives_the_same_files() -> None:
    short = ["--kills", "3", "--span", "0.6", "--epochs", "3", "--model", "mlp", "--workers", "1"]
    made = subprocess.run(
        [sys.executable, str(BENCHMARK), *short], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    *kills, _, summary = made.stdout.splitlines()[1:]
    assert [line.split(",")[0] for line in kills] == [f"kill {number}" for number in range(1, 4)]
    assert summary.startswith("3 kills, ")
    assert summary.endswith(": 0 files differ")
