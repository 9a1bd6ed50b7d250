"""What a person sees on stderr while runs are made: a bar on a terminal, plain lines elsewhere."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nsrelu_bench.config import RunConfig
from nsrelu_bench.records import Status
from nsrelu_bench.sweep.execution import Event

if TYPE_CHECKING:
    import pandas as pd


#: What is shown of a run while it goes on and when it ends, and how it is called.
FIGURES = {
    "val_accuracy": "val accuracy",
    "test_accuracy": "test accuracy",
    "zero_fraction": "zeros",
    "dead_fraction": "dead units",
}


def follow(events: Iterable[Event], runs: int, *, quiet: bool = False) -> list[Event]:
    """Show how the runs go; returns the last event of each."""
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
    ended: list[Event] = []
    counts: Counter[str] = Counter()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    )
    with progress:
        epochs = {}
        elsewhere: set[str] = set()
        bar = progress.add_task("runs", total=None, counts="")
        for event in events:
            epochs[event.config.run_id] = _share(event)
            if event.elsewhere:
                if event.config.run_id not in elsewhere:
                    told = "is being made by another process; it is waited for"
                    console.print(f"{describe(event.config)}: {told}", soft_wrap=True)
                elsewhere.add(event.config.run_id)
            elif event.status.state == "running":
                if runs == 1 and event.metrics:
                    console.print(_epoch_line(event), soft_wrap=True)
            else:
                ended.append(event)
                counts["done before" if event.kept else event.status.state] += 1
                if runs > 1 and not event.kept:
                    console.print(f"[{len(ended)}/{runs}] {_end_line(event)}", soft_wrap=True)
            shown = ", ".join(f"{count} {state}" for state, count in counts.items())
            progress.update(bar, total=runs, completed=sum(epochs.values()), counts=shown)
    return ended


def _share(event: Event) -> float:
    """How much of a run is done, from 0 to 1."""
    if event.status.state != "running":
        return 1.0
    return (event.status.epoch or 0) / event.config.total_epochs


def _epoch_line(event: Event) -> str:
    total = event.config.total_epochs
    return f"epoch {event.status.epoch:{len(str(total))}}/{total}  {_figures(event)}"


def _end_line(event: Event) -> str:
    return f"{describe(event.config)}: {describe_status(event.status)}  {_figures(event)}".rstrip()


def _figures(event: Event) -> str:
    return "  ".join(_shown(event.metrics, ("val_accuracy", "zero_fraction", "dead_fraction")))


def _shown(metrics: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    """Write those of the metrics that have a value, for a person."""
    known = {column: metrics.get(column) for column in columns}
    return [
        f"{FIGURES[column]} {value:.1%}"
        for column, value in known.items()
        if value is not None and not math.isnan(value)
    ]


def describe(config: RunConfig) -> str:
    """Name a run for a person."""
    return f"{config.act} on {config.dataset}, {config.model}, lr {config.lr:g}, seed {config.seed}"


def describe_status(status: Status) -> str:
    """Say in words how a run ended."""
    if status.state == "diverged":
        return f"diverged in epoch {status.diverged_epoch}, step {status.diverged_step}"
    if status.state == "failed":
        return f"failed: {status.error}"
    return status.state


def standing_text(
    standing: Iterable[tuple[RunConfig, Status | None, bool]], *, as_json: bool = False
) -> str:
    """List runs, how they stand, and whether they are to be made."""
    rows = [
        {"run_id": config.run_id, "state": status.state if status else "new", "due": due}
        for config, status, due in standing
    ]
    if as_json:
        return json.dumps(rows, indent=2) + "\n"
    due = sum(row["due"] is True for row in rows)
    lines = [
        f"{'run ' if row['due'] else 'keep'}  {row['state']:11}  {row['run_id']}" for row in rows
    ]
    return "\n".join([*lines, f"{len(rows)} runs, {due} to make"]) + "\n"


def closing_lines(ended: list[Event], table: "pd.DataFrame", folder: Path) -> list[str]:
    """Say how the runs ended; of a single run, its figures and where it lies.

    `table` has their rows of summary.csv, by run id.
    """
    if len(ended) == 1:
        event = ended[0]
        row = dict(table.loc[event.config.run_id])
        figures = _shown(row, ("test_accuracy", "zero_fraction", "dead_fraction"))
        before = " (done before)" if event.kept else ""
        return [
            f"{describe(event.config)}: {describe_status(event.status)}{before}",
            *filter(None, [", ".join(figures)]),
            str(folder / event.config.run_id),
        ]
    counts = Counter(event.status.state for event in ended)
    kept = sum(event.kept for event in ended)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    return [f"{len(ended)} runs in {folder}: {states}" + (f" ({kept} done before)" if kept else "")]
