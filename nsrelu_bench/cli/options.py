"""The options that commands share."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nsrelu_bench.errors import UsageError

#: The variables that set options.
VARIABLES: list[str] = ["NSRELU_CACHE_DIR"]


def variable_of(flag: str) -> str:
    """Return the environment variable that sets an option."""
    return "NSRELU_" + flag.removeprefix("--").replace("-", "_").upper()


def make_option(
    name: str, text: str, default: str | None = None, parser: Callable[[str], Any] | None = None
) -> Any:
    """One option: its flag, its environment variable, its help. Unset it is None."""
    env = variable_of(name.split("/")[0])
    VARIABLES.append(env)
    return typer.Option(
        name,
        envvar=env,
        help=text,
        show_default=default or False,
        show_envvar=False,
        parser=parser,
        metavar=parser and f"<{parser.__name__}>",
    )


def number(text: str) -> float:
    """Read a number as people write it; float() takes more, as 1_0 and other digits."""
    if not re.fullmatch(
        r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf)", text, re.I
    ):
        raise typer.BadParameter(f"must be a number, got {text[:80]!r}")
    return float(text)


def count(text: str) -> int:
    """Read a whole number."""
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", text):
        raise typer.BadParameter(f"must be a whole number, got {text[:80]!r}")
    return int(text)


def counts(text: str) -> list[int]:
    """Read whole numbers with commas between them."""
    return [count(part) for part in text.split(",")]


def part(text: str) -> tuple[int, int]:
    """Read K/N, the K-th of N parts."""
    number, _, of = text.partition("/")
    if not (_COUNT.fullmatch(number) and _COUNT.fullmatch(of) and 1 <= int(number) <= int(of)):
        raise typer.BadParameter(f"must be K/N with K from 1 to N, got {text[:80]!r}")
    return int(number), int(of)


_COUNT = re.compile(r"[0-9]{1,9}")

Act = Annotated[
    str | None, make_option("--act", "activation, e.g. relu or 'nsrelu(0.1)'", "nsrelu")
]
Leak = Annotated[
    float | None, make_option("--leak", "its negative slope, from 0 to 1", "0.1", parser=number)
]
Alpha = Annotated[
    float | None,
    make_option("--alpha", "the parameter of elu, bsilu, nelu and helu", parser=number),
]
Backward = Annotated[
    str | None, make_option("--backward", "function whose gradient is used instead")
]
Impl = Annotated[
    str | None, make_option("--impl", "native, detach, function or mismatch; for pairs", "native")
]
Data = Annotated[
    str | None, make_option("--dataset", "a name (see list), or folder:PATH of your own", "mnist5k")
]
DataDir = Annotated[str | None, make_option("--data-dir", "where downloaded data sets lie", "data")]
TrainSize = Annotated[
    int | None, make_option("--train-size", "train on a stratified part", "all", parser=count)
]
ProbeSize = Annotated[
    int | None, make_option("--probe-size", "training examples to measure on", "2000", parser=count)
]
Measures = Annotated[
    str | None,
    make_option("--measures", "all, none, names with commas, or -name to leave out", "all"),
]
ProbeEvery = Annotated[
    int | None,
    make_option("--probe-every", "measure every so many steps too, 0: never", "0", parser=count),
]
Model = Annotated[
    str | None,
    make_option("--model", "a name (see list), or your own package.module:factory", "mlp"),
]
Width = Annotated[
    int | None,
    make_option(
        "--width",
        "units a layer, or channels of the first",
        "128 of mlp, else by model",
        parser=count,
    ),
]
Depth = Annotated[
    int | None, make_option("--depth", "hidden layers", "3 of mlp, else by model", parser=count)
]
BatchNorm = Annotated[
    bool | None, make_option("--batch-norm/--no-batch-norm", "batch norm before activations", "no")
]
Dropout = Annotated[
    float | None, make_option("--dropout", "dropout after activations", "0", parser=number)
]
Init = Annotated[str | None, make_option("--init", "he, xavier, rai or default", "he")]
Epochs = Annotated[
    int | None, make_option("--epochs", "passes over the training data", "10", parser=count)
]
Tasks = Annotated[
    int | None,
    make_option(
        "--tasks", "tasks one after another, each with its pixels permuted", "1", parser=count
    ),
]
Augment = Annotated[
    str | None, make_option("--augment", "crop, flip and cutout, with + between them", "none")
]
BatchSize = Annotated[
    int | None, make_option("--batch-size", "examples a step", "64", parser=count)
]
Optimizer = Annotated[str | None, make_option("--optimizer", "sgd, adam or adamw", "sgd")]
Rate = Annotated[
    float | None, make_option("--lr", "learning rate", "sgd 0.02, adam(w) 0.001", parser=number)
]
Momentum = Annotated[
    float | None, make_option("--momentum", "momentum of sgd", "0.9", parser=number)
]
Decay = Annotated[float | None, make_option("--weight-decay", "weight decay", "0", parser=number)]
Schedule = Annotated[
    str | None, make_option("--schedule", "constant or cosine learning rate", "constant")
]
Seed = Annotated[
    int | None, make_option("--seed", "the seed, or the first of several", "0", parser=count)
]
Seeds = Annotated[int | None, make_option("--seeds", "how many seeds, one run each", parser=count)]
Threads = Annotated[int | None, make_option("--threads", "torch threads a run", "1", parser=count)]
Device = Annotated[str | None, make_option("--device", "auto, cpu, cuda or mps", "cpu")]
Precision = Annotated[
    str | None, make_option("--precision", "fp32 or bf16 (mixed, in training)", "fp32")
]
Compile = Annotated[bool | None, make_option("--compile/--no-compile", "compile the model", "no")]
Stack = Annotated[
    bool | None, make_option("--stack/--no-stack", "train all seeds as one, for GPUs", "no")
]
Config = Annotated[Path | None, make_option("--config", "take settings from a run's config.yaml")]

ResultsDir = Annotated[Path, make_option("--results", "folder of all results", "results")]
Workers = Annotated[
    int | None, make_option("--workers", "processes at once", "one a core", parser=count)
]
Fresh = Annotated[bool, typer.Option("--fresh", help="do runs again that are done")]
CheckpointAfter = Annotated[
    float | None,
    make_option("--checkpoint-after", "seconds after which a run is kept", "10", parser=number),
]
Quiet = Annotated[bool, make_option("--quiet", "no progress")]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="write event files too, for TensorBoard")
]
#: The names of `figures.FIGURES`, which costs too much for --help, and of what is measured beside
#: `config.MEASURES`.
KINDS = (
    *("curves", "tradeoff", "units", "gradient_depth", "cosine"),
    *("leak", "phase", "histogram"),
)
METRICS = ("loss", "accuracy")

AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]
Paths = Annotated[
    list[Path] | None,
    typer.Argument(help="runs, studies or folders of them", show_default="results"),
]


def split_names(given: list[str] | None) -> list[str] | None:
    """Take names apart that were given with commas."""
    return given and [name.strip() for text in given for name in text.split(",")]


def terminal_width() -> int | None:
    """The width of the terminal that standard output is, None if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def flag_of(setting: str) -> str:
    """Return the option of a setting."""
    return "--" + setting.replace("_", "-")


def check_range(flag: str, value: int, *, least: int = 1, most: int = 100_000) -> None:
    """Raise UsageError unless `value` is from `least` to `most`."""
    if not least <= value <= most:
        raise UsageError(f"{flag}: must be from {least} to {most}, got {value}")
