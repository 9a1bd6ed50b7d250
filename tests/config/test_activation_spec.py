import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsrelu_bench.config.activation_spec import (
    ACTIVATION_NAMES,
    ALIASES,
    FUNCTION_PARAMETERS,
    GATES,
    LEARNABLE,
    LIMITS,
    ActivationSpec,
    FunctionSpec,
    forget,
    parse_activation,
)
from nsrelu_bench.config.registry import PLUGIN_FORM
from nsrelu_bench.errors import UsageError, unknown

leaks = st.just(0.0) | st.floats(1.2e-38, 1)
functions = st.sampled_from([name for name in FUNCTION_PARAMETERS if name not in LEARNABLE])
LISTED_NAMES = ", ".join([*ACTIVATION_NAMES, PLUGIN_FORM])
gated = pytest.mark.parametrize("gate", [gate for gate in GATES if gate != "always"])


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("relu", "relu"),
        ("leaky_relu", "leaky_relu(0.1)"),
        ("leaky_relu(0.10)", "leaky_relu(0.1)"),
        ("leaky_relu(.3333)", "leaky_relu(0.3333)"),
        ("nsrelu", "nsrelu(0.1)"),
        ("nsrelu(0)", "nsrelu(0)"),
        ("nsrelu(-0.0)", "nsrelu(0)"),
        ("nsrelu(1.)", "nsrelu(1)"),
        ("nsrelu(+1E-5)", "nsrelu(1e-05)"),
        ("  nsrelu  ( 0.2 )  ", "nsrelu(0.2)"),
        ("relu/leaky_relu", "nsrelu(0.1)"),
        (" relu / leaky_relu(0.3) ", "nsrelu(0.3)"),
        ("leaky_relu/relu", "leaky_relu(0.1)/relu"),
        ("leaky_relu(0.2)/leaky_relu(0.3)", "leaky_relu(0.2)/leaky_relu(0.3)"),
        ("leaky_relu(0.2)/leaky_relu(0.20)", "leaky_relu(0.2)"),
        ("relu/relu", "relu"),
        ("relu/bsilu", "relu/bsilu(1.67)"),
        ("relu/nelu(0.20)", "relu/nelu(0.2)"),
        ("elu", "elu(1)"),
        ("elu(2)/gelu", "elu(2)/gelu"),
        ("rrelu(0.1, 0.30)", "rrelu(0.1, 0.3)"),
        ("rrelu(0.1)", "rrelu(0.1, 0.3333333333333333)"),
        ("ste", "nsrelu(1)"),
        ("relu/identity", "nsrelu(1)"),
        ("relu/leaky_relu(1)", "nsrelu(1)"),
        ("identity/identity", "identity"),
        ("gelu/identity", "gelu/identity"),
        ("rescue", "rescue(0.1)"),
        ("net_rescue", "net_rescue(0.1)"),
        ("nsrelu(0.2) @ net_rescue", "net_rescue(0.2)"),
        (" up ( .30 ) ", "up(0.3)"),
        ("nsrelu(0.2)@dead", "dead(0.2)"),
        ("nsrelu @ down ", "down(0.1)"),
        ("relu/leaky_relu(0.2)@rescue", "rescue(0.2)"),
        ("rescue(0.2)@rescue", "rescue(0.2)"),
        ("ste@up", "up(1)"),
        ("nsrelu@always", "nsrelu(0.1)"),
        ("relu@always", "relu"),
        ("relu/bsilu@rescue", "relu/bsilu(1.67)@rescue"),
    ],
)
def test_every_spelling_has_one_canonical_text(text, canonical):
    label = parse_activation(text)
    assert str(label) == canonical
    assert parse_activation(canonical) == label
    assert hash(parse_activation(canonical)) == hash(label)


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_every_registered_name_is_an_activation(name):
    label = parse_activation(name)
    assert str(label).split("(")[0] == name.replace("ste", "nsrelu")
    assert label.tied == (name in FUNCTION_PARAMETERS)
    assert label.gated == (name in GATES)
    assert label.uses_impl == (name in ALIASES)


@gated
def test_a_gate_is_given_by_name_suffix_or_setting(gate):
    spec = ActivationSpec(FunctionSpec("relu"), FunctionSpec("leaky_relu", (0.2,)), gate)
    assert str(spec) == f"{gate}(0.2)"
    for text in (f"{gate}(0.2)", f"nsrelu(0.2)@{gate}", f"relu/leaky_relu(0.2)@{gate}"):
        assert parse_activation(text) == parse_activation(text, gate=gate) == spec
    for text in (gate, "nsrelu", "relu/leaky_relu"):
        assert parse_activation(text, gate=gate, leak=0.2) == spec
    assert parse_activation("relu", backward="leaky_relu", gate=gate, leak=0.2) == spec


def function_spec(name, value):
    """A function with parameters from low to high, each `value` of the way up."""
    limits = [LIMITS[parameter] for parameter in FUNCTION_PARAMETERS[name]]
    return FunctionSpec(name, tuple(low + value * (high - low) for low, high in limits))


@given(functions, functions, leaks, leaks, st.sampled_from([*GATES]))
def test_a_label_is_parsed_from_its_text_and_its_leak(forward, backward, one, other, gate):
    try:
        label = ActivationSpec(function_spec(forward, one), function_spec(backward, other), gate)
    except UsageError:
        label = ActivationSpec(function_spec(forward, one), function_spec(backward, other))
    assert parse_activation(str(label)) == label
    assert parse_activation(str(label), leak=label.leak) == label


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        ("relu", None),
        ("leaky_relu(0.2)", 0.2),
        ("nsrelu(0)", 0.0),
        ("leaky_relu(0.2)/relu", None),
        ("leaky_relu(0.2)/leaky_relu(0.3)", 0.3),
    ],
)
def test_leak_is_the_negative_slope_of_the_backward(text, leak):
    assert parse_activation(text).leak == leak


@pytest.mark.parametrize(
    ("text", "settings", "canonical"),
    [
        ("nsrelu", {"leak": 0.2}, "nsrelu(0.2)"),
        ("nsrelu(0.2)", {"leak": 0.2}, "nsrelu(0.2)"),
        ("nsrelu", {"leak": 1}, "nsrelu(1)"),
        ("nsrelu", {"leak": np.float64(0.5)}, "nsrelu(0.5)"),
        ("relu", {"leak": 0.2}, "relu"),
        ("leaky_relu", {"leak": 0.2}, "leaky_relu(0.2)"),
        ("leaky_relu/relu", {"leak": 0.2}, "leaky_relu(0.2)/relu"),
        ("relu", {"backward": "leaky_relu"}, "nsrelu(0.1)"),
        ("relu", {"backward": " leaky_relu(0.2) "}, "nsrelu(0.2)"),
        ("relu", {"backward": "leaky_relu", "leak": 0.2}, "nsrelu(0.2)"),
        ("relu", {"backward": "relu"}, "relu"),
        ("leaky_relu", {"backward": "relu", "leak": 0.2}, "leaky_relu(0.2)/relu"),
        ("leaky_relu", {"backward": "leaky_relu", "leak": 0.2}, "leaky_relu(0.2)"),
        (
            "leaky_relu(0.2)",
            {"backward": "leaky_relu", "leak": 0.3},
            "leaky_relu(0.2)/leaky_relu(0.3)",
        ),
        ("nsrelu", {"backward": "leaky_relu(0.2)"}, "nsrelu(0.2)"),
        ("nsrelu(0.2)", {"backward": "leaky_relu"}, "nsrelu(0.2)"),
        ("relu", {"backward": "bsilu", "alpha": 2}, "relu/bsilu(2)"),
        ("relu/elu", {"alpha": 2, "leak": 0.3}, "relu/elu(2)"),
        ("nsrelu", {"alpha": 2}, "nsrelu(0.1)"),
        ("elu(2)", {"backward": "bsilu", "alpha": 3}, "elu(2)/bsilu(3)"),
        ("prelu", {"leak": 0.3}, "prelu(0.3)"),
        ("ste", {"leak": 0.1}, "nsrelu(1)"),
        ("relu", {"backward": "identity"}, "nsrelu(1)"),
        ("relu", {"backward": "bsilu", "gate": "up"}, "relu/bsilu(1.67)@up"),
        ("relu@up", {"backward": "bsilu"}, "relu/bsilu(1.67)@up"),
        ("rescue", {"backward": "leaky_relu(0.2)"}, "rescue(0.2)"),
        ("leaky_relu/relu", {"gate": "always"}, "leaky_relu(0.1)/relu"),
    ],
)
def test_separate_settings_make_the_same_label(text, settings, canonical):
    assert str(parse_activation(text, **settings)) == canonical


def no_activation(name):
    return str(unknown(name, [*ACTIVATION_NAMES, PLUGIN_FORM], "activation"))


def no_function(name, kind="backward"):
    return str(unknown(name, [*FUNCTION_PARAMETERS, PLUGIN_FORM], kind))


def no_name(text):
    return f"activation must be name or name(number) or forward/backward, got {text!r}"


def cannot_gate(gate, pair):
    return (
        f"gate {gate!r} needs a forward of relu with another backward that has a slope below 0,"
        f" such as nsrelu(0.1), got {pair}"
    )


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("gelo", {}, no_activation("gelo")),
        ("0.1", {}, f"unknown activation '0.1'; choose from: {LISTED_NAMES}"),
        (
            "nsrelo",
            {},
            f"unknown activation 'nsrelo'; did you mean 'nsrelu'? choose from: {LISTED_NAMES}",
        ),
        ("relu/gelo", {}, no_function("gelo")),
        ("nsrelu/relu", {}, no_function("nsrelu", "forward")),
        ("relu", {"backward": "gelo"}, no_function("gelo")),
        ("", {}, f"activation must not be empty; choose from: {LISTED_NAMES}"),
        ("  ", {}, f"activation must not be empty; choose from: {LISTED_NAMES}"),
        (
            "relu" * 51,
            {},
            "activation has 204 characters, at most 200 are allowed: 'relurelurelurelurelu'...",
        ),
        *((text, {}, no_name(text)) for text in ("nsrelu(0.1", "relu/relu/relu", "relu\nrelu x")),
        ("nsrelu()", {}, "activation 'nsrelu()': '' is not a number"),
        ("nsrelu(0,1)", {}, "wrong number of parameters for nsrelu: it takes 1 (leak), got 2"),
        ("relu(0.1)", {}, "wrong number of parameters for relu: it takes none, got 1"),
        ("nsrelu(1_0)", {}, "activation 'nsrelu(1_0)': '1_0' is not a number"),
        ("nsrelu(٠.1)", {}, "activation 'nsrelu(٠.1)': '٠.1' is not a number"),  # noqa: RUF001
        ("nsrelu(0x1)", {}, "activation 'nsrelu(0x1)': '0x1' is not a number"),
        ("nsrelu(ınf)", {}, "activation 'nsrelu(ınf)': 'ınf' is not a number"),  # noqa: RUF001
        ("nsrelu(-1)", {}, "leak must be from 0 to 1, got -1"),
        ("nsrelu(1.5)", {}, "leak must be from 0 to 1, got 1.5"),
        ("nsrelu(nan)", {}, "leak must be from 0 to 1, got nan"),
        ("nsrelu(-inf)", {}, "leak must be from 0 to 1, got -inf"),
        ("nsrelu(1e999)", {}, "leak must be from 0 to 1, got inf"),
        ("nsrelu", {"leak": -1}, "leak must be from 0 to 1, got -1"),
        ("nsrelu", {"leak": math.nan}, "leak must be from 0 to 1, got nan"),
        ("relu", {"leak": math.inf}, "leak must be from 0 to 1, got inf"),
        ("nsrelu", {"leak": True}, "leak must be from 0 to 1, got True"),
        ("nsrelu", {"leak": "0.1"}, "leak must be from 0 to 1, got '0.1'"),
        ("nsrelu(0.1)", {"leak": 0.2}, "leak 0.2 contradicts activation 'nsrelu(0.1)'"),
        ("leaky_relu(1)/relu", {"leak": 0}, "leak 0 contradicts activation 'leaky_relu(1)/relu'"),
        ("nsrelu", {"backward": "relu"}, "backward 'relu' contradicts activation 'nsrelu'"),
        (
            "nsrelu(0.1)",
            {"backward": "leaky_relu(0.2)"},
            "backward 'leaky_relu(0.2)' contradicts activation 'nsrelu(0.1)'",
        ),
        ("relu/relu", {"backward": "nope"}, no_function("nope")),
        ("elu(-1)", {}, "alpha must be from 0 to 100, got -1"),
        ("softplus(0)", {}, "beta must be from 0.01 to 100, got 0"),
        ("relu", {"alpha": -1}, "alpha must be from 0 to 100, got -1"),
        ("rrelu(0.3, 0.1)", {}, "lower must be at most upper, got rrelu(0.3, 0.1)"),
        ("relu/elu(1)", {"alpha": 2}, "alpha 2 contradicts activation 'relu/elu(1)'"),
        (
            "relu/prelu",
            {},
            "prelu has a weight of its own, and makes no pair with another function",
        ),
        ("ste(0.1)", {}, "wrong number of parameters for ste: it takes none, got 1"),
        ("nsrelu@upp", {}, str(unknown("upp", GATES, "gate"))),
        ("nsrelu@", {}, str(unknown("", GATES, "gate"))),
        ("nsrelu@up@up", {}, str(unknown("up@up", GATES, "gate"))),
        ("nsrelu", {"gate": "Rescue"}, str(unknown("Rescue", GATES, "gate"))),
        ("nsrelu", {"gate": True}, "gate must be a name, got True"),
        ("relu", {"backward": 5}, "backward must be a name, got 5"),
        ("relu/rescue", {}, no_function("rescue")),
        ("rescue@up", {}, "gate 'up' contradicts activation 'rescue'"),
        ("rescue(0.2)@always", {}, "gate 'always' contradicts activation 'rescue(0.2)'"),
        ("rescue", {"gate": "up"}, "gate 'up' contradicts activation 'rescue'"),
        ("rescue", {"gate": "always"}, "gate 'always' contradicts activation 'rescue'"),
        ("rescue", {"backward": "gelu"}, "backward 'gelu' contradicts activation 'rescue'"),
        ("relu", {"gate": "up"}, cannot_gate("up", "relu")),
        ("leaky_relu/relu@up", {}, cannot_gate("up", "leaky_relu(0.1)/relu")),
        ("gelu/silu@dead", {}, cannot_gate("dead", "gelu/silu")),
        ("rescue(0)", {}, cannot_gate("rescue", "nsrelu(0)")),
        ("nsrelu", {"leak": 0, "gate": "down"}, cannot_gate("down", "nsrelu(0)")),
    ],
)
def test_nonsense_gets_one_exact_line(text, settings, message):
    with pytest.raises(UsageError) as caught:
        parse_activation(text, **settings)
    assert str(caught.value) == message


@pytest.mark.slow
@given(st.text(max_size=300))
def test_any_text_is_a_label_or_a_one_line_error(text):
    try:
        label, message = parse_activation(text), ""
    except UsageError as error:
        label, message = parse_activation("relu"), str(error)
    assert parse_activation(str(label)) == label
    assert len(message.splitlines()) <= 1
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("leaky_relu", (), "wrong number of parameters for leaky_relu: it takes 1 (leak), got 0"),
        ("leaky_relu", (2.0,), "leak must be from 0 to 1, got 2"),
        ("nsrelu", (), no_function("nsrelu", "function")),
    ],
)
def test_a_function_that_does_not_exist_is_refused(name, parameters, message):
    with pytest.raises(UsageError) as caught:
        FunctionSpec(name, parameters)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "settings", "left"),
    [
        ("nsrelu(0.3)", ["leak"], "nsrelu(0.1)"),
        ("nsrelu(0.3)", ["alpha"], "nsrelu(0.3)"),
        ("nsrelu(0.3)", ["backward"], "relu"),
        ("elu(2)/leaky_relu(0.3)", ["leak"], "elu(2)/leaky_relu(0.1)"),
        ("elu(2)/leaky_relu(0.3)", ["alpha", "backward"], "elu(1)"),
        ("rescue(0.3)", ["leak"], "rescue(0.1)"),
        ("rescue(0.3)", ["gate"], "nsrelu(0.3)"),
        ("relu/bsilu(1)@up", ["alpha"], "relu/bsilu(1.67)@up"),
        ("relu/bsilu(1)@up", ["backward", "gate"], "relu"),
    ],
)
def test_forget_drops_what_a_stronger_source_says(text, settings, left):
    assert str(parse_activation(forget(text, settings))) == left


def test_forget_keeps_text_that_can_not_be_parsed():
    assert forget("gelo(0.1", ["leak"]) == "gelo(0.1"
