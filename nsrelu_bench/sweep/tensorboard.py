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


EVENT_FILES = "events.out.tfevents.*"


def follow(events: Generator[Event, None, None], study: Path) -> Generator[Event, None, None]:
    """Pass on the events of `sweep.run_all`, and write the measures of each epoch.

    A run that was done before gets an event file if it has none.
    """
    logs: dict[str, tuple[SummaryWriter, NewValues]] = {}
    try:
        with closing(events):
            for event in events:
                run_id = event.config.run_id
                folder = study / run_id
                has_one = event.kept and any(folder.glob(EVENT_FILES))
                if folder.is_dir() and not event.elsewhere and not has_one:
                    if run_id not in logs:
                        for old in folder.glob(EVENT_FILES):
                            old.unlink()
                        logs[run_id] = SummaryWriter(str(folder)), NewValues(folder)
                    writer, values = logs[run_id]
                    for name, value, epoch in values:
                        writer.add_scalar(name, value, epoch)
                    writer.flush()
                    if event.ended:
                        del logs[run_id]
                        writer.close()
                yield event
    finally:
        for writer, _ in logs.values():
            writer.close()
