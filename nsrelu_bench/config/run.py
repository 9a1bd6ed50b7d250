"""What a run is: its settings, validated, resolved and hashed. No torch.

A `RunConfig` holds all that decides a run's numbers: two equal ones give the same metrics.csv,
bit for bit. What a run does not use is resolved away (the leak of relu, the momentum of Adam),
so that it is not part of its identity.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nsrelu_bench.config.activation_spec import (
    ACTIVATION_NAMES,
    FUNCTION_PARAMETERS,
    GATES,
    ActivationSpec,
    forget,
    parse_activation,
)
from nsrelu_bench.config.measure_choice import canonical_measures, read_measures
from nsrelu_bench.config.registry import (
    AUGMENTATIONS,
    DATASETS,
    FIXED_DEPTH,
    FOLDER_FORM,
    MODEL_SIZES,
    OPTIMIZERS,
    OWN_RATE,
    SCHEDULES,
    SITE_MEASURES,
    check_name,
    is_own,
)
from nsrelu_bench.config.setting import Setting, describe_setting, setting
from nsrelu_bench.errors import lookup
from nsrelu_bench.text import NOT_TINY, SMALLEST

#: Raised by one when a change of the code changes the numbers that a configuration gives, so that
#: "the same run id means the same numbers" holds across versions too.
NUMERICS = 1

#: What a setting can name besides a part of the user's own.
NAMED_PARTS: dict[str, Iterable[str]] = {
    "model": MODEL_SIZES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]


def _checked_size(value: float) -> float:
    """Return a number that is 0 or large enough to act; -0.0 becomes 0.0: one value, one run id."""
    if 0 < value < SMALLEST:
        raise ValueError(f"{NOT_TINY}, got {value}")
    return abs(value)


_Sized = AfterValidator(_checked_size)
Amount = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), _Sized]
Fraction = Annotated[float, Field(ge=0, lt=1), _Sized]
Choice = Annotated[str, Field(max_length=200)]


class ActivationParts(BaseModel):
    """Settings that may be given together with `act`, and become part of its label."""

    model_config = ConfigDict(defer_build=True)

    leak: float = setting(
        "activation",
        "Negative slope, from 0 to 1",
        usual=f"{FUNCTION_PARAMETERS['leaky_relu']['leak']}",
    )
    alpha: float = setting(
        "activation", "Parameter of elu, bsilu, nelu and helu", usual="by function"
    )
    backward: str = setting(
        "activation",
        "Function whose gradient is used instead of the true one",
        usual="",
        names=FUNCTION_PARAMETERS,
    )
    gate: str = setting(
        "activation",
        "Where the backward's slope is used below 0: always, up, dead, rescue, net_rescue or down",
        usual="always",
        names=GATES,
    )


LABEL_PARTS = ActivationParts.model_fields


class RunConfig(BaseModel):
    """One configuration with one seed, every setting resolved.

    `leak`, `alpha`, `backward` and `gate` may be given with `act` and become part of its label:
    ``RunConfig(act="nsrelu", leak=0.2)`` equals ``RunConfig(act="nsrelu(0.2)")``.

    Raises:
        pydantic.ValidationError: A setting is unknown or out of range. `run_config` says the
            same in one line per mistake.
    """

    # Building the validators waits for the first run, which --help does not need.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    act: Choice = setting(
        "activation",
        "Activation, e.g. relu, 'nsrelu(0.1)', relu/gelu, or package.module:name of your own",
        "nsrelu",  # resolved to its canonical label, nsrelu(0.1)
        names=ACTIVATION_NAMES,
    )
    impl: Literal["native", "detach", "function", "mismatch"] = setting(
        "activation", "Implementation of a pair of two functions", "native"
    )
    dataset: Choice = setting(
        "data",
        "Data set by name, folder:PATH of your own images, or package.module:function of your own",
        "mnist5k",
        names=DATASETS,
    )
    data_dir: Annotated[str, AfterValidator(os.path.expanduser)] = setting(
        "data", "Folder of downloaded data sets", "data", metavar="DIR"
    )
    train_size: Count | None = setting(
        "data", "Train on a stratified part of the training data", None, usual="all"
    )
    probe_size: Count = setting("measuring", "Training examples to measure on", 2000)
    measures: Annotated[str, Field(max_length=1000), AfterValidator(canonical_measures)] = setting(
        "measuring",
        "Measures to take: all, none, names, -name to leave out, package.module:name of your own",
        "all",
        names=["all", "none", *SITE_MEASURES],
        metavar="NAMES",
    )
    probe_every: Annotated[int, Field(ge=0, le=1_000_000_000)] = setting(
        "measuring", "Steps between measurements within an epoch; 0: none", 0
    )
    model: Choice = setting(
        "model", "Model by name, or package.module:factory of your own", "mlp", names=MODEL_SIZES
    )
    width: Count = setting(
        "model",
        "Units per layer, or channels of the first convolution",
        default_factory=lambda known: _size(known["model"], "width"),
        usual=f"{MODEL_SIZES['mlp']['width']} for mlp, otherwise by model",
    )
    depth: Count = setting(
        "model",
        "Hidden layers",
        default_factory=lambda known: _size(known["model"], "depth"),
        usual=f"{MODEL_SIZES['mlp']['depth']} for mlp, otherwise by model",
    )
    batch_norm: bool = setting("model", "Batch norm before the activations", default=False)
    layer_norm: bool = setting("model", "Layer norm before the activations", default=False)
    dropout: Fraction = setting("model", "Dropout rate after the activations", 0.0)
    init: Literal["he", "xavier", "default", "rai"] = setting(
        "model", "Initialisation of the weights", "he"
    )
    epochs: Count = setting("training", "Passes over the training data, per task", 10)
    tasks: Annotated[int, Field(ge=1, le=10_000)] = setting(
        "training", "Tasks one after another, each with its pixels permuted", 1
    )
    augment: Annotated[str, Field(max_length=100)] = setting(
        "data",
        "Augmentation: names with + between them",
        "none",
        names=["none", *AUGMENTATIONS],
        metavar="NAMES",
    )
    batch_size: Count = setting("training", "Examples per step", 64)
    optimizer: Choice = setting(
        "training",
        "Optimizer by name, or package.module:name of your own",
        "sgd",
        names=OPTIMIZERS,
    )
    lr: Amount = setting(
        "training",
        "Learning rate",
        default_factory=lambda known: OPTIMIZERS.get(known["optimizer"], OWN_RATE),
        usual=", ".join(
            [f"{rate:g} for {name}" for name, rate in OPTIMIZERS.items() if rate != OWN_RATE]
            + [f"otherwise {OWN_RATE:g}"]
        ),
    )
    momentum: Fraction | None = setting("training", "Momentum of sgd", 0.9)
    weight_decay: Amount = setting("training", "Weight decay", 0.0)
    clip_norm: Amount = setting(
        "training", "Largest L2 norm of the gradient of a step; 0: no limit", 0.0
    )
    redo: Annotated[int, Field(ge=0, le=1_000_000_000)] = setting(
        "training", "Steps between resets of dormant units (ReDo); 0: none", 0
    )
    schedule: Choice = setting(
        "training",
        "Schedule of the learning rate by name, or package.module:function of your own",
        "constant",
        names=SCHEDULES,
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = setting(
        "training", "Seed, or the first of several", 0
    )
    replicate: Annotated[int, Field(ge=0, le=1_000_000)] = setting(
        "training", "Rounding replicate: 0, or initial weights changed in the last digit", 0
    )
    threads: Annotated[int, Field(ge=1, le=1024)] = setting("running", "Torch threads per run", 1)
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], AfterValidator(lambda name: resolve_device(name))
    ] = setting("running", "Device to compute on", "cpu")
    precision: Literal["fp32", "bf16"] = setting(
        "running", "Precision of training; bf16 is mixed", "fp32"
    )
    compile: bool = setting("running", "Compile the model", default=False)
    stack: bool = setting(
        "running", "Train the seeds of a configuration as one network, for GPUs", default=False
    )
    local: bool = setting(
        "activation",
        "Units that are off train their own weights, but not the layers below",
        default=False,
    )
    leak_schedule: Literal["constant", "linear"] = setting(
        "activation", "Schedule of the leak; linear: to 0 at the end of the run", "constant"
    )

    @model_validator(mode="before")
    @classmethod
    def _merge_label(cls, data: Any) -> Any:
        """Make `leak` and `backward` part of the activation's label."""
        if not isinstance(data, Mapping):
            return data
        settings = {key: _plain(value) for key, value in data.items()}
        parts = {key: settings.pop(key) for key in LABEL_PARTS if key in settings}
        act = settings.get("act", forget(cls.model_fields["act"].default, parts))
        if isinstance(act, str):
            settings["act"] = str(parse_activation(act, **parts))
        return settings

    @field_validator("model", "optimizer", "schedule")
    @classmethod
    def _known_name(cls, name: str, info: ValidationInfo) -> str:
        kind = str(info.field_name)
        return check_name(name, NAMED_PARTS[kind], kind)

    @field_validator("dataset")
    @classmethod
    def _canonical_dataset(cls, name: str) -> str:
        """Normalise the path of a folder, so that p, p/ and ./p are one data set."""
        kind, _, path = name.partition(":")
        if kind == "folder" and path:
            return f"folder:{PurePath(os.path.expanduser(path))}"  # noqa: PTH111
        return check_name(name, [*DATASETS, FOLDER_FORM], "dataset")

    @field_validator("augment")
    @classmethod
    def _canonical_augment(cls, text: str) -> str:
        names = [part.strip() for part in text.split("+")]
        if names == ["none"]:
            return text
        for name in names:
            lookup(AUGMENTATIONS, name, "augmentation")
        return "+".join(name for name in AUGMENTATIONS if name in names)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Check that the settings fit together, and reset those that are not used."""
        self._fit_the_model()
        if is_own(self.optimizer):
            self._excludes("optimizer", "weight_decay")
        if self.stack:
            self._fit_a_stack()
        if self.layer_norm:
            self._excludes("layer_norm", "batch_norm")
            if self.model == "resnet18":
                raise ValueError("layer_norm: resnet18 does not offer it")
        if self.redo:
            self._excludes("redo", "batch_norm", "layer_norm")
            if self.model == "resnet18" or ":" in self.model:
                raise ValueError(
                    f"redo: needs a model whose layers follow one another, got model: {self.model}"
                )
        if self.local and not self.activation.tied:
            self._fit_local()
        self._clear_unused()
        return self

    def _fit_the_model(self) -> None:
        if self.model in FIXED_DEPTH and self.depth != _size(self.model, "depth"):
            depth = _size(self.model, "depth")
            raise ValueError(f"depth: {self.model} has {depth} layers, got {self.depth}")
        if ":" in self.model:
            usual = {name: _size(self.model, name) for name in ("width", "depth")}
            none = {"batch_norm": False, "layer_norm": False, "dropout": 0.0}
            for name, value in (usual | none).items():
                if getattr(self, name) != value:
                    raise ValueError(f"{name}: {self.model} takes none, got {getattr(self, name)}")

    def _fit_a_stack(self) -> None:
        if is_own(self.optimizer):
            raise ValueError(f"stack: takes no optimizer of your own, got {self.optimizer}")
        if self.compile:
            raise ValueError("stack: can't be compiled, got compile: true")
        self._excludes("stack", "dropout", "clip_norm", "redo")
        if self.leak_schedule != "constant":
            raise ValueError("stack: works with a constant leak only, got leak_schedule: linear")
        if "rrelu" in (self.activation.forward.name, self.activation.backward.name):
            raise ValueError(f"stack: works without random slopes only, got act: {self.act}")

    def _fit_local(self) -> None:
        if self.activation.forward.name != "relu":
            raise ValueError(f"local: needs a forward of relu, got act: {self.act}")
        self._excludes("local", "batch_norm", "layer_norm")
        if self.model == "resnet18":
            raise ValueError("local: resnet18 has activations of sums, and does not offer it")

    def _excludes(self, setting: str, *others: str) -> None:
        """Refuse a setting together with others that are not off."""
        for name in others:
            if value := getattr(self, name):
                shown = "true" if value is True else value
                words = name.replace("_", " ")
                raise ValueError(f"{setting}: works without {words} only, got {name}: {shown}")

    def _clear_unused(self) -> None:
        """Reset settings that the others leave unused, so that they do not change the run's id."""
        if self.optimizer != "sgd":
            object.__setattr__(self, "momentum", None)
        elif self.momentum is None:
            object.__setattr__(self, "momentum", RunConfig.model_fields["momentum"].default)
        if self.activation.tied:
            object.__setattr__(self, "local", False)
        if not self.activation.has_schedule:
            object.__setattr__(self, "leak_schedule", "constant")
        if not self.activation.uses_impl:
            object.__setattr__(self, "impl", RunConfig.model_fields["impl"].default)

    @property
    def activation(self) -> ActivationSpec:
        """The activation."""
        return _parse_label(self.act)

    @property
    def total_epochs(self) -> int:
        """Epochs of all tasks."""
        return self.epochs * self.tasks

    @property
    def measured(self) -> list[str]:
        """The names of the measures to take, as in `SITE_MEASURES`."""
        return read_measures(self.measures)

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


_parse_label = functools.lru_cache(parse_activation)


def _plain(value: Any) -> Any:
    """Return a NumPy value or a path as the plain value that a file would have."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if type(value).__module__ == "numpy" and value.ndim == 0 else value


def _size(model: str, name: str) -> int:
    return MODEL_SIZES.get(model, MODEL_SIZES["mlp"])[name]


def resolve_device(name: str) -> str:
    """Return the device that "auto" means here; a run's id depends on the device, not on "auto"."""
    if name != "auto":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


#: Settings that were added after results were published, with the value that earlier runs had: with
#: it a run keeps its id.
ADDED: dict[str, Any] = {
    "stack": False,
    "local": False,
    "replicate": 0,
    "layer_norm": False,
    "clip_norm": 0.0,
    "redo": 0,
    "leak_schedule": "constant",
}

#: All settings of a run, by name; the parts of an activation follow `act`.
SETTINGS: dict[str, Setting] = {
    name: describe_setting(name, field)
    for name, field in sorted(
        (RunConfig.model_fields | LABEL_PARTS).items(),
        key=lambda item: item[0] != "act" and item[0] not in LABEL_PARTS,
    )
}
