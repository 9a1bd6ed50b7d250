"""What the documents say is true: commands and links exist, snippets run as they are pasted."""

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import typer
from helpers.tiny_runs import tiny
from matplotlib.figure import Figure

import nsrelu_bench
from nsrelu_bench.cli import app as cli
from nsrelu_bench.config import read_settings, read_study
from nsrelu_bench.sweep import run_all

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "findings/**/*.md")
    for page in sorted(ROOT.glob(pattern))
]


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


#: Every Python snippet but doctests, which the tests of their rooms run, and models.md's, a file.
SNIPPETS = [
    pytest.param(code, id=f"{page}-{number}")
    for page in ("README.md", "docs/library.md", "docs/files.md")
    for number, code in enumerate(blocks(page, "python"), 1)
]
SHOWN_COMMANDS = sorted(
    {
        line.partition("  #")[0].strip()
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("nsrelu-bench ")
    }
)


@pytest.mark.parametrize("mark", ["the main job", "the tests"])
def test_a_marked_block_starts_from_nothing(mark: str) -> None:
    (block,) = re.findall(rf"<!-- {mark} -->\n```sh\n(.*?)\n```", README, re.DOTALL)
    first, second, third, *rest = block.splitlines()
    assert (first, second) == ("python3 -m venv .venv", ". .venv/bin/activate")
    assert third.startswith("pip install -e ")
    assert rest


def test_every_command_is_in_the_page_of_commands() -> None:
    (listed, *_) = blocks("docs/commands.md", "sh")
    for command in cli.app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert re.search(rf"^nsrelu-bench {name}\b", listed, re.MULTILINE), f"{name} is missing"


@pytest.mark.slow
@pytest.mark.parametrize("command", SHOWN_COMMANDS)
def test_a_command_in_a_page_can_be_parsed(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    commands: Any = typer.main.get_command(cli.app)
    commands.commands[name].make_context(name, arguments)  # raises where it can't be parsed


@pytest.mark.parametrize("code", SNIPPETS)
@pytest.mark.slow
def test_a_snippet_runs_by_itself(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if 'load("results/quickstart")' in code:
        list(run_all([tiny()], Path("results/quickstart")))
    exec(smaller(code), {"__name__": "__main__"})  # noqa: S102


def smaller(code: str) -> str:
    """Make a snippet train fewer seeds for fewer epochs, and draw a figure, not twelve."""
    code = re.sub(r"\brange\(\d\)", "range(2)", re.sub(r"\bepochs=\d\b", "epochs=1", code))
    return code.replace('formats=["svg"]', 'formats=["svg"], kinds=["curves"]')


@pytest.mark.slow
@pytest.mark.usefixtures("few_figures")
def test_the_notebook_runs_and_shows_what_it_is_committed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "study.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(cells, 1):
        assert cell["execution_count"] == number, "run all cells from a fresh kernel, and save"
        value = run_cell(smaller("".join(cell["source"])), namespace)
        shown = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        is_figure = isinstance(value, Figure)
        assert ("image/png" in shown) == is_figure
        assert ("text/html" in shown) == (hasattr(value, "_repr_html_") and not is_figure)
        assert ("text/markdown" in shown) == hasattr(value, "_repr_markdown_")
    assert len(namespace["configs"]) == 3 * 2
    study = tmp_path / "results" / "notebook"
    assert (study / "mine.png").stat().st_size > 10_000
    assert [path.name for path in (study / "figures").iterdir()] == ["curves.svg"]
    assert (study / "report.html").exists()


def run_cell(source: str, namespace: dict[str, Any]) -> object:
    """Run a cell without its magics; return the value of its last line if that is an expression."""
    lines = [line for line in source.splitlines() if not line.startswith("%")]
    body = ast.parse("\n".join(lines)).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), namespace)  # noqa: S102
    if last is None:
        return None
    assert isinstance(last, ast.Expr)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)  # noqa: S307


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [page for page in PAGES if not re.search(rf"[ -]{page}$", navigation, re.MULTILINE)]
    assert not missing, f"{', '.join(missing)}: not in nav of mkdocs.yml"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("material") is None and "CI" not in os.environ,
    reason="needs mkdocs-material",
)
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    quiet = {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr  # of a warning too; --quiet would not count it
    assert "NSReLU" in (tmp_path / "index.html").read_text(encoding="utf-8")
    hypotheses = (tmp_path / "findings" / "deep_rescue" / "index.html").read_text(encoding="utf-8")
    assert '<ol start="28">' in hypotheses  # a list begins with its own number


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize(
    ("page", "runs"),
    # Leaves nsrelu(0.3) out at lr 0.01 and adds ReLU with batch norm; without it, it is there.
    [("README.md", 3 * 2 * 12), ("docs/studies.md", (8 - 1 + 1) * 12)],
)
def test_a_study_in_a_page_expands(page: str, runs: int, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(blocks(page, "yaml")[0])
    study = read_study(tmp_path / "study.yaml")
    assert (study.name, len(study.runs)) == ("leaks", runs)


def test_the_quickstart_trains_what_the_readme_says() -> None:
    study = read_study(ROOT / "configs" / "quickstart.yaml")
    assert f"trains {len(study.runs)} small networks" in README
    assert {run.dataset for run in study.runs} == {"mnist5k"}


@pytest.mark.slow
def test_the_figure_of_the_activations_is_as_the_code_computes(tmp_path: Path) -> None:
    script = ROOT / "docs" / "figures" / "activations.py"
    namespace: dict[str, Any] = {"__name__": "activations", "__file__": str(script)}
    exec(script.read_text(encoding="utf-8"), namespace)  # noqa: S102
    namespace["draw"]().savefig(tmp_path / "activations.png", dpi=160)
    drawn, committed = map(
        matplotlib.image.imread, (tmp_path / "activations.png", script.with_suffix(".png"))
    )
    assert drawn.shape == committed.shape
    assert np.abs(drawn - committed).mean() < 0.01  # fonts differ between machines


def test_the_scripts_of_the_figures_are_called_alike() -> None:
    for script in (ROOT / "docs" / "figures").glob("*.py"):
        text = script.read_text(encoding="utf-8")
        called = f'python docs/figures/{script.name}\n"""' in text
        assert called == ("__main__" in text), script.name
        assert "argv" not in text, script.name


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = read_settings(ROOT / "CITATION.cff")
    assert nsrelu_bench.__version__ == project["version"] == citation["version"]
    assert citation["license"] == project["license"]


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_the_places_that_a_page_names_exist(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    places = set(re.findall(r"`([\w./]+(?:\.\w+|/))`", text)) - {"status.json"}
    bases = (ROOT, ROOT / "nsrelu_bench")
    missing = [place for place in places if not any((base / place).exists() for base in bases)]
    assert len(places) > 20
    assert not missing, f"{page} names {', '.join(missing)}, which is not there"
    named = re.findall(r"`(\w+)`(?: and `(\w+)`)? (?:in|of) `([\w./]+\.py)`", text)
    assert len(named) > 10
    for *names, place in named:
        path = next(base / place for base in bases if (base / place).exists())
        source = path.read_text(encoding="utf-8")
        for name in filter(None, names):
            assert re.search(rf"^ *(?:def|class) {name}\b|^{name}\b", source, re.MULTILINE), (
                f"{page} says that {name} is in {place}"
            )
