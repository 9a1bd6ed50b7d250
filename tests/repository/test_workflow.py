"""What runs on the hosting service is what runs here."""

from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]


def test_the_workflow_runs_the_script_of_ci() -> None:
    workflow = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "ci.yml")
    commands = [step.get("run") for step in workflow["jobs"]["tests"]["steps"]]
    assert commands[-1] == "bash .ci/run"
    assert (ROOT / ".ci" / "run").is_file()
