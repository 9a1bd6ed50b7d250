"""Whatever can be named in a configuration has all of its parts; CONTRIBUTING.md lists them."""

import re
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import nn

from nsrelu_bench import models
from nsrelu_bench.activations import NSReLU, gates, modules, named_functions
from nsrelu_bench.config import activation_spec, registry
from nsrelu_bench.data import loading
from nsrelu_bench.measures import measure
from nsrelu_bench.plot import figure_specs, style
from nsrelu_bench.tools import ops
from nsrelu_bench.training import optimizers

ROOT = Path(__file__).parents[2]


def found_in(file: str, pattern: str) -> set[str]:
    """Return what a pattern's group matches in the lines of a file."""
    return set(re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE))


def short(value: object) -> str:
    """Return the name of a parameter of a test, nothing for what is found."""
    return value if isinstance(value, str) else ""


CARD, ROW = r"^### (\S+)$", r"^\| `(\w+)`"
PARAMETERS = {
    name for parameters in activation_spec.FUNCTION_PARAMETERS.values() for name in parameters
}

MODELS_WITH_SITES = found_in("tests/test_models.py", r'"(\w+)": \d')
MEASURE_TESTS = {
    word
    for path in (ROOT / "tests" / "measures").glob("*.py")
    for word in found_in(str(path), r"\w+")
}

#: The names that a configuration knows.
KNOWN: dict[str, tuple[str, Collection[str]]] = {
    "activation": (
        "FUNCTION_PARAMETERS of config/activation_spec.py",
        activation_spec.FUNCTION_PARAMETERS,
    ),
    "gate": (
        "GATES of config/activation_spec.py",
        [gate for gate in activation_spec.GATES if gate != "always"],
    ),
    "parameter": ("FUNCTION_PARAMETERS of config/activation_spec.py", PARAMETERS),
    "model": ("MODEL_SIZES of config/registry.py", registry.MODEL_SIZES),
    "optimizer": ("OPTIMIZERS of config/registry.py", registry.OPTIMIZERS),
    "schedule": ("SCHEDULES of config/registry.py", registry.SCHEDULES),
    "data set": ("DATASETS of config/registry.py", registry.DATASETS),
    "measure": ("SITE_MEASURES of config/registry.py", registry.SITE_MEASURES),
    "figure": ("FIGURES of config/registry.py", registry.FIGURES),
}

#: Where the code of each is: the same names, no more and no less.
CODE_PLACES: list[tuple[str, str, Collection[str]]] = [
    ("activation", "FUNCTIONS of activations/named_functions.py", named_functions.FUNCTIONS),
    ("activation", "MODULES of activations/modules.py", modules.MODULES),
    ("gate", "RULES of activations/gates.py", gates.RULES),
    ("parameter", "LIMITS of config/activation_spec.py", activation_spec.LIMITS),
    ("model", "MODELS of models.py", models.MODELS),
    ("optimizer", "OPTIMIZER_CLASSES of training/optimizers.py", optimizers.OPTIMIZER_CLASSES),
    ("schedule", "SCHEDULE_FACTORS of training/optimizers.py", optimizers.SCHEDULE_FACTORS),
    ("data set", "LOADERS of data/loading.py", loading.LOADERS),
    ("figure", "PLANS of plot/figure_specs.py", figure_specs.PLANS),
]

#: Where else each must be, among others.
TEXT_PLACES: list[tuple[str, str, Collection[str]]] = [
    ("activation", "docs/activations.md: a card", found_in("docs/activations.md", CARD)),
    ("gate", "FORMS of tools/ops.py", ops.FORMS),
    ("gate", "SHADES of plot/style.py", style.SHADES),
    ("gate", "DASHES of plot/style.py", style.DASHES),
    ("gate", "docs/activations.md: a card", found_in("docs/activations.md", CARD)),
    ("model", "docs/models.md: a row", found_in("docs/models.md", ROW)),
    ("model", "MODELS_WITH_SITES of tests/test_models.py", MODELS_WITH_SITES),
    ("data set", "docs/datasets.md: a row", found_in("docs/datasets.md", ROW)),
    ("figure", "docs/reading.md: a section", found_in("docs/reading.md", r"^## (\w+): ")),
    ("measure", "docs/metrics.md: a section", found_in("docs/metrics.md", CARD)),
    ("measure", "a test in tests/measures/", MEASURE_TESTS),
]


@pytest.mark.parametrize(("kind", "place", "there"), [*CODE_PLACES, *TEXT_PLACES], ids=short)
def test_a_name_has_all_its_parts(kind: str, place: str, there: Collection[str]) -> None:
    registered, names = KNOWN[kind]
    missing = [name for name in names if name not in there]
    assert not missing, (
        f"{kind} {', '.join(missing)}: in {registered}, but not in {place}; see CONTRIBUTING.md"
    )


@pytest.mark.parametrize(("kind", "place", "there"), CODE_PLACES, ids=short)
def test_what_has_code_can_be_named(kind: str, place: str, there: Collection[str]) -> None:
    registered, names = KNOWN[kind]
    missing = [name for name in there if name not in names]
    assert not missing, (
        f"{kind} {', '.join(missing)}: in {place}, but not in {registered}; see CONTRIBUTING.md"
    )


def test_every_measure_is_taken() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), NSReLU(0.1), nn.Linear(8, 3))
    images, labels = torch.randn(30, 4), torch.arange(30) % 3
    before = measure(model, images, labels)
    found = measure(model, images, labels, previous=before)
    alone = {
        name: measure(model, images, labels, measures=[name], previous=before).totals[name]
        for name in registry.SITE_MEASURES
    }
    for what, row in (
        ("the network", found.totals),
        ("a layer", found.layers[0]),
        ("the network, alone", alone),
    ):
        empty = [name for name in registry.SITE_MEASURES if row.get(name) is None]
        assert not empty, (
            f"measure {', '.join(empty)}: always empty for {what}; a measure of a site needs a line"
            " in _COMPUTE of measures/sites.py, with all that its function needs, one of units'"
            " history in measures/measurement.py"
        )
