import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsrelu_bench.errors import UsageError
from nsrelu_bench.labels import (
    ALIASES,
    FUNCTIONS,
    LIMITS,
    Label,
    Term,
    check_parameter,
    parse_label,
)

leaks = st.floats(0, 1)
functions = st.sampled_from(list(FUNCTIONS))


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
    ],
)
def test_every_spelling_has_one_canonical_text(text, canonical):
    label = parse_label(text)
    assert str(label) == canonical
    assert parse_label(canonical) == label
    assert hash(parse_label(canonical)) == hash(label)


@pytest.mark.parametrize("name", [*FUNCTIONS, *ALIASES])
def test_every_registered_name_stands_alone(name):
    label = parse_label(name)
    assert str(label).split("(")[0] == name
    assert label.tied == (name in FUNCTIONS)
    assert label.uses_impl == (name in ALIASES)


@pytest.mark.parametrize("pair", ALIASES.values(), ids=ALIASES)
def test_an_alias_names_an_untied_pair_of_known_functions(pair):
    assert pair[0] != pair[1]
    assert set(pair) <= FUNCTIONS.keys()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_default_lies_within_the_limits(name):
    for parameter, default in FUNCTIONS[name].items():
        low, high = LIMITS[parameter]
        assert low <= default <= high


@given(functions, functions, leaks, leaks)
def test_a_label_is_read_back_from_its_text_and_its_leak(forward, backward, one, other):
    label = Label(
        Term(forward, (one,) * len(FUNCTIONS[forward])),
        Term(backward, (other,) * len(FUNCTIONS[backward])),
    )
    assert parse_label(str(label)) == label
    assert parse_label(str(label), leak=label.leak) == label


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
    assert parse_label(text).leak == leak


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
    ],
)
def test_separate_settings_make_the_same_label(text, settings, canonical):
    assert str(parse_label(text, **settings)) == canonical


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("gelo", {}, "unknown activation 'gelo'; choose from: relu, leaky_relu, nsrelu"),
        ("0.1", {}, "unknown activation '0.1'; choose from: relu, leaky_relu, nsrelu"),
        (
            "nsrelo",
            {},
            "unknown activation 'nsrelo'; did you mean 'nsrelu'? "
            "choose from: relu, leaky_relu, nsrelu",
        ),
        ("relu/gelo", {}, "unknown backward 'gelo'; choose from: relu, leaky_relu"),
        (
            "nsrelu/relu",
            {},
            "unknown forward 'nsrelu'; did you mean 'relu'? choose from: relu, leaky_relu",
        ),
        ("relu", {"backward": "gelo"}, "unknown backward 'gelo'; choose from: relu, leaky_relu"),
        ("", {}, "activation must not be empty; choose from: relu, leaky_relu, nsrelu"),
        ("  ", {}, "activation must not be empty; choose from: relu, leaky_relu, nsrelu"),
        (
            "relu" * 51,
            {},
            "activation has 204 characters, at most 200 are allowed: 'relurelurelurelurelu'...",
        ),
        (
            "nsrelu(0.1",
            {},
            "activation must be name or name(number) or forward/backward, got 'nsrelu(0.1'",
        ),
        (
            "relu/relu/relu",
            {},
            "activation must be name or name(number) or forward/backward, got 'relu/relu/relu'",
        ),
        (
            "relu\nrelu x",
            {},
            "activation must be name or name(number) or forward/backward, got 'relu\\nrelu x'",
        ),
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
        (
            "relu/relu",
            {"backward": "nope"},
            "unknown backward 'nope'; choose from: relu, leaky_relu",
        ),
    ],
)
def test_what_makes_no_sense_gets_one_exact_line(text, settings, message):
    with pytest.raises(UsageError) as caught:
        parse_label(text, **settings)
    assert str(caught.value) == message


@given(st.text(max_size=300))
def test_any_text_is_a_label_or_a_one_line_error(text):
    try:
        label, message = parse_label(text), ""
    except UsageError as error:
        label, message = parse_label("relu"), str(error)
    assert parse_label(str(label)) == label
    assert len(message.splitlines()) <= 1
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("leaky_relu", (), "wrong number of parameters for leaky_relu: it takes 1 (leak), got 0"),
        ("leaky_relu", (2.0,), "leak must be from 0 to 1, got 2"),
        ("nsrelu", (), "unknown function 'nsrelu'; did you mean 'relu'? "),
    ],
)
def test_no_term_can_be_made_that_does_not_exist(name, parameters, message):
    with pytest.raises(UsageError) as caught:
        Term(name, parameters)
    assert str(caught.value).startswith(message)


def test_minus_zero_is_zero():
    assert math.copysign(1, check_parameter("leak", -0.0)) == 1


def test_reading_labels_needs_no_torch():
    code = "import sys, nsrelu_bench.labels; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
