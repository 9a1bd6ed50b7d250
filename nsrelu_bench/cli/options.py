"""Options that commands share; those of settings are made from the fields of `RunConfig`."""

import functools
import inspect
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from nsrelu_bench.config import METRICS, SETTINGS
from nsrelu_bench.text import NOT_TINY, split_names, underflows

#: The variables that set options.
VARIABLES: list[str] = ["NSRELU_CACHE_DIR"]

#: Sections of options that are no settings of a run.
RUNNING = "running"
CLUSTER = "cluster"


def variable_of(flag: str) -> str:
    """Return the environment variable that sets an option."""
    return "NSRELU_" + flag.removeprefix("--").replace("-", "_").upper()


Completer = Callable[[str], list[str]]


def complete_folders(incomplete: str) -> list[str]:
    """Complete runs and studies, and the folders on the way to them."""
    found = [path for path in _beginning_with(incomplete or "results/") if path.is_dir()]
    return [str(path) for path in found if not path.name.startswith(".")]


def complete_studies(incomplete: str) -> list[str]:
    """Complete YAML files, and the folders on the way to them."""
    found = [path for path in _beginning_with(incomplete) if not path.name.startswith(".")]
    folders = [f"{path}/" for path in found if path.is_dir()]
    return [*folders, *(str(path) for path in found if path.suffix in (".yaml", ".yml"))]


def complete_configs(incomplete: str) -> list[str]:
    """Complete the config.yaml of the runs in results/."""
    found = map(str, Path().glob("results/*/*/config.yaml"))
    return sorted(path for path in found if path.startswith(incomplete))


def _beginning_with(incomplete: str) -> list[Path]:
    folder, _, name = incomplete.rpartition("/")
    place = file_path(f"{folder}/") if folder or incomplete.startswith("/") else Path()
    try:
        return sorted(path for path in place.iterdir() if path.name.startswith(name))
    except OSError:
        return []


def flag_of(setting: str) -> str:
    """Return the option of a setting."""
    return "--" + setting.replace("_", "-")


def make_option(
    flag: str,
    text: str,
    default: str = "",
    metavar: str | None = None,
    *,
    parser: Callable[[str], Any] | None = None,
    within: tuple[int, int] | None = None,
    choices: Sequence[str] = (),
    names: Iterable[str] = (),
    completer: Completer | None = None,
    section: str | None = None,
    variable: bool = False,
) -> Any:
    """Return an option for an annotation.

    The flag is "--on/--off" for a choice of two. The text says what it is, and the default what it
    is without it, in words. The parser is otherwise the one that `PARSERS` has for the placeholder
    `metavar`. `within` are the least and the greatest number, and `choices` all values that there
    are. Shells complete `names`, or what the completer returns. Help texts list it in a section;
    with `variable`, an environment variable sets it too.
    """
    env = variable_of(flag.split("/")[0])
    if variable:
        VARIABLES.append(env)
    return typer.Option(
        flag,
        envvar=env if variable else None,
        help=f"{text} [default: {default}]" if default else text,
        show_default=False,
        show_envvar=False,
        parser=_check_range(parser or PARSERS.get(metavar or ""), within),
        metavar=f"[{'|'.join(choices)}]" if choices else metavar,
        rich_help_panel=section,
        autocompletion=completer or complete_names(choices or names),
    )


def make_argument(text: str, metavar: str, **more: Any) -> Any:
    """Return an argument for an annotation; `more` is for `typer.Argument`."""
    more = {"parser": PARSERS.get(metavar), "autocompletion": COMPLETERS.get(metavar)} | more
    return typer.Argument(help=text, metavar=metavar, show_default=False, **more)


def _check_range(
    parser: Callable[[str], Any] | None, within: tuple[int, int] | None
) -> Callable[[str], Any] | None:
    """Return a parser that also checks the range, of each of several numbers."""
    if parser is None or within is None:
        return parser

    def parse(text: str) -> Any:
        value = parser(text)
        for number in value if isinstance(value, list) else [value]:
            if not within[0] <= number <= within[1]:
                raise typer.BadParameter(f"must be from {within[0]} to {within[1]}, got {number}")
        return value

    return parse


def complete_names(names: Iterable[str]) -> Completer | None:
    """Return what completes the last of several names with commas or + between them."""
    known = list(names)

    def complete(incomplete: str) -> list[str]:
        given = re.sub(r"[^,+]*$", "", incomplete)
        return [given + name for name in known if name.startswith(incomplete[len(given) :])]

    return complete if known else None


def setting_option(name: str, within: tuple[int, int] | None = None) -> Any:
    """Return the option of a setting, for an annotation."""
    setting = SETTINGS[name]
    flag = flag_of(name)
    parsers: dict[type, Callable[[str], Any]] = {int: count, float: number, str: str}
    return make_option(
        f"{flag}/--no-{flag[2:]}" if setting.kind is bool else flag,
        setting.help,
        setting.default,
        setting.metavar or None,
        parser=parsers.get(setting.kind),
        within=within,
        names=setting.names,
        section=setting.section,
        variable=True,
    )


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every setting of a run.

    Its argument `settings` gets those that variables gave and those of the command line, in this
    order.
    """

    @functools.wraps(command)
    def call(context: typer.Context, **given: Any) -> None:
        settings = {name: given.pop(name) for name in SETTINGS}
        settings = {name: value for name, value in settings.items() if value is not None}
        sources = {name: str(context.get_parameter_source(name)) for name in settings}
        variables = {k: v for k, v in settings.items() if "ENVIRONMENT" in sources[k]}
        flags = {k: v for k, v in settings.items() if k not in variables}
        command(settings=(variables, flags), **given)

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", kind, annotation=typer.Context)]
    for name, setting in SETTINGS.items():
        values: Any = setting.kind
        option = Annotated[values | None, setting_option(name)]
        parameters.append(inspect.Parameter(name, kind, default=None, annotation=option))
    own = inspect.signature(command).parameters.values()
    parameters += [one.replace(kind=kind) for one in own if one.name != "settings"]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def number(text: str) -> float:
    """Read a number as people write it; float() also takes 1_0 and other scripts' digits."""
    if not re.fullmatch(
        r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf)", text, re.I
    ):
        raise typer.BadParameter(f"must be a number, got {text[:80]!r}")
    if underflows(text):
        raise typer.BadParameter(f"{NOT_TINY}, got {text[:80]!r}")
    return float(text)


def count(text: str) -> int:
    """Read a whole number."""
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", text):
        raise typer.BadParameter(f"must be a whole number, got {text[:80]!r}")
    return int(text)


def file_path(text: str | Path) -> Path:
    """Read a path; ~ is the home folder, also where the shell leaves it."""
    return Path(text).expanduser()


def part(text: str) -> tuple[int, int]:
    """Read K/N, the K-th of N parts."""
    found = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    number, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= of:
        raise typer.BadParameter(f"must be K/N with K from 1 to N, got {text[:80]!r}")
    return number, of


def moment(text: str) -> datetime:
    """Read a time as ISO 8601 writes it; it is local without an offset from UTC."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"must be a time such as 2026-12-31T23:59+00:00, got {text[:80]!r}"
        ) from None


#: What reads a value, by its placeholder in help texts; without one it is a text.
PARSERS: dict[str, Callable[[str], Any]] = {
    "N": count,
    "N,...": lambda text: [count(name) for name in split_names(text)],
    "X": number,
    "SECONDS": number,
    "K/N": part,
    "TIME": moment,
    "DIR": file_path,
    "FILE": file_path,
    "STUDY": file_path,
    "PATH": file_path,
}

#: What shells complete, by placeholder.
COMPLETERS: dict[str, Completer] = dict.fromkeys(("PATH", "FOLDER", "STUDY"), complete_folders)


def make_repeats_option(flag: str, text: str) -> Any:
    """Return the option for a number of runs that repeat a configuration, for an annotation."""
    within = (1, 100_000)
    return make_option(flag, text, "", "N", within=within, section="training", variable=True)


DataDir = Annotated[str | None, setting_option("data_dir")]
Device = Annotated[str | None, setting_option("device")]
Stack = Annotated[bool | None, setting_option("stack")]
Threads = Annotated[int | None, setting_option("threads", within=(1, 1024))]
Replicates = Annotated[
    int | None, make_repeats_option("--replicates", "Number of rounding replicates per seed")
]
Seeds = Annotated[int | None, make_repeats_option("--seeds", "Number of seeds, one run for each")]

ResultsDir = Annotated[
    Path,
    make_option(
        *("--results", "Folder of all results", "results", "DIR"), section=RUNNING, variable=True
    ),
]
Workers = Annotated[
    int | None,
    make_option(
        *("--workers", "Processes at once", "one per core", "N"),
        within=(1, 1024),
        section=RUNNING,
        variable=True,
    ),
]
Fresh = Annotated[bool, make_option("--fresh", "Repeat runs that are done", section=RUNNING)]
FreshSince = Annotated[
    Any,
    make_option(
        "--fresh-since", "Repeat runs that began before this", metavar="TIME", section=RUNNING
    ),
]
CheckpointAfter = Annotated[
    float | None,
    make_option(
        *("--checkpoint-after", "Seconds between the checkpoints of a run", "10", "SECONDS"),
        within=(0, 10**9),
        section=RUNNING,
        variable=True,
    ),
]
#: What runs can also be logged to.
LOGGERS = ("tensorboard", "mlflow")

Log = Annotated[
    list[str] | None,
    make_option(
        *("--log", "Also log runs, with commas: tensorboard, mlflow", "", "NAMES"),
        names=LOGGERS,
        section=RUNNING,
    ),
]
TensorBoard = Annotated[
    bool, make_option("--tensorboard", "The same as --log tensorboard", section=RUNNING)
]
Quiet = Annotated[bool, make_option("--quiet", "Show no progress", variable=True)]
AsJson = Annotated[bool, make_option("--json", "Print JSON, for programs")]

Paths = Annotated[
    list[Path] | None, make_argument("Runs, studies or folders of them [default: results]", "PATH")
]
AllRuns = Annotated[
    bool, make_option("--all", "Include runs that the study's file no longer asks for")
]
Baseline = Annotated[
    str,
    make_option(
        *("--baseline", "Activation to compare with; or a value, such as init=he, or a study"),
        *("relu", "[KEY=]NAME"),
        names=[*SETTINGS["act"].names, "study=", *(f"{name}=" for name in SETTINGS)],
        variable=True,
    ),
]
Metric = Annotated[
    list[str] | None,
    make_option("--metric", "Metrics, with commas; see list metrics", "", "NAMES", names=METRICS),
]
Arm = Annotated[
    list[str] | None,
    make_option(
        *("--arm", "Settings to compare like activations, with commas, e.g. redo", "", "NAMES"),
        names=SETTINGS,
    ),
]
By = Annotated[
    list[str] | None,
    make_option(
        *("--by", "Settings with a table or figure per value, with commas", "", "NAMES"),
        names=SETTINGS,
    ),
]
Where = Annotated[
    list[str] | None,
    make_option(
        *("--where", "Only runs with this value, and the baseline, e.g. act=nsrelu"),
        metavar="KEY=VALUE",
        names=[f"{name}=" for name in SETTINGS],
    ),
]
Tune = Annotated[
    list[str] | None,
    make_option(
        *("--tune", "Settings to choose by validation accuracy, with commas", "", "NAMES"),
        names=SETTINGS,
    ),
]


def terminal_width() -> int | None:
    """Return the width of the terminal that standard output is, otherwise None."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
