"""Show progress on stderr: a bar on a terminal, lines elsewhere."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nsrelu_bench.config import RunConfig, name_run
from nsrelu_bench.records import Status
from nsrelu_bench.sweep.execution import Event
from nsrelu_bench.text import format_percent

if TYPE_CHECKING:
    import pandas as pd

#: The metrics that are shown of a run, and their names.
SHOWN = {
    "val_accuracy": "val accuracy",
    "test_accuracy": "test accuracy",
    "zero_fraction": "zeros",
    "dead_fraction": "dead units",
}


def follow(
    events: Iterable[Event],
    runs: int,
    *,
    varying: Sequence[str] = ("lr",),
    quiet: bool = False,
) -> list[Event]:
    """Show the progress of so many runs, and return the last event of each.

    Their names have the settings `varying`.
    """
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
    view = _View(console, runs, varying)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        TextColumn("elapsed"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    )
    with progress:
        bar = progress.add_task("runs", total=None, counts="starting", left="")
        for event in events:
            view.take(event)
            done = sum(view.shares.values())
            counts = view.counts()
            progress.update(bar, total=view.total, completed=done, counts=counts, left="left")
    return view.ended


class _View:
    """What has been shown of some runs; one by itself has a line per epoch, several one each."""

    def __init__(self, console: Console, runs: int, varying: Sequence[str]) -> None:
        self._console, self._varying = console, varying
        self._single = runs == 1
        self._announced: set[tuple[str, str]] = set()
        self._states: Counter[str] = Counter()
        self.total = runs
        self.ended: list[Event] = []
        self.shares: dict[str, float] = {}  # how much of each run is done, in [0, 1]

    def counts(self) -> str:
        """Return the number of runs that ended, by state."""
        ended = f"{len(self.ended)} of {self.total} ended"
        others = {k: v for k, v in self._states.items() if k != "completed"}
        return ", ".join([ended, *(f"{count} {state}" for state, count in others.items())])

    def take(self, event: Event) -> None:
        """Show an event."""
        config = event.config
        if event.status.state == "new":  # and stays so
            self.total -= 1
            return
        epoch = event.status.epoch or 0
        self.shares[config.run_id] = 1.0 if event.ended else epoch / config.total_epochs
        lost_step = event.metrics.get("gradient_lost_step")
        if lost_step is not None and self._single:
            self._announce(config, f"gradient lost at step {lost_step}: {LOST_GRADIENT}")
        if event.elsewhere:
            self._announce(config, "running in another process; waiting for it")
        elif not event.ended:
            if self._single and event.metrics:
                width = len(str(config.total_epochs))
                shown = _format_metrics(event)
                self._print(f"epoch {epoch:{width}}/{config.total_epochs}  {shown}")
        else:
            self.ended.append(event)
            self._states[_why_kept(event) if event.kept else event.status.state] += 1
            if not self._single and not event.kept:
                outcome = describe_status(event.status, event.metrics)
                if lost_step is not None:
                    outcome += f", gradient lost at step {lost_step}"
                line = f"{name_run(config, self._varying)}: {outcome}  {_format_metrics(event)}"
                self._print(f"[{len(self.ended)}/{self.total}] {line}".rstrip())

    def _announce(self, config: RunConfig, message: str) -> None:
        """Print a message about a run, once."""
        if (config.run_id, message) not in self._announced:
            self._announced.add((config.run_id, message))
            self._print(f"{name_run(config, self._varying)}: {message}")

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)


def _why_kept(event: Event) -> str:
    """Return why a run stays as it is."""
    return "done before" if event.status.done else "not retried"


#: What a lost gradient means.
LOST_GRADIENT = (
    "the first layer's followed gradient no longer points along the true one; the run may collapse"
)


def _format_metrics(event: Event) -> str:
    return "  ".join(_values(event.metrics, ("val_accuracy", "zero_fraction", "dead_fraction")))


def _values(metrics: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    """Return those of the metrics that have a value, for people."""
    known = {column: metrics.get(column) for column in columns}
    return [
        f"{SHOWN[column]} {format_percent(value, 1)}"
        for column, value in known.items()
        if value is not None and not math.isnan(value)
    ]


def describe_status(status: Status, metrics: Mapping[str, Any]) -> str:
    """Return in words how a run with these last metrics ended."""
    if status.state == "diverged":
        return f"diverged in epoch {status.diverged_epoch}, step {status.diverged_step}"
    if status.state == "failed":
        return f"failed: {status.error}"
    collapsed = metrics.get("collapsed") == 1
    return f"{status.state}, but collapsed" if collapsed else status.state


def closing_lines(ended: list[Event], table: "pd.DataFrame", folder: Path) -> list[str]:
    """Return how the runs ended; for a single run, its metrics and its folder.

    `table` has a row of summary.csv for each run that was asked for, by run id. Those that did not
    end are new ones, which `--retry` does not start.
    """
    if len(table) == len(ended) == 1:
        event = ended[0]
        row = dict(table.loc[event.config.run_id])
        values = _values(row, ("test_accuracy", "zero_fraction", "dead_fraction"))
        before = f" ({_why_kept(event)})" if event.kept else ""
        return [
            f"{name_run(event.config)}: {describe_status(event.status, row)}{before}",
            *filter(None, [", ".join(values)]),
            str(folder / event.config.run_id),
        ]
    counts = Counter(event.status.state for event in ended)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    kept = Counter(_why_kept(event) for event in ended if event.kept)
    line = f"{_count(len(ended))} in {folder}" + (f": {states}" if states else "")
    collapsed = int((table["collapsed"] == 1).sum()) if "collapsed" in table else 0
    if collapsed:
        line += f"; {collapsed} collapsed"
    if kept:
        line += f" ({', '.join(f'{count} {why}' for why, count in kept.items())})"
    left = len(table) - len(ended)
    return [line + (f"; {_count(left, 'new ')}, not started because of --retry" if left else "")]


def _count(runs: int, kind: str = "") -> str:
    return f"{runs} {kind}run{'' if runs == 1 else 's'}"
