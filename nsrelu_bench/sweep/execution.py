"""One run, trained and written to its folder."""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from traceback import format_exc
from typing import TYPE_CHECKING, Any

from nsrelu_bench.config import RunConfig
from nsrelu_bench.errors import UsageError
from nsrelu_bench.records import (
    DONE,
    STATES,
    RunDoneError,
    RunLockedError,
    RunWriter,
    Status,
    failed,
)

if TYPE_CHECKING:
    from nsrelu_bench.training import Epoch


#: How often to look again after a run that another process is making.
POLL_S = 0.5
#: How many seeds are trained as one: each keeps its files open.
MAX_STACK = 64


@dataclass(frozen=True)
class Event:
    """How a run stands now; `metrics` is its newest row of metrics.csv, where there is one.

    `kept`: it was done before, or is being made by another process (state running).
    """

    config: RunConfig
    status: Status
    metrics: dict[str, Any] = field(default_factory=dict)
    kept: bool = False
    traceback: str | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether another process is making the run."""
        return self.kept and not self.status.done


@dataclass(frozen=True)
class RunPolicy:
    """How runs are made: what does not change their numbers.

    Attributes:
        fresh: Do runs again that are done.
        retry: Do only the runs that ended in these states.
        checkpoint_after: Seconds after which a run that goes on keeps a checkpoint.
    """

    fresh: bool = False
    retry: Collection[str] = ()
    checkpoint_after: float = 10.0

    def __post_init__(self) -> None:
        for state in self.retry:
            if state not in STATES:
                allowed = ", ".join(STATES)
                raise UsageError(f"--retry: must be one of {allowed}, got {state!r}")

    @property
    def anew(self) -> bool:
        """Whether runs that are done are made again, from their first step."""
        return self.fresh or any(state in DONE for state in self.retry)


DEFAULT_POLICY = RunPolicy()

#: Makes runs, each into its folder below a study's, in its own way.
Executor = Callable[[Sequence[RunConfig], Path, RunPolicy], Iterator[Event]]


def group_into_jobs(runs: Sequence[RunConfig]) -> Iterator[list[RunConfig]]:
    """Tell which runs are made together: the seeds of a stack, `MAX_STACK` at most."""
    stacks: dict[RunConfig, list[RunConfig]] = {}
    for config in runs:
        if config.stack:
            stacks.setdefault(config.model_copy(update={"seed": 0}), []).append(config)
        else:
            yield [config]
    for stack in stacks.values():
        for first in range(0, len(stack), MAX_STACK):
            yield stack[first : first + MAX_STACK]


def execute_job(job: Sequence[RunConfig], study: Path, policy: RunPolicy) -> Iterator[Event]:
    """Make the runs of a job in step: all have ended an epoch before any begins the next."""
    if len(job) == 1:
        yield from execute_run(job[0], study / job[0].run_id, policy)
        return
    from nsrelu_bench.training import Together

    train = Together().run
    with ExitStack() as ending:
        under_way = [
            ending.enter_context(closing(execute_run(config, study / config.run_id, policy, train)))
            for config in job
        ]
        while under_way:
            events = [(run, next(run, None)) for run in under_way]
            under_way = [run for run, event in events if event is not None]
            yield from (event for _, event in events if event is not None)


def execute_run(
    config: RunConfig,
    folder: Path,
    policy: RunPolicy = DEFAULT_POLICY,
    train: Callable[..., "Iterator[Epoch]"] | None = None,
) -> Generator[Event, None, None]:
    """Make one run and write it down; yields an event an epoch, and one at the end.

    An error ends the run as failed, and no other. A run that another process is making, or has
    just made, is left to it.

    Args:
        config: The run.
        folder: Its own.
        policy: How.
        train: What trains it instead of `train.run`; called before the first event.
    """
    metrics: dict[str, Any] = {}
    writer = RunWriter(folder, config, fresh=policy.anew, checkpoint_after=policy.checkpoint_after)
    try:
        with writer:
            from nsrelu_bench.training import run

            epochs = (train or run)(config, writer.checkpoint)
            yield Event(config, writer.status)
            for epoch in epochs:
                writer.append(epoch)
                metrics = epoch.metrics
                if writer.status.state == "running":
                    yield Event(config, writer.status, metrics)
    except RunLockedError:
        yield Event(config, Status("running"), kept=True)
    except RunDoneError as done:
        yield Event(config, done.status, kept=True)
    except Exception as error:
        yield Event(config, failed(writer.status, error), metrics, traceback=format_exc())
    else:
        yield Event(config, writer.status, metrics)
