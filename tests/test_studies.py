"""What the repository says of its studies: configs read, and no number has drifted from its data."""

import re
import shlex
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from nsrelu_bench import cli
from nsrelu_bench.compare import compare
from nsrelu_bench.config import RunConfig, read_study
from nsrelu_bench.groups import format_setting
from nsrelu_bench.results import CONFIG_COLUMNS, load_runs

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
READMES = sorted((ROOT / "results").glob("*/README.md"))
STUDIES = [path.parent.name for path in sorted((ROOT / "results").glob("*/summary.csv"))]

#: A table and the command that printed it.
TABLES = [
    (readme, command)
    for readme in READMES
    for command in re.findall(
        r"^    nsrelu-bench (compare .*--format md)$", readme.read_text(), re.M
    )
]

#: A row of the table of FINDINGS.md: its number, and the text of what was measured.
ROWS = {
    int(cells[1]): cells[5]
    for line in (ROOT / "FINDINGS.md").read_text().splitlines()
    if (cells := [cell.strip() for cell in line.split("|")])[1:2] and cells[1].isdigit()
}

#: Numbers that come from a study: a mean or a difference with its interval, or a count of runs.
NUMBER = re.compile(r"[+-]?\d+\.\d ± \d+\.\d|\d+ of \d+")


@cache
def runs_of(study: str) -> pd.DataFrame:
    return load_runs(ROOT / "results" / study)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_expands_to_runs_and_says_what_it_is_for(path: Path) -> None:
    study = read_study(path)
    assert study.name == path.stem
    assert len(study.runs) > 1
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("study", STUDIES)
def test_a_studys_summary_holds_exactly_the_runs_of_its_config(study: str) -> None:
    runs = runs_of(study)
    settings = [c for c in RunConfig.model_fields if c in runs and c != "data_dir"]
    asked = read_study(ROOT / "configs" / f"{study}.yaml").runs
    assert sorted(map(tuple, runs[settings].map(format_setting).to_numpy())) == sorted(
        tuple(format_setting(run.settings[c]) for c in settings) for run in asked
    )
    assert set(runs["state"]) <= {"completed", "diverged"}


@pytest.mark.parametrize(("readme", "command"), TABLES, ids=lambda value: str(value)[-60:])
def test_a_table_in_a_results_readme_is_what_its_command_prints(
    readme: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    answer = CliRunner().invoke(cli.app, shlex.split(command))
    assert answer.exit_code == 0
    tables = [block for block in answer.stdout.split("\n\n") if block.startswith("|")]
    assert tables
    for table in tables:
        assert table.strip() in readme.read_text()


@pytest.mark.parametrize("number", ROWS)
def test_what_findings_says_was_measured_is_in_the_data(number: int) -> None:
    assert NUMBER.findall(ROWS[number]) == [say(*cell) for cell in MEASURED.get(number, [])]


def say(study: str, where: str, act: str, metric: str, kind: str = "mean") -> str:
    """Derive a number of FINDINGS.md from a study's summary, in percent."""
    conditions = where.split()
    comparison = compare(
        runs_of(study), CONFIG_COLUMNS, metrics=[metric], where=[*conditions, f"act={act}"], by=[]
    )
    (row,) = comparison.rows[comparison.rows["act"] == act].to_dict("records")
    if kind.startswith("lost "):
        return lost(act, float(kind.removeprefix("lost ")))
    if kind == "diverged":
        return f"{row['diverged']} of {row['runs']}"
    value, end = ("diff", "diff_high") if kind == "diff" else ("mean", "high")
    return f"{100 * row[value]:{'+' * (kind == 'diff')}.1f} ± {100 * (row[end] - row[value]):.1f}"


def lost(act: str, points: float) -> str:
    """Count the runs of plasticity that lost so many points of accuracy, and all."""
    tasks = pd.read_csv(ROOT / "results" / "plasticity" / "tasks.csv")
    accuracy = tasks[tasks["act"] == act].pivot_table(
        index="run_id", columns="task", values="test_accuracy"
    )
    change = 100 * (accuracy.iloc[:, -5:].mean(axis=1) - accuracy.iloc[:, :5].mean(axis=1))
    return f"{(change < -points).sum()} of {len(change)}"


#: Where the numbers of a row of FINDINGS.md come from, in order: study, conditions, activation,
#: metric, and what of it.
MEASURED: dict[int, list[tuple[str, str, str, str, str]]] = {}
