"""Text for people: numbers with significant digits, and rows of texts as columns."""

import math
import os
import re
import shlex
import textwrap
from collections.abc import Iterable, Sequence


def format_fixed(value: float, places: int, sign: str = "") -> str:
    """Write a number with a fixed number of decimal places, and no minus before zero."""
    # NumPy's own numbers round in another way: 11.35, which is a little less, to 11.4.
    return f"{round(float(value), places) + 0.0:{sign}.{places}f}"


def format_percent(fraction: float, places: int = 0) -> str:
    """Write a fraction in percent: "11.4%"."""
    return f"{format_fixed(100 * fraction, places)}%"


def decimal_places(half_widths: Iterable[float]) -> int:
    """Return how many decimal places the median of some half-widths needs, from 1 to 4."""
    positive = sorted(half for half in half_widths if half > 0)
    return min(max(math.ceil(-math.log10(positive[len(positive) // 2])), 1), 4) if positive else 1


def format_p(p: float) -> str:
    """Write a p value with two digits."""
    return "-" if math.isnan(p) else f"{p:.2g}"


def printable(text: str) -> str:
    r"""Return a text with escapes for what a terminal would act on, such as ``\x1b[2J``.

    Also for what can't be encoded: names of files need not be text.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shell_command(words: Iterable[str]) -> str:
    r"""Write a command that can be pasted into a shell, on one line: $'\033' for an escape."""
    return " ".join(shlex.quote(w) if w.isprintable() else _escaped(w) for w in words)


def _escaped(word: str) -> str:
    plain = {c for c in word if c.isprintable()} - {"'", "\\"}
    octal = ("".join(f"\\{byte:03o}" for byte in os.fsencode(c)) for c in word)
    return f"$'{''.join(c if c in plain else o for c, o in zip(word, octal, strict=True))}'"


#: The smallest positive number that single precision holds with all its digits.
SMALLEST = 2.0**-126
#: What is allowed instead of a smaller number, which would act as 0.
NOT_TINY = f"must be 0 or at least {SMALLEST:.2g}"


def underflows(number: str) -> bool:
    """Return whether the text of a number is not 0, but too small for a float to hold."""
    digits = number.lower().partition("e")[0]
    return re.search("[1-9]", digits) is not None and float(number) == 0


def join_words(words: Sequence[str]) -> str:
    """Write an enumeration: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def format_ranges(numbers: Sequence[int]) -> str:
    """Write whole numbers in order, consecutive ones as a range: "0-5, 8"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][-1] + 1 == number:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ", ".join("-".join(map(str, ends)) for ends in ranges)


def split_names(given: str | Sequence[str] | None) -> list[str]:
    """Return the names in a text with commas, or in several such texts; none for None."""
    texts = [given] if isinstance(given, str) else given or []
    return [name.strip() for text in texts for name in text.split(",")]


def split_columns(widths: Sequence[int], room: int | None, gap: int = 2) -> list[list[int]]:
    """Divide columns into blocks that are at most `room` characters wide.

    Each block begins with column 0, which names the rows, and has at least one other column.
    """
    blocks: list[list[int]] = []
    for column in range(1, len(widths)):
        block = [*(blocks[-1] if blocks else [0]), column]
        wide = sum(widths[c] for c in block) + gap * (len(block) - 1)
        if blocks and (room is None or wide <= room):
            blocks[-1].append(column)
        else:
            blocks.append([0, column])
    return blocks or [[0]]


def align(rows: Sequence[Sequence[str]], room: int | None = None) -> list[str]:
    """Align columns with blanks into lines, in blocks at most `room` characters wide."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for block in split_columns(widths, room):
        lines += [""] if lines else []
        lines += ["  ".join(row[c].ljust(widths[c]) for c in block).rstrip() for row in rows]
    return lines


def wrap(line: str, room: int | None = None, indent: str = "  ") -> str:
    """Break a line where it is longer than `room`: between words, or in one that is longer itself.

    Such a word is broken after a mark, if it has one in time. Later lines begin with `indent`.
    """
    if room is None:
        return line
    lines = [""]
    for word in line.split():
        gap = " " if lines[-1].strip() else ""
        for piece in _pieces(word, room - len(indent)):
            if len(lines[-1] + gap + piece) > room and lines[-1].strip():
                lines.append(indent)
                gap = ""
            lines[-1] += gap + piece
            gap = ""
    return "\n".join(lines)


#: The marks after which a word may be broken, the better ones first.
MARKS = ("=:", "/.,", "_-+")


def _pieces(word: str, room: int, marks: Sequence[str] = MARKS) -> list[str]:
    """Divide a word that is longer than `room` after the best marks that make it short enough."""
    if len(word) <= room:
        return [word]
    if not marks:
        return textwrap.wrap(word, room)
    parts = re.split(f"(?<=[{re.escape(marks[0])}])", word)
    return [piece for part in parts for piece in _pieces(part, room, marks[1:]) if piece]
