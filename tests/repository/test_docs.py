"""The README says what is true: its commands are there, its examples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nsrelu_bench.cli import app as cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

PRELUDE = """
import torch
import torch.nn.functional as F
from torch import nn

x = torch.randn(3)
images, labels = torch.randn(20, 784), torch.arange(20) % 10
"""


def test_every_command_is_in_the_readme() -> None:
    for command in cli.app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert f"nsrelu-bench {name}" in README


def test_the_readmes_two_commands_are_one_line_each_and_complete() -> None:
    for mark in ("the main job", "the tests"):
        (command,) = re.findall(rf"<!-- {mark} -->\n```sh\n(.*)\n```", README)
        assert command.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install")


def test_the_readmes_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from helpers.tiny_runs import tiny

    from nsrelu_bench.sweep.scheduler import run_all

    monkeypatch.chdir(tmp_path)
    list(run_all([tiny()], Path("results/quickstart")))
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    space: dict[str, object] = {}
    exec(PRELUDE + example, space)  # noqa: S102
    assert "zero_fraction" in capsys.readouterr().out


def test_the_notebook_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", ROOT / "examples" / "notebook.py"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "nsrelu(0.1) vs relu: accuracy" in answer.stdout
    study = tmp_path / "results" / "notebook"
    assert (study / "mine.png").stat().st_size > 10_000
    assert (study / "figures" / "curves.svg").exists()
    assert (study / "report.html").exists()


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("findings/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document}: {target}"


@pytest.mark.parametrize("document", ["README.md", "docs/studies.md"])
def test_the_studies_in_the_documents_expand(document: str, tmp_path: Path) -> None:
    from nsrelu_bench.config.study import read_study

    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    (tmp_path / "study.yaml").write_text(text)
    study = read_study(tmp_path / "study.yaml")
    assert study.name == "leaks"
    # Leaves nsrelu(0.3) out at lr 0.01 and adds ReLU with batch norm; without it, it is there.
    assert (
        len(study.runs) == {"README.md": 3 * 2 * 12, "docs/studies.md": (8 - 1 + 1) * 12}[document]
    )


def test_the_quickstart_study_is_one() -> None:
    from nsrelu_bench.config.study import read_study

    study = read_study(ROOT / "configs" / "quickstart.yaml")
    assert len(study.runs) == 144
    assert {run.dataset for run in study.runs} == {"mnist5k"}
