"""Write event files for TensorBoard to a run's folder while it runs.

They have the content of metrics.csv and layers.csv, and are written from these, so they change
nothing about a run. Needs the extra ``tensorboard``.
"""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from nsrelu_bench.errors import UsageError
from nsrelu_bench.sweep.execution import Event
from nsrelu_bench.sweep.new_values import NewValues

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
    """The event file of one run."""

    def __init__(self, folder: Path) -> None:
        for old in folder.glob(EVENT_FILES):
            old.unlink()
        self.writer = SummaryWriter(str(folder))
        self.values = NewValues(folder)

    def update(self) -> None:
        """Write the values that are new since the last call."""
        for name, value, epoch in self.values:
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


EVENT_FILES = "events.out.tfevents.*"
