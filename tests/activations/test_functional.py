import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.activations import NSRELU_FORMS, every_form, every_leak, value_and_gradient

from nsrelu_bench.activations import (
    FWBWMismatch,
    NSReLU,
    Surrogate,
    build,
    nsrelu,
    nsrelu_,
    surrogate,
    true_gradients,
)
from nsrelu_bench.activations.named_functions import DTYPES
from nsrelu_bench.config import activation_spec as labels
from nsrelu_bench.errors import UsageError


def finite_numbers(dtype):
    """Every finite number of a 16-bit type, and of a longer one those of 10,000 random bits."""
    if dtype.itemsize == 2:
        patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    else:
        bits = torch.int32 if dtype == torch.float32 else torch.int64
        limits, generator = torch.iinfo(bits), torch.Generator().manual_seed(0)
        shape = (10_000,)
        patterns = torch.randint(limits.min, limits.max, shape, dtype=bits, generator=generator)
    numbers = patterns.view(dtype)
    return numbers[numbers.isfinite()]


@every_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_is_relu_and_backward_is_leaky(form, dtype):
    x = torch.tensor([-2.0, -0.5, -0.0, 0.0, 0.5, 2.0], dtype=dtype)
    grad = torch.tensor([1.0, -2.0, 4.0, 8.0, 3.0, -5.0], dtype=dtype)
    y, gradient = value_and_gradient(lambda x: form(x, 0.25), x, grad)
    assert y.tolist() == [0, 0, 0, 0, 0.5, 2]
    assert gradient.tolist() == [0.25, -0.5, 1, 2, 3, -5]
    assert y.dtype == gradient.dtype == dtype


@every_form
@every_leak
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forms_agree_with_pytorch_on_finite_numbers(form, leak, dtype):
    x = finite_numbers(dtype)
    grad = x.roll(1234)
    y, gradient = value_and_gradient(lambda x: form(x, leak), x, grad)
    _, leaky = value_and_gradient(lambda x: F.leaky_relu(x, leak), x, grad)
    assert torch.equal(y, F.relu(x))
    assert torch.equal(gradient, leaky)


@every_form
def test_nan_stays_nan(form):
    assert form(torch.tensor([math.nan])).isnan().all()


@every_form
@every_leak
def test_hessian_is_that_of_the_surrogate(form, leak):
    # Forward over reverse mode: every level must see the same slope.
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    slope = torch.tensor([leak, leak, 1.0], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's own, of its forward mode
        hessian = torch.func.hessian(lambda x: form(x, leak).square().sum())(x)
    assert torch.allclose(hessian, torch.diag(2 * slope * slope), rtol=1e-14, atol=0)


@every_form
def test_a_result_changed_in_place_is_right_or_an_error(form):
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    y = form(x).mul_(3)
    if form in (NSRELU_FORMS["in place"], NSRELU_FORMS["function"]):
        # They keep the result, as ReLU does, and autograd notices as it does there.
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    else:
        y.sum().backward()
        assert x.grad.tolist() == pytest.approx([0.3, 3])


@pytest.mark.parametrize("leak", [-1, 1.5, math.nan, math.inf, True, "0.1"])
@pytest.mark.parametrize(
    "call",
    [lambda leak: nsrelu(torch.ones(1), leak), lambda leak: nsrelu_(torch.ones(1), leak), NSReLU],
    ids=["nsrelu", "nsrelu_", "NSReLU"],
)
def test_a_leak_out_of_range_is_refused_as_in_labels(call, leak):
    with pytest.raises(UsageError) as expected:
        labels.check_parameter("leak", leak)
    with pytest.raises(UsageError) as caught:
        call(leak)
    assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda impl: nsrelu(torch.ones(1), impl=impl),
        lambda impl: NSReLU(impl=impl),
        lambda impl: build("relu", impl),
        lambda impl: surrogate(torch.ones(1), "relu/gelu", impl=impl),
        lambda impl: surrogate(torch.ones(1), "relu/relu", impl=impl),
    ],
    ids=["nsrelu", "NSReLU", "build", "surrogate", "tied"],
)
def test_an_unknown_implementation_gets_the_choices(call):
    with pytest.raises(UsageError, match=r"^unknown implementation 'fast'; choose from: native, "):
        call("fast")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize(
    "module",
    [NSReLU(), NSReLU(inplace=True), Surrogate("leaky_relu", "relu")],
    ids=["NSReLU", "in place", "Surrogate"],
)
def test_a_tensor_of_another_type_is_refused(module, dtype):
    name = str(dtype).removeprefix("torch.")
    message = f"activations need a tensor of float16, bfloat16, float32 or float64, got {name}"
    with pytest.raises(TypeError) as caught:
        module(torch.ones(2, dtype=dtype))
    assert str(caught.value) == message
    with true_gradients(module), pytest.raises(TypeError):
        module(torch.ones(2, dtype=dtype))


def test_mismatch_sends_the_gradient_to_its_second_argument():
    x_forward = torch.tensor([1.0, 2.0], requires_grad=True)
    x_backward = torch.tensor([30.0, 40.0], requires_grad=True)
    y = FWBWMismatch.apply(x_forward, x_backward)
    assert torch.equal(y, x_forward)
    y.backward(torch.tensor([5.0, 6.0]))
    assert x_forward.grad is None
    assert x_backward.grad.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3,), [5, 7, 9]), ((2, 1), [[6], [15]]), ((), 21), ((1, 2, 3), None), ((2,), None)],
)
def test_mismatch_sums_the_gradient_where_the_two_broadcast(shape, expected):
    x_backward = torch.zeros(shape, requires_grad=True)
    if expected is None:
        message = rf"^x_backward of shape \({', '.join(map(str, shape))},?\) does not broadcast to "
        with pytest.raises(ValueError, match=message + r"x_forward of shape \(2, 3\)$"):
            FWBWMismatch.apply(torch.zeros(2, 3), x_backward)
        return
    y = FWBWMismatch.apply(torch.zeros(2, 3), x_backward)
    y.backward(torch.arange(1.0, 7).reshape(2, 3))
    assert x_backward.grad.tolist() == expected


def test_mismatch_sums_under_vmap_and_in_forward_mode_too():
    x_forward, x_backward = torch.zeros(4, 2, 3), torch.zeros(3)

    def loss(x_backward):
        y = torch.func.vmap(FWBWMismatch.apply, in_dims=(0, None))(x_forward, x_backward)
        return y.sum()

    assert torch.func.grad(loss)(x_backward).tolist() == [8, 8, 8]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's own, of its forward mode
        _, tangent = torch.func.jvp(loss, (x_backward,), (torch.tensor([1.0, 10.0, 100.0]),))
    assert tangent == 8 * 111
