"""The same numbers as a table, csv, json, markdown and latex."""

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.made_up import BETTER, MADE_UP_CONFIG, RELU, TWO, lose, make_runs, study

from nsrelu_bench.compare import columns, metrics_for
from nsrelu_bench.compare import comparison as c
from nsrelu_bench.compare.tables import VERBOSE, format_table
from nsrelu_bench.errors import UsageError


def lines_of(comparison: c.Comparison, **options: bool) -> list[list[str]]:
    """Return the cells of a table, which are two or more blanks apart."""
    text = format_table(comparison, **options)
    return [re.split(r"  +", line) for line in text.splitlines()]


def test_the_table_in_full() -> None:
    text = format_table(c.compare(TWO, MADE_UP_CONFIG, metrics=["test_accuracy", "grad_norm"]))
    assert text.splitlines()[:4] == [
        "digits, mlp, epochs 5, lr 0.1",
        "activation   runs  diverged  accuracy %      grad norm       vs relu pp  pairs  adj. p"
        "  verdict",
        "relu            6         0  92.5 ± 2.0  1.925 ± 0.020                -      -       -"
        "        -",
        "nsrelu(0.1)     6         0  94.0 ± 2.1  1.940 ± 0.021  +1.5 [1.0, 2.0]      6   0.031"
        "   higher",
    ]


def test_few_values_are_shown_themselves() -> None:
    lines = lines_of(c.compare(TWO.query("seed < 4"), MADE_UP_CONFIG, metrics=["test_accuracy"]))
    assert lines[3] == [
        *("nsrelu(0.1)", "4", "0", "92.0, 92.0, 93.0, 95.0", "+2.0, +1.0, +1.0, +2.0"),
        *("4", "-", "not shown: ~6 seeds"),
    ]


def test_two_survivors_have_no_interval() -> None:
    runs = study(TWO, lose(make_runs("nsrelu(1)", BETTER), [0, 1, 2, 3]))
    lines = lines_of(c.compare(runs, MADE_UP_CONFIG, metrics=["test_accuracy", "grad_norm"]))
    assert lines[4][:5] == ["nsrelu(1)", "6", "4", "95.0, 97.0", "1.95, 1.97"]


def test_an_interval_that_is_cut_off_has_its_ends() -> None:
    runs = make_runs("relu", [0.99, 1.0, 1.0, 1.0, 0.97])
    lines = lines_of(c.compare(runs, MADE_UP_CONFIG, metrics=["test_accuracy"]))
    assert lines[2] == ["relu", "5", "0", "99.2 [97.6, 100.0]"]


def test_only_the_seeds_in_common_are_said_to_be_paired() -> None:
    later = make_runs("nsrelu(0.1)", BETTER).query("seed > 1")
    lines = lines_of(c.compare(study(make_runs("relu", RELU), later), MADE_UP_CONFIG))
    assert lines[3][-3:] == ["4", "-", "not shown: ~6 seeds"]
    none = later.assign(seed=later["seed"] + 10)
    assert (
        "pairs" not in lines_of(c.compare(study(make_runs("relu", RELU), none), MADE_UP_CONFIG))[1]
    )


def test_a_metric_outside_the_family_has_its_raw_p() -> None:
    lines = lines_of(c.compare(TWO, MADE_UP_CONFIG, metrics=["grad_norm"]))
    assert lines[1][-3:] == ["vs relu", "pairs", "raw p"]
    assert lines[3][-3:] == ["+0.0150 [0.0100, 0.0200]", "6", "0.031"]


def test_failures_have_a_table_of_their_own() -> None:
    runs = study(TWO, lose(make_runs("nsrelu(1)", BETTER), [0, 1, 2, 3]))
    runs.loc[0, "collapsed"] = 1
    lines = lines_of(c.compare(runs, MADE_UP_CONFIG, metrics=["test_accuracy"]))
    assert lines[1][:4] == ["activation", "runs", "diverged", "collapsed"]
    assert lines[6] == ["digits, mlp, epochs 5, lr 0.1: every run that finished"]
    assert lines[7] == [
        *("activation", "failed to train", "share %", "McNemar p", "accuracy %, all runs"),
        *("median", "interquartile mean", "P(> relu) %"),
    ]
    assert lines[8] == ["relu", "1/6", "17 [0, 64]", "-", "92.5 ± 2.0", "92.5", "92.5", "-"]
    assert lines[10] == [
        *("nsrelu(1)", "4/6", "67 [22, 96]", "0.25", "38.7 [0.0, 85.3]", "10.0", "31.2"),
        "33 [4, 78]",
    ]


def test_medians_can_be_asked_for() -> None:
    comparison = c.compare(TWO, MADE_UP_CONFIG)
    assert "interquartile mean" not in format_table(comparison)
    assert "interquartile mean" in format_table(comparison, detail=True)


@pytest.mark.parametrize(
    ("verdict", "short"),
    [
        ("not shown: ~39 seeds", "~39 seeds"),
        ("not shown: > 10,000 seeds", "> 10,000 seeds"),
        ("not shown: the difference is 0", "not shown: the difference is 0"),
        ("equivalent within 1 pp", "equivalent"),
        ("lower, equivalent within 0.05", "lower, equivalent"),
        ("higher", "higher"),
    ],
)
def test_a_verdict_in_a_narrow_table_is_short(verdict: str, short: str) -> None:
    assert VERBOSE.sub("", verdict) == short


def test_the_usual_table_fits_a_terminal_in_two_blocks() -> None:
    runs = study(TWO, make_runs("leaky_relu(0.1)", BETTER)).assign(submerged_fraction=0.25)
    runs = runs.assign(negative_fraction=runs["zero_fraction"], lr=0.001)
    text = re.sub(r"\x1b\[\d+m", "", format_table(c.compare(runs, MADE_UP_CONFIG), width=80))
    heads = [line.split() for line in text.splitlines() if line.startswith("activation ")]
    assert [head[-1] for head in heads] == ["%", "verdict"]
    assert "equivalent within 2 pp" in text  # in words, below


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_terminal_is_not_overrun_and_names_are_not_cut(width: int) -> None:
    runs = study(TWO, make_runs("leaky_relu(0.1)", RELU))
    text = re.sub(r"\x1b\[\d+m", "", format_table(c.compare(runs, MADE_UP_CONFIG), width=width))
    assert max(map(len, text.splitlines())) <= width
    assert "leaky_relu(0.1)" in text


def test_a_pipe_gets_whole_lines_without_escapes() -> None:
    text = format_table(c.compare(TWO, MADE_UP_CONFIG))
    assert "\x1b" not in text
    assert "…" not in text


def test_csv_is_the_rows() -> None:
    comparison = c.compare(TWO, MADE_UP_CONFIG)
    back = pd.read_csv(io.StringIO(format_table(comparison, "csv")))
    back["verdict"] = back["verdict"].fillna("")
    pd.testing.assert_frame_equal(back, comparison.rows, check_dtype=False, rtol=0, atol=0)


def test_json_has_null_for_nothing() -> None:
    content = json.loads(
        format_table(c.compare(TWO, MADE_UP_CONFIG), "json"),
        parse_constant=lambda name: pytest.fail(name),
    )
    assert content["rows"][0]["p"] is None
    assert content["verdicts"][0].startswith("nsrelu(0.1) vs relu: accuracy +1.5 pp")
    assert (content["primary"], content["tests"]) == ("test_accuracy", 3)
    assert content["margins"] == {"test_accuracy": 0.01, "zero_fraction": 0.02}
    words = {row["metric"]: row["verdict"] for row in content["rows"] if row["p"]}
    assert words["test_accuracy"] == "higher"
    assert words["zero_fraction"] == "equivalent within 2 pp"


def test_json_has_the_values_where_they_are_few() -> None:
    content = json.loads(format_table(c.compare(TWO.query("seed < 4"), MADE_UP_CONFIG), "json"))
    first = content["rows"][4]
    assert first["values"] == [0.92, 0.92, 0.93, 0.95]
    assert first["differences"] == pytest.approx([0.02, 0.01, 0.01, 0.02])
    assert (
        "values" not in json.loads(format_table(c.compare(TWO, MADE_UP_CONFIG), "json"))["rows"][0]
    )


def test_markdown_and_latex_are_well_formed() -> None:
    comparison = c.compare(TWO, MADE_UP_CONFIG)
    table = [x for x in format_table(comparison, "md").splitlines() if x.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    latex = format_table(comparison, "latex")
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(body) == 3
    assert len({line.count("&") for line in body}) == 1
    assert not re.search(r"(?<!\\)[%_]", "".join(body))
    assert "equivalent within 2 pp" in latex


#: An activation whose name is all that LaTeX reads as something else.
STRANGE = "a^b~c\\d{e}<f>#&$\ng_%"

#: A study in which a setting varies, one activation is better, one is as good, and one diverged.
PAPER = study(
    TWO,
    TWO.assign(lr=0.01, run_id=TWO["run_id"] + "b", grad_norm=1.2e-7),
    make_runs("leaky_relu(0.1)", RELU).assign(dead_fraction=0.0),
    lose(make_runs("nsrelu(1)", RELU), [0, 1]),
    make_runs(STRANGE, RELU),
).assign(negative_fraction=0.5)


def test_latex_reads_names_as_they_are() -> None:
    latex = format_table(c.compare(PAPER, MADE_UP_CONFIG), "latex")
    escaped = r"a\textasciicircum{}b\textasciitilde{}c\textbackslash{}d\{e\}$<$f$>$\#\&\$ g\_\%"
    assert f"{escaped} & 0.1 & " in latex


def test_a_latex_table_is_made_for_a_paper() -> None:
    latex = format_table(c.compare(PAPER, MADE_UP_CONFIG), "latex")
    lines = latex.splitlines()
    assert r"\label{tab:s}" in lines
    head = r"activation & lr & diverged & accuracy (\%) & zeros (\%) & dead (\%) & vs.\ relu (pp)"
    assert rf"{head} & adj.\ $p$ \\" in lines
    better = next(line for line in lines if line.startswith("nsrelu(0.1) & 0.1"))
    assert r"\textbf{94.0} $\pm$ 2.1$^{\uparrow}$ & " in better
    assert r"\textbf{50.0} $\pm$ 0.0$^{\approx}$" in better
    assert "$+1.5$ [1.0, 2.0]" in better
    assert r"\textbf{0.0} $\pm$ 0.0$^{\downarrow}$ & $+0.0$" in latex
    lost = next(line for line in lines if line.startswith("nsrelu(1) & 0.1"))
    assert r"\textbf" not in lost
    assert r"$-26.8$ [" in lost
    assert lines.count(r"\addlinespace") == 1
    caption = next(line for line in lines if line.startswith(r"\caption"))
    assert r"$\approx$: equivalent within 1 pp of test accuracy" in caption
    assert "($p < 0.05$, adjusted for 13 tests)" in caption


def test_latex_writes_powers_of_ten_and_comparisons() -> None:
    comparison = c.compare(PAPER, MADE_UP_CONFIG)
    latex = format_table(comparison, "latex", columns=["negative_fraction", "grad_norm"])
    assert r"& inputs $\le 0$ (\%) & grad norm \\" in latex
    assert r"$1.2 \times 10^{-7}$" in latex


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
@pytest.mark.parametrize("chosen", [None, ["runs", "negative_fraction", "grad_norm", "verdict"]])
def test_latex_compiles(chosen: list[str] | None, tmp_path: Path) -> None:
    table = format_table(c.compare(PAPER, MADE_UP_CONFIG), "latex", columns=chosen)
    packages = r"\documentclass{article}\usepackage{booktabs}"
    document = rf"{packages}\begin{{document}}{table}\end{{document}}"
    (tmp_path / "paper.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "Missing character" not in done.stdout


def test_columns_can_be_chosen() -> None:
    keys = ["runs", "zero_fraction", "diff", "zero_fraction:diff", "zero_fraction:p"]
    comparison = c.compare(TWO, MADE_UP_CONFIG)
    lines = [re.split(r"  +", x) for x in format_table(comparison, columns=keys).splitlines()]
    header = ["activation", "runs", "zeros %", "vs relu pp", "zeros vs relu pp", "zeros adj. p"]
    assert lines[1] == header
    assert lines[3][4:] == ["+0.0 [0.0, 0.0]", "1"]
    with pytest.raises(UsageError, match="unknown column 'zeros'; choose from: runs, diverged"):
        format_table(comparison, columns=["zeros"])
    with pytest.raises(UsageError, match="columns are for the formats table, md and latex, not"):
        format_table(comparison, "csv", columns=["runs"])
    assert metrics_for(keys, None, TWO) == ["test_accuracy", "zero_fraction"]


def test_an_unknown_format_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match="unknown format 'xls'; choose from: table, csv, json"):
        format_table(c.compare(TWO, MADE_UP_CONFIG), "xls")


def test_numbers_have_the_places_that_their_error_shows() -> None:
    assert columns.two_digits(0.327, 0.012) == 3
    assert columns.two_digits(1e-7, 1e-8) is None
    assert columns.two_digits(2.0, np.nan) is None


def test_the_column_of_a_measure_that_no_run_took_is_asked_for() -> None:
    assert metrics_for(["weight_norm", "runs"], None, TWO) == ["test_accuracy", "weight_norm"]
