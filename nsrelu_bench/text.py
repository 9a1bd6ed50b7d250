"""Rows of texts as columns; where a terminal is too narrow, columns go into blocks below."""

import textwrap
from collections.abc import Sequence


def split_columns(widths: Sequence[int], room: int | None, gap: int = 2) -> list[list[int]]:
    """Share the columns out over blocks that are at most `room` characters wide.

    Each block begins with column 0, which names the rows, and has one more at least.
    """
    blocks: list[list[int]] = []
    for column in range(1, len(widths)):
        together = [*(blocks[-1] if blocks else [0]), column]
        wide = sum(widths[c] for c in together) + gap * (len(together) - 1)
        if blocks and (room is None or wide <= room):
            blocks[-1].append(column)
        else:
            blocks.append([0, column])
    return blocks or [[0]]


def align(rows: Sequence[Sequence[str]], room: int | None = None) -> list[str]:
    """Align columns with blanks into lines, in blocks of at most `room` characters' width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for block in split_columns(widths, room):
        lines += [""] if lines else []
        lines += ["  ".join(row[c].ljust(widths[c]) for c in block).rstrip() for row in rows]
    return lines


def wrap(line: str, room: int | None = None) -> str:
    """Break a line between words where it is longer than `room`."""
    return line if room is None else textwrap.fill(line, room, subsequent_indent="  ")
