"""What runs on the hosting service is what runs here."""

import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]


def test_the_workflow_runs_the_script_of_ci() -> None:
    workflow = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "ci.yml")
    commands = [step.get("run") for step in workflow["jobs"]["tests"]["steps"]]
    assert commands[-1] == "bash .ci/run"
    assert (ROOT / ".ci" / "run").is_file()


@pytest.mark.xdist_group("workflow")
def test_tests_of_a_group_run_in_one_process(request: pytest.FixtureRequest) -> None:
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("all tests run in one process here")
    # pytest-xdist groups by this suffix; without it a group is spread, and nothing else says so.
    assert request.node.nodeid.endswith("@workflow")


@pytest.mark.slow
def test_a_slow_test_is_not_traced(request: pytest.FixtureRequest) -> None:
    if not request.config.pluginmanager.hasplugin("_cov"):
        pytest.skip("no test is traced here")
    assert sys.gettrace() is None
