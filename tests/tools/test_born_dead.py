import pytest

from nsrelu_bench.errors import UsageError
from nsrelu_bench.tools.born_dead import born_dead


@pytest.mark.parametrize(("width", "expected"), [(2, 0.878), (3, 0.580), (5, 0.126), (10, 0.0009)])
def test_a_calculation_made_elsewhere_is_met(width: int, expected: float) -> None:
    assert born_dead(width, 10, trials=20_000).probability == pytest.approx(expected, abs=0.01)


def test_one_hidden_layer_is_dead_by_hand() -> None:
    # One input: a unit is off at +1 or at -1, never at both.
    assert born_dead(1, 2, trials=1000).dead == 0
    # One unit a layer: each further layer is off with probability 1/2.
    assert born_dead(1, 3).probability == pytest.approx(1 / 2, abs=0.01)
    assert born_dead(1, 4).probability == pytest.approx(3 / 4, abs=0.01)


def test_the_interval_holds_the_probability_at_zero_too() -> None:
    found = born_dead(20, 3, trials=500)
    assert found.dead == 0
    assert found.interval[0] == 0.0
    assert 0 < found.interval[1] < 0.02


def test_the_same_seed_gives_the_same_count_and_another_another() -> None:
    assert born_dead(3, 10) == born_dead(3, 10)
    assert born_dead(3, 10).dead != born_dead(3, 10, seed=1).dead


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ((0, 3, 10), "width: must be at least 1, got 0"),
        ((2, 1, 10), "depth: must be at least 2, got 1"),
        ((2, 3, 0), "trials: must be at least 1, got 0"),
    ],
)
def test_sizes_that_make_no_network_are_refused(sizes: tuple[int, int, int], line: str) -> None:
    with pytest.raises(UsageError) as error:
        born_dead(sizes[0], sizes[1], trials=sizes[2])
    assert str(error.value) == line


def test_wide_networks_need_little_memory() -> None:
    assert born_dead(1500, 3, trials=5).dead == 0
