"""The names of activations, and the one label that each has everywhere.

An activation is a pair (forward function, backward function). One label names it on the command
line, in configs, file names, tables and legends: ``relu``, ``leaky_relu(0.1)``, ``nsrelu(0.1)``,
``relu/bsilu(1.67)``. Nothing here needs torch.
"""

import numbers
import re
from collections.abc import Collection
from dataclasses import dataclass

from nsrelu_bench.errors import UsageError, lookup, unknown

MAX_LENGTH = 200

# A name takes any character that is no part of the grammar, so that a typing error is reported
# as an unknown name, with the names that there are. Numbers are ASCII: float() reads more.
_TERM = re.compile(r" *([^ ()/,]+) *(?:\(([^()]*)\) *)?")
NUMBER = re.compile(
    r" *[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf|infinity) *",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class FunctionSpec:
    """One function with its parameters, in the order of `FUNCTIONS`; ``leaky_relu(0.1)``.

    Raises:
        UsageError: There is no such function, or a parameter is missing or out of range.
    """

    name: str
    parameters: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        names = lookup(FUNCTIONS, self.name, "function")
        if len(self.parameters) != len(names):
            raise _wrong_count(self.name, list(names), len(self.parameters))
        checked = tuple(map(check_parameter, names, self.parameters))
        object.__setattr__(self, "parameters", checked)
        if self.name == "rrelu" and checked[0] > checked[1]:
            raise UsageError(f"lower must be at most upper, got {self}")

    @property
    def values(self) -> dict[str, float]:
        """The parameters by name."""
        return dict(zip(FUNCTIONS[self.name], self.parameters, strict=True))

    def __str__(self) -> str:
        return _format_call(self.name, self.parameters)


@dataclass(frozen=True)
class ActivationSpec:
    """An activation: what the forward pass computes, and whose gradient the backward pass uses.

    ``str(label)`` is its canonical text, and `parse_activation` of that text is the same label. The
    straight-through estimator, relu/identity, is nsrelu(1).

    Raises:
        UsageError: One of two different functions has weights of its own.
    """

    forward: FunctionSpec
    backward: FunctionSpec

    def __post_init__(self) -> None:
        if (self.forward.name, self.backward.name) == ("relu", "identity"):
            object.__setattr__(self, "backward", FunctionSpec("leaky_relu", (1.0,)))
        for term in (self.forward, self.backward):
            if term.name in LEARNABLE and not self.tied:
                raise UsageError(
                    f"{term.name} has a weight of its own, and makes no pair with another function"
                )

    @property
    def tied(self) -> bool:
        """Whether the backward is the forward's own."""
        return self.forward == self.backward

    @property
    def leak(self) -> float | None:
        """The negative slope of the backward, None where the backward is no leaky ReLU."""
        return self.backward.values.get("leak")

    @property
    def uses_impl(self) -> bool:
        """Whether there is a choice of implementations: for every pair whose passes differ."""
        return not self.tied

    def __str__(self) -> str:
        if self.tied:
            return str(self.forward)
        for alias, pair in ALIASES.items():
            if pair == (self.forward.name, self.backward.name):
                return _format_call(alias, self.forward.parameters + self.backward.parameters)
        return f"{self.forward}/{self.backward}"


def parse_activation(
    text: str,
    *,
    leak: float | None = None,
    alpha: float | None = None,
    backward: str | None = None,
) -> ActivationSpec:
    """Read ``name``, ``name(number)`` or ``forward/backward``, and merge separate settings into it.

    `leak` and `alpha` fill in whatever of their name the text leaves open, and are ignored by an
    activation that has none. `backward` makes a pair of a plain function.

    Raises:
        UsageError: The text can't be read, names something unknown, or contradicts a setting.
    """
    settings = {
        name: check_parameter(name, value)
        for name, value in {"leak": leak, "alpha": alpha}.items()
        if value is not None
    }
    drafts = _read_activation(text)
    if backward is not None:
        wanted = _read_function(backward, "backward")
        if len(drafts) == 2 and not _agree(drafts[1], wanted):
            raise UsageError(f"backward {backward!r} contradicts activation {text!r}")
        stated = drafts[1][1] if len(drafts) == 2 else {}
        drafts = [drafts[0], (wanted[0], wanted[1] | stated)]
    for name, value in settings.items():
        takers = [stated for function, stated in drafts if name in FUNCTIONS[function]]
        used = [stated.setdefault(name, value) for stated in takers]
        if used and value not in used:
            raise UsageError(f"{name} {format_number(value)} contradicts activation {text!r}")
    terms = [
        FunctionSpec(name, tuple((FUNCTIONS[name] | stated).values())) for name, stated in drafts
    ]
    return ActivationSpec(terms[0], terms[-1])


def same_activation(label: str, wanted: str) -> bool:
    """Return whether `wanted` names the activation `label`, in any spelling.

    What `wanted` leaves open may be anything: ``nsrelu`` is every leak of it.
    """
    try:
        spec, drafts = parse_activation(label), _read_activation(wanted)
    except UsageError:
        return label == wanted
    if [name for name, _ in drafts] == ["relu", "identity"]:
        drafts = [("relu", {}), ("leaky_relu", {"leak": 1.0})]
    terms = [(spec.forward, drafts[0]), (spec.backward, drafts[-1])]
    return all(
        term.name == name and stated.items() <= term.values.items()
        for term, (name, stated) in terms
    )


def forget(text: str, settings: Collection[str]) -> str:
    """Drop from an activation's text what it says of `settings`; what can't be read stays."""
    try:
        drafts = _read_activation(text)
    except UsageError:
        return text
    if "backward" in settings:
        drafts = drafts[:1]
    kept = [
        (name, [v for key, v in stated.items() if key not in settings]) for name, stated in drafts
    ]
    return "/".join(_format_call(name, tuple(values)) for name, values in kept)


def check_parameter(name: str, value: float) -> float:
    """Return `value` as a float if it is in the range of the parameter `name` (`LIMITS`).

    Raises:
        UsageError: It is not, or is no number; "leak must be from 0 to 1, got -1".
    """
    low, high = LIMITS[name]
    # A bool is an int to Python; NSReLU(True), written as one writes nn.ReLU(True), means no leak.
    is_number = isinstance(value, float | numbers.Real) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        got = str(value).removesuffix(".0") if is_number else repr(value)
        limits = f"from {format_number(low)} to {format_number(high)}"
        raise UsageError(f"{name} must be {limits}, got {got}")
    return float(value) + 0.0  # -0.0 becomes 0.0: one value, one label


def format_number(value: float) -> str:
    """Write a number as short as reads back the same: ``0.1``, ``0``, ``1``."""
    return repr(float(value)).removesuffix(".0")


# What a text states so far: a function and those of its parameters that have a number.
_Draft = tuple[str, dict[str, float]]


def _read_activation(text: str) -> list[_Draft]:
    """Read one function (tied), or a forward and a backward."""
    if not text.strip(" "):
        choices = ", ".join([*FUNCTIONS, *ALIASES])
        raise UsageError(f"activation must not be empty; choose from: {choices}")
    halves = text.split("/")
    if len(halves) == 2:
        return [_read_function(halves[0], "forward"), _read_function(halves[1], "backward")]
    name, values = _read_call(text, "activation")
    if name not in ALIASES:
        if name not in FUNCTIONS:
            raise unknown(name, [*FUNCTIONS, *ALIASES], "activation")
        return [(name, _name_values(name, [name], values)[0])]
    pair = ALIASES[name]
    return list(zip(pair, _name_values(name, pair, values), strict=True))


def _read_function(text: str, kind: str) -> _Draft:
    name, values = _read_call(text, kind)
    lookup(FUNCTIONS, name, kind)
    return name, _name_values(name, [name], values)[0]


def _read_call(text: str, kind: str) -> tuple[str, list[float]]:
    """Read ``name`` or ``name(number)``, or numbers with commas between."""
    if len(text) > MAX_LENGTH:
        raise UsageError(
            f"{kind} has {len(text)} characters, at most {MAX_LENGTH} are allowed: {text[:20]!r}..."
        )
    match = _TERM.fullmatch(text)
    if match is None:
        pair = " or forward/backward" if kind == "activation" else ""
        raise UsageError(f"{kind} must be name or name(number){pair}, got {text!r}")
    name, arguments = match.groups()
    values = [] if arguments is None else arguments.split(",")
    for value in values:
        if not NUMBER.fullmatch(value):
            raise UsageError(f"{kind} {text!r}: {value!r} is not a number")
    return name, [float(value) for value in values]


def _name_values(
    name: str, functions: tuple[str, str] | list[str], values: list[float]
) -> list[dict[str, float]]:
    """Give the numbers behind `name` to the parameters of its functions, in order."""
    names = [parameter for function in functions for parameter in FUNCTIONS[function]]
    if len(values) > len(names):
        raise _wrong_count(name, names, len(values))
    left = iter(values)
    return [dict(zip(FUNCTIONS[function], left, strict=False)) for function in functions]


def _wrong_count(name: str, parameters: list[str], got: int) -> UsageError:
    takes = f"{len(parameters)} ({', '.join(parameters)})" if parameters else "none"
    return UsageError(f"wrong number of parameters for {name}: it takes {takes}, got {got}")


def _agree(one: _Draft, other: _Draft) -> bool:
    shared = one[1].keys() & other[1].keys()
    return one[0] == other[0] and all(one[1][key] == other[1][key] for key in shared)


def _format_call(name: str, values: tuple[float, ...]) -> str:
    return f"{name}({', '.join(map(format_number, values))})" if values else name


# Every function: its parameters with their defaults. docs/activations.md has a card of each.
FUNCTIONS: dict[str, dict[str, float]] = {
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

# Functions with a weight that is trained; their parameter is where it starts.
LEARNABLE = ("prelu",)

# The range of each parameter, ends included.
LIMITS: dict[str, tuple[float, float]] = {
    "leak": (0.0, 1.0),
    "alpha": (0.0, 100.0),
    "beta": (0.01, 100.0),
    "lower": (0.0, 1.0),
    "upper": (0.0, 1.0),
}
