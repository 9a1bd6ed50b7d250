"""Which runs a command reads, where its result goes, and which command comes next."""

import sys
from collections.abc import Sequence
from pathlib import Path

from nsrelu_bench.cli.app import PROGRAM
from nsrelu_bench.cli.options import file_path
from nsrelu_bench.config import parse_activation
from nsrelu_bench.errors import UsageError
from nsrelu_bench.files import write_file
from nsrelu_bench.text import printable, shell_command


def choose_paths(given: Sequence[Path] | None) -> list[Path]:
    """Return the paths to read: those of several that hold runs; ``results/*`` names others too."""
    from nsrelu_bench.records import find_studies

    if given is None or len(given) < 2:
        return list(given or [Path("results")])
    chosen = [path for path in given if find_studies(path)]
    others = [printable(str(path)) for path in given if path not in chosen]
    if chosen and others:
        print(f"{PROGRAM}: without runs, and ignored: {', '.join(others)}", file=sys.stderr)
    return chosen or list(given)


def choose_baseline(given: str, paths: Sequence[Path]) -> tuple[str, list[Path]]:
    """Return the baseline, and the paths to read: a baseline may be a study elsewhere, by path."""
    from nsrelu_bench.records import find_studies

    setting, equals, value = given.rpartition("=")
    study = file_path(value)
    elsewhere = setting == "study" if equals else not _is_activation(given)
    if not (elsewhere and study in find_studies(study)):
        return given, list(paths)
    place = study.resolve()
    known = any(place in {s.resolve() for s in find_studies(path)} for path in paths)
    named = place if study.name in ("", "..") else study
    return f"study={named}", [*paths, *([] if known else [study])]


def _is_activation(text: str) -> bool:
    try:
        parse_activation(text)
    except UsageError:
        return False
    return True


def choose_left_out(paths: Sequence[Path], *, all_runs: bool) -> list[Path]:
    """Return the run folders to leave out, and say so: those that their study does not ask for."""
    from nsrelu_bench.records import find_leftovers

    leftovers = [] if all_runs else find_leftovers(*paths)
    if leftovers:
        places = ", ".join(printable(str(p)) for p in dict.fromkeys(f.parent for f in leftovers))
        print(
            f"{PROGRAM}: left out {len(leftovers)} runs in {places} that study.yaml does not ask"
            " for; --all includes them",
            file=sys.stderr,
        )
    return leftovers


def write_or_print(text: str | bytes, out: Path | None) -> None:
    """Write a file and print its path, or print the text where there is no file to write."""
    if out is not None:
        write_file(out, text)
        print(printable(str(out)))
    else:
        print(text if isinstance(text, str) else text.decode(), end="")


def print_next(*commands: Sequence[str | Path]) -> None:
    """Suggest the next commands on stderr."""
    for index, words in enumerate(commands):
        line = shell_command([PROGRAM, *map(str, words)])
        print(f"{'next: ' if index == 0 else '      '}{line}", file=sys.stderr)
