"""Numbers with the digits that matter."""

import math

import pytest

from nsrelu_bench.text import decimal_places, format_fixed, format_p, split_names, underflows


@pytest.mark.parametrize(
    ("value", "places", "sign", "text"),
    [
        (-0.04, 1, "", "0.0"),
        (-0.04, 1, "+", "+0.0"),
        (-0.06, 1, "", "-0.1"),
        (2.345, 2, "", "2.35"),
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
