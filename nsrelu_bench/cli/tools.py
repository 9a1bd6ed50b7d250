"""Commands that examine: check, born-dead, ops, list, data, doctor."""

import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from nsrelu_bench.cli.app import command
from nsrelu_bench.cli.options import (
    AsJson,
    DataDir,
    Device,
    Quiet,
    ResultsDir,
    Threads,
    complete_names,
    file_path,
    flag_of,
    make_argument,
    make_option,
    terminal_width,
)
from nsrelu_bench.config import (
    ACTIVATION_NAMES,
    DATASETS,
    FIGURES,
    FOLDER_FORM,
    GATES,
    METRICS,
    MODEL_SIZES,
    OPTIMIZERS,
    PLUGIN_FORM,
    SCHEDULES,
    SETTINGS,
    resolve_device,
    run_config,
)
from nsrelu_bench.errors import lookup
from nsrelu_bench.text import split_names

DTYPE_NAMES = ("float32", "float64", "float16", "bfloat16")


@command(
    "examine",
    "nsrelu-bench check",
    "nsrelu-bench check --no-compile",
    "nsrelu-bench check --no-compile > check.txt",
)
def check(
    compiled: Annotated[
        bool, make_option("--compile/--no-compile", "Check under torch.compile too", "yes")
    ] = True,
) -> None:
    """Check every implementation and gate against the definition.

    The exit code is 1 where one disagrees.
    """
    from nsrelu_bench.tools.check import format_checks, run_checks, run_gate_checks

    checks = run_checks(compiled=compiled)
    gate_checks = run_gate_checks(compiled=compiled)
    print(format_checks(checks, terminal_width()))
    print("", format_checks(gate_checks, terminal_width()), sep="\n")
    if any(check.outcome == "disagrees" for check in (*checks, *gate_checks)):
        raise typer.Exit(1)


@command(
    "examine",
    "nsrelu-bench born-dead",
    "nsrelu-bench born-dead --width 3 --trials 100000 --seed 1",
    "nsrelu-bench born-dead --width 2,3,4 --depth 10,20,40 --json",
    name="born-dead",
)
def born_dead(
    width: Annotated[
        Any,
        make_option(
            *("--width", "Units per layer, with commas", "2,3,5,10", "N,..."), within=(1, 100_000)
        ),
    ] = "2,3,5,10",
    depth: Annotated[
        Any,
        make_option(
            *("--depth", "Layers including the output, with commas", "10", "N,..."),
            within=(2, 100_000),
        ),
    ] = "10",
    trials: Annotated[
        int | None,
        make_option(
            *("--trials", "Networks per width and depth", "20000", "N"),
            within=(1, 10**9),
            variable=True,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        make_option(
            *("--seed", "Seed of the weights", "0", "N"), within=(0, 2**63 - 1), variable=True
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate how often a ReLU network is dead before training."""
    import pandas as pd

    from nsrelu_bench.tools.born_dead import born_dead as estimate

    rows = []
    for units, layers in itertools.product(width, depth):
        found = estimate(units, layers, trials=trials or 20_000, seed=seed or 0)
        low, high = found.interval
        rows.append(asdict(found) | {"probability": found.probability, "low": low, "high": high})
    table = pd.DataFrame(rows)
    print(table.to_json(orient="records") if as_json else table.to_string(index=False))


@command(
    "examine",
    "nsrelu-bench ops",
    "nsrelu-bench ops --sizes 16,20 --dtypes float32,bfloat16 --compile",
    "nsrelu-bench ops --device cuda --out results/ops-gpu",
)
def ops(
    sizes: Annotated[
        Any,
        make_option(
            *("--sizes", "Numbers of elements as powers of 2, with commas", "8,12,16,20,24"),
            metavar="N,...",
            within=(1, 28),
        ),
    ] = "8,12,16,20,24",
    dtypes: Annotated[
        str,
        make_option(
            *("--dtypes", f"Types with commas: {', '.join(DTYPE_NAMES)}", "float32", "NAMES"),
            names=DTYPE_NAMES,
        ),
    ] = "float32",
    compiled: Annotated[
        bool, make_option("--compile/--no-compile", "Also compiled; takes some minutes more", "no")
    ] = False,
    device: Device = None,
    threads: Threads = None,
    out: Annotated[
        Path, make_option("--out", "Folder of ops.csv and ops.png", "results/ops", "DIR")
    ] = Path("results/ops"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure time and memory of every implementation of NSReLU."""
    import torch

    from nsrelu_bench.files import wrap_write_errors
    from nsrelu_bench.tools.ops import format_ops, run_ops, save_ops

    with wrap_write_errors(out):  # before the minutes of measuring
        out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads or 1)
    found = resolve_device(device or "cpu")
    rows = run_ops(
        [2**exponent for exponent in sizes],
        split_names(dtypes),
        compiled=compiled,
        device="cpu" if (device, found) == ("auto", "mps") else found,
        report=None if quiet else lambda line: print(line, file=sys.stderr),
    )
    paths = save_ops(rows, out)
    content = [asdict(row) for row in rows]
    print(json.dumps(content, indent=2) if as_json else format_ops(rows, terminal_width()))
    if not quiet:
        print(*paths, sep="\n", file=sys.stderr)


_OWN_PART = {PLUGIN_FORM: "one of your own; docs/own_parts.md"}

#: What can be named, with descriptions where the name does not say it.
KINDS_OF_NAMES: dict[str, dict[str, str]] = {
    "activations": dict.fromkeys(ACTIVATION_NAMES, "") | _OWN_PART,
    "gates": GATES,
    "models": dict.fromkeys(MODEL_SIZES, "") | _OWN_PART,
    "datasets": DATASETS
    | {FOLDER_FORM: "a folder of your own images; docs/datasets.md"}
    | _OWN_PART,
    "optimizers": {name: f"learning rate {rate:g}" for name, rate in OPTIMIZERS.items()}
    | _OWN_PART,
    "schedules": SCHEDULES | _OWN_PART,
    "metrics": METRICS | _OWN_PART,
    "figures": FIGURES,
}


@command(
    "examine",
    "nsrelu-bench list",
    "nsrelu-bench list metrics",
    "nsrelu-bench list activations",
    name="list",
)
def list_(
    kind: Annotated[
        str | None,
        make_argument(
            f"One of {', '.join(KINDS_OF_NAMES)} [default: all]",
            "KIND",
            autocompletion=complete_names(KINDS_OF_NAMES),
        ),
    ] = None,
) -> None:
    """List activations, models, data sets, metrics and more."""
    for name in KINDS_OF_NAMES if kind is None else [kind]:
        names = lookup(KINDS_OF_NAMES, name, "kind")
        lines = (f"{name}: {text}" if text else name for name, text in names.items())
        print(f"{name}:", *lines, sep="\n  ")


@command(
    "examine",
    "nsrelu-bench data mnist5k",
    "nsrelu-bench data cifar10 --data-dir ~/data",
    "nsrelu-bench data folder:photos",
)
def data(
    name: Annotated[
        str,
        make_argument(SETTINGS["dataset"].help, "NAME", autocompletion=complete_names(DATASETS)),
    ],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Download, check and describe a data set."""
    from nsrelu_bench.data import describe, format_description

    settings = {"dataset": name} | ({} if data_dir is None else {"data_dir": data_dir})
    about = describe(run_config(settings, lambda key: "NAME" if key == "dataset" else flag_of(key)))
    print(json.dumps(about, indent=2) if as_json else format_description(about))


@command(
    "examine",
    "nsrelu-bench doctor",
    "nsrelu-bench doctor --data-dir ~/data",
    "nsrelu-bench doctor --json",
)
def doctor(
    data_dir: DataDir = None,
    results: ResultsDir = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Examine the installation and report problems."""
    from nsrelu_bench.tools.doctor import examine, format_findings, is_well, to_json

    findings = examine(file_path(data_dir or "data"), results)
    print(json.dumps(to_json(findings), indent=2) if as_json else format_findings(findings))
    if not is_well(findings):
        raise typer.Exit(1)
