"""What a run and a study are: validated, resolved, hashed, expanded. No torch.

A `RunConfig` holds all that decides a run's numbers: two equal ones give the same metrics.csv,
bit for bit. What a run does not use is resolved away (the leak of relu, the momentum of Adam),
so that it is no part of its identity.
"""

import hashlib
import itertools
import json
import math
import re
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver

from nsrelu_bench.errors import UsageError, lookup, unknown
from nsrelu_bench.labels import Label, forget, parse_label

#: Raised by one when a change of the code changes the numbers that a configuration gives, so that
#: "the same run id means the same numbers" holds across versions too.
NUMERICS = 1

#: A grid larger than this is a mistake, and is refused before it is expanded.
MAX_RUNS = 100_000
MAX_FILE_BYTES = 1_000_000

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
#: -0.0 becomes 0.0: one value, one run id.
_Unsigned = AfterValidator(abs)
Amount = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), _Unsigned]
Fraction = Annotated[float, Field(ge=0, lt=1), _Unsigned]
Choice = Annotated[str, Field(max_length=200)]


class RunConfig(BaseModel):
    """One configuration with one seed, every setting resolved.

    `leak` and `backward` may be given beside `act` and become part of its label:
    ``RunConfig(act="nsrelu", leak=0.2)`` equals ``RunConfig(act="nsrelu(0.2)")``.

    Raises:
        pydantic.ValidationError: A setting is unknown or out of range. `run_config` says the
            same in one line a mistake.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    act: Choice = "nsrelu"  # resolved to its canonical label, nsrelu(0.1)
    impl: Literal["native", "detach", "function", "mismatch"] = "native"
    dataset: Choice = "mnist5k"
    data_dir: str = "data"
    train_size: Count | None = None
    probe_size: Count = 2000
    measures: Annotated[str, Field(max_length=1000)] = (
        "all"  # or "none", names with commas, or -name to leave out
    )
    probe_every: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0  # steps; 0: every epoch alone
    model: Choice = "mlp"
    width: Count = Field(default_factory=lambda known: _size(known["model"], "width"))
    depth: Count = Field(default_factory=lambda known: _size(known["model"], "depth"))
    batch_norm: bool = False
    dropout: Fraction = 0.0
    init: Literal["he", "xavier", "default", "rai"] = "he"
    epochs: Count = 10  # of each task
    tasks: Annotated[int, Field(ge=1, le=10_000)] = 1  # one after another, the pixels permuted
    augment: Annotated[str, Field(max_length=100)] = "none"  # or names with + between them
    batch_size: Count = 64
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Amount = Field(default_factory=lambda known: OPTIMIZERS[known["optimizer"]])
    momentum: Fraction | None = 0.9  # of sgd alone
    weight_decay: Amount = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], AfterValidator(lambda name: _device(name))
    ] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    stack: bool = False  # train the seeds of this configuration as one

    @model_validator(mode="before")
    @classmethod
    def _merge_label(cls, data: Any) -> Any:
        """Make `leak` and `backward` part of the activation's label."""
        if not isinstance(data, Mapping):
            return data
        settings = dict(data)
        parts = {key: settings.pop(key) for key in LABEL_PARTS if key in settings}
        act = settings.get("act", forget(cls.model_fields["act"].default, parts))
        if isinstance(act, str):
            settings["act"] = str(parse_label(act, **parts))
        return settings

    @field_validator("model")
    @classmethod
    def _known_model(cls, name: str) -> str:
        if not PLUGIN.fullmatch(name):
            lookup(MODELS, name, "model")
        return name

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, name: str) -> str:
        if not name.removeprefix("folder:") or not name.startswith("folder:"):
            lookup(DATASETS, name, "dataset")
        return name

    @field_validator("augment")
    @classmethod
    def _canonical_augment(cls, text: str) -> str:
        names = [part.strip() for part in text.split("+")]
        if names == ["none"]:
            return text
        for name in names:
            lookup(AUGMENTATIONS, name, "augmentation")
        return "+".join(name for name in AUGMENTATIONS if name in names)

    @field_validator("measures")
    @classmethod
    def _canonical_measures(cls, text: str) -> str:
        return _measures_text(_read_measures(text))

    @model_validator(mode="after")
    def _fits_the_model(self) -> Self:
        if self.model in FIXED_DEPTH and self.depth != _size(self.model, "depth"):
            depth = _size(self.model, "depth")
            raise ValueError(f"depth: {self.model} has {depth} layers, got {self.depth}")
        if ":" in self.model:
            usual = {name: _size(self.model, name) for name in ("width", "depth")}
            for name, value in (usual | {"batch_norm": False, "dropout": 0.0}).items():
                if getattr(self, name) != value:
                    raise ValueError(f"{name}: {self.model} takes none, got {getattr(self, name)}")
        return self

    @model_validator(mode="after")
    def _fits_a_stack(self) -> Self:
        if self.stack and self.compile:
            raise ValueError("stack: can't be compiled, got compile: true")
        if self.stack and self.dropout:
            raise ValueError(f"stack: works without dropout only, got dropout: {self.dropout}")
        if self.stack and "rrelu" in (self.label.forward.name, self.label.backward.name):
            raise ValueError(f"stack: works without random slopes only, got act: {self.act}")
        return self

    @model_validator(mode="after")
    def _clear_unused(self) -> Self:
        """Clear what the other settings leave unused, so that it makes no second identity."""
        if self.optimizer != "sgd":
            object.__setattr__(self, "momentum", None)
        elif self.momentum is None:
            object.__setattr__(self, "momentum", RunConfig.model_fields["momentum"].default)
        if not self.label.uses_impl:
            object.__setattr__(self, "impl", RunConfig.model_fields["impl"].default)
        return self

    @property
    def label(self) -> Label:
        """The activation."""
        return parse_label(self.act)

    @property
    def total_epochs(self) -> int:
        """Epochs of all tasks."""
        return self.epochs * self.tasks

    @property
    def measured(self) -> list[str]:
        """The names of the measures to take, as in `MEASURES`."""
        return _read_measures(self.measures)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by name, in order, as config.yaml holds them."""
        return self.model_dump()

    @property
    def run_id(self) -> str:
        """A readable slug and 8 hex digits of the hash of all that decides the numbers."""
        unsaid = {name for name, usual in ADDED.items() if getattr(self, name) == usual}
        decisive = self.model_dump(exclude={"data_dir", *unsaid}) | {"numerics": NUMERICS}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        name = "-".join([self.dataset, self.model, self.act])
        slug = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-")[:100]
        return f"{slug}-s{self.seed}-{digest[:8]}"


def _size(model: str, name: str) -> int:
    return MODELS.get(model, MODELS["mlp"])[name]


def _device(name: str) -> str:
    """Tell what "auto" is here: it is no part of a run's identity, the device is."""
    if name != "auto":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _read_measures(text: str) -> list[str]:
    """Read which measures to take: all, none, names, or names with a minus to leave out."""
    names = [part.strip() for part in text.split(",")]
    left_out = [name.removeprefix("-") for name in names if name.startswith("-")]
    if names == ["none"]:
        return []
    if names == ["all"] or len(left_out) == len(names) - (names[0] == "all"):
        taken = set(MEASURES) - set(left_out)
    elif left_out or {"all", "none", ""} & set(names):
        raise UsageError(f"must be all, none, names, or names with a minus, got {text!r}")
    else:
        taken = set(names)
    for name in (*left_out, *sorted(taken)):
        lookup(MEASURES, name, "measure")
    return [name for name in MEASURES if name in taken]


def _measures_text(taken: Sequence[str]) -> str:
    """Write which measures to take in the shortest of the ways that `_read_measures` reads."""
    if not taken:
        return "none"
    left_out = [f"-{name}" for name in MEASURES if name not in taken]
    if not left_out:
        return "all"
    return ",".join(left_out if len(left_out) < len(taken) else taken)


@dataclass(frozen=True)
class Study:
    """The runs of one config file, without doubles, in the order of the grid.

    `asked` are the settings as they were given, before they were expanded.
    """

    name: str
    runs: list[RunConfig]
    asked: Mapping[str, Any]


def run_config(settings: Mapping[str, Any], place: Callable[[str], str] = str) -> RunConfig:
    """Make a run's configuration of plain settings; `place` names a setting to the user.

    Raises:
        UsageError: One line a mistake: the setting, its value and what is allowed.
    """
    try:
        return RunConfig.model_validate(dict(settings))
    except ValidationError as error:
        raise UsageError("\n".join(_mistakes(error, place))) from None


def read_run(path: Path) -> dict[str, Any]:
    """Read the settings of one run from a YAML file such as a run folder's config.yaml.

    Raises:
        UsageError: The file is no such file, or a setting in it is wrong.
    """
    settings = read_yaml(path)
    run_config(settings, lambda key: f"{path}: {key}")
    return settings


def override(settings: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings of two sources, such as a file and the command line."""
    merged = {**settings, **stronger}
    if "act" in stronger:
        # A stronger activation stands for itself; what the weaker source says of its leak is gone.
        merged = {k: v for k, v in merged.items() if k not in LABEL_PARTS or k in stronger}
    elif isinstance(settings.get("act"), str):
        # A separate leak or backward replaces what the weaker source's label says of it.
        merged["act"] = forget(settings["act"], set(LABEL_PARTS) & set(stronger))
    return merged


def read_study(path: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read a study: settings, a grid of lists to combine, what to leave out and add, and seeds.

    Raises:
        UsageError: One line for each mistake in the file, with its place and what is allowed.
    """
    stronger = overrides or {}
    settings = override(read_yaml(path), stronger)
    if "grid" in settings:
        settings["grid"] = _without(settings["grid"], stronger)
    if isinstance(settings.get("include"), list):
        settings["include"] = [_without(entry, stronger) for entry in settings["include"]]
    return make_study(settings, path.stem, lambda key: f"{path}: {key}", strict=not stronger)


def _without(grid: Any, keys: Collection[str]) -> Any:
    """Drop from a grid what a stronger source says."""
    return {k: v for k, v in grid.items() if k not in keys} if isinstance(grid, Mapping) else grid


def make_study(
    settings: Mapping[str, Any],
    default_name: str,
    place: Callable[[str], str] = str,
    *,
    strict: bool = True,
) -> Study:
    """Expand settings with a `grid` and `seeds` to the runs of a study.

    `exclude` leaves out the combinations that have all values of one of its entries; each entry
    of `include` adds a grid of its own, on top of the settings that stand outside. `strict`: an
    entry of `exclude` that leaves nothing out is a mistake.

    Raises:
        UsageError: One line for each mistake, with its place and what is allowed.
    """
    fixed = dict(settings)
    name = fixed.pop("name", default_name)
    seeds = fixed.pop("seeds", None)
    grid = fixed.pop("grid", None) or {}
    exclude = fixed.pop("exclude", None) or []
    include = fixed.pop("include", None) or []
    mistakes = _study_mistakes(name, fixed, grid, seeds, place)
    mistakes += _entry_mistakes(exclude, place("exclude"))
    mistakes += _entry_mistakes(include, place("include"))
    if mistakes:
        raise UsageError("\n".join(mistakes))

    if isinstance(seeds, int):
        seeds = list(range(seeds))
    seeding = {} if seeds is None else {"seed": seeds}
    parts = [(override(fixed, entry), entry) for entry in map(_listed, include)]
    grids = [
        (base, {**axes, **(seeding if "seed" not in axes else {})})
        for base, axes in ((fixed, grid), *parts)
    ]
    size = sum(math.prod(map(len, axes.values())) for _, axes in grids)
    if size > MAX_RUNS:
        raise UsageError(f"{place('grid')}: makes {size} runs, at most {MAX_RUNS} are allowed")
    runs, *added = [_expand(base, axes, place) for base, axes in grids]
    for index, entry in enumerate(map(_listed, exclude)):
        left = [run for run in runs if not _has_all(run, entry)]
        if strict and len(left) == len(runs):
            raise UsageError(f"{place('exclude')}[{index}]: leaves out no run of the grid")
        runs = left
    every = itertools.chain(runs, *added)
    asked = {"name": name, **{key: value for key, value in settings.items() if key != "name"}}
    return Study(name, list({run.run_id: run for run in every}.values()), asked)


def _listed(entry: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: value if isinstance(value, list) else [value] for key, value in entry.items()}


def _expand(
    base: Mapping[str, Any], axes: Mapping[str, list[Any]], place: Callable[[str], str]
) -> list[RunConfig]:
    combinations = itertools.product(*axes.values())
    return [
        run_config({**base, **dict(zip(axes, values, strict=True))}, place)
        for values in combinations
    ]


def _has_all(run: RunConfig, entry: Mapping[str, list[Any]]) -> bool:
    return all(any(_has(run, key, value) for value in values) for key, values in entry.items())


def _has(run: RunConfig, key: str, value: Any) -> bool:
    """Whether a run has a setting: giving it leaves the run the same."""
    if key in ("leak", "alpha") and key not in run.label.forward.values | run.label.backward.values:
        return False
    try:
        return run_config(override(run.settings, {key: value})) == run
    except UsageError:  # it contradicts another setting of the run
        return False


def _study_mistakes(
    name: Any, fixed: Mapping[str, Any], grid: Any, seeds: Any, place: Callable[[str], str]
) -> list[str]:
    """Check each setting of a study by itself, so that all mistakes are told at once."""
    mistakes = []
    if not isinstance(name, str) or not NAME.fullmatch(name):
        mistakes.append(
            f"{place('name')}: must be letters, digits, '.', '_' and '-', at most 64,"
            f" and begin with a letter or digit, got {_brief(name)}"
        )
    if seeds is not None and not _valid_seeds(seeds):
        mistakes.append(f"{place('seeds')}: must be a number from 1 or a list, got {_brief(seeds)}")
    if seeds is not None and "seed" in {**fixed, **(grid if isinstance(grid, Mapping) else {})}:
        mistakes.append(f"{place('seed')}: can't stand beside seeds")
    for key, value in fixed.items():
        mistakes += _setting_mistakes(key, value, place(str(key)))
    if not isinstance(grid, Mapping):
        return [*mistakes, f"{place('grid')}: must map settings to lists, got {_brief(grid)}"]
    for key, values in grid.items():
        where = place(f"grid.{key}")
        if not isinstance(values, list) or not values:
            mistakes.append(f"{where}: must be a list of values, got {_brief(values)}")
            continue
        if key in fixed:
            mistakes.append(f"{where}: stands outside the grid too")
        for index, value in enumerate(values):
            mistakes += _setting_mistakes(key, value, f"{where}[{index}]")
    return mistakes


def _entry_mistakes(entries: Any, where: str) -> list[str]:
    """Check a list of mappings from settings to a value or a list of values."""
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        return [
            f"{where}: must be a list of mappings from settings to values, got {_brief(entries)}"
        ]
    mistakes = []
    for index, entry in enumerate(entries):
        if not entry or [] in entry.values():
            mistakes.append(
                f"{where}[{index}]: must name a setting and its values, got {_brief(entry)}"
            )
        for key, values in _listed(entry).items():
            for value in values:
                mistakes += _setting_mistakes(key, value, f"{where}[{index}].{key}")
    return mistakes


def _valid_seeds(seeds: Any) -> bool:
    if isinstance(seeds, list):
        return bool(seeds) and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds)
    return isinstance(seeds, int) and not isinstance(seeds, bool) and 1 <= seeds <= MAX_RUNS


def _setting_mistakes(key: Any, value: Any, where: str) -> list[str]:
    try:
        RunConfig.model_validate({key: value})
    except ValidationError as error:
        return _mistakes(error, lambda _: where)
    return []


def _mistakes(error: ValidationError, place: Callable[[str], str]) -> list[str]:
    """Say each mistake that pydantic found in one line."""
    lines = []
    for detail in error.errors(include_url=False):
        if detail["type"] == "default_factory_not_called":
            continue  # it waits for a setting whose own mistake is told
        message = detail["msg"].replace("Input should be", "must be")
        message = message.removeprefix("Value error, ")
        # A mistake in a label is found before pydantic looks at its field, and names its part.
        part = next((part for part in LABEL_PARTS if message.startswith(f"{part} ")), "act")
        key = str(detail["loc"][0]) if detail["loc"] else part
        named, _, rest = message.partition(": ")
        if not detail["loc"] and named in RunConfig.model_fields:
            key, message = named, rest
        if detail["type"] == "extra_forbidden":
            message = str(unknown(key, SETTINGS, "setting", brief=True))
        elif detail["type"] != "value_error":
            message = f"{message}, got {_brief(detail['input'])}"
        where = place(key)
        lines.append(f"{where}: {message.removeprefix(f'{key} ') if key in where else message}")
    return lines


def _brief(value: Any) -> str:
    """Write a wrong value, however large it is, in some words."""
    short = reprlib.Repr()
    short.maxlevel = 2
    return short.repr(value)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 file that holds one mapping; tags and doubled keys are mistakes.

    Raises:
        UsageError: There is no such file, or it can't be read as a mapping.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        return parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text") from None
    except MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        problem = str(error.problem).partition(" with value")[0]  # they may fill the screen
        raise UsageError(f"{path}:{line} {problem}") from None
    except RecursionError:
        raise UsageError(f"{path}: brackets stand too deep in each other") from None
    except (YAMLError, ValueError) as error:
        raise UsageError(f"{path}: {str(error).splitlines()[0]}") from None


class _Resolver(VersionedResolver):
    """Takes 1_0 for a word, as YAML 1.2 does and ruamel.yaml does not."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Return the tag of a value."""
        if kind is ScalarNode and implicit[0] and "_" in value:
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


def parse_yaml(text: str) -> dict[str, Any]:
    """Parse YAML text that holds one mapping with names as keys.

    Raises:
        ValueError: It is something else.
        YAMLError: It is no YAML.
    """
    if re.search(r"^%YAML +1\.[01]", text, re.MULTILINE):
        raise ValueError("must be YAML 1.2, in which `no` is a word and 010 is 10")
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _Resolver
    content = yaml.load(text)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError("must be a mapping of settings")
    return content


def read_setting(text: str) -> tuple[str, Any]:
    """Read ``key=value``, the value as in a file.

    Raises:
        UsageError: It is something else.
    """
    key, equals, value = text.partition("=")
    try:
        if equals and key.isidentifier():
            return key, parse_yaml(f"value: {value}")["value"]
    except (YAMLError, ValueError):
        pass
    raise UsageError(f"--set: must be a setting and its value, e.g. lr=0.1, got {text!r}")


def write_yaml(settings: Mapping[str, Any], stream: Any) -> None:
    """Write settings as YAML, one a line, in their order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(dict(settings), stream)


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)

#: Settings that are given beside `act` and become part of its label.
LABEL_PARTS = ("leak", "alpha", "backward")

#: Settings that came after results were published, each with the value that all had before: with
#: it a run keeps the id that it had.
ADDED: dict[str, Any] = {"stack": False}

#: All that a run can be given.
SETTINGS = (*RunConfig.model_fields, *LABEL_PARTS)

#: The user's own model: a module's dotted name and a function in it.
PLUGIN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)

#: What can be named, with the defaults that go with it; the code is in models.py, data.py and
#: augment.py.
MODELS: dict[str, dict[str, int]] = {
    "mlp": {"width": 128, "depth": 3},
    "deep_narrow": {"width": 16, "depth": 20},
    "cnn": {"width": 16, "depth": 3},
    "vgg11": {"width": 64, "depth": 11},
    "vgg16": {"width": 64, "depth": 16},
    "resnet18": {"width": 64, "depth": 18},
}
FIXED_DEPTH = ("vgg11", "vgg16", "resnet18")
OPTIMIZERS: dict[str, float] = {"sgd": 0.02, "adam": 1e-3, "adamw": 1e-3}
DATASETS: dict[str, str] = {
    "mnist5k": "5,000 real MNIST digits, 28x28, embedded",
    "digits": "1,797 real digits, 8x8, embedded",
    "synthetic": "4,000 generated images, 8x8, for tests",
    "mnist": "70,000 digits, 28x28, through torchvision",
    "fashion_mnist": "70,000 articles of clothing, 28x28, through torchvision",
    "kmnist": "70,000 cursive Japanese characters, 28x28, through torchvision",
    "emnist": "131,600 letters and digits in 47 balanced classes, 28x28, through torchvision",
    "svhn": "99,289 house numbers, 32x32 in colour, through torchvision",
    "cifar10": "60,000 photographs, 32x32 in colour, through torchvision",
    "cifar100": "60,000 photographs in 100 classes, 32x32 in colour, through torchvision",
}
AUGMENTATIONS: dict[str, str] = {
    "crop": "a random crop of the image with 4 pixels of zeros around it",
    "flip": "left and right exchanged with probability 1/2",
    "cutout": "a square of half the side set to the mean (DeVries & Taylor 2017)",
}

#: What is measured at the activation sites, in the order of the columns; docs/metrics.md defines
#: each, and the code is in metrics.py.
MEASURES: dict[str, str] = {
    "zero_fraction": "fraction of the outputs that are exactly 0",
    "negative_fraction": "fraction of the inputs that are <= 0",
    "dead_units": "units with output 0 for every example",
    "dead_fraction": "dead units over units",
    "submerged_units": "units with input <= 0 for every example",
    "dormant_units": "units with at most 0.025 of the layer's mean output",
    "died_units": "units alive at the last measurement and dead now",
    "revived_units": "units dead at the last measurement and alive now",
    "grad_norm": "norm of the gradient of the parameters (needs a backward pass)",
    "zero_grad_units": "units whose inputs get no gradient at all (needs a backward pass)",
    "surrogate_cosine": "cosine of the gradient followed and the true one (needs another pass)",
    "submerged_fraction": "submerged units over units",
    "ever_dead_units": "units dead at this or an earlier measurement",
    "recovered_units": "units dead at one measurement and alive at a later one",
    "pre_grad_norm": "norm of the gradient at the inputs (needs a backward pass)",
    "sign_disagreement": "parameters whose two gradients have opposite signs (the same pass)",
    "lifetime_sparsity": "how few of the examples a unit responds to",
    "population_sparsity": "how few of the units respond to an example",
    "effective_rank": "effective number of dimensions of the outputs (costly in wide layers)",
}
