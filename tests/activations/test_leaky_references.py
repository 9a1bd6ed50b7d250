import math

import pytest
import torch
import torch.nn.functional as F
from helpers.activations import value_and_gradient

from examples.leaky_relu import LeakyReLUFunction, leaky_relu_clamp, leaky_relu_where


@pytest.mark.parametrize(
    ("reference", "slopes_at_0"),
    [
        (leaky_relu_clamp, [0.0, 1.25]),  # as PyTorch has it for clamp, which changed
        (leaky_relu_where, [1.0]),
        (LeakyReLUFunction.apply, [0.25]),
    ],
    ids=["clamp", "where", "Function"],
)
def test_references_differ_only_in_the_gradient_at_0(reference, slopes_at_0):
    x = torch.tensor([-math.inf, -3.0, -0.5, 0.5, 3.0, math.inf, math.nan])
    grad = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0])
    y, gradient = value_and_gradient(lambda x: reference(x, 0.25), x, grad)
    expected, expected_gradient = value_and_gradient(lambda x: F.leaky_relu(x, 0.25), x, grad)
    assert torch.equal(y[:-1], expected[:-1])
    assert y[-1].isnan()
    assert torch.equal(gradient, expected_gradient)
    y, gradient = value_and_gradient(
        lambda x: reference(x, 0.25), torch.tensor([0.0, -0.0]), torch.ones(2)
    )
    assert y.tolist() == [0, 0]
    assert gradient[0] == gradient[1]
    assert gradient[0] in slopes_at_0


@pytest.mark.parametrize("reference", [leaky_relu_clamp, leaky_relu_where])
def test_references_have_the_default_slope_of_the_project(reference):
    assert reference(torch.tensor([-1.0, 1.0])).tolist() == pytest.approx([-0.1, 1])


def test_the_reference_function_works_with_vmap_and_twice():
    x = torch.tensor([[-2.0, 3.0], [0.0, -1.0]], dtype=torch.float64)
    y = torch.func.vmap(lambda x: LeakyReLUFunction.apply(x, 0.25))(x)
    assert torch.equal(y, F.leaky_relu(x, 0.25))
    assert torch.autograd.gradgradcheck(
        lambda x: LeakyReLUFunction.apply(x, 0.25) ** 2, (x + 0.5).requires_grad_()
    )
