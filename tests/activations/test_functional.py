import copy
import doctest
import io
import math
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_runs import tiny
from torch import nn

from nsrelu_bench import models
from nsrelu_bench.activations.functional import (
    DTYPES,
    FUNCTIONS,
    IMPLS,
    FWBWMismatch,
    LeakyReLUFunction,
    bsilu,
    from_derivative,
    leaky_relu_clamp,
    leaky_relu_where,
    multiplication_trick,
    nsrelu,
    nsrelu_,
    surrogate,
)
from nsrelu_bench.activations.modules import NSReLU, Surrogate, build, true_gradients
from nsrelu_bench.config import activation_spec as labels
from nsrelu_bench.config.study import make_study
from nsrelu_bench.errors import UsageError
from nsrelu_bench.models import build_model
from nsrelu_bench.training.loop import run


def in_place(x, leak=0.1):
    return nsrelu_(x.clone(), leak)


def form(impl):
    return lambda x, leak=0.1: nsrelu(x, leak, impl)


# Every way to compute NSReLU.
FORMS = {impl: form(impl) for impl in IMPLS} | {"in place": in_place}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
every_leak = pytest.mark.parametrize("leak", [0.0, 0.01, 0.1, 0.3333, 1.0])


def value_and_gradient(function, x, grad):
    x = x.clone().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y, x, grad)[0]


def every_finite(dtype):
    """Every finite number of a 16-bit type."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
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
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_forms_agree_with_pytorch_on_every_finite_number(form, leak, dtype):
    x = every_finite(dtype)
    grad = x.roll(12345)
    y, gradient = value_and_gradient(lambda x: form(x, leak), x, grad)
    _, leaky = value_and_gradient(lambda x: F.leaky_relu(x, leak), x, grad)
    assert torch.equal(y, F.relu(x))
    assert torch.equal(gradient, leaky)


@every_form
@every_leak
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forms_agree_with_pytorch_on_random_bits(form, leak, dtype):
    generator = torch.Generator().manual_seed(0)
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    info = torch.iinfo(bits)
    x = torch.randint(info.min, info.max, (10_000,), dtype=bits, generator=generator).view(dtype)
    x = x[x.isfinite()]
    grad = x.flip(0)
    y, gradient = value_and_gradient(lambda x: form(x, leak), x, grad)
    _, leaky = value_and_gradient(lambda x: F.leaky_relu(x, leak), x, grad)
    assert torch.equal(y, F.relu(x))
    assert torch.equal(gradient, leaky)


@every_form
def test_nan_stays_nan(form):
    assert form(torch.tensor([math.nan])).isnan().all()


@every_form
def test_leak_1_passes_the_gradient_straight_through(form):
    grad = torch.tensor([1.0, 2.0, 3.0])
    _, gradient = value_and_gradient(lambda x: form(x, 1), torch.tensor([-1.0, 0.0, 1.0]), grad)
    assert torch.equal(gradient, grad)


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
def test_a_result_changed_in_place_gives_the_right_gradient_or_an_error(form):
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    y = form(x).mul_(3)
    if form in (FORMS["in place"], FORMS["function"]):
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
def test_a_leak_out_of_range_gets_the_message_that_labels_give(call, leak):
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
def test_an_unknown_implementation_is_named_with_those_that_there_are(call):
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


# In place


@every_leak
def test_in_place_overwrites_its_input_and_keeps_the_gradient(leak):
    x = torch.tensor([-1.0, -0.0, 0.0, 2.0, -math.inf, math.inf], requires_grad=True)
    copied = x.clone()
    y = NSReLU(leak, inplace=True)(copied)
    assert y.data_ptr() == copied.data_ptr()
    assert torch.equal(y, F.relu(x))
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad, torch.where(x > 0, 1.0, leak))


def test_in_place_refuses_a_leaf_and_leaves_it_as_it_was():
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        nsrelu_(x)
    assert x.tolist() == [-1, 2]


def test_in_place_tells_whoever_saved_the_input():
    x = torch.ones(2, requires_grad=True).exp()  # exp's backward needs its result
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nsrelu_(x).sum().backward()


def test_in_place_on_a_view_reaches_the_base():
    x = torch.tensor([[-1.0, 2.0], [3.0, -4.0]], requires_grad=True)
    base = x.clone()
    nsrelu_(base[0])
    base.sum().backward()
    assert base.tolist() == [[0, 2], [3, -4]]
    assert torch.equal(x.grad, torch.tensor([[0.1, 1.0], [1.0, 1.0]]))


def kept_storages(model, x):
    """How many tensors autograd keeps for the backward, parameters apart."""
    parameters = {p.data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, or its address might be given to another
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x)
    return len(kept.keys() - parameters)


@pytest.mark.parametrize(
    ("activation", "tensors_a_site"),
    [
        (lambda: nn.ReLU(), 1),
        (lambda: nn.ReLU(inplace=True), 1),
        (lambda: NSReLU(inplace=True), 1),
        (lambda: NSReLU(impl="function"), 1),
        (lambda: NSReLU(0), 1),
        (lambda: NSReLU(), 2),
        (lambda: nn.LeakyReLU(0.1), 2),
    ],
    ids=["relu", "relu_", "in place", "function", "leak 0", "native", "leaky_relu"],
)
def test_in_place_keeps_as_little_for_the_backward_as_relu(activation, tensors_a_site):
    layers = [layer for _ in range(3) for layer in (nn.Linear(8, 8), activation())]
    model = nn.Sequential(*layers, nn.Linear(8, 8))
    assert kept_storages(model, torch.ones(4, 8)) == 1 + 3 * tensors_a_site


def test_in_place_trains_as_the_plain_form():
    def gradients(inplace):
        torch.manual_seed(0)
        layers = [nn.Linear(8, 8), NSReLU(0.1, inplace=inplace), nn.Linear(8, 8)]
        model = nn.Sequential(*layers, NSReLU(0.1, inplace=inplace), nn.Linear(8, 1))
        model(torch.randn(16, 8)).square().mean().backward()
        return [p.grad for p in model.parameters()]

    assert all(map(torch.equal, gradients(True), gradients(False)))


# In place in the project's models

RUNS = [
    {"act": "relu"},
    {"act": "leaky_relu(0.1)"},
    {"act": "leaky_relu(0)"},
    {"act": "nsrelu(0.1)", "batch_norm": True},
    {"act": "nsrelu(0.01)", "model": "cnn", "dropout": 0.2},
    {"act": "nsrelu(1)", "model": "cnn", "batch_norm": True},
]


def sites(model):
    return [module for name, module in model.named_modules() if name.startswith("act")]


def epochs(**settings):
    return [(epoch.metrics, epoch.layers) for epoch in run(tiny(**settings))]


@pytest.mark.parametrize("settings", RUNS, ids=str)
def test_a_run_in_place_has_the_numbers_of_one_out_of_place(settings, monkeypatch):
    # Of the probe too: it must see the pre-activation, which is overwritten.
    in_place = epochs(**settings)
    used = []

    def out_of_place(label, impl="native", inplace=False):
        used.append(inplace)
        return build(label, impl)

    monkeypatch.setattr(models, "build", out_of_place)
    plain = epochs(**settings)
    assert all(used)
    assert used
    assert in_place == plain
    assert 0 < plain[-1][0]["negative_fraction"] < 1
    assert plain[-1][0]["pre_grad_norm"] > 0


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("act", [*FUNCTIONS, *labels.ALIASES])
def test_models_overwrite_where_it_changes_no_number(act, name):
    model = build_model(tiny(act=act, model=name), (1, 8, 8), 10)
    expected = act in ("relu", "leaky_relu", "nsrelu", "ste")
    assert [getattr(site, "inplace", False) for site in sites(model)] == [expected] * 2


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_models_keep_as_much_for_nsrelu_and_leaky_relu_as_for_relu(name):
    kept = {}
    for act in ("relu", "leaky_relu", "nsrelu"):
        model = build_model(tiny(act=act, model=name), (1, 8, 8), 10)
        kept[act] = kept_storages(model, torch.randn(4, 1, 8, 8))
    assert kept["relu"] == kept["leaky_relu"] == kept["nsrelu"]


@pytest.mark.parametrize(
    ("form", "node", "result", "slope"),
    [
        (lambda x: F.leaky_relu_(x, 0.1), "LeakyReluBackward1", True, 0.1),
        (lambda x: nsrelu_(x, 0.1), "LeakyReluBackward1", True, 0.1),
        (lambda x: nsrelu(x, 0.1), "LeakyReluBackward0", False, 0.1),
        (lambda x: F.relu_(x), "ReluBackward0", True, 0),
    ],
    ids=["leaky_relu_", "nsrelu_", "nsrelu", "relu_"],
)
def test_autograd_saves_what_the_forms_rely_on(form, node, result, slope):
    # In place the result, of which only "> 0" is read; out of place the input. A version of
    # PyTorch that saved another tensor would make the gradients wrong, or the memory larger.
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    y = form(x + 0)
    assert y.grad_fn.name() == node
    saved = y.grad_fn._saved_result if result else y.grad_fn._saved_self
    assert (saved.data_ptr() == y.data_ptr()) == result
    assert not hasattr(y.grad_fn, "_saved_self" if result else "_saved_result")
    # Of the result the sign alone is read: other values above 0 give the same gradient.
    (before,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    saved.data.mul_(2)
    (after,) = torch.autograd.grad(y.sum(), x)
    assert before.tolist() == pytest.approx([slope, slope, 1])
    assert torch.equal(before, after)


@pytest.mark.parametrize("act", [*FUNCTIONS, *labels.ALIASES, "relu/rrelu", "relu/bsilu"])
def test_every_activation_trains_and_again_to_the_same_bits(act):
    once, again = (epochs(act=act, epochs=1) for _ in range(2))
    assert once == again
    before, after = (metrics["train_loss"] for metrics, _ in once)
    assert after != before


def test_spellings_of_one_activation_are_one_run():
    spellings = ["ste", "nsrelu(1)", "relu/identity", "relu/leaky_relu(1.0)"]
    assert len({tiny(act=act).run_id for act in spellings}) == 1
    assert tiny(act="relu", backward="bsilu", alpha=1.67) == tiny(act="relu/bsilu")
    assert tiny(act="relu/bsilu", impl="detach").run_id != tiny(act="relu/bsilu").run_id
    assert tiny(act="bsilu", impl="detach").run_id == tiny(act="bsilu").run_id


def test_a_study_takes_any_backward_beside_its_forward():
    (one,) = make_study({"act": "relu", "backward": "bsilu", "alpha": 1.5}, "one").runs
    assert one.act == "relu/bsilu(1.5)"
    study = make_study({"act": "relu", "grid": {"backward": ["gelu", "leaky_relu(0.2)"]}}, "two")
    assert [config.act for config in study.runs] == ["relu/gelu", "nsrelu(0.2)"]
    assert tiny(backward="gelu").act == "relu/gelu"
    assert tiny(leak=0.3).act == "nsrelu(0.3)"


# References to learn from


@pytest.mark.parametrize(
    ("reference", "slopes_at_0"),
    [
        (leaky_relu_clamp, [0.0, 1.25]),  # as PyTorch has it for clamp, which changed
        (leaky_relu_where, [1.0]),
        (LeakyReLUFunction.apply, [0.25]),
    ],
    ids=["clamp", "where", "Function"],
)
def test_references_are_leaky_relu_and_differ_only_in_the_gradient_at_0(reference, slopes_at_0):
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


# The general Function


def test_mismatch_sends_the_whole_gradient_to_its_second_argument():
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


# Modules


@pytest.mark.parametrize("name", labels.FUNCTIONS)
def test_a_function_and_its_module_compute_the_same(name):
    function = FUNCTIONS[name]
    label = labels.parse_activation(name)
    x = torch.linspace(-3, 3, 61)
    module = build(label).eval()
    assert torch.equal(module(x), function(x, *label.forward.parameters))
    assert type(module).__module__.startswith("torch.nn") or type(module) is Surrogate


@pytest.mark.parametrize("name", ["bsilu", "nelu", "helu"])
def test_a_function_of_ours_has_the_parameter_given_or_the_default_of_its_label(name):
    function = FUNCTIONS[name]
    x = torch.linspace(-3, 3, 61)
    assert torch.equal(build(f"{name}(0.7)")(x), function(x, 0.7))
    assert not torch.equal(function(x, 0.7), function(x))
    assert torch.equal(function(x), function(x, labels.FUNCTIONS[name]["alpha"]))


def test_every_function_that_has_a_label_is_implemented():
    assert list(FUNCTIONS) == list(labels.FUNCTIONS)


PLAIN = [name for name in FUNCTIONS if name not in labels.LEARNABLE]
PAIRS = [f"{forward}/{backward}" for forward in PLAIN for backward in PLAIN]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("text", [*PAIRS, "leaky_relu(0.2)/leaky_relu(0.3)", *labels.ALIASES])
def test_build_makes_the_forward_of_one_with_the_gradient_of_the_other(text, impl):
    label = labels.parse_activation(text)
    module = build(label, impl).eval()
    assert module is not build(label, impl)
    assert repr(module) == repr(build(text, impl))
    x, grad = torch.linspace(-3, 3, 61), torch.linspace(1, 2, 61)
    y, gradient = value_and_gradient(module, x, grad)
    forward, backward = (build(str(term)).eval() for term in (label.forward, label.backward))
    # The sum of the detach trick is rounded once more.
    assert torch.allclose(y, forward(x), rtol=0, atol=1e-6 if impl == "detach" else 0)
    assert torch.equal(gradient, value_and_gradient(backward, x, grad)[1])


@pytest.mark.parametrize("impl", IMPLS)
def test_build_hands_on_the_implementation_and_uses_in_place_where_it_can(impl):
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


# Any pair

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
def test_the_gradient_is_the_formula_given_as_function_as_derivative_and_by_the_trick(name, impl):
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


def test_b_silu_has_the_values_and_the_negative_slope_of_the_paper():
    x = torch.tensor([0.0, 2.0, -2.74, -2.73], dtype=torch.float64)
    y, slope = value_and_gradient(lambda x: bsilu(x, 1.67), x, torch.ones_like(x))
    assert y[:2].tolist() == pytest.approx([0, 3.67 * sigmoid(2) - 0.835])
    assert (slope < 0).tolist() == [False, False, True, False]


@pytest.mark.parametrize("impl", IMPLS)
def test_a_function_of_ones_own_is_a_forward_or_a_backward(impl):
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


def test_a_forward_that_is_not_named_is_relu():
    x, grad = torch.linspace(-3, 3, 61), torch.ones(61)
    expected = value_and_gradient(lambda x: surrogate(x, "relu/gelu"), x, grad)
    for form in (lambda x: surrogate(x, backward="gelu"), Surrogate(backward="gelu")):
        assert all(map(torch.equal, value_and_gradient(form, x, grad), expected))
    assert Surrogate().tied


def test_a_pair_may_be_named_in_one():
    x, grad = torch.linspace(-3, 3, 61), torch.ones(61)
    one = value_and_gradient(lambda x: surrogate(x, "relu/gelu"), x, grad)
    two = value_and_gradient(lambda x: surrogate(x, "relu", "gelu"), x, grad)
    assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_random_leak_is_drawn_in_training_and_is_its_mean_after(impl):
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
def test_a_pair_keeps_type_and_memory_format_and_the_gradient_of_the_type(dtype, impl):
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


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("text", ["relu/bsilu", "gelu/leaky_relu", "nsrelu"])
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


def test_functions_with_a_weight_make_no_pair():
    for make in (Surrogate, lambda name: surrogate(torch.ones(2), name)):
        with pytest.raises(UsageError, match=r"^prelu has a weight of its own: build\('prelu"):
            make("prelu")


# True gradients

UNTIED = ["nsrelu(0.1)", "nsrelu(0)", "leaky_relu(0.2)/relu", "relu/bsilu", "ste"]


def network(text, **settings):
    torch.manual_seed(0)
    activations = [build(text, **settings) for _ in range(2)]
    return nn.Sequential(nn.Linear(4, 8), activations[0], nn.Linear(8, 8), activations[1])


def outputs_and_gradients(model):
    model.zero_grad()
    outputs = model(torch.linspace(-1, 1, 12).reshape(3, 4))
    outputs.square().sum().backward()
    return [outputs.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("settings", [{"impl": i} for i in IMPLS] + [{"inplace": True}], ids=str)
@pytest.mark.parametrize("text", UNTIED)
def test_true_gradients_are_those_of_the_tied_model(text, settings):
    model = network(text, **settings)
    before = outputs_and_gradients(model)
    tied = outputs_and_gradients(network(str(labels.parse_activation(text).forward)))
    with true_gradients(model) as switched:
        inside = outputs_and_gradients(model)
    assert switched == 2
    assert all(map(torch.equal, inside, tied))
    assert torch.allclose(before[0], inside[0], rtol=0, atol=1e-6)
    assert all(map(torch.equal, outputs_and_gradients(model), before))
    assert all(map(torch.equal, inside, before)) == (text == "nsrelu(0)")


@pytest.mark.parametrize("text", labels.FUNCTIONS)
def test_true_gradients_switch_nothing_where_all_is_tied(text):
    with true_gradients(network(text)) as switched:
        assert switched == 0


def test_true_gradients_leave_a_surrogate_alone_whose_passes_are_the_same():
    with true_gradients(Surrogate("relu", "relu")) as switched:
        assert switched == 0


def test_true_gradients_stay_in_place():
    module, x = NSReLU(inplace=True), torch.tensor([-1.0, 2.0])
    with true_gradients(module):
        assert module(x).data_ptr() == x.data_ptr()
    assert x.tolist() == [0, 2]


def test_true_gradients_switch_a_module_used_twice_once():
    activation = NSReLU()
    with true_gradients(nn.Sequential(activation, nn.Sequential(activation))) as switched:
        assert switched == 1


def pickled(model):
    buffer = io.BytesIO()
    pickle.dump(model, buffer)
    return buffer.getvalue()


def fail_inside(model):
    state = list(model.state_dict())
    with true_gradients(model):
        assert list(model.state_dict()) == state
        raise ZeroDivisionError


@pytest.mark.parametrize("text", UNTIED)
def test_true_gradients_leave_no_trace_even_after_an_error(text):
    model = network(text)
    before, state = pickled(model), list(model.state_dict())
    with pytest.raises(ZeroDivisionError):
        fail_inside(model)
    assert pickled(model) == before
    assert list(model.state_dict()) == state
    assert not any(module.true_gradient for module in model if isinstance(module, Surrogate))


def test_true_gradients_nest():
    model = network("nsrelu")
    with true_gradients(model) as outer:
        inside = outputs_and_gradients(model)
        with true_gradients(model[1]) as inner:
            assert (outer, inner) == (2, 1)
        assert all(map(torch.equal, outputs_and_gradients(model), inside))


def test_true_gradients_reach_a_model_that_is_compiled():
    model = network("nsrelu")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    plain = outputs_and_gradients(compiled)
    with true_gradients(compiled) as switched:
        inside = outputs_and_gradients(compiled)
        assert all(map(torch.allclose, inside, outputs_and_gradients(model)))
    assert switched == 2
    assert not torch.equal(plain[1], inside[1])
    assert all(map(torch.equal, outputs_and_gradients(compiled), plain))


@pytest.mark.parametrize("text", [*labels.FUNCTIONS, *UNTIED])
def test_a_copy_or_pickle_of_a_module_is_the_module(text):
    module = build(text).eval()
    x, grad = torch.linspace(-1, 1, 5), torch.ones(5)
    for twin in (copy.deepcopy(module), pickle.loads(pickled(module))):  # noqa: S301
        assert repr(twin) == repr(module)
        expected = value_and_gradient(module, x, grad)
        assert all(map(torch.equal, value_and_gradient(twin, x, grad), expected))
    assert bool(module.state_dict()) == (text in labels.LEARNABLE)


# The documentation

CARDS = Path(__file__).parents[2] / "docs" / "activations.md"


@pytest.mark.parametrize("name", [*labels.FUNCTIONS, *labels.ALIASES])
def test_every_named_activation_has_a_card_with_its_default(name):
    cards = dict(re.findall(r"^### (\S+)\n(.+?)(?=^###|\Z)", CARDS.read_text(), re.M | re.S))
    for parameter, default in labels.FUNCTIONS.get(name, {}).items():
        shown = {1 / 8: "1/8", 1 / 3: "1/3"}.get(default, f"{default:g}")
        assert re.search(rf"(?<![0-9.]){shown}(?![0-9])", cards[name]), (parameter, shown)
    assert len(cards[name]) > 50


def test_the_examples_of_the_documentation_run():
    result = doctest.testfile(str(CARDS), module_relative=False)
    assert result.failed == 0
    assert result.attempted > 10
