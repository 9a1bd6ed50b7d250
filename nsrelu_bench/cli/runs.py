"""Commands that run: train, sweep."""

import functools
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nsrelu_bench.cli.paths import print_next
from nsrelu_bench.config import SETTINGS
from nsrelu_bench.errors import BenchError, UsageError, lookup
from nsrelu_bench.machine import available_cores
from nsrelu_bench.text import shell_command, split_names

if TYPE_CHECKING:
    import pandas as pd

    from nsrelu_bench.config import RunConfig
    from nsrelu_bench.sweep import Event, Executor, RunPolicy
from nsrelu_bench.cli.app import PROGRAM, TRACEBACK, command
from nsrelu_bench.cli.options import (
    CLUSTER,
    LOGGERS,
    RUNNING,
    VARIABLES,
    AsJson,
    CheckpointAfter,
    DataDir,
    Fresh,
    FreshSince,
    Log,
    Quiet,
    Replicates,
    ResultsDir,
    Seeds,
    Stack,
    TensorBoard,
    Workers,
    complete_configs,
    complete_studies,
    flag_of,
    make_argument,
    make_option,
    takes_settings,
)


@command(
    "train",
    "nsrelu-bench train --act nsrelu --leak 0.1",
    "nsrelu-bench train --act 'leaky_relu(0.01)' --optimizer adam --seeds 6",
    "nsrelu-bench train --config results/runs/RUN/config.yaml --epochs 20",
)
@takes_settings
def train(
    settings: tuple[dict[str, Any], ...],
    seeds: Seeds = None,
    config: Annotated[
        Path | None,
        make_option(
            *("--config", "Take settings from a run's config.yaml", "", "FILE"),
            completer=complete_configs,
            section=RUNNING,
            variable=True,
        ),
    ] = None,
    results: ResultsDir = Path("results"),
    workers: Workers = None,
    fresh: Fresh = False,
    fresh_since: FreshSince = None,
    checkpoint_after: CheckpointAfter = None,
    log: Log = None,
    tensorboard: TensorBoard = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train one activation with one or several seeds.

    Results go to RESULTS/runs. Runs that are done are kept; an interrupted run resumes.
    """
    from nsrelu_bench.config import make_study, override, read_run
    from nsrelu_bench.sweep import run_all

    merged = functools.reduce(override, settings, read_run(config) if config else {})
    if seeds is not None:
        first = merged.pop("seed", 0)
        merged["seeds"] = list(range(first, first + seeds))
    study = make_study(merged, "runs", flag_of)
    _check_impl(settings[-1].get("impl"), study.runs[0])
    folder = results / study.name
    policy = _policy((), checkpoint_after, fresh=fresh, since=fresh_since)
    events = run_all(study.runs, folder, workers=workers or available_cores(), policy=policy)
    loggers = _loggers(log, tensorboard)
    _follow(study.runs, folder, events, policy, log=loggers, quiet=quiet, as_json=as_json)


def _check_impl(asked: str | None, config: "RunConfig") -> None:
    """Refuse an implementation that is asked for by flag, where a gate has none but its own.

    In files it is left out, as the leak of relu is: a grid may combine it with several activations.
    """
    if asked is not None and config.activation.gated and asked != config.impl:
        raise UsageError(f"--impl: {config.act} has a gate, which needs native, got {asked}")


Changes = Annotated[
    list[str] | None,
    make_option(
        *("--set", "Change a setting of the file, e.g. lr=0.1; repeat for more", "", "KEY=VALUE"),
        names=[f"{name}=" for name in SETTINGS],
    ),
]
DryRun = Annotated[
    bool,
    make_option(
        "--dry-run", "List runs and their status without running anything", section=RUNNING
    ),
]
Timed = Annotated[
    bool,
    make_option("--time", "With --dry-run: time an epoch of each kind of run", section=RUNNING),
]
Retry = Annotated[
    list[str] | None,
    make_option(
        *("--retry", "Rerun only runs with this status, e.g. failed; repeat for more"),
        metavar="STATUS",
        section=RUNNING,
    ),
]
Shard = Annotated[
    Any,
    make_option("--shard", "The K-th of N parts, for array jobs", metavar="K/N", section=RUNNING),
]
Engine = Annotated[
    str,
    make_option(
        *("--engine", "Where the runs are computed", "local"),
        choices=("local", "ray"),
        section=CLUSTER,
        variable=True,
    ),
]
Address = Annotated[
    str | None,
    make_option(
        *("--address", "Address of the Ray cluster", "one on this machine", "HOST:PORT"),
        section=CLUSTER,
        variable=True,
    ),
]
Collect = Annotated[
    bool,
    make_option(
        "--collect", "Send results back from Ray nodes that share no folder", section=CLUSTER
    ),
]
GpusPerRun = Annotated[
    float | None,
    make_option(
        *("--gpus-per-run", "Share of a GPU that a run takes on Ray", "1", "X"),
        section=CLUSTER,
        variable=True,
    ),
]


@command(
    "train",
    "nsrelu-bench sweep configs/quickstart.yaml",
    "nsrelu-bench sweep study.yaml --seeds 3 --set epochs=2 --dry-run",
    "nsrelu-bench sweep study.yaml --retry failed --workers 8",
)
def sweep(
    config: Annotated[
        Path, make_argument("YAML file of the study", "FILE", autocompletion=complete_studies)
    ],
    changes: Changes = None,
    seeds: Seeds = None,
    replicates: Replicates = None,
    data_dir: DataDir = None,
    stack: Stack = None,
    results: ResultsDir = Path("results"),
    dry_run: DryRun = False,
    timed: Timed = False,
    retry: Retry = None,
    fresh: Fresh = False,
    fresh_since: FreshSince = None,
    shard: Shard = None,
    workers: Workers = None,
    engine: Engine = "local",
    address: Address = None,
    collect: Collect = False,
    gpus: GpusPerRun = None,
    checkpoint_after: CheckpointAfter = None,
    log: Log = None,
    tensorboard: TensorBoard = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a study: a grid of settings and seeds.

    Results go to RESULTS/NAME. Runs that are done are kept, so the same command resumes a study.
    """
    from nsrelu_bench.config import read_setting, read_study
    from nsrelu_bench.records import save_study
    from nsrelu_bench.sweep import group_into_jobs, plan_runs, run_all
    from nsrelu_bench.sweep.dry_run import format_runs

    options = {"data_dir": data_dir, "stack": stack, "seeds": seeds, "replicates": replicates}
    overrides = dict(read_setting(change) for change in changes or ())
    overrides |= {name: value for name, value in options.items() if value is not None}
    study = read_study(config, overrides)
    folder = results / study.name
    policy = _policy(retry or (), checkpoint_after, fresh=fresh, since=fresh_since)
    runs = study.runs
    if shard:
        jobs = list(group_into_jobs(runs))[shard[0] - 1 :: shard[1]]
        runs = [run for job in jobs for run in job.runs]
    executor = _executor(engine, address, gpus, collect=collect)
    workers = workers or available_cores()
    if timed and not dry_run:
        raise UsageError("--time: goes with --dry-run")
    if dry_run:
        plan = list(plan_runs(runs, folder, policy))
        print(format_runs(plan, folder, workers, timed=timed, as_json=as_json), end="")
        return
    save_study(study, folder)
    events = run_all(runs, folder, workers=workers, policy=policy, executor=executor)
    loggers = _loggers(log, tensorboard)
    _follow(runs, folder, events, policy, log=loggers, quiet=quiet, as_json=as_json)


def _executor(
    name: str, address: str | None, gpus: float | None, *, collect: bool
) -> "Executor | None":
    """Return the executor of `--engine`; None for processes on this machine."""
    ray = lookup({"local": False, "ray": True}, name, "engine")
    for flag, given in (("--address", address), ("--gpus-per-run", gpus), ("--collect", collect)):
        if given and not ray:
            raise UsageError(f"{flag}: goes with --engine ray")
    if not ray:
        return None
    from nsrelu_bench.sweep.executors.ray import RayExecutor

    return RayExecutor(address=address, collect=collect, gpus=gpus)


def _policy(
    retry: Sequence[str], checkpoint_after: float | None, *, fresh: bool, since: datetime | None
) -> "RunPolicy":
    """Return how to run: what is repeated is all that began before now, or before `since`."""
    from nsrelu_bench.sweep import RunPolicy

    if fresh and since:
        raise UsageError("--fresh-since: repeats less than --fresh; give one of them")
    policy = RunPolicy(fresh or since is not None, retry)
    if checkpoint_after is not None:
        policy = replace(policy, checkpoint_after=checkpoint_after)
    return replace(policy, before=since or datetime.now(UTC)) if policy.restarts else policy


def _loggers(names: list[str] | None, tensorboard: bool) -> list[str]:
    """Return the loggers that are asked for, each once."""
    asked = [*split_names(names), *(["tensorboard"] if tensorboard else [])]
    for name in asked:
        lookup(dict.fromkeys(LOGGERS), name, "logger")
    return list(dict.fromkeys(asked))


def _log(
    events: "Generator[Event, None, None]", folder: Path, loggers: Sequence[str]
) -> "Generator[Event, None, None]":
    """Return the events, which are logged as they pass."""
    if "tensorboard" in loggers:
        from nsrelu_bench.sweep import tensorboard

        events = tensorboard.follow(events, folder)
    if "mlflow" in loggers:
        from nsrelu_bench.sweep import mlflow

        events = mlflow.follow(events, folder)
    return events


def _resuming(policy: "RunPolicy") -> str:
    """Return the command that resumes this one, with the variables that set its options.

    What it has repeated is not repeated again, and what it interrupted is retried too.
    """
    words = [word for word in sys.argv[1:] if word != "--fresh"]
    more = ["--retry", "interrupted"] if policy.retry else []
    if policy.before and not any(w.partition("=")[0] == "--fresh-since" for w in words):
        more += ["--fresh-since", policy.before.isoformat()]
    after = next(i for i, word in enumerate(words, 1) if not word.startswith("-"))
    words[after:after] = more
    given = [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]
    variables = ["env", *dict.fromkeys(given)] if given else []
    return shell_command([*variables, PROGRAM, *words])


def _final_rows(runs: "Sequence[RunConfig]", folder: Path) -> "pd.DataFrame":
    """Update summary.csv, and return its row of each run; an empty one for a run that has none."""
    import pandas as pd

    from nsrelu_bench.records import NoRunsError, write_summary

    asked = pd.DataFrame(index=pd.Index([run.run_id for run in runs], name="run_id"))
    try:
        return asked.join(write_summary(folder).set_index("run_id"))
    except NoRunsError:  # all are new and stay so, or failed before they had a folder
        return asked


def _follow(
    runs: "Sequence[RunConfig]",
    folder: Path,
    events: "Generator[Event, None, None]",
    policy: "RunPolicy",
    *,
    log: Sequence[str],
    quiet: bool,
    as_json: bool,
) -> None:
    """Show the progress of the runs of a study, and how they ended."""
    from nsrelu_bench.config import find_varying
    from nsrelu_bench.records import find_leftovers
    from nsrelu_bench.sweep import progress

    events = _log(events, folder, log)
    varying = find_varying(runs) if len(runs) > 1 else ["lr"]
    with closing(events):
        try:
            ended = progress.follow(events, len(runs), varying=varying, quiet=quiet)
        except (KeyboardInterrupt, SystemExit):
            print(f"{PROGRAM}: Interrupted. Resume with: {_resuming(policy)}", file=sys.stderr)
            raise
    failures = [event for event in ended if event.status.state == "failed" and not event.kept]
    if TRACEBACK in sys.argv:
        print(*(event.traceback for event in failures), sep="\n", file=sys.stderr)
    if failures and len(runs) == 1:
        raise BenchError(str(failures[0].status.error))
    table = _final_rows(runs, folder)
    if as_json:
        print(table.reset_index().to_json(orient="records", indent=2))
    else:
        print("\n".join(progress.closing_lines(ended, table, folder)))
    if not quiet:
        left = len(find_leftovers(folder))
        if left:
            print(
                f"{PROGRAM}: {left} other runs in {folder}, which this study does not ask for;"
                f" to remove them: {shell_command([PROGRAM, 'clean', str(folder)])}",
                file=sys.stderr,
            )
        if ended:
            print_next(*([name, folder] for name in ("compare", "plot", "report")))
    if any(event.status.state == "failed" for event in ended):
        raise typer.Exit(3)
