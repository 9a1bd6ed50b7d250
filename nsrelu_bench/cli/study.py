"""Commands about one study or run: init, schema, show, clean."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nsrelu_bench.cli.app import PROGRAM, command
from nsrelu_bench.cli.options import AsJson, ResultsDir, file_path, make_argument, make_option
from nsrelu_bench.cli.paths import print_next
from nsrelu_bench.config import (
    find_varying,
    name_setting,
    read_run,
    run_config,
    study_schema,
    study_template,
)
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.files import write_file
from nsrelu_bench.text import printable


@command(
    "train",
    "nsrelu-bench init",
    "nsrelu-bench init leaks.yaml",
    "nsrelu-bench init studies/leaks.yaml",
)
def init(
    file: Annotated[Path, make_argument("File to write [default: study.yaml]", "FILE")] = Path(
        "study.yaml"
    ),
) -> None:
    """Write a study with comments, to be edited."""
    if file.exists() or file.is_symlink():
        raise UsageError(f"{file}: exists; name another file, or remove it")
    write_file(file, study_template())
    print(printable(str(file)))
    print_next(["sweep", file, "--dry-run"], ["sweep", file])


@command(
    "examine",
    "nsrelu-bench schema",
    "nsrelu-bench schema > study.schema.json",
    "nsrelu-bench schema > .vscode/study.schema.json",
)
def schema() -> None:
    """Print the JSON schema of a study's file, for editors."""
    print(json.dumps(study_schema(), indent=2))


def _complete_runs(incomplete: str) -> list[str]:
    names = (path.parent.name for path in Path("results").glob("*/*/config.yaml"))
    return sorted(name for name in names if name.startswith(incomplete))


@command(
    "compare",
    "nsrelu-bench show mnist5k-mlp-nsrelu-0.1-s0",
    "nsrelu-bench show mnist5k-mlp-relu-s3 --results ~/results",
    "nsrelu-bench show results/runs/mnist5k-mlp-nsrelu-0.1-s0-1a2b3c4d --json",
)
def show(
    run: Annotated[
        str,
        make_argument(
            "Folder of a run, or the beginning of its id", "RUN", autocompletion=_complete_runs
        ),
    ],
    results: ResultsDir = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Show one run: its settings, how it ended, its last row and files."""
    from nsrelu_bench.records import describe_run

    content = describe_run(_find_run(run, results))
    if as_json:
        print(json.dumps(content, indent=2))
        return
    for title, values in content.items():
        if isinstance(values, dict):
            print(f"{title}:", *(f"  {k:22} {_text(v)}" for k, v in values.items()), sep="\n")
        else:
            print(f"{title}: {_text(values)}")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return printable(", ".join(map(str, value)))
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))


def _find_run(name: str, results: Path) -> Path:
    """Return the folder of a run by its path or by the beginning of its id."""
    path = file_path(name)
    if (path / "config.yaml").exists():
        return path
    found = sorted(p.parent for p in results.glob("*/*/config.yaml"))
    matches = [folder for folder in found if folder.name.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise BenchError(f"no run {name!r} in {str(results)!r}; there are {len(found)} runs")
    listed = ", ".join(_tell_apart(matches)[:5]) + ", ..." * (len(matches) > 5)
    raise UsageError(f"{name!r} is the beginning of {len(matches)} runs: {listed}")


def _tell_apart(folders: list[Path]) -> list[str]:
    """Return run folders, each with the settings that it differs in from the others."""
    try:
        runs = [run_config(read_run(folder / "config.yaml")) for folder in folders]
    except UsageError:  # one is damaged
        return list(map(str, folders))
    varying = find_varying(runs)
    return [
        f"{folder} ({', '.join(name_setting(run, name) for name in varying)})"
        for folder, run in zip(folders, runs, strict=True)
    ]


@command(
    "compare",
    "nsrelu-bench clean results/leaks",
    "nsrelu-bench clean results/leaks --dry-run",
    "nsrelu-bench clean results/leaks --yes",
)
def clean(
    study: Annotated[Path, make_argument("Folder of the study", "STUDY")],
    dry_run: Annotated[
        bool, make_option("--dry-run", "List the runs without removing anything")
    ] = False,
    yes: Annotated[bool, make_option("--yes", "Remove without asking")] = False,
) -> None:
    """Remove the runs that a study's file no longer asks for."""
    from nsrelu_bench.records import find_leftovers, find_runs, remove_runs

    find_runs(study)  # raises where there is no run
    leftovers = find_leftovers(study)
    for folder in leftovers:
        print(printable(str(folder)))
    if not leftovers:
        print(f"{PROGRAM}: {study}: every run is one that the study asks for", file=sys.stderr)
    if not leftovers or dry_run:
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("clean: asks before it removes runs; without a terminal, give --yes")
        typer.confirm(f"Remove these {len(leftovers)} runs?", abort=True, err=True)
    removed = remove_runs(leftovers)
    busy = len(leftovers) - len(removed)
    kept = f"; {busy} are running and stay" if busy else ""
    print(f"{PROGRAM}: removed {len(removed)} runs{kept}", file=sys.stderr)
