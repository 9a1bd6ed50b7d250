"""Commands that pass results on: export, merge."""

import sys
from pathlib import Path
from typing import Annotated

from nsrelu_bench.cli.app import PROGRAM, command
from nsrelu_bench.cli.options import Paths, ResultsDir, make_argument, make_option
from nsrelu_bench.cli.paths import choose_paths, write_or_print
from nsrelu_bench.errors import UsageError
from nsrelu_bench.text import printable


@command(
    "compare",
    "nsrelu-bench export results/quickstart --out quickstart.csv",
    "nsrelu-bench export results/quickstart --table runs > runs.csv",
    "nsrelu-bench export results --table layers --out layers.parquet",
)
def export(
    paths: Paths = None,
    table: Annotated[
        str,
        make_option(
            *("--table", "Table to write: rows of runs, epochs, layers or quantiles", "metrics"),
            choices=("runs", "metrics", "layers", "quantiles"),
        ),
    ] = "metrics",
    out: Annotated[
        Path | None,
        make_option("--out", "File to write, .csv or .parquet", "CSV on standard output", "FILE"),
    ] = None,
) -> None:
    """Write runs with their settings to one CSV or Parquet file."""
    from nsrelu_bench.records import export as to_bytes

    form = "csv" if out is None else out.suffix.removeprefix(".").lower()
    write_or_print(to_bytes(choose_paths(paths), table, form), out)


@command(
    "compare",
    "nsrelu-bench merge shard1/leaks shard2/leaks",
    "nsrelu-bench merge node*/results/leaks --out results/leaks",
    "nsrelu-bench merge results/leaks copied/leaks --out results/leaks",
)
def merge(
    folders: Annotated[list[Path], make_argument("Folders of one study", "FOLDER")],
    out: Annotated[
        Path | None,
        make_option("--out", "The study's folder", "RESULTS/NAME of the folders", "DIR"),
    ] = None,
    results: ResultsDir = Path("results"),
) -> None:
    """Put the runs of one study from several folders into one."""
    from nsrelu_bench.records import merge_studies, study_name

    if out is None:
        name = study_name(folders)
        if name is None:
            raise UsageError("--out: needed where the folders have different names")
        out = results / name
    merged = merge_studies(folders, out)
    if merged.running:
        left = f"{len(merged.running)} still running, left out"
        print(f"{PROGRAM}: {left}; merge again when they have ended", file=sys.stderr)
    total = len(merged.copied) + len(merged.kept)
    print(printable(f"{total} runs in {out}: {len(merged.copied)} copied, {len(merged.kept)} kept"))
