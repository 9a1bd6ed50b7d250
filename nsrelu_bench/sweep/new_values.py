"""The values that a run's files gain while it runs, for loggers."""

import csv
from collections.abc import Iterator
from pathlib import Path

LOGGED_FILES = ("metrics.csv", "layers.csv")


class NewValues:
    """Reads the rows of a run's files once each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read = dict.fromkeys(LOGGED_FILES, 0)

    def __iter__(self) -> Iterator[tuple[str, float, int]]:
        """Yield name, value and epoch of what is new: "zero_fraction", or "zero_fraction/act1"."""
        for name in LOGGED_FILES:
            rows = _whole_rows(self._folder / name)
            for row in rows[self._read[name] :]:
                epoch, layer = int(row.pop("epoch")), row.pop("layer", None)
                for column, cell in row.items():
                    if cell:
                        yield f"{column}/{layer}" if layer else column, float(cell), epoch
            self._read[name] = len(rows)


def _whole_rows(path: Path) -> list[dict[str, str]]:
    """Read the whole rows of a CSV file that may still be written to."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
