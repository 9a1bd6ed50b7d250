"""The same numbers as a table, csv, json, markdown and latex."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from helpers.made_up import CONFIG, RELU, TWO, make_runs, study

from nsrelu_bench.compare import comparison as c
from nsrelu_bench.compare import tables
from nsrelu_bench.compare.tables import format_table
from nsrelu_bench.errors import UsageError


def test_the_table_in_full() -> None:
    text = format_table(c.compare(TWO, CONFIG, metrics=["test_accuracy", "grad_norm"]))
    assert text.splitlines()[:4] == [
        "digits, mlp, epochs 5, lr 0.1",
        "activation   runs  diverged  accuracy %      grad norm  vs relu pp      p",
        "relu            6         0  92.5 ± 2.0  1.925 ± 0.020           -      -",
        "nsrelu(0.1)     6         0  94.0 ± 2.1  1.940 ± 0.021  +1.5 ± 0.6  0.031",
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_terminal_is_not_overrun_and_names_are_not_cut(width: int) -> None:
    runs = study(TWO, make_runs("leaky_relu(0.1)", RELU))
    text = re.sub(r"\x1b\[\d+m", "", format_table(c.compare(runs, CONFIG), width=width))
    assert max(map(len, text.splitlines())) <= width
    assert "leaky_relu(0.1)" in text


def test_a_pipe_gets_whole_lines_without_escapes() -> None:
    text = format_table(c.compare(TWO, CONFIG))
    assert "\x1b" not in text
    assert "…" not in text


def test_csv_is_the_rows() -> None:
    comparison = c.compare(TWO, CONFIG)
    back = pd.read_csv(io.StringIO(format_table(comparison, "csv")))
    pd.testing.assert_frame_equal(back, comparison.rows, check_dtype=False, rtol=0, atol=0)


def test_json_has_null_for_nothing() -> None:
    content = json.loads(
        format_table(c.compare(TWO, CONFIG), "json"),
        parse_constant=lambda name: pytest.fail(name),
    )
    assert content["rows"][0]["p"] is None
    assert content["verdicts"][0].startswith("nsrelu(0.1) vs relu: accuracy +1.5 pp")


def test_markdown_and_latex_are_well_formed() -> None:
    comparison = c.compare(TWO, CONFIG)
    table = [x for x in format_table(comparison, "md").splitlines() if x.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    latex = format_table(comparison, "latex")
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(body) == 3
    assert len({line.count("&") for line in body}) == 1
    assert not re.search(r"(?<!\\)[%_]", "".join(body))


def test_an_unknown_format_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match="unknown format 'xls'; choose from: table, csv, json"):
        format_table(c.compare(TWO, CONFIG), "xls")


def test_numbers_have_the_places_that_their_error_shows() -> None:
    assert tables._two_digits(0.327, 0.012) == 3
    assert tables._two_digits(1e-7, 1e-8) is None
    assert tables._two_digits(2.0, np.nan) is None
