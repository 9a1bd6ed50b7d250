"""Write event files for TensorBoard to a run's folder while it runs.

They have the content of metrics.csv and layers.csv, and are written from these, so they change
nothing about a run. Needs the extra ``tensorboard``.
"""

import csv
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from nsrelu_bench.errors import UsageError
from nsrelu_bench.sweep.execution import Event

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    raise UsageError(
        "--tensorboard: needs TensorBoard; pip install 'nsrelu-bench[tensorboard]'"
    ) from None


def follow(events: Generator[Event, None, None], study: Path) -> Generator[Event, None, None]:
    """Pass on the events of `sweep.run_all`, and write the measures of each epoch.

    A run that was done before gets an event file if it has none.
    """
    logs: dict[str, _Log] = {}
    try:
        with closing(events):
            for event in events:
                run_id = event.config.run_id
                folder = study / run_id
                has_one = event.kept and any(folder.glob(EVENT_FILES))
                if folder.is_dir() and not has_one:
                    if run_id not in logs:
                        logs[run_id] = _Log(folder)
                    logs[run_id].update()
                    if event.status.state != "running":
                        logs.pop(run_id).close()
                yield event
    finally:
        for log in logs.values():
            log.close()


class _Log:
    """The event file of one run, and the number of rows written to it."""

    def __init__(self, folder: Path) -> None:
        for old in folder.glob(EVENT_FILES):
            old.unlink()
        self.folder = folder
        self.writer = SummaryWriter(str(folder))
        self.written = dict.fromkeys(LOGGED_FILES, 0)

    def update(self) -> None:
        """Write the rows that are new since the last call."""
        for name in LOGGED_FILES:
            rows = _read(self.folder / name)
            for row in rows[self.written[name] :]:
                epoch, layer = int(row.pop("epoch")), row.pop("layer", None)
                for column, cell in row.items():
                    if cell:
                        tag = f"{column}/{layer}" if layer else column
                        self.writer.add_scalar(tag, float(cell), epoch)
            self.written[name] = len(rows)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


def _read(path: Path) -> list[dict[str, str]]:
    """Read the whole rows of a CSV file that may still be written to."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


EVENT_FILES = "events.out.tfevents.*"
LOGGED_FILES = ("metrics.csv", "layers.csv")
