"""configs/slurm.sh, with a stand-in for srun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nsrelu_bench.config.study import read_study

SLURM_SCRIPT = Path(__file__).parents[2] / "configs" / "slurm.sh"

#: Logs its options and runs its command.
SRUN = """#!/bin/bash
echo "$1" >>"$SRUN_LOG"
shift
exec "$@"
"""

SLURM_STUDY = """
dataset: digits
grid:
  act: [relu, nsrelu]
seeds: 4
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The variables of a task in an array of three."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    path = os.pathsep.join([str(srun.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_CPUS_PER_TASK": "4", "SLURM_ARRAY_TASK_COUNT": "3"}
    return os.environ | slurm | {"PATH": path, "SRUN_LOG": str(tmp_path / "srun.log")}


@pytest.mark.slow
def test_the_tasks_of_an_array_share_the_runs_of_a_study(
    environment: dict[str, str], tmp_path: Path
) -> None:
    study = tmp_path / "it's a folder" / "study.yaml"
    study.parent.mkdir()
    study.write_text(SLURM_STUDY)
    expected = [run.run_id for run in read_study(study).runs]
    for task in range(3):
        output = subprocess.check_output(
            ["bash", SLURM_SCRIPT, study, "--dry-run", "--json"],
            env=environment | {"SLURM_ARRAY_TASK_ID": str(task)},
            cwd=tmp_path,
            text=True,
        )
        assert [run["run_id"] for run in json.loads(output)] == expected[task::3]
    assert (tmp_path / "srun.log").read_text() == "--cpus-per-task=4\n" * 3


def test_a_job_without_a_config_prints_its_usage(environment: dict[str, str]) -> None:
    done = subprocess.run(["bash", SLURM_SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "usage: sbatch configs/slurm.sh CONFIG.yaml" in done.stderr


def test_the_script_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", SLURM_SCRIPT], check=True)
