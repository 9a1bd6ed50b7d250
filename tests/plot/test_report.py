"""The report as text: what it says, what is escaped, and that it loads nothing."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.made_up import (
    FRAMES,
    GRID_RUNS,
    LOST_RUNS,
    MADE_UP_CONFIG,
    RELU,
    MadeUp,
    made_up,
    make_runs,
    study,
)
from helpers.tiny_runs import tiny

from nsrelu_bench.compare.comparison import compare
from nsrelu_bench.compare.verdicts import verdict_clauses
from nsrelu_bench.config import FIGURES
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.plot import report
from nsrelu_bench.plot.report_summary import answer, split_verdicts
from nsrelu_bench.records.frames import complete, to_csv
from nsrelu_bench.sweep.execution import execute_run

REPORTED_ENVIRONMENT = {
    "python": "3.11.7",
    "packages": {"torch": "2.15.0"},
    "device": "cpu",
    "git_commit": None,
    "command": ["/env/bin/nsrelu-bench", "sweep", "my study.yaml"],
}


class Page(HTMLParser):
    """The page's ids, text, and the attributes that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.references.append(str(value))
            self.references += [f"#{used}" for used in re.findall(r"url\(#(.+?)\)", str(value))]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def lost_page() -> str:
    """A page with few figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "ORDER", ("tradeoff", "phase"))
        return report.render(
            LOST_RUNS, environments=[REPORTED_ENVIRONMENT] * 2 + [{}], command="nsrelu-bench report"
        )


def test_the_page_says_what_the_study_says(lost_page: str) -> None:
    text = Page(lost_page).text
    comparison = compare(LOST_RUNS.runs, MADE_UP_CONFIG)
    for name, clauses in verdict_clauses(comparison):
        assert name in text
        assert all(clause in text for clause in clauses)
    assert "15 runs: 13 completed, 2 diverged; 3 seeds" in text
    assert "nsrelu(1) 0 diverged 2" in text  # the first of the diverged runs, in epoch 2
    for words in ("seed 0, 1, 2", "epochs 4", "Versions python 3.11.7", "torch 2.15.0"):
        assert words in text


def test_the_commands_that_made_it_can_be_pasted(lost_page: str) -> None:
    assert "2 runs: nsrelu-bench sweep 'my study.yaml' This page: nsrelu-bench report" in (
        Page(lost_page).text
    )
    assert report._command(["/x/kernel.py", "-f"]) == "python /x/kernel.py -f"
    assert report._command("x") == report._command([]) == ""


@pytest.mark.covers
@pytest.mark.slow
def test_every_figure_is_shown_or_said_to_be_missing() -> None:
    """One seed and one epoch are enough for all."""
    assert set(report.ORDER) == set(FIGURES)
    few = made_up(["relu", "nsrelu(0.1)", "nsrelu(1)"], seeds=1, epochs=1)
    page = Page(report.render(few))
    drawn = {kind for kind in FIGURES if kind in page.ids}
    assert set(FIGURES) - drawn == {"phase", "line"}
    assert "No figure phase: none of the pairs" in page.text
    assert page.tags.count("svg") == 2 * len(drawn)
    assert len(page.ids) == len(set(page.ids))


def test_nothing_is_loaded_and_ids_do_not_clash(lost_page: str) -> None:
    page = Page(lost_page)
    assert len(page.ids) == len(set(page.ids))
    local = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert local
    assert local <= set(page.ids)
    assert all(r.startswith(("#", "data:,", "data:image/png;base64,")) for r in page.references)
    assert not re.search(r"https?:|@import", lost_page)
    assert "default-src 'none'" in lost_page


EVIL = "<script>alert('&1')</script>"


@pytest.mark.slow
def test_names_and_messages_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ORDER", ("tradeoff", "gradient_depth"))
    runs = LOST_RUNS.runs.assign(study=EVIL, dataset=EVIL)
    lost = runs["state"] == "diverged"
    runs["error"] = pd.Series(EVIL, index=runs.index).where(lost)
    runs.loc[lost, "run_id"] += EVIL
    text = report.render(
        replace(LOST_RUNS, runs=runs),
        environments=[{"device": EVIL, "packages": {EVIL: EVIL}, "command": [EVIL, EVIL]}],
        command=EVIL,
    )
    assert EVIL not in text
    assert text.count("<script>") == 1
    assert text.count("</script>") == 1
    assert Page(text).text.count("alert('&1')") > 8


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ORDER", ("pairs",))
    few = replace(
        GRID_RUNS, runs=GRID_RUNS.runs[GRID_RUNS.runs["act"].isin(["relu", "nsrelu(0.1)"])]
    )
    shuffled = replace(few, runs=few.runs.sample(frac=1, random_state=1))
    assert report.render(few) == report.render(shuffled)


def test_runs_with_different_settings_are_listed_with_all_values() -> None:
    settings = report._settings(GRID_RUNS.runs, MADE_UP_CONFIG)
    assert settings[0][0] == "act"
    assert ("lr", "0.1, 0.2", True) in settings
    assert ("epochs", "4", False) in settings


def test_many_lost_runs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_LOST", 1)
    monkeypatch.setattr(report, "ORDER", ())
    assert "And 1 more." in report.render(LOST_RUNS)


@pytest.mark.slow
def test_a_study_of_only_the_baseline_has_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ORDER", ("curves",))
    relu: MadeUp = replace(FRAMES, runs=FRAMES.runs[FRAMES.runs["act"] == "relu"])
    text = Page(report.render(relu)).text
    assert "There is nothing to compare relu with." in text
    assert "None: every run completed, and no gradient was lost." in text


@pytest.mark.slow
def test_a_report_is_written_from_run_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "ORDER", ("tradeoff",))
    folder = tmp_path / "study"
    for act in ("relu", "nsrelu(0.1)"):
        config = tiny(act=act, epochs=1)
        list(execute_run(config, folder / config.run_id))
    (folder / "study.yaml").write_text("name: study\nquestion: Does it <learn>?\n")
    out = report.write_report(folder, out=tmp_path / "new" / "page.html", tune=["lr"])
    first = out.read_bytes()
    assert report.write_report(folder, out=out, tune=["lr"]).read_bytes() == first
    text = Page(first.decode()).text
    assert f"nsrelu-bench report {folder} --tune lr" in text
    assert "The question Does it <learn>? No comparison" in text or "Does it <learn>? Of 1" in text
    assert "2 runs: 2 completed; 1 seed." in text
    assert "torch" in text
    with pytest.raises(BenchError, match="no runs in"):
        report.write_report(tmp_path / "none", out=out)


def test_the_first_sentence_answers_the_question() -> None:
    better = study(make_runs("relu", RELU), make_runs("nsrelu(0.1)", [a + 0.2 for a in RELU]))
    comparison = compare(better.assign(test_accuracy=better["test_accuracy"] - 0.3), MADE_UP_CONFIG)
    assert answer(comparison) == (
        "Of 1 comparison with relu, test accuracy is higher in 1 (nsrelu(0.1)); zeros after "
        "activation: equivalent within 2 pp in 1; dead units: not shown to differ in 1."
    )
    shown, others = split_verdicts(comparison)
    assert (len(shown), others) == (1, [])


def test_differences_that_are_not_shown_are_folded() -> None:
    same = study(make_runs("relu", RELU), make_runs("nsrelu(0.1)", RELU[::-1]))
    comparison = compare(same, MADE_UP_CONFIG)
    assert answer(comparison) == (
        "Of 1 comparison with relu, test accuracy is not shown to differ in 1; zeros after "
        "activation: equivalent within 2 pp in 1; dead units: not shown to differ in 1."
    )
    shown, others = split_verdicts(comparison)
    assert (shown, len(others)) == ([], 1)


def test_runs_that_collapsed_or_lost_the_gradient_are_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "ORDER", ())
    name = FRAMES.runs["run_id"]
    runs = FRAMES.runs.assign(collapsed=(name == "nsrelu(1)-0.1-0").astype(float))
    runs["gradient_lost_step"] = np.where(name == "nsrelu(1)-0.1-1", 300.0, np.nan)
    text = Page(report.render(replace(FRAMES, runs=runs))).text
    assert "15 runs: 14 completed, 1 collapsed" in text
    assert "nsrelu(1) 0 collapsed nsrelu(1)-0.1-0" in text
    assert "nsrelu(1) 1 completed 300 nsrelu(1)-0.1-1" in text
    assert "1 of 15 runs diverged or collapsed." in text


def test_studies_with_other_questions_and_metrics_share_a_report(tmp_path: Path) -> None:
    runs = study(make_runs("relu", RELU), make_runs("gelu", RELU))
    folders = [tmp_path / name for name in "ab"]
    for folder, primary in zip(folders, ("grad_norm", "test_accuracy"), strict=True):
        folder.mkdir()
        (folder / "summary.csv").write_text(to_csv(complete(runs.assign(study=folder.name))))
        asked = f"name: {folder.name}\nquestion: What of {folder.name}?\nprimary: {primary}\n"
        (folder / "study.yaml").write_text(asked)
    with pytest.raises(UsageError, match="choose with --primary"):
        report.write_report(*folders, out=tmp_path / "report.html")
    page = report.write_report(*folders, out=tmp_path / "report.html", primary="grad_norm")
    text = page.read_text(encoding="utf-8")
    assert "What of a? What of b?" in text
    assert "--primary grad_norm" in text
