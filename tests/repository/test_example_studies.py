"""The studies that examples/ made: what their pages and claims say is in their data."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from examples import slow_regression, target_variance

ROOT = Path(__file__).parents[2]
APPS = {"slow_regression": slow_regression.app, "target_variance": target_variance.app}
PAGES_OF_EXAMPLES = {
    study: (ROOT / "findings" / study / "README.md").read_text(encoding="utf-8")
    for study in APPS
    if (ROOT / "findings" / study / "README.md").exists()
}
CLAIMS_PAGE = (ROOT / "findings" / "CLAIMS.md").read_text(encoding="utf-8")


@cache
def printed(study: str) -> str:
    folder = ROOT / "findings" / study
    answer = CliRunner().invoke(APPS[study], ["table", "--out", str(folder)])
    assert answer.exit_code == 0, answer.output
    return answer.stdout


@pytest.mark.parametrize("study", PAGES_OF_EXAMPLES)
def test_an_examples_tables_are_what_its_command_prints(study: str) -> None:
    page = PAGES_OF_EXAMPLES[study]
    assert f"    python -m examples.{study} table" in page.splitlines()
    found = [block for block in printed(study).split("\n\n") if block.strip()]
    assert len(found) > 1
    for block in found:
        assert block in page


@pytest.mark.parametrize("study", PAGES_OF_EXAMPLES)
def test_a_shown_command_of_an_example_can_be_parsed(study: str) -> None:
    commands = typer.main.get_command(APPS[study])
    pattern = rf"python -m examples\.{study} (.*?)(?:`|$)"
    shown = re.findall(pattern, PAGES_OF_EXAMPLES[study], re.MULTILINE)
    assert shown
    for line in shown:
        name, *arguments = shlex.split(line)
        commands.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


#: Where the counts under "Measured" of a claim of CLAIMS.md come from, in order: the table's
#: heading, the row and the column.
COUNTS = """
23 | slow_regression | norm 3.041 | relu | lost plasticity
23 | slow_regression | norm 3.041 | leaky_relu(0.1) | lost plasticity
23 | slow_regression | norm 3.041 | leaky_relu(0.1)/relu | lost plasticity
23 | slow_regression | norm 3.041 | nsrelu(0.1) | diverged
23 | slow_regression | norm 3.041 | nsrelu(0.1) bias_decay=0.001 | diverged
23 | slow_regression | norm 2.333 | relu | lost plasticity
23 | slow_regression | norm 2.333 | leaky_relu(0.1) | lost plasticity
23 | slow_regression | norm 2.333 | leaky_relu(0.1)/relu | lost plasticity
23 | slow_regression | norm 2.333 | nsrelu(0.1) | diverged
23 | slow_regression | norm 2.333 | nsrelu(0.1) bias_decay=0.001 | diverged
24 | slow_regression | norm 3.041 | reflected(0.1) | diverged
24 | slow_regression | norm 3.041 | quadratic(0.01) | diverged
24 | slow_regression | norm 3.041 | projected(0.1) | diverged
24 | slow_regression | norm 3.041 | reflected(0.1) weight_decay=0.0001 | diverged
24 | slow_regression | norm 3.041 | quadratic(0.01) weight_decay=0.0001 | diverged
24 | slow_regression | norm 3.041 | projected(0.1) weight_decay=0.0001 | diverged
24 | slow_regression | norm 3.041 | relu weight_decay=0.0001 | lost plasticity
25 | slow_regression | norm 3.041 | up(0.1) | diverged
25 | slow_regression | norm 3.041 | up(0.1) | lost plasticity
25 | slow_regression | norm 3.041 | up(0.1) if off for all inputs | diverged
25 | slow_regression | norm 3.041 | up(0.1) if off for all inputs | lost plasticity
26 | target_variance | with 3 hidden layers | relu | diverged
"""


def cell(study: str, heading: str, row: str, column: str) -> str:
    """Return a cell of a printed table."""
    (table,) = re.findall(rf"{re.escape(heading)}\*\*\n\n(.*?)\n\n", printed(study), re.DOTALL)
    head, _, *rows = ([c.strip() for c in line[1:-1].split("|")] for line in table.split("\n"))
    (found,) = (cells[head.index(column)] for cells in rows if cells[0] == row)
    return found


CLAIMS_OF_EXAMPLES = sorted({line.split(" | ")[0] for line in COUNTS.strip().splitlines()})


@pytest.mark.parametrize("number", CLAIMS_OF_EXAMPLES)
def test_what_a_claim_on_an_example_measured_is_in_its_tables(number: str) -> None:
    claim = CLAIMS_PAGE.partition(f"\n## {number}. ")[2].partition("\n<a id")[0]
    text = " ".join(claim.partition("**Measured:**")[2].partition("- **")[0].split())
    sources = [line.split(" | ") for line in COUNTS.strip().splitlines()]
    mine = [source[1:] for source in sources if source[0] == number]
    assert re.findall(r"\d+ of \d+", text) == [cell(*source) for source in mine]
    known = re.findall(r"\d+\.\d+|\d,\d{3},\d{3}|\d+,\d{3}", printed(mine[0][0]))
    settings = ["0.1", "0.01", "0.001", "0.0001", "0.05", "0.9"]
    assert set(re.findall(r"\d+\.\d+|\d+(?:,\d{3})+", text)) <= {*known, *settings}
