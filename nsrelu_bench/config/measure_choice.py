"""Read and write a choice of measures: all, none, names, or names to leave out."""

import functools
from collections.abc import Sequence

from nsrelu_bench.config.registry import LATER_MEASURES, SITE_MEASURES, check_name, is_own
from nsrelu_bench.errors import UsageError


@functools.lru_cache
def canonical_measures(text: str) -> str:
    """Return the shortest text of a choice of measures, as a run's configuration has it."""
    taken = read_measures(text)
    own = [name for name in taken if is_own(name)]
    known = [name for name in taken if not is_own(name)]
    return ",".join([*([_format_known(known)] if known or not own else ()), *own])


def read_measures(text: str) -> list[str]:
    """Read which measures to take: all, none, names, or names with a minus to leave out.

    With any of these go names of the user's own, which come last.

    A choice that names no measure of `LATER_MEASURES` takes all of them if it takes more than half
    of the others, else none: so each text means one choice, and keeps the run id that it had.
    """
    every = [part.strip() for part in text.split(",")]
    own = sorted({name for name in every if is_own(name)})
    names = [name for name in every if not is_own(name)]
    return [*(_read_known(names, text) if names or not own else ()), *own]


def _read_known(names: list[str], text: str) -> list[str]:
    left_out = [name.removeprefix("-") for name in names if name.startswith("-")]
    if names == ["none"]:
        return []
    if names == ["all"] or len(left_out) == len(names) - (names[0] == "all"):
        taken = set(SITE_MEASURES) - set(left_out)
    elif left_out or {"all", "none", ""} & set(names):
        raise UsageError(f"must be all, none, names, or names with a minus, got {text!r}")
    else:
        taken = set(names)
    for name in (*left_out, *sorted(taken)):
        check_name(name, SITE_MEASURES, "measure")
    later = set(LATER_MEASURES)
    if not later & {name.removeprefix("-") for name in names}:
        first = taken - later
        taken = first | later if 2 * len(first) > len(SITE_MEASURES) - len(later) else first
    return [name for name in SITE_MEASURES if name in taken]


def _format_known(taken: Sequence[str]) -> str:
    left_out = [f"-{name}" for name in SITE_MEASURES if name not in taken]
    if not taken or not left_out:
        return "all" if taken else "none"
    ways = [",".join(way) for way in sorted((taken, left_out), key=len)]
    return next(way for way in ways if read_measures(way) == list(taken))
