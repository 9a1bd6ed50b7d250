import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.command_line import ask
from helpers.tiny_runs import make


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which relu and nsrelu(0.1) were trained with two seeds each."""
    folder = tmp_path_factory.mktemp("trained")
    for act in ("relu", "nsrelu"):
        for seed in (0, 1):
            make(folder / "results" / "runs", act=act, seed=seed)
    return folder


def test_compare_prints_a_table_or_json(trained: Path) -> None:
    table = ask("compare", cwd=trained).out
    for word in ("accuracy", "zeros", "dead", "grad norm", "relu", "nsrelu(0.1)"):
        assert word in table
    assert json.loads(ask("compare", "--json", cwd=trained).out)


def test_compare_writes_to_a_file(trained: Path) -> None:
    shown = ask("compare", "--format", "csv", cwd=trained).out
    answer = ask("compare", "--format", "csv", "--out", "new/table.csv", cwd=trained)
    assert answer.out == "new/table.csv\n"
    assert (trained / "new" / "table.csv").read_text() == shown


@pytest.mark.slow
def test_plot_prints_the_files_that_it_writes(trained: Path) -> None:
    paths = ask("plot", "results/runs", "--kind", "curves, units", cwd=trained).out.split()
    assert [Path(path).name for path in paths] == [
        f"{kind}.{suffix}" for kind in ("curves", "units") for suffix in ("png", "svg")
    ]
    assert all((trained / path).stat().st_size > 1000 for path in paths)


def test_a_figure_without_data_is_reported_and_no_error(trained: Path) -> None:
    answer = ask("plot", "--kind", "leak", cwd=trained)
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == "no figure leak: no activation has several leaks\n"


@pytest.mark.slow
def test_studies_of_one_name_keep_their_figures(trained: Path, tmp_path: Path) -> None:
    studies = [f"{place}/small" for place in ("A", "B")]
    for study in studies:
        shutil.copytree(trained / "results" / "runs", tmp_path / study)
    options = ("--out", "figs", "--kind", "tradeoff", "--format", "svg")
    answer = ask("plot", *studies, *options, cwd=tmp_path)
    assert answer.out.split() == [f"figs/{study}/tradeoff.svg" for study in studies]
    answer = ask("plot", "A/small", "A/../A/small", *options, cwd=tmp_path)
    assert answer.out == "figs/tradeoff.svg\n"


@pytest.mark.covers
@pytest.mark.slow
def test_plot_chooses_as_compare_does(trained: Path) -> None:
    options = ("--format", "svg", "--out", "chosen", "--metric", "dead_fraction, zero_fraction")
    chosen = ("--kind", "curves", "--where", "act=nsrelu", "--by", "seed")
    answer = ask("plot", "results/runs", *options, *chosen, cwd=trained)
    assert "unknown setting 'seed'" in answer.err
    chosen = ("--kind", "pairs", "--where", "seed=0,1", "--baseline", "nsrelu", "--by", "dataset")
    answer = ask("plot", "results/runs", *options, *chosen, cwd=trained)
    assert answer.out == "chosen/pairs.svg\n"
    answer = ask("plot", "results/runs", *options, "--x", "lr", cwd=trained)
    assert (answer.code, answer.err) == (
        *(0, "no figure line: lr is not a setting that varies over numbers; none does\n"),
    )
    answer = ask("plot", "results/runs", *options, "--x", "lr", "--kind", "curves", cwd=trained)
    assert answer.err == "nsrelu-bench: x is for the figure line, got curves\n"


@pytest.mark.slow
@pytest.mark.usefixtures("few_figures")
def test_a_report_is_written_next_to_its_runs(trained: Path) -> None:
    answer = ask("report", "results/runs", cwd=trained)
    assert answer.out == "results/runs/report.html\n"
    page = (trained / "results" / "runs" / "report.html").read_text()
    assert "nsrelu-bench report results/runs" in page


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("compare --out .", 1, r"\.: can't be written \(Is a directory\)"),
        ("plot --metric nope", 2, r"unknown metric 'nope'; choose from: collapsed_fraction, .*"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, code: int, line: str, trained: Path) -> None:
    answer = ask(*arguments.split(), cwd=trained)
    assert answer.code == code
    assert re.fullmatch(rf"nsrelu-bench: {line}\n", answer.err)


@pytest.mark.parametrize("command", ["compare", "plot", "report"])
@pytest.mark.parametrize("path", ["", "nowhere"])
def test_without_results_it_says_how_to_create_some(
    command: str, path: str, tmp_path: Path
) -> None:
    answer = ask(command, *path.split(), cwd=tmp_path)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == (
        f"nsrelu-bench: no runs in '{path or 'results'}' (there is no such folder);"
        " create one with nsrelu-bench train\n"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("few_figures")
def test_a_summary_without_runs_gives_all_but_epochs(trained: Path, tmp_path: Path) -> None:
    ask("compare", cwd=trained)  # writes the summary
    study = tmp_path / "results" / "copied"
    study.mkdir(parents=True)
    shutil.copy(trained / "results" / "runs" / "summary.csv", study)
    assert "nsrelu(0.1)" in ask("compare", cwd=tmp_path).out
    answer = ask("plot", "results/copied", "--kind", "curves,pairs", cwd=tmp_path)
    assert (answer.code, answer.out.split()[0]) == (0, "results/copied/figures/pairs.png")
    assert answer.err == "no figure curves: it needs run folders, and here is only summary.csv\n"
    assert ask("report", "results/copied", cwd=tmp_path).code == 0
    assert "No figure curves: it needs run folders" in (study / "report.html").read_text()


@pytest.mark.covers
@pytest.mark.slow
@pytest.mark.usefixtures("few_figures")
def test_a_study_elsewhere_is_a_baseline_by_its_path(trained: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(trained / "results" / "runs", tmp_path / name)
    command = ("second", "--baseline", "first")
    assert "relu study=second vs relu study=first" in ask("compare", *command, cwd=tmp_path).out
    answer = ask("plot", *command, cwd=tmp_path)
    assert answer.err == (
        "nsrelu-bench: --out: needed where figures are of several studies together\n"
    )
    options = ("--kind", "pairs", "--format", "svg", "--out", "figures")
    assert ask("plot", *command, *options, cwd=tmp_path).out == "figures/pairs.svg\n"
    ask("report", *command, cwd=tmp_path)
    page = (tmp_path / "second" / "report.html").read_text()
    assert "vs study=first" in page
