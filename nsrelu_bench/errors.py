"""The errors that a user meets: one line that names the thing, its value and what is allowed."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class BenchError(Exception):
    """An error that the user can fix; its message is one line."""

    exit_code = 1


class UsageError(BenchError, ValueError):
    """A wrong option, name or value."""

    exit_code = 2


def unknown(name: str, known: Iterable[str], kind: str, *, brief: bool = False) -> UsageError:
    """Return the error for an unknown name of a `kind`, with all names or, briefly, the nearest."""
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=1)
    hints = [f"did you mean {near[0]!r}?"] if near else []
    if not (near and brief):
        hints.append(f"choose from: {', '.join(choices)}")
    return UsageError(f"unknown {kind} {name!r}; {' '.join(hints)}")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """Return ``table[name]``.

    Raises:
        UsageError: There is no such name; the message lists the names.
    """
    try:
        return table[name]
    except KeyError:
        raise unknown(name, table, kind) from None


def error_reason(error: BaseException | str) -> str:
    """Return why something failed, in one line.

    That is the system's message for an OSError, otherwise the first line of the error's own; for an
    error without a message, its type.
    """
    message = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(message).splitlines()[0]


def describe_error(error: BaseException) -> str:
    """Return an error in one line, with its type unless it is one of ours."""
    message = " ".join(str(error).split())
    if isinstance(error, BenchError):
        return message
    return ": ".join(filter(None, [type(error).__name__, message]))
