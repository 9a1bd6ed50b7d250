"""Numbers with the digits that matter."""

import math

import pytest

from nsrelu_bench.text import decimal_places, format_fixed, format_p


@pytest.mark.parametrize(
    ("value", "places", "sign", "text"),
    [
        (-0.04, 1, "", "0.0"),
        (-0.04, 1, "+", "+0.0"),
        (-0.06, 1, "", "-0.1"),
        (2.345, 2, "", "2.35"),
    ],
)
def test_a_number_has_so_many_places_and_no_minus_before_zero(
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
