"""The measures against slow, obvious NumPy, closed forms, and the examples in docs/metrics.md."""

import dataclasses
import doctest
import math
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from nsrelu_bench import metrics
from nsrelu_bench.config.registry import SITE_MEASURES
from nsrelu_bench.errors import UsageError
from nsrelu_bench.metrics import (
    DeadUnitHistory,
    extra_update,
    grad_update,
    parameter_update,
    post_update,
    pre_update,
    weight_update,
)

QUICK = settings(max_examples=20, deadline=None, derandomize=True)

# Halves of small integers: many zeros and ties, and their squares are exact.
HALVES = st.integers(-6, 6).map(lambda i: i / 2)
ANY_SHAPE = st.one_of(
    st.tuples(st.integers(1, 7), st.integers(1, 5)),
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
)
ARRAYS = ANY_SHAPE.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=HALVES))


def tensor(rows) -> Tensor:
    return torch.tensor(np.asarray(rows), dtype=torch.float32)


def relu(array):
    return np.maximum(array, 0)


def leaky(array):
    return np.where(array > 0, array, 0.1 * array)


def units_of(array):
    """The responses of each unit over examples and positions, one list per unit."""
    return [array[:, unit].astype(np.float64).ravel() for unit in range(array.shape[1])]


def treves_rolls(r):
    n, r = len(r), np.abs(r)
    if n == 1 or not np.any(r):
        return None
    return (1 - r.mean() ** 2 / (r**2).mean()) / (1 - 1 / n)


def mean_or_none(values):
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None


def slow_dead(post):
    return sum(all(value == 0 for value in unit) for unit in units_of(post))


def slow_dormant(post):
    activity = [np.mean(np.abs(unit)) for unit in units_of(post)]
    return sum(score <= 0.025 * np.mean(activity) for score in activity)


def slow_lifetime(post):
    return mean_or_none([treves_rolls(unit) for unit in units_of(post)])


def slow_population(post):
    return mean_or_none([treves_rolls(row) for row in np.array(units_of(post)).T])


def slow_effective_rank(post):
    matrix = post.reshape(*post.shape[:2], -1).astype(np.float64).mean(axis=2)
    p = np.linalg.svd(matrix, compute_uv=False)
    if p.sum() == 0:
        return 0.0
    p = p[p > 1e-9 * p.max()] / p.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def slow_living(post):
    living = [unit for unit in units_of(post) if any(value != 0 for value in unit)]
    return float(np.mean(np.concatenate(living) == 0)) if living else None


def slow_depth(pre):
    rms = math.sqrt(np.mean(pre.astype(np.float64) ** 2))
    highest = [max(unit) for unit in units_of(pre)]
    depths = [-value / rms if rms else 0.0 for value in highest if value <= 0]
    return float(np.mean(depths)) if depths else None


SLOW_POST = {
    metrics.zero_fraction: lambda post: np.mean(post == 0),
    metrics.living_zero_fraction: slow_living,
    metrics.dead_units: slow_dead,
    metrics.dead_fraction: lambda post: slow_dead(post) / post.shape[1],
    metrics.dormant_units: slow_dormant,
    metrics.lifetime_sparsity: slow_lifetime,
    metrics.population_sparsity: slow_population,
    metrics.effective_rank: slow_effective_rank,
}
SLOW_PRE = {
    metrics.negative_fraction: lambda pre: np.mean(pre <= 0),
    metrics.submerged_units: lambda pre: sum(all(v <= 0 for v in u) for u in units_of(pre)),
    metrics.submerged_fraction: lambda pre: np.mean(
        [all(v <= 0 for v in u) for u in units_of(pre)]
    ),
    metrics.pre_rms: lambda pre: math.sqrt(sum(float(v) ** 2 for v in pre.ravel()) / pre.size),
    metrics.submerged_depth: slow_depth,
}
SLOW_GRAD = {
    metrics.pre_grad_norm: lambda g: math.sqrt(sum(float(v) ** 2 for v in g.ravel())),
    metrics.zero_grad_units: slow_dead,
}


def agree(found, expected):
    if expected is None or isinstance(found, int):
        return found == expected
    return found == pytest.approx(expected, rel=2e-6, abs=2e-6)


@pytest.mark.parametrize("function", SLOW_POST, ids=lambda f: f.__name__)
@pytest.mark.parametrize("activation", [relu, leaky])
@QUICK
@given(pre=ARRAYS)
def test_measures_of_post_agree_with_numpy(function, activation, pre):
    post = activation(pre)
    assert agree(function(post_update(tensor(post))), SLOW_POST[function](post))


@pytest.mark.parametrize("function", SLOW_PRE | SLOW_GRAD, ids=lambda f: f.__name__)
@QUICK
@given(values=ARRAYS)
def test_measures_of_pre_and_its_gradient_agree_with_numpy(function, values):
    slow, update = SLOW_PRE | SLOW_GRAD, pre_update if function in SLOW_PRE else grad_update
    assert agree(function(update(tensor(values))), slow[function](values))


ARRAY_PAIRS = st.integers(1, 6).flatmap(
    lambda n: st.tuples(*[hnp.arrays(np.float32, n, elements=HALVES) for _ in range(2)])
)


@QUICK
@given(st.lists(ARRAY_PAIRS, min_size=1, max_size=3))
def test_measures_of_the_weights_agree_with_numpy(pairs):
    sums = [weight_update(tensor(g), tensor(t)) for g, t in pairs]
    g, t = (np.concatenate(part).astype(np.float64) for part in zip(*pairs, strict=True))
    assert metrics.grad_norm(*sums) == pytest.approx(np.linalg.norm(g))
    opposite = sum(a * b < 0 for a, b in zip(g, t, strict=True))
    assert metrics.sign_disagreement(*sums) == opposite / len(g)
    norms = np.linalg.norm(g) * np.linalg.norm(t)
    if norms:
        assert metrics.surrogate_cosine(*sums) == pytest.approx(g @ t / norms, abs=1e-12)
    else:
        assert metrics.surrogate_cosine(*sums) == (1.0 if (g == t).all() else None)


@QUICK
@given(st.lists(ARRAY_PAIRS, min_size=1, max_size=3))
def test_measures_of_the_extra_gradient_agree_with_numpy(pairs):
    sums = [extra_update(tensor(d), tensor(t)) for d, t in pairs]
    d, t = (np.concatenate(part).astype(np.float64) for part in zip(*pairs, strict=True))
    up = sum(e**2 for e in d - t if e < 0)
    down = sum(e**2 for e in d - t if e > 0)
    whole = up + down + sum(t**2)
    assert metrics.extra_grad_up(*sums) == pytest.approx(math.sqrt(up))
    assert metrics.extra_grad_down(*sums) == pytest.approx(math.sqrt(down))
    fraction = metrics.extra_grad_fraction(*sums)
    assert fraction == (pytest.approx((up + down) / whole) if whole else None)
    assert metrics.extra_grad_up(reduce(add, sums)) == pytest.approx(math.sqrt(up))


@QUICK
@given(st.lists(ARRAYS, min_size=1, max_size=3))
def test_the_weight_norm_agrees_with_numpy(arrays):
    expected = np.linalg.norm(np.concatenate([array.ravel() for array in arrays]))
    sums = [parameter_update(tensor(array)) for array in arrays]
    assert metrics.weight_norm(*sums) == pytest.approx(expected)


@QUICK
@given(pre=ARRAYS, cut=st.integers(1, 6))
def test_nothing_depends_on_the_cut(pre, cut):
    post = tensor(relu(pre))
    whole = post_update(post), pre_update(tensor(pre)), grad_update(tensor(pre))
    parts = zip(post.split(cut), tensor(pre).split(cut), strict=True)
    gathered = [(post_update(a), pre_update(b), grad_update(b)) for a, b in parts]
    summed = gathered[0]
    for sums in gathered[1:]:
        summed = tuple(a + b for a, b in zip(summed, sums, strict=True))
    for tables, one, other in zip((SLOW_POST, SLOW_PRE, SLOW_GRAD), whole, summed, strict=True):
        for function in tables:
            assert agree(function(one), function(other))
    assert torch.equal(whole[0].zeros, summed[0].zeros)
    assert torch.equal(whole[1].nonpositive, summed[1].nonpositive)


def test_large_batches_are_cut_with_the_same_result():
    generator = torch.Generator().manual_seed(0)
    post = torch.randn(40, 16, 32, 32, generator=generator).relu()
    post[:, 3] = 0
    for memory_format in (torch.contiguous_format, torch.channels_last):
        sums = post_update(post.contiguous(memory_format=memory_format))
        for function, slow in SLOW_POST.items():
            if function is not metrics.population_sparsity:  # slow indeed
                assert agree(function(sums), slow(post.numpy()))


# Closed forms -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("post", "rank"),
    [
        (torch.eye(6), 6),
        (torch.ones(9, 4), 1),
        (torch.eye(6)[[0] * 5], 1),
        (torch.eye(6)[[0, 1, 2] * 4], 3),
        (torch.zeros(5, 4), 0),
    ],
)
def test_effective_rank_in_closed_form(post, rank):
    assert metrics.effective_rank(post_update(post)) == pytest.approx(rank, abs=1e-6)


def test_effective_rank_of_given_singular_values():
    generator = torch.Generator().manual_seed(1)
    u, _ = torch.linalg.qr(torch.randn(300, 40, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))
    s = torch.logspace(0, -4, 40, dtype=torch.float64)
    s[30:] = 0
    expected = float(torch.special.entr(s / s.sum()).sum().exp())
    assert metrics.effective_rank(post_update(u * s @ v)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("units", [1, 3, 6, 130])
def test_the_gram_matrix_of_many_examples_is_whole(units):
    post = torch.randn(600, units, dtype=torch.float64)
    assert torch.allclose(post_update(post).gram, post.T @ post, rtol=1e-12)


@pytest.mark.parametrize("index", [metrics.lifetime_sparsity, metrics.population_sparsity])
def test_sparsity_in_closed_form(index):
    assert index(post_update(torch.eye(7))) == pytest.approx(1)
    assert index(post_update(torch.full((7, 7), 3.0))) == pytest.approx(0, abs=1e-6)
    half = torch.eye(4).repeat_interleave(2, 0).repeat_interleave(2, 1)  # 2 of 8 respond
    assert index(post_update(half)) == pytest.approx((1 - 2 / 8) / (1 - 1 / 8))


def test_squares_of_many_small_values_do_not_vanish():
    x = torch.rand(40_000, 6, generator=torch.Generator().manual_seed(0))
    expected = metrics.lifetime_sparsity(post_update(x))
    assert metrics.lifetime_sparsity(post_update(1e-22 * x)) == pytest.approx(expected, rel=1e-5)


def test_effective_rank_leaves_out_the_noise_of_rounding():
    generator = torch.Generator().manual_seed(2)
    left, right = torch.randn(300, 2, generator=generator), torch.randn(2, 200, generator=generator)
    post = left.double() @ right.double()
    assert metrics.effective_rank(post_update(post)) == pytest.approx(
        slow_effective_rank(post.numpy()), rel=1e-6
    )


def test_rounding_leaves_no_value_outside_its_range():
    for count in range(2, 60):  # of these some come out at 1 + 1e-7 and at -1e-7
        for value in (0.1, 0.7, 1.1):
            one = torch.zeros(1, count)
            one[0, 0] = value
            for post in (one, torch.full((1, count), value)):
                assert 0 <= metrics.population_sparsity(post_update(post)) <= 1
    beyond = metrics.WeightSums(0, 1, 1.0, 4.0, 2.0000001, 0)
    assert metrics.surrogate_cosine(beyond) == 1
    assert metrics.surrogate_cosine(dataclasses.replace(beyond, product=-2.0000001)) == -1


@pytest.mark.parametrize("scale", [1e-25, 1e-15, 1e15, 1e25])
def test_squares_neither_overflow_nor_vanish(scale):
    x = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    small, normal = post_update(x * scale), post_update(x)
    small_pre, normal_pre = pre_update(-x * scale), pre_update(-x)
    grows = {metrics.pre_rms}  # as the values do
    for slow, scaled, unscaled in (
        (SLOW_POST, small, normal),
        (SLOW_PRE, small_pre, normal_pre),
    ):
        for function in slow:
            ratio = scale if function in grows else 1
            expected = function(unscaled) * ratio
            assert function(scaled) == pytest.approx(expected, rel=1e-5)
    norm = metrics.pre_grad_norm(grad_update(x))
    assert metrics.pre_grad_norm(grad_update(x * scale)) == pytest.approx(norm * scale, rel=1e-5)
    assert metrics.grad_norm(weight_update(x * scale)) > 0
    whole = metrics.weight_norm(parameter_update(x))
    assert metrics.weight_norm(parameter_update(x * scale)) == pytest.approx(whole * scale)
    extra = extra_update(x * scale, torch.zeros_like(x))
    assert metrics.extra_grad_down(extra) == pytest.approx(whole * scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_counts_are_exact_in_half_precision(dtype):
    post = torch.ones(5000, 2, dtype=dtype)
    post[:3001, 0] = 0
    sums = post_update(post)
    assert sums.zeros.tolist() == [3001, 0]
    assert metrics.zero_fraction(sums) == 3001 / 10000


def test_a_channel_is_dead_only_where_all_positions_are():
    post = torch.zeros(4, 3, 2, 2)
    post[2, 1, 0, 1] = 1e-30
    assert metrics.dead_mask(post_update(post)).tolist() == [True, False, True]


def test_dormant_is_relative_to_the_mean_of_the_layer():
    activity = torch.full((1, 40), 1.0)
    activity[0, :3] = torch.tensor([0.0, 0.0249, 0.0251]) * 37 / (40 - 0.05)
    assert metrics.dormant_mask(post_update(activity)).nonzero().tolist() == [[0], [1]]
    assert metrics.dormant_units(post_update(-1e-6 * activity)) == 2
    assert metrics.dormant_units(post_update(torch.zeros(3, 5))) == 5


def test_a_network_is_the_sum_of_its_sites():
    small, large = post_update(torch.zeros(4, 2)), post_update(torch.eye(6))
    assert metrics.dead_units(small, large) == 2
    assert metrics.dead_fraction(small, large) == 2 / 8
    assert metrics.zero_fraction(small, large) == (8 + 30) / (8 + 36)
    assert metrics.effective_rank(small, large) == pytest.approx(3)
    assert metrics.lifetime_sparsity(small, large) == pytest.approx(1)  # the other has none
    assert metrics.pre_grad_norm(
        grad_update(torch.tensor([[3.0]])), grad_update(torch.tensor([[4.0]]))
    ) == pytest.approx(5)


def test_the_history_of_dead_units():
    masks = [
        torch.tensor(mask)
        for mask in (
            [True, True, False, False],
            [True, False, True, False],
            [False, False, True, False],
        )
    ]
    born = DeadUnitHistory.first(masks[0])
    later = born.then(masks[1])
    last = later.then(masks[2])
    assert (metrics.died_units(born, later), metrics.revived_units(born, later)) == (1, 1)
    assert (metrics.died_units(later, last), metrics.revived_units(later, last)) == (0, 1)
    assert last.ever_dead.tolist() == [True, True, True, False]
    assert last.recovered.tolist() == [True, True, False, False]


# Not finite -------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["one", "all"])
def test_values_that_are_not_finite_give_no_measure(bad, where):
    x = torch.zeros(6, 3) if where == "one" else torch.full((6, 3), bad)
    x[4, 1] = bad
    good = torch.ones(6, 3)
    for table, update in (
        (SLOW_POST, post_update),
        (SLOW_PRE, pre_update),
        (SLOW_GRAD, grad_update),
    ):
        for function in table:
            assert function(update(x)) is None
            assert function(update(good), update(x)) is None
            assert function(update(good) + update(x)) is None
    for function in (metrics.grad_norm, metrics.surrogate_cosine, metrics.sign_disagreement):
        assert function(weight_update(x)) is None
        assert function(weight_update(good, x)) is None
        assert function(weight_update(x, good)) is None
    for function in (metrics.extra_grad_up, metrics.extra_grad_down, metrics.extra_grad_fraction):
        assert function(extra_update(x, good)) is None
        assert function(extra_update(good, x)) is None
    assert metrics.weight_norm(parameter_update(good), parameter_update(x)) is None


NO_SITES = (
    *(*SLOW_POST, *SLOW_PRE, *SLOW_GRAD, metrics.grad_norm, metrics.weight_norm),
    *(metrics.extra_grad_up, metrics.extra_grad_down, metrics.extra_grad_fraction),
)


@pytest.mark.parametrize("function", NO_SITES)
def test_no_sites_give_no_measure(function):
    assert function() is None


def test_large_finite_values_are_finite():
    assert metrics.all_finite(torch.full((3,), 3e38))  # their sum is not
    assert metrics.negative_fraction(pre_update(torch.full((3, 2), -3e38))) == 1
    assert metrics.dead_units(post_update(torch.full((3, 2), 3e38))) == 0


def test_effective_rank_needs_the_gram_matrix():
    with pytest.raises(ValueError, match=r"^the sums were gathered with gram=False: "):
        metrics.effective_rank(post_update(torch.eye(3), gram=False))


def test_counts_need_no_responses():
    counts = post_update(torch.eye(3), response=False)
    assert metrics.zero_fraction(counts + counts) == 6 / 9
    for function in (metrics.dormant_units, metrics.lifetime_sparsity, metrics.population_sparsity):
        with pytest.raises(ValueError, match=r"^the sums were gathered with response=False: "):
            function(counts)


# Documentation ----------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_worked_examples_are_right():
    result = doctest.testfile(str(DOCS), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 20
    assert result.failed == 0


@pytest.mark.parametrize("name", metrics.MEASURES)
def test_every_measure_is_documented(name):
    assert f"### {name}\n" in DOCS.read_text(encoding="utf-8")


@pytest.mark.slow
def test_counts_above_2_to_24_are_exact():
    zeros = torch.zeros(1, 1, 2**24 + 1)
    assert metrics.dead_units(metrics.post_update(zeros, gram=False)) == 1
    assert metrics.zero_fraction(metrics.post_update(zeros, gram=False)) == 1.0


def test_measures_have_the_names_of_the_registry():
    assert list(metrics.MEASURES) == ["loss", "accuracy", *SITE_MEASURES]


def test_no_values_are_an_error():
    with pytest.raises(
        UsageError, match=r"^there is nothing to measure in values of shape \(0, 3\)"
    ):
        metrics.pre_update(torch.zeros(0, 3))
