"""Parse the names of activations, and give each its one label.

An activation is a pair (forward function, backward function) and a gate. The same label names it on
the command line, in configs, file names, tables and legends: ``relu``, ``leaky_relu(0.1)``,
``nsrelu(0.1)``, ``rescue(0.1)``, ``relu/bsilu(1.67)@up``. A function may be the user's own, with
any numbers as parameters: ``package.module:name(0.5)``. Nothing here needs torch.
"""

import numbers
import re
from collections.abc import Collection
from dataclasses import dataclass

from nsrelu_bench.config.registry import PLUGIN_FORM, check_name, is_own
from nsrelu_bench.errors import UsageError, lookup
from nsrelu_bench.text import NOT_TINY, SMALLEST, underflows

MAX_LENGTH = 200

# A name may have any character outside the grammar, so that a typing error is reported as an
# unknown name, with the known ones. Numbers are ASCII: float() accepts more.
_CALL = re.compile(r" *([^ ()/,@]+) *(?:\(([^()]*)\) *)?")
NUMBER = re.compile(
    r" *[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf|infinity) *",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class FunctionSpec:
    """One function with its parameters, such as ``leaky_relu(0.1)``; `FUNCTION_PARAMETERS` has all.

    Those of a user's own function may be any numbers.

    Raises:
        UsageError: The function is unknown, or a parameter is missing or out of range.
    """

    name: str
    parameters: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name, FUNCTION_PARAMETERS, "function")
        names = _parameter_names(self.name, len(self.parameters))
        if len(self.parameters) != len(names):
            raise _wrong_count(self.name, names, len(self.parameters))
        checked = tuple(map(check_parameter, names, self.parameters))
        object.__setattr__(self, "parameters", checked)
        if self.name == "rrelu" and checked[0] > checked[1]:
            raise UsageError(f"lower must be at most upper, got {self}")

    @property
    def values(self) -> dict[str, float]:
        """The parameters by name."""
        names = _parameter_names(self.name, len(self.parameters))
        return dict(zip(names, self.parameters, strict=True))

    @property
    def own(self) -> bool:
        """Whether it is a function of the user's own."""
        return is_own(self.name)

    def __str__(self) -> str:
        return _format_call(self.name, self.parameters)


@dataclass(frozen=True)
class ActivationSpec:
    """An activation: its forward function, the function whose gradient it uses, and the gate.

    The gate says where the backward's slope is used below 0 (`GATES`). ``str(spec)`` is the
    canonical text, and `parse_activation` of that text is an equal spec. The straight-through
    estimator, relu/identity, is nsrelu(1).

    Raises:
        UsageError: One of two different functions has a weight of its own, the gate is unknown,
            or the pair has nothing to gate.
    """

    forward: FunctionSpec
    backward: FunctionSpec
    gate: str = "always"

    def __post_init__(self) -> None:
        if (self.forward.name, self.backward.name) == ("relu", "identity"):
            object.__setattr__(self, "backward", FunctionSpec("leaky_relu", (1.0,)))
        for function in (self.forward, self.backward):
            if function.name in LEARNABLE and not self.tied:
                raise UsageError(
                    f"{function.name} has a weight of its own,"
                    " and makes no pair with another function"
                )
        lookup(GATES, self.gate, "gate")
        if self.gated and (self.forward.name != "relu" or self.tied or self.leak == 0):
            pair = ActivationSpec(self.forward, self.backward)
            raise UsageError(
                f"gate {self.gate!r} needs a forward of relu with another backward that has a slope"
                f" below 0, such as nsrelu(0.1), got {pair}"
            )

    @property
    def tied(self) -> bool:
        """Whether the backward is the forward's own."""
        return self.forward == self.backward

    @property
    def gated(self) -> bool:
        """Whether the gate ever holds back the backward's slope."""
        return self.gate != "always"

    @property
    def leak(self) -> float | None:
        """The negative slope of the backward; None unless the backward is a leaky ReLU."""
        return self.backward.values.get("leak")

    @property
    def has_schedule(self) -> bool:
        """Whether its leak can change over a run: that of NSReLU and of leaky ReLU."""
        leaky = self.backward.name == "leaky_relu" and bool(self.leak)
        return leaky and (self.tied or self.forward.name == "relu")

    @property
    def uses_impl(self) -> bool:
        """Whether there is a choice of implementations: for every untied pair without a gate."""
        return not self.tied and not self.gated

    def __str__(self) -> str:
        if self.tied:
            return str(self.forward)
        for alias, pair in ALIASES.items():
            if pair == (self.forward.name, self.backward.name):
                name = self.gate if self.gated else alias
                return _format_call(name, self.forward.parameters + self.backward.parameters)
        return f"{self.forward}/{self.backward}" + (f"@{self.gate}" if self.gated else "")


def parse_activation(
    text: str,
    *,
    leak: float | None = None,
    alpha: float | None = None,
    backward: str | None = None,
    gate: str | None = None,
) -> ActivationSpec:
    """Parse ``name``, ``name(number)``, ``forward/backward`` or ``pair@gate``, and merge settings.

    `leak` and `alpha` fill in whatever of that name the text leaves open, and are ignored by an
    activation that has none. `backward` makes a pair of a single function, `gate` gates a pair.

    Raises:
        UsageError: The text can't be parsed, has an unknown name, or contradicts a setting.
    """
    settings = {
        name: check_parameter(name, value)
        for name, value in {"leak": leak, "alpha": alpha}.items()
        if value is not None
    }
    for name, given in {"backward": backward, "gate": gate}.items():
        if given is not None and not isinstance(given, str):
            raise UsageError(f"{name} must be a name, got {given!r}")
    drafts, stated_gate = _parse_text(text)
    if backward is not None:
        wanted = _parse_function(backward, "backward")
        if len(drafts) == 2 and not _agree(drafts[1], wanted):
            raise UsageError(f"backward {backward!r} contradicts activation {text!r}")
        stated = drafts[1][1] if len(drafts) == 2 else {}
        drafts = [drafts[0], (wanted[0], wanted[1] | stated)]
    if gate is not None:
        lookup(GATES, gate, "gate")
        if stated_gate not in (None, gate):
            raise UsageError(f"gate {gate!r} contradicts activation {text!r}")
    for name, value in settings.items():
        takers = [
            stated for function, stated in drafts if name in FUNCTION_PARAMETERS.get(function, ())
        ]
        used = [stated.setdefault(name, value) for stated in takers]
        if used and value not in used:
            raise UsageError(f"{name} {format_number(value)} contradicts activation {text!r}")
    functions = [
        FunctionSpec(name, tuple((FUNCTION_PARAMETERS.get(name, {}) | stated).values()))
        for name, stated in drafts
    ]
    return ActivationSpec(functions[0], functions[-1], gate or stated_gate or "always")


def same_activation(label: str, wanted: str) -> bool:
    """Return whether `wanted` names the activation `label`, in any spelling.

    A parameter that `wanted` leaves open may have any value: ``nsrelu`` is every leak of it. A
    gate that it leaves open is "always".
    """
    try:
        spec, (drafts, gate) = parse_activation(label), _parse_text(wanted)
    except UsageError:
        return label == wanted
    if [name for name, _ in drafts] == ["relu", "identity"]:
        drafts = [("relu", {}), ("leaky_relu", {"leak": 1.0})]
    pairs = [(spec.forward, drafts[0]), (spec.backward, drafts[-1])]
    return spec.gate == (gate or "always") and all(
        function.name == name and stated.items() <= function.values.items()
        for function, (name, stated) in pairs
    )


def forget(text: str, settings: Collection[str]) -> str:
    """Drop `settings` from an activation's text; keep unparsable text."""
    try:
        drafts, gate = _parse_text(text)
    except UsageError:
        return text
    if "backward" in settings:
        drafts = drafts[:1]
    kept = [
        (name, [v for key, v in stated.items() if key not in settings]) for name, stated in drafts
    ]
    pair = "/".join(_format_call(name, tuple(values)) for name, values in kept)
    return pair if gate is None or "gate" in settings else f"{pair}@{gate}"


def check_parameter(name: str, value: float) -> float:
    """Return `value` as a float if it is in the range of the parameter `name` (`LIMITS`).

    Raises:
        UsageError: It is out of range or not a number: "leak must be from 0 to 1, got -1".
    """
    low, high = LIMITS.get(name, (-1e30, 1e30))
    # A bool is an int to Python; NSReLU(True), written as one writes nn.ReLU(True), means no leak.
    is_number = isinstance(value, float | numbers.Real) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        got = str(value).removesuffix(".0") if is_number else repr(value)
        limits = f"from {format_number(low)} to {format_number(high)}"
        raise UsageError(f"{name} must be {limits}, got {got}")
    if 0 < abs(value) < SMALLEST:
        raise UsageError(f"{name} {NOT_TINY}, got {value}")
    return float(value) + 0.0  # -0.0 becomes 0.0: one value, one label


def format_number(value: float) -> str:
    """Format a number as the shortest text that parses to it: ``0.1``, ``0``, ``1``."""
    return repr(float(value)).removesuffix(".0")


# A parsed text: a function, and those of its parameters that the text gives.
_Draft = tuple[str, dict[str, float]]


def _parse_text(text: str) -> tuple[list[_Draft], str | None]:
    """Parse one function (tied), or a forward and a backward; and the gate, if there is one."""
    if not text.strip(" "):
        choices = ", ".join([*ACTIVATION_NAMES, PLUGIN_FORM])
        raise UsageError(f"activation must not be empty; choose from: {choices}")
    _check_length(text, "activation")
    pair, at, gate = text.partition("@")
    if at:
        gate = gate.strip(" ")
        lookup(GATES, gate, "gate")
    halves = pair.split("/")
    if len(halves) == 2:
        drafts = [_parse_function(halves[0], "forward"), _parse_function(halves[1], "backward")]
        return drafts, gate or None
    name, values = _parse_call(pair, "activation")
    if name in FUNCTION_PARAMETERS or is_own(name):
        return [(name, _name_values(name, [name], values)[0])], gate or None
    check_name(name, ACTIVATION_NAMES, "activation")
    if name in GATES and gate not in ("", name):
        raise UsageError(f"gate {gate!r} contradicts activation {pair.strip(' ')!r}")
    functions = ALIASES["nsrelu" if name in GATES else name]
    drafts = list(zip(functions, _name_values(name, functions, values), strict=True))
    return drafts, name if name in GATES else gate or None


def _parse_function(text: str, kind: str) -> _Draft:
    name, values = _parse_call(text, kind)
    check_name(name, FUNCTION_PARAMETERS, kind)
    return name, _name_values(name, [name], values)[0]


def _parse_call(text: str, kind: str) -> tuple[str, list[float]]:
    """Parse ``name``, or ``name(numbers)`` with commas between the numbers."""
    _check_length(text, kind)
    match = _CALL.fullmatch(text)
    if match is None:
        pair = " or forward/backward" if kind == "activation" else ""
        raise UsageError(f"{kind} must be name or name(number){pair}, got {text!r}")
    name, arguments = match.groups()
    values = [] if arguments is None else arguments.split(",")
    for value in values:
        if not NUMBER.fullmatch(value):
            raise UsageError(f"{kind} {text!r}: {value!r} is not a number")
        if underflows(value):
            raise UsageError(f"{kind} {text!r}: {NOT_TINY}, got {value}")
    return name, [float(value) for value in values]


def _check_length(text: str, kind: str) -> None:
    if len(text) > MAX_LENGTH:
        raise UsageError(
            f"{kind} has {len(text)} characters, at most {MAX_LENGTH} are allowed: {text[:20]!r}..."
        )


def _name_values(
    name: str, functions: tuple[str, str] | list[str], values: list[float]
) -> list[dict[str, float]]:
    """Assign the numbers after `name` to the parameters of its functions, in order."""
    parts = [_parameter_names(function, len(values)) for function in functions]
    names = [parameter for part in parts for parameter in part]
    if len(values) > len(names):
        raise _wrong_count(name, names, len(values))
    left = iter(values)
    return [dict(zip(part, left, strict=False)) for part in parts]


def _parameter_names(function: str, given: int) -> list[str]:
    """Return the names of a function's parameters; of one of the user's own, of those given."""
    if is_own(function):
        return [f"parameter {number}" for number in range(1, given + 1)]
    return list(FUNCTION_PARAMETERS[function])


def _wrong_count(name: str, parameters: list[str], got: int) -> UsageError:
    takes = f"{len(parameters)} ({', '.join(parameters)})" if parameters else "none"
    return UsageError(f"wrong number of parameters for {name}: it takes {takes}, got {got}")


def _agree(one: _Draft, other: _Draft) -> bool:
    shared = one[1].keys() & other[1].keys()
    return one[0] == other[0] and all(one[1][key] == other[1][key] for key in shared)


def _format_call(name: str, values: tuple[float, ...]) -> str:
    return f"{name}({', '.join(map(format_number, values))})" if values else name


# Every function: its parameters with their defaults. docs/activations.md has a card for each.
FUNCTION_PARAMETERS: dict[str, dict[str, float]] = {
    "relu": {},
    "leaky_relu": {"leak": 0.1},
    "identity": {},
    "elu": {"alpha": 1.0},
    "selu": {},
    "gelu": {},
    "silu": {},
    "mish": {},
    "softplus": {"beta": 1.0},
    "prelu": {"leak": 0.25},
    "rrelu": {"lower": 1 / 8, "upper": 1 / 3},
    "bsilu": {"alpha": 1.67},
    "nelu": {"alpha": 0.05},
    "helu": {"alpha": 0.05},
}

# Pairs (forward, backward) that have a name of their own.
ALIASES: dict[str, tuple[str, str]] = {
    "nsrelu": ("relu", "leaky_relu"),
    "ste": ("relu", "identity"),
}

# Where the backward's slope is used below 0, with g the gradient at the output; above 0 it is
# always used. As an activation's name, a gate means NSReLU with that gate: rescue(0.1).
GATES: dict[str, str] = {
    "always": "wherever x <= 0",
    "up": "where x <= 0 and g < 0, so that descent raises x",
    "dead": "at units that are off for the whole batch",
    "rescue": "at units that are off for the whole batch, where g < 0",
    "net_rescue": "at units that are off for the whole batch, if the sum of g over it is < 0",
    "down": "where x <= 0 and g > 0, so that descent lowers x: the control",
}

# What an activation's text can begin with.
ACTIVATION_NAMES = (*FUNCTION_PARAMETERS, *ALIASES, *(gate for gate in GATES if gate != "always"))

# Functions with a weight that is trained; their parameter is its initial value.
LEARNABLE = ("prelu",)

# The range of each parameter, ends included.
LIMITS: dict[str, tuple[float, float]] = {
    "leak": (0.0, 1.0),
    "alpha": (0.0, 100.0),
    "beta": (0.01, 100.0),
    "lower": (0.0, 1.0),
    "upper": (0.0, 1.0),
}
