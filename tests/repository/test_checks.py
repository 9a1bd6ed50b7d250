"""The checks of .pre-commit-config.yaml pass."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
HOOKS = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]


@pytest.mark.slow
@pytest.mark.xdist_group("checks")  # mypy takes half a minute: it goes first
@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_check_of_pre_commit_passes(hook: dict[str, str]) -> None:
    # As pre-commit does, but without changing a file.
    command = {"ruff format": "ruff format --check ."}.get(
        hook["entry"], hook["entry"].replace("--fix", ".")
    )
    answer = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
