import warnings

import numpy as np
import pytest
import torch
from helpers.activations import value_and_gradient
from helpers.tiny_runs import tiny

from nsrelu_bench.activations import (
    IMPLS,
    NSReLU,
    Surrogate,
    build,
    from_derivative,
    multiplication_trick,
    surrogate,
)
from nsrelu_bench.activations.named_functions import DTYPES, FUNCTIONS, bsilu
from nsrelu_bench.config import activation_spec as labels
from nsrelu_bench.config.study import make_study
from nsrelu_bench.errors import UsageError


@pytest.mark.parametrize(
    "text", [*labels.FUNCTION_PARAMETERS, "bsilu(0.7)", "nelu(0.7)", "helu(0.7)"]
)
def test_a_function_and_its_module_compute_the_same(text):
    label = labels.parse_activation(text)
    function = FUNCTIONS[label.forward.name]
    x = torch.linspace(-3, 3, 61)
    module = build(label).eval()
    assert torch.equal(module(x), function(x, *label.forward.parameters))
    assert type(module).__module__.startswith("torch.nn") or type(module) is Surrogate


def test_every_function_that_has_a_label_is_implemented():
    assert list(FUNCTIONS) == list(labels.FUNCTION_PARAMETERS)


PLAIN = [name for name in FUNCTIONS if name not in labels.LEARNABLE]
PAIRS = {forward: [f"{forward}/{backward}" for backward in PLAIN] for forward in PLAIN}
PAIRS["others"] = ["leaky_relu(0.2)/leaky_relu(0.3)", *labels.ALIASES]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS)
def test_build_pairs_any_forward_with_any_backward(pairs, impl):
    x, grad = torch.linspace(-3, 3, 61), torch.linspace(1, 2, 61)
    for text in pairs:
        label = labels.parse_activation(text)
        module = build(label, impl).eval()
        assert module is not build(label, impl)
        assert repr(module) == repr(build(text, impl))
        y, gradient = value_and_gradient(module, x, grad)
        forward, backward = (build(str(term)).eval() for term in (label.forward, label.backward))
        # The sum of the detach trick is rounded once more.
        exact = 1e-6 if impl == "detach" else 0
        assert torch.allclose(y, forward(x), rtol=0, atol=exact), text
        assert torch.equal(gradient, value_and_gradient(backward, x, grad)[1]), text


@pytest.mark.parametrize("impl", IMPLS)
def test_build_works_in_place_where_it_can(impl):
    module = build("nsrelu(0.2)", impl, inplace=True)
    assert (module.leak, module.impl, module.inplace) == (0.2, impl, impl == "native")
    assert build("relu", impl, inplace=True).inplace
    assert build("leaky_relu", impl, inplace=True).inplace


def test_a_module_says_what_it_is():
    assert repr(NSReLU()) == "NSReLU(leak=0.1, impl='native')"
    assert repr(NSReLU(1, inplace=True)) == "NSReLU(leak=1, impl='native', inplace=True)"
    assert repr(NSReLU(0.5, "detach")) == "NSReLU(leak=0.5, impl='detach')"
    assert repr(build("leaky_relu/relu")) == "Surrogate(forward=leaky_relu(0.1), backward=relu)"
    shown = "Surrogate(forward=relu, backward=gelu, impl='detach')"
    assert repr(build("relu/gelu", "detach")) == shown
    assert repr(Surrogate(torch.sin, "gelu")) == "Surrogate(forward=sin, backward=gelu)"


@pytest.mark.parametrize("impl", [impl for impl in IMPLS if impl != "native"])
def test_only_native_works_in_place(impl):
    with pytest.raises(UsageError) as caught:
        NSReLU(impl=impl, inplace=True)
    assert str(caught.value) == f"inplace needs implementation 'native', got {impl!r}"


# The formulas of the papers, in NumPy: the derivatives of the functions that are used for theirs.
DERIVATIVES = {
    "relu": lambda x: (x > 0) * 1.0,
    "leaky_relu(0.2)": lambda x: np.where(x > 0, 1.0, 0.2),
    "identity": np.ones_like,
    "elu(2)": lambda x: np.where(x > 0, 1.0, 2 * np.exp(np.minimum(x, 0))),
    "silu": lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x))),
    "softplus(2)": lambda x: sigmoid(2 * x),
    "rrelu(0.1, 0.3)": lambda x: np.where(x > 0, 1.0, 0.2),
    "bsilu(1.67)": lambda x: sigmoid(x) + (x + 1.67) * sigmoid(x) * (1 - sigmoid(x)),
    "nelu(0.05)": lambda x: np.where(x > 0, 1.0, 2 * 0.05 * x / (1 + x**2) ** 2),
    "helu(0.05)": lambda x: (x > -0.05) * 1.0,
}
POINTS = [*np.linspace(-6, 6, 121), -0.05, -0.0, 0.0, -2.735, -1e-8, 1e-8]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def of_tensor(function):
    return lambda x: torch.from_numpy(np.asarray(function(x.detach().numpy())))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", DERIVATIVES)
def test_gradients_are_the_papers_formulas_in_all_three_ways(name, impl):
    x = torch.tensor(POINTS, dtype=torch.float64)
    grad = torch.linspace(-2, 3, len(x), dtype=torch.float64)
    derivative = of_tensor(DERIVATIVES[name])
    forms = {
        "named": lambda x: surrogate(x, "relu", name, impl, training=False),
        "derivative": lambda x: surrogate(x, "relu", from_derivative(derivative), impl),
        "trick": lambda x: multiplication_trick(x, torch.relu, derivative),
    }
    for form in forms.values():
        y, gradient = value_and_gradient(form, x, grad)
        assert torch.allclose(y, x.relu(), rtol=0, atol=1e-15)
        assert torch.allclose(gradient, grad * derivative(x), rtol=1e-12, atol=1e-15)


def test_bsilu_has_the_values_and_slopes_of_the_paper():
    x = torch.tensor([0.0, 2.0, -2.74, -2.73], dtype=torch.float64)
    y, slope = value_and_gradient(lambda x: bsilu(x, 1.67), x, torch.ones_like(x))
    assert y[:2].tolist() == pytest.approx([0, 3.67 * sigmoid(2) - 0.835])
    assert (slope < 0).tolist() == [False, False, True, False]


@pytest.mark.parametrize("impl", IMPLS)
def test_any_function_is_a_forward_or_a_backward(impl):
    x, grad = torch.linspace(-3, 3, 61), torch.linspace(1, 2, 61)
    for forward, backward, value, slope in [
        ("relu", torch.sin, x.relu(), x.cos()),
        (torch.sin, "silu", x.sin(), of_tensor(DERIVATIVES["silu"])(x)),
        (torch.sin, torch.cos, x.sin(), -x.sin()),
        (torch.sin, None, x.sin(), x.cos()),
        ("relu", lambda x: x, x.relu(), 1),  # gives back its very input
        ("relu", torch.exp, x.relu(), x.exp()),  # its gradient reads its result
    ]:
        for form in (
            lambda x, f=forward, b=backward: surrogate(x, f, b, impl),
            Surrogate(forward, backward, impl),
        ):
            before = x.clone()
            y, gradient = value_and_gradient(form, x, grad)
            assert torch.allclose(y, value, rtol=0, atol=1e-5)
            assert torch.allclose(gradient, grad * slope, rtol=1e-5, atol=1e-6)
            assert torch.equal(x, before)


def test_a_pair_may_be_named_in_one_and_relu_left_out():
    x, grad = torch.linspace(-3, 3, 61), torch.ones(61)
    expected = value_and_gradient(lambda x: surrogate(x, "relu/gelu"), x, grad)
    for form in (
        lambda x: surrogate(x, backward="gelu"),
        lambda x: surrogate(x, "relu", "gelu"),
        Surrogate(backward="gelu"),
    ):
        assert all(map(torch.equal, value_and_gradient(form, x, grad), expected))
    assert Surrogate().tied


@pytest.mark.parametrize("impl", IMPLS)
def test_a_random_leak_is_drawn_in_training_only(impl):
    module = Surrogate("relu", "rrelu(0.1, 0.3)", impl)
    x, grad = -torch.rand(1000) - 0.1, torch.ones(1000)
    torch.manual_seed(0)
    y, first = value_and_gradient(module, x, grad)
    _, second = value_and_gradient(module, x, grad)
    assert not y.any()
    assert not torch.equal(first, second)
    assert (first.min() >= 0.1, first.max() <= 0.3) == (True, True)
    assert first.std().item() == pytest.approx(0.2 / 12**0.5, rel=0.1)
    _, gradient = value_and_gradient(module.eval(), x, grad)
    assert torch.allclose(gradient, torch.tensor(0.2))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("text", ["relu/gelu", "relu/bsilu", "relu/nelu", "leaky_relu/relu"])
def test_a_pair_differentiates_twice_and_under_every_transform(text, impl):
    x = torch.linspace(-2, 2, 20, dtype=torch.float64).reshape(4, 5)
    module = build(text, impl)
    label = labels.parse_activation(text)
    value = build(str(label.forward))(x)
    backward = build(str(label.backward))
    first = torch.func.grad(lambda x: backward(x).sum())
    slope, curve = first(x), torch.func.grad(lambda x: first(x).sum())(x)

    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((module(z) * x).sum(), z, create_graph=True)
    assert torch.allclose(gradient, slope * x)
    (second,) = torch.autograd.grad(gradient.sum(), z)
    assert torch.allclose(second, curve * x)

    assert torch.allclose(torch.func.vmap(module)(x), value)
    per_example = torch.func.vmap(torch.func.grad(lambda x: module(x).sum()))(x)
    assert torch.allclose(per_example, slope)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's own, of its forward mode
        primal, tangent = torch.func.jvp(module, (x,), (x,))
    assert torch.allclose(primal, value)
    assert torch.allclose(tangent, slope * x)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_pair_keeps_type_and_memory_format(dtype, impl):
    x = torch.linspace(-3, 3, 120).reshape(2, 3, 4, 5).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    for backward in PLAIN:
        if backward == "rrelu":
            continue  # PyTorch's own does not keep the memory format
        module, grad = build(f"gelu/{backward}", impl).eval(), torch.ones_like(x)
        y, gradient = value_and_gradient(module, x, grad)
        _, expected = value_and_gradient(build(backward).eval(), x, grad)
        assert torch.equal(gradient, expected)
        assert y.dtype == gradient.dtype == dtype
        for tensor in (y, gradient):
            assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("text", ["relu/bsilu", "gelu/leaky_relu"])
def test_a_pair_is_compiled_and_exported_without_a_break(text, impl):
    torch.compiler.reset()
    module, x, grad = build(text, impl), torch.linspace(-2, 2, 20), torch.linspace(1, 2, 20)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    expected = value_and_gradient(module, x, grad)
    assert all(map(torch.allclose, value_and_gradient(compiled, x, grad), expected))
    exported = torch.export.export(module, (x,)).module()
    assert torch.allclose(exported(x), expected[0])


@pytest.mark.parametrize("backward", PLAIN)
def test_the_native_form_never_needs_the_result_it_overwrites(backward):
    # Only autograd's check of versions stands between an overwritten result and a wrong gradient.
    # It would raise here if a version of PyTorch computed a gradient from the result.
    x, grad = torch.linspace(-3, 3, 61), torch.ones(61)
    torch.manual_seed(0)
    _, gradient = value_and_gradient(Surrogate("gelu", backward), x, grad)
    torch.manual_seed(0)
    _, expected = value_and_gradient(Surrogate(backward).train(), x, grad)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("text", ["relu/gelu", "relu/elu", "relu/nelu", "relu/softplus"])
def test_pull_backs_nest_and_saved_tensors_move(text, impl):
    x, v = (
        torch.linspace(-2, 2, 12).double().view(4, 3),
        torch.linspace(1, 2, 12).double().view(4, 3),
    )
    module = build(text, impl)
    expected = value_and_gradient(module, x, v)[1]

    def pull_back(x, v):
        return torch.func.vjp(module, x)[1](v)[0]

    assert torch.allclose(torch.func.vmap(pull_back)(x, v), expected)
    second = torch.func.vjp(lambda v: pull_back(x, v), v)[1](v)[0]
    assert torch.allclose(second, expected)
    with torch.autograd.graph.save_on_cpu():
        z = x.clone().requires_grad_()
        y = module(z * 1)
    y.backward(v)
    assert torch.allclose(z.grad, expected)


def test_bsilu_in_float16_has_no_nan_where_the_product_overflows():
    x, grad = torch.tensor([66.0, -66.0, 0.0]).half(), torch.tensor([1000.0] * 3).half()
    _, gradient = value_and_gradient(Surrogate("relu", "bsilu"), x, grad)
    _, expected = value_and_gradient(Surrogate("relu", "bsilu"), x.double(), grad.double())
    assert torch.allclose(gradient.double(), expected, rtol=1e-3, atol=1e-3)


def test_rrelu_in_float16_on_the_cpu_is_refused_in_one_line():
    with pytest.raises(
        TypeError, match=r"^rrelu takes no float16 on the CPU: PyTorch has no kernel"
    ):
        surrogate(torch.ones(2).half(), "relu/rrelu", impl="detach")


def test_functions_with_a_weight_make_no_pair():
    for make in (Surrogate, lambda name: surrogate(torch.ones(2), name)):
        with pytest.raises(UsageError, match=r"^prelu has a weight of its own: build\('prelu"):
            make("prelu")


def test_spellings_of_one_activation_are_one_run():
    spellings = ["ste", "nsrelu(1)", "relu/identity", "relu/leaky_relu(1.0)"]
    assert len({tiny(act=act).run_id for act in spellings}) == 1
    assert tiny(act="relu", backward="bsilu", alpha=1.67) == tiny(act="relu/bsilu")
    assert tiny(act="relu/bsilu", impl="detach").run_id != tiny(act="relu/bsilu").run_id
    assert tiny(act="bsilu", impl="detach").run_id == tiny(act="bsilu").run_id


def test_a_study_takes_any_backward_with_its_forward():
    (one,) = make_study({"act": "relu", "backward": "bsilu", "alpha": 1.5}, "one").runs
    assert one.act == "relu/bsilu(1.5)"
    study = make_study({"act": "relu", "grid": {"backward": ["gelu", "leaky_relu(0.2)"]}}, "two")
    assert [config.act for config in study.runs] == ["relu/gelu", "nsrelu(0.2)"]
    assert tiny(backward="gelu").act == "relu/gelu"
    assert tiny(leak=0.3).act == "nsrelu(0.3)"
