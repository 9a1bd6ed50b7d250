"""The command line. Each command parses, makes one call of the library and shows what comes back.

Everything heavy (torch, pandas, matplotlib) is imported inside the command that uses it, so that
``--help`` answers at once.
"""

import importlib.metadata
import io
import itertools
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from nsrelu_bench.errors import BenchError, UsageError, unknown

if TYPE_CHECKING:
    import pandas as pd

    from nsrelu_bench.config import RunConfig
    from nsrelu_bench.sweep import Engine, Event, Manner

app = typer.Typer(
    name="nsrelu-bench",
    help="Sparsity and gradients in rectifier networks: train, measure, compare.",
    epilog="Options can be set by variables too, --data-dir by NSRELU_DATA_DIR."
    " --traceback, anywhere, shows where an error came from.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


#: The variables that set options.
VARIABLES: list[str] = ["NSRELU_CACHE_DIR"]


def _variable(flag: str) -> str:
    return "NSRELU_" + flag.removeprefix("--").replace("-", "_").upper()


def _option(
    name: str, text: str, default: str | None = None, parser: Callable[[str], Any] | None = None
) -> Any:
    """One option: its flag, its environment variable, its help. Unset it is None."""
    variable = _variable(name.split("/")[0])
    VARIABLES.append(variable)
    return typer.Option(
        name,
        envvar=variable,
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

Act = Annotated[str | None, _option("--act", "activation, e.g. relu or 'nsrelu(0.1)'", "nsrelu")]
Leak = Annotated[
    float | None, _option("--leak", "its negative slope, from 0 to 1", "0.1", parser=number)
]
Alpha = Annotated[
    float | None, _option("--alpha", "the parameter of elu, bsilu, nelu and helu", parser=number)
]
Backward = Annotated[str | None, _option("--backward", "function whose gradient is used instead")]
Impl = Annotated[
    str | None, _option("--impl", "native, detach, function or mismatch; for pairs", "native")
]
Data = Annotated[
    str | None, _option("--dataset", "a name (see list), or folder:PATH of your own", "mnist5k")
]
DataDir = Annotated[str | None, _option("--data-dir", "where downloaded data sets lie", "data")]
TrainSize = Annotated[
    int | None, _option("--train-size", "train on a stratified part", "all", parser=count)
]
ProbeSize = Annotated[
    int | None, _option("--probe-size", "training examples to measure on", "2000", parser=count)
]
Measures = Annotated[
    str | None, _option("--measures", "all, none, names with commas, or -name to leave out", "all")
]
ProbeEvery = Annotated[
    int | None,
    _option("--probe-every", "measure every so many steps too, 0: never", "0", parser=count),
]
Model = Annotated[
    str | None, _option("--model", "a name (see list), or your own package.module:factory", "mlp")
]
Width = Annotated[
    int | None,
    _option(
        "--width",
        "units a layer, or channels of the first",
        "128 of mlp, else by model",
        parser=count,
    ),
]
Depth = Annotated[
    int | None, _option("--depth", "hidden layers", "3 of mlp, else by model", parser=count)
]
BatchNorm = Annotated[
    bool | None, _option("--batch-norm/--no-batch-norm", "batch norm before activations", "no")
]
Dropout = Annotated[
    float | None, _option("--dropout", "dropout after activations", "0", parser=number)
]
Init = Annotated[str | None, _option("--init", "he, xavier, rai or default", "he")]
Epochs = Annotated[
    int | None, _option("--epochs", "passes over the training data", "10", parser=count)
]
Tasks = Annotated[
    int | None,
    _option("--tasks", "tasks one after another, each with its pixels permuted", "1", parser=count),
]
Augment = Annotated[
    str | None, _option("--augment", "crop, flip and cutout, with + between them", "none")
]
BatchSize = Annotated[int | None, _option("--batch-size", "examples a step", "64", parser=count)]
Optimizer = Annotated[str | None, _option("--optimizer", "sgd, adam or adamw", "sgd")]
Rate = Annotated[
    float | None, _option("--lr", "learning rate", "sgd 0.02, adam(w) 0.001", parser=number)
]
Momentum = Annotated[float | None, _option("--momentum", "momentum of sgd", "0.9", parser=number)]
Decay = Annotated[float | None, _option("--weight-decay", "weight decay", "0", parser=number)]
Schedule = Annotated[
    str | None, _option("--schedule", "constant or cosine learning rate", "constant")
]
Seed = Annotated[
    int | None, _option("--seed", "the seed, or the first of several", "0", parser=count)
]
Seeds = Annotated[int | None, _option("--seeds", "how many seeds, one run each", parser=count)]
Threads = Annotated[int | None, _option("--threads", "torch threads a run", "1", parser=count)]
Device = Annotated[str | None, _option("--device", "auto, cpu, cuda or mps", "cpu")]
Precision = Annotated[
    str | None, _option("--precision", "fp32 or bf16 (mixed, in training)", "fp32")
]
Compile = Annotated[bool | None, _option("--compile/--no-compile", "compile the model", "no")]
Stack = Annotated[
    bool | None, _option("--stack/--no-stack", "train all seeds as one, for GPUs", "no")
]
Config = Annotated[Path | None, _option("--config", "take settings from a run's config.yaml")]

ResultsDir = Annotated[Path, _option("--results", "folder of all results", "results")]
Workers = Annotated[
    int | None, _option("--workers", "processes at once", "one a core", parser=count)
]
Fresh = Annotated[bool, typer.Option("--fresh", help="do runs again that are done")]
CheckpointAfter = Annotated[
    float | None,
    _option("--checkpoint-after", "seconds after which a run is kept", "10", parser=number),
]
Quiet = Annotated[bool, _option("--quiet", "no progress")]
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


@app.command()
def train(
    context: typer.Context,
    act: Act = None,
    leak: Leak = None,
    alpha: Alpha = None,
    backward: Backward = None,
    impl: Impl = None,
    dataset: Data = None,
    data_dir: DataDir = None,
    train_size: TrainSize = None,
    probe_size: ProbeSize = None,
    measures: Measures = None,
    probe_every: ProbeEvery = None,
    model: Model = None,
    width: Width = None,
    depth: Depth = None,
    batch_norm: BatchNorm = None,
    dropout: Dropout = None,
    init: Init = None,
    epochs: Epochs = None,
    tasks: Tasks = None,
    augment: Augment = None,
    batch_size: BatchSize = None,
    optimizer: Optimizer = None,
    lr: Rate = None,
    momentum: Momentum = None,
    weight_decay: Decay = None,
    schedule: Schedule = None,
    seed: Seed = None,
    seeds: Seeds = None,
    threads: Threads = None,
    device: Device = None,
    precision: Precision = None,
    compile: Compile = None,  # noqa: A002
    stack: Stack = None,
    config: Config = None,
    results: ResultsDir = Path("results"),
    workers: Workers = None,
    fresh: Fresh = False,
    checkpoint_after: CheckpointAfter = None,
    tensorboard: TensorBoard = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train one activation, with one seed or several, into RESULTS/runs."""
    given = {name: value for name, value in locals().items() if value is not None}
    from nsrelu_bench.config import SETTINGS, make_study, override, read_run
    from nsrelu_bench.sweep import run_all

    variables, flags = _by_source(context, {k: v for k, v in given.items() if k in SETTINGS})
    settings = override(override(read_run(config) if config else {}, variables), flags)
    if seeds is not None:
        first = settings.pop("seed", 0)
        _check("--seeds", seeds)
        settings["seeds"] = list(range(first, first + seeds))
    study = make_study(settings, "runs", _flag)
    folder = results / study.name
    events = run_all(
        study.runs, folder, workers=_workers(workers), manner=_manner(fresh, (), checkpoint_after)
    )
    _follow(study.runs, folder, events, tensorboard=tensorboard, quiet=quiet, as_json=as_json)


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="a study's YAML file", show_default=False)],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="change a setting of the file, e.g. lr=0.1; repeat it for more"),
    ] = None,
    seeds: Seeds = None,
    data_dir: DataDir = None,
    stack: Stack = None,
    results: ResultsDir = Path("results"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the runs and how they stand, and make none")
    ] = False,
    retry: Annotated[
        list[str] | None,
        typer.Option("--retry", help="make only runs that ended so, e.g. failed; repeat for more"),
    ] = None,
    fresh: Fresh = False,
    shard: Annotated[
        Any, typer.Option("--shard", help="the K-th of N parts, for array jobs", parser=part)
    ] = None,
    workers: Workers = None,
    engine: Annotated[str, _option("--engine", "local or ray", "local")] = "local",
    address: Annotated[
        str | None, _option("--address", "of the Ray cluster", "one on this machine")
    ] = None,
    collect: Annotated[
        bool, typer.Option("--collect", help="the Ray nodes share no folder: send results back")
    ] = False,
    gpus: Annotated[
        float | None,
        _option("--gpus-per-run", "share of a GPU that a run takes on Ray", "1", parser=number),
    ] = None,
    checkpoint_after: CheckpointAfter = None,
    tensorboard: TensorBoard = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a study, a grid of settings times seeds, into RESULTS/<its name>; done runs are kept."""
    from nsrelu_bench.config import read_setting, read_study
    from nsrelu_bench.progress import standing_text
    from nsrelu_bench.records import keep_study
    from nsrelu_bench.sweep import jobs, run_all, standing

    overrides = dict(read_setting(change) for change in changes or ())
    given = {"data_dir": data_dir, "stack": stack}
    overrides |= {name: value for name, value in given.items() if value is not None}
    if seeds is not None:
        _check("--seeds", seeds)
        overrides["seeds"] = seeds
    study = read_study(config, overrides)
    folder = results / study.name
    manner = _manner(fresh, retry or (), checkpoint_after)
    runs = study.runs
    if shard:
        runs = [run for job in list(jobs(runs))[shard[0] - 1 :: shard[1]] for run in job]
    on_cluster = _engine(engine, address, gpus, collect=collect)
    if dry_run:
        print(standing_text(standing(runs, folder, manner), as_json=as_json), end="")
        return
    keep_study(study, folder)
    events = run_all(runs, folder, workers=_workers(workers), manner=manner, engine=on_cluster)
    _follow(runs, folder, events, tensorboard=tensorboard, quiet=quiet, as_json=as_json)


def _engine(
    name: str, address: str | None, gpus: float | None, *, collect: bool
) -> "Engine | None":
    """What makes the runs instead of processes on this machine, if anything."""
    from nsrelu_bench.errors import lookup

    ray = lookup({"local": False, "ray": True}, name, "engine")
    for flag, given in (("--address", address), ("--gpus-per-run", gpus), ("--collect", collect)):
        if given and not ray:
            raise UsageError(f"{flag}: goes with --engine ray")
    if gpus is not None and not 0 < gpus <= 64:
        raise UsageError(f"--gpus-per-run: must be above 0 and at most 64, got {gpus:g}")
    if not ray:
        return None
    from nsrelu_bench.ray_engine import on_ray

    return partial(on_ray, address=address, collect=collect, gpus=gpus)


def _manner(fresh: bool, retry: Sequence[str], checkpoint_after: float | None) -> "Manner":
    from nsrelu_bench.sweep import Manner

    if checkpoint_after is None:
        return Manner(fresh, retry)
    if not 0 <= checkpoint_after <= 1e9:
        raise UsageError(f"--checkpoint-after: must be from 0 to 1e9, got {checkpoint_after:g}")
    return Manner(fresh, retry, checkpoint_after)


def _workers(given: int | None) -> int:
    if given is not None:
        _check("--workers", given, most=1024)
    return given or os.cpu_count() or 1


def _follow(
    runs: "Sequence[RunConfig]",
    folder: Path,
    events: "Generator[Event, None, None]",
    *,
    tensorboard: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Show how the runs of a study go, and say how they ended."""
    from nsrelu_bench import progress
    from nsrelu_bench.results import write_summary

    if tensorboard:
        from nsrelu_bench import tensorboard as event_files

        events = event_files.follow(events, folder)
    with closing(events):
        try:
            ended = progress.follow(events, len(runs), quiet=quiet)
        except (KeyboardInterrupt, SystemExit):
            command = ["nsrelu-bench", *(a for a in sys.argv[1:] if a != "--fresh")]
            told = f"interrupted; to go on: {shlex.join(command)}"
            print(f"nsrelu-bench: {told}", file=sys.stderr)
            raise
    failures = [event for event in ended if event.status.state == "failed" and not event.kept]
    if TRACEBACK in sys.argv:
        print(*(event.traceback for event in failures), sep="\n", file=sys.stderr)
    if failures and len(runs) == 1:
        raise BenchError(str(failures[0].status.error))
    summary = write_summary(folder).set_index("run_id")
    # A run that was killed before it made its folder has no row.
    table = summary.reindex([run.run_id for run in runs])
    if as_json:
        print(table.reset_index().to_json(orient="records", indent=2))
    else:
        print("\n".join(progress.closing_lines(ended, table, folder)))
    others = len(summary.index.difference(table.index))
    if others and len(runs) > 1 and not quiet:
        told = f"{others} other runs lie in {folder}, and are compared and drawn with these"
        print(f"nsrelu-bench: {told}", file=sys.stderr)
    if failures:
        raise typer.Exit(3)


def _by_source(context: typer.Context, given: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Tell the settings that variables gave from those that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in given}
    variables = {k: v for k, v in given.items() if "ENVIRONMENT" in str(sources[k])}
    return variables, {k: v for k, v in given.items() if k not in variables}


@app.command()
def compare(
    paths: Paths = None,
    baseline: Annotated[str, _option("--baseline", "activation to compare with", "relu")] = "relu",
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="metrics to show, with commas; list metrics names them"),
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option("--by", help="settings with a table for each value")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="only such runs, and the baseline, e.g. act=nsrelu"),
    ] = None,
    tune: Annotated[
        list[str] | None, typer.Option("--tune", help="setting to choose by validation accuracy")
    ] = None,
    sort: Annotated[str | None, typer.Option("--sort", help="metric or setting")] = None,
    fmt: Annotated[
        str, typer.Option("--format", help="table, csv, json, md or latex", show_default="table")
    ] = "table",
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="file", show_default="standard output")
    ] = None,
) -> None:
    """Compare activations: means over seeds, paired differences to the baseline, verdicts."""
    from nsrelu_bench import compare as statistics
    from nsrelu_bench.records import write_text
    from nsrelu_bench.results import CONFIG_COLUMNS, load_runs
    from nsrelu_bench.tables import format_table

    runs = load_runs(*paths or [Path("results")])
    _tell_failed(runs)
    comparison = statistics.compare(
        runs,
        CONFIG_COLUMNS,
        baseline=baseline,
        metrics=_names(metric),
        by=_names(by),
        where=where or (),
        tune=_names(tune) or (),
        sort=sort,
    )
    text = format_table(
        comparison, "json" if as_json else fmt, _terminal_width() if out is None else None
    )
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)
        print(out)


@app.command()
def plot(
    paths: Paths = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", help=f"with commas, of {', '.join(KINDS)}", show_default="all"),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="metric in place of a figure's own; list metrics names them"),
    ] = None,
    fmt: Annotated[
        str,
        typer.Option("--format", help="png, svg and pdf, with commas", show_default="png,svg"),
    ] = "png,svg",
    style: Annotated[
        str, typer.Option("--style", help="paper, column or talk", show_default="paper")
    ] = "paper",
    out: Annotated[
        Path | None, typer.Option("--out", help="folder", show_default="figures/ beside the runs")
    ] = None,
) -> None:
    """Draw the figures of each study: curves over epochs, accuracy against sparsity and others."""
    from nsrelu_bench.figures import draw_all
    from nsrelu_bench.results import find_drawable, load

    studies = [study for path in paths or [Path("results")] for study in find_drawable(path)]
    for study in studies:
        frames = load(study)
        _tell_failed(frames.runs)
        drawn = draw_all(
            frames,
            study / "figures" if out is None else out / study.name if studies[1:] else out,
            kinds=_names(kind),
            formats=fmt.split(","),
            style=style,
            metric=metric,
            tell=lambda line: print(line, file=sys.stderr),
        )
        print(*drawn, sep="\n", end="\n" * bool(drawn))


@app.command()
def report(
    paths: Paths = None,
    baseline: Annotated[str, _option("--baseline", "activation to compare with", "relu")] = "relu",
    tune: Annotated[
        list[str] | None, typer.Option("--tune", help="setting to choose by validation accuracy")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="file", show_default="report.html beside the runs"),
    ] = None,
) -> None:
    """Write one HTML page that needs nothing else: verdicts, tables, figures, what made them."""
    from nsrelu_bench.report import write_report

    chosen = paths or [Path("results")]
    print(
        write_report(
            *chosen,
            out=out or chosen[0] / "report.html",
            baseline=baseline,
            tune=_names(tune) or (),
        )
    )


def _names(given: list[str] | None) -> list[str] | None:
    """Take names apart that were given with commas."""
    return given and [name.strip() for text in given for name in text.split(",")]


def _terminal_width() -> int | None:
    """The width of the terminal that standard output is, None if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _tell_failed(runs: "pd.DataFrame", most: int = 5) -> None:
    """Say which runs have no numbers because they failed, or their files are damaged."""
    failed = runs[runs["state"] == "failed"]
    for study, run_id, error in failed[["study", "run_id", "error"]].head(most).to_numpy():
        print(f"nsrelu-bench: {study}/{run_id} failed: {error}", file=sys.stderr)
    if len(failed) > most:
        print(f"nsrelu-bench: {len(failed) - most} other runs failed", file=sys.stderr)


@app.command()
def check(
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="check under torch.compile too")
    ] = True,
) -> None:
    """Hold every implementation of NSReLU against its definition; exit code 1 on disagreement."""
    from nsrelu_bench.check import format_checks, run_checks

    checks = run_checks(compiled=compiled)
    print(format_checks(checks, _terminal_width()))
    if any(check.outcome == "disagrees" for check in checks):
        raise typer.Exit(1)


@app.command(name="born-dead")
def born_dead(
    width: Annotated[
        Any, typer.Option("--width", help="units a layer, with commas", parser=counts)
    ] = "2,3,5,10",
    depth: Annotated[
        Any, typer.Option("--depth", help="layers with the output, with commas", parser=counts)
    ] = "10",
    trials: Annotated[int | None, _option("--trials", "networks", "20000", parser=count)] = None,
    seed: Annotated[int | None, _option("--seed", "decides the weights", "0", parser=count)] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate how likely a ReLU network is dead before the first step, by width and depth."""
    from dataclasses import asdict

    import pandas as pd

    from nsrelu_bench.born_dead import born_dead as estimate

    for flag, values, least in (("--width", width, 1), ("--depth", depth, 2)):
        for value in values:
            _check(flag, value, least=least)
    if trials is not None:
        _check("--trials", trials, most=10**9)
    if seed is not None:
        _check("--seed", seed, least=0, most=2**63 - 1)
    given = {"trials": trials, "seed": seed}
    chosen = {name: value for name, value in given.items() if value is not None}
    rows = []
    for units, layers in itertools.product(width, depth):
        found = estimate(units, layers, **chosen)
        low, high = found.interval
        rows.append(asdict(found) | {"probability": found.probability, "low": low, "high": high})
    table = pd.DataFrame(rows)
    print(table.to_json(orient="records") if as_json else table.to_string(index=False))


@app.command()
def ops(
    sizes: Annotated[
        str, typer.Option("--sizes", help="numbers of elements as powers of 2, with commas")
    ] = "8,12,16,20,24",
    dtypes: Annotated[
        str, typer.Option("--dtypes", help="float32, float64, float16, bfloat16, with commas")
    ] = "float32",
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="compiled too, some minutes more")
    ] = False,
    device: Device = None,
    threads: Threads = None,
    out: Annotated[Path, typer.Option("--out", help="folder of ops.csv and ops.png")] = Path(
        "results/ops"
    ),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure time and memory of every implementation of NSReLU, forward and backward."""
    exponents = [count(size) for size in sizes.split(",")]
    for exponent in exponents:
        _check("--sizes", exponent, most=28)
    threads = 1 if threads is None else threads
    _check("--threads", threads, most=1024)

    import json
    from dataclasses import asdict

    import torch

    from nsrelu_bench.ops import format_ops, run_ops, save_ops
    from nsrelu_bench.records import writing

    with writing(out):  # before the minutes of measuring
        out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    rows = run_ops(
        [2**exponent for exponent in exponents],
        dtypes.split(","),
        compiled=compiled,
        device=device or "cpu",
        tell=None if quiet else lambda line: print(line, file=sys.stderr),
    )
    paths = save_ops(rows, out)
    found = [asdict(row) for row in rows]
    print(json.dumps(found, indent=2) if as_json else format_ops(rows, _terminal_width()))
    if not quiet:
        print(*paths, sep="\n", file=sys.stderr)


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="activations, models, datasets, metrics or figures", show_default="all"
        ),
    ] = None,
) -> None:
    """List what can be named."""
    from nsrelu_bench import config, labels
    from nsrelu_bench.errors import lookup

    kinds = {
        "activations": [*labels.FUNCTIONS, *labels.ALIASES],
        "models": [*config.MODELS],
        "datasets": [f"{name}: {text}" for name, text in config.DATASETS.items()],
        "metrics": [
            *(f"{split}_{name}" for split in ("train", "val", "test") for name in METRICS),
            *(f"{name}: {text}" for name, text in config.MEASURES.items()),
        ],
        "figures": [*KINDS],
    }
    for name in kinds if kind is None else [kind]:
        print(f"{name}:", *lookup(kinds, name, "kind"), sep="\n  ")


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="a name (see list), or folder:PATH of your own")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a data set if it is not there, check it, and say what is in it."""
    import json

    from nsrelu_bench.config import run_config
    from nsrelu_bench.data import describe, format_description

    settings = {"dataset": name} | ({} if data_dir is None else {"data_dir": data_dir})
    about = describe(run_config(settings, lambda key: "NAME" if key == "dataset" else _flag(key)))
    print(json.dumps(about, indent=2) if as_json else format_description(about))


@app.command()
def doctor(
    data_dir: DataDir = None,
    results: ResultsDir = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Show versions, devices, data sets and folders, and what is wrong with the installation."""
    import json

    from nsrelu_bench.doctor import examine, format_findings, is_well, to_json

    findings = examine(Path(data_dir or "data"), results)
    print(json.dumps(to_json(findings), indent=2) if as_json else format_findings(findings))
    if not is_well(findings):
        raise typer.Exit(1)


def _flag(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def _check(flag: str, value: int, *, least: int = 1, most: int = 100_000) -> None:
    if not least <= value <= most:
        raise UsageError(f"{flag}: must be from {least} to {most}, got {value}")


def _message(error: TyperException) -> str:
    """Say a wrong value as everywhere: the option, what is allowed, the value."""
    option = getattr(getattr(error, "param", None), "opts", None)
    if isinstance(error, typer.BadParameter) and option and error.message:
        message = error.message.replace("Input should be", "must be")
        if message.endswith(", unable to interpret input"):  # of a variable: flags have no value
            given = os.environ.get(_variable(option[0]), "")
            message = f"{message.partition(',')[0]}, got {given[:80]!r}"
        return f"{option[0]}: {message}"
    return error.format_message()


def _blame(line: str, arguments: list[str]) -> str:
    """Name the variable, not the option, where the value that is wrong came from there."""
    flag, colon, rest = line.partition(":")
    given = any(argument.split("=")[0] == flag for argument in arguments)
    from_variable = flag.startswith("--") and _variable(flag) in os.environ and not given
    return f"{_variable(flag)}{colon}{rest}" if from_variable else line


def _tell_unknown_variables() -> None:
    """Say which variables look like settings and are none, as misspelt ones do."""
    for name in sorted(os.environ):
        if name.startswith("NSRELU_") and name not in VARIABLES:
            told = unknown(name, dict.fromkeys(VARIABLES), "variable", brief=True)
            print(f"nsrelu-bench: ignored: {told}", file=sys.stderr)


def _open_standard_streams() -> None:
    """Give streams that are closed a number, so that no file of ours takes it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r")
            setattr(sys, name, null)


TRACEBACK = "--traceback"

#: The signals that end a command in good order; Windows has no SIGHUP.
ENDING = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


def _end(number: int, _: object) -> None:
    """End in good order on a signal, and at once on a second one."""
    for again in ENDING:
        signal.signal(again, lambda number, _: os._exit(128 + number))
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def main() -> None:
    """Run the command line; an error is one line on stderr, and the exit code says its kind."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a ± in ASCII is a ?, not an error
    arguments = [argument for argument in sys.argv[1:] if argument != TRACEBACK] or ["--help"]
    if arguments == ["--version"]:
        print(f"nsrelu-bench {importlib.metadata.version('nsrelu-bench')}")
        return
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does
            signal.signal(number, _end)
    for library in ("matplotlib", "torch.utils.cpp_extension"):
        # They tell that HOME can't be written, or that there is no CUDA.
        logging.getLogger(library).setLevel(logging.ERROR)
    _tell_unknown_variables()
    try:
        code = app(arguments, prog_name="nsrelu-bench", standalone_mode=False)
        sys.stdout.flush()
    except (BenchError, TyperException, OSError) as error:
        if TRACEBACK in sys.argv:
            traceback.print_exc()
        text = _message(error) if isinstance(error, TyperException) else str(error)
        if isinstance(error, BrokenPipeError):
            text = ""  # `| head` has seen enough
        for line in text.splitlines():
            print(f"nsrelu-bench: {_blame(line, arguments)}", file=sys.stderr)
        code = getattr(error, "exit_code", 1)
        if isinstance(error, OSError):  # standard output is full or closed: don't flush it again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code if isinstance(code, int) else 0)
