"""Many runs: those that are done are kept, the others go to a pool of processes. No torch here.

`run_all` yields an event whenever a run begins, ends an epoch or ends; nothing is decided by the
order in which runs end, since each has a folder of its own. A worker can be killed at any moment:
that is how a study is ended, too.
"""

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path

from nsrelu_bench.config import RunConfig
from nsrelu_bench.files import wrap_write_errors
from nsrelu_bench.records import Status, read_status
from nsrelu_bench.sweep.execution import DEFAULT_POLICY, Event, Executor, RunPolicy
from nsrelu_bench.sweep.executors.local import in_turn, pooled


def plan_runs(
    runs: Sequence[RunConfig], study: Path, policy: RunPolicy = DEFAULT_POLICY
) -> Iterator[tuple[RunConfig, Status | None, bool]]:
    """Tell of each run how it stands, None where it never began, and whether it is to be made."""
    for config in runs:
        status = read_status(study / config.run_id)
        if policy.retry:
            due = status is not None and status.state in policy.retry
        else:
            due = policy.fresh or status is None or not status.done
        yield config, status, due


def run_all(
    runs: Sequence[RunConfig],
    study: Path,
    *,
    workers: int = 0,
    policy: RunPolicy = DEFAULT_POLICY,
    engine: Executor | None = None,
) -> Generator[Event, None, None]:
    """Run all that is not done yet, each into its folder below `study`.

    Closing the iterator ends the runs that are under way as interrupted. Runs that another
    process is making are waited for.

    Args:
        runs: What to run.
        study: The study's folder.
        workers: How many processes run at once; 0: in this process, one run after the other.
        policy: How.
        engine: What makes the runs instead, such as `on_ray`.

    Raises:
        BenchError: The study's folder can't be written.
    """
    with wrap_write_errors(study):
        study.mkdir(parents=True, exist_ok=True)
    left = []
    for config, status, due in plan_runs(runs, study, policy):
        if due:
            left.append(config)
        elif status is not None:
            yield Event(config, status, kept=True)
    if engine is None:
        engine = partial(pooled, workers) if workers else in_turn
    yield from engine(left, study, policy)
