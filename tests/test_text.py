"""Numbers with the digits that matter."""

import math

import numpy as np
import pytest

from nsrelu_bench.text import (
    decimal_places,
    format_fixed,
    format_p,
    format_percent,
    split_names,
    underflows,
    wrap,
)


@pytest.mark.parametrize(
    ("value", "places", "sign", "text"),
    [
        (-0.04, 1, "", "0.0"),
        (-0.04, 1, "+", "+0.0"),
        (-0.06, 1, "", "-0.1"),
        (2.345, 2, "", "2.35"),
        (11.35, 1, "", "11.3"),
        (np.float64(11.35), 1, "", "11.3"),
        (np.float64(-0.04), 1, "+", "+0.0"),
        (math.inf, 1, "+", "+inf"),
        (math.nan, 1, "", "nan"),
    ],
)
def test_a_number_has_fixed_places_and_no_minus_before_zero(
    value: float, places: int, sign: str, text: str
) -> None:
    assert format_fixed(value, places, sign) == text


@pytest.mark.parametrize(
    ("halves", "places"),
    [
        ([], 1),
        ([0, 0], 1),
        ([5.0], 1),
        ([0.5], 1),
        ([0.05], 2),
        ([0.003, 0, 0.004], 3),
        ([1e-9], 4),
    ],
)
def test_places_show_the_middle_half_width(halves: list[float], places: int) -> None:
    assert decimal_places(halves) == places


def test_a_fraction_in_percent_is_rounded_as_elsewhere() -> None:
    assert format_percent(np.float64(0.1135), 1) == "11.3%"
    assert format_percent(0.125) == "12%"


def test_a_p_value_has_two_digits() -> None:
    assert format_p(0.0312) == "0.031"
    assert format_p(math.nan) == "-"


@pytest.mark.parametrize(
    ("number", "lost"),
    [("1e-400", True), ("-.01E-999", True), ("0e-400", False), ("1e-38", False), ("nan", False)],
)
def test_a_number_too_small_for_a_float_is_noticed(number: str, lost: bool) -> None:
    assert underflows(number) is lost


def test_names_are_taken_apart_at_commas() -> None:
    assert split_names(None) == []
    assert split_names("a, b") == ["a", "b"]
    assert split_names(["a,b", " c"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("line", "room", "broken"),
    [
        (
            "model=examples.tiny_nets:pooled_mlp init=he lr=0.1",
            29,
            "model=examples.tiny_nets:|pooled_mlp init=he lr=0.1",
        ),
        ("act=leaky_relu(0.1)/relu lr=0.1", 20, "act=|leaky_relu(0.1)/relu|lr=0.1"),
        ("init=he act=leaky_relu(0.1)", 19, "init=he|act=leaky_relu(0.1)"),
        ("a_long_name_of_a_function", 12, "a_long_name_|of_a_|function"),
        ("no_mark x" + 12 * "y", 10, "no_mark|x" + 9 * "y" + "|yyy"),
        ("", 5, ""),
    ],
    ids=["colon", "equals", "between", "underscore", "no mark", "empty"],
)
def test_a_line_is_broken_between_words_or_after_a_mark(line: str, room: int, broken: str) -> None:
    lines = wrap(line, room, "")
    assert lines == broken.replace("|", "\n")
    assert all(len(part) <= room for part in lines.split("\n"))


def test_later_lines_are_indented() -> None:
    assert wrap("some words, and more", 12) == "some words,\n  and more"
    assert wrap("some words, and more") == "some words, and more"
