"""Execute one job: train a run, or the seeds of an ensemble, and write the runs' folders."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from traceback import format_exception
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
    began_before,
    failed,
)

if TYPE_CHECKING:
    from nsrelu_bench.training import Epoch

#: The most seeds that are trained as one network: each keeps its files open.
MAX_ENSEMBLE = 64


@dataclass(frozen=True)
class Event:
    """The state of a run when something happened to it.

    Attributes:
        metrics: Its newest row of metrics.csv, if there is one.
        kept: It stays as it is: it was done before, or is not among those to retry.
        elsewhere: Another process is running it, and is waited for.
        traceback: Where the error came from, of a run that failed here.
    """

    config: RunConfig
    status: Status
    metrics: dict[str, Any] = field(default_factory=dict)
    kept: bool = False
    elsewhere: bool = False
    traceback: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the run has no further events."""
        return self.kept or self.status.state != "running"


@dataclass(frozen=True)
class RunPolicy:
    """How to run; nothing in it changes the numbers.

    Attributes:
        fresh: Also rerun runs that are done.
        retry: Rerun only runs with one of these states.
        checkpoint_after: Seconds between the checkpoints of a run.
        before: Rerun no run that is done and began at this time or later, and resume those that
            did and are not.
    """

    fresh: bool = False
    retry: Collection[str] = ()
    checkpoint_after: float = 10.0
    before: datetime | None = None

    def __post_init__(self) -> None:
        for state in self.retry:
            if state not in STATES:
                allowed = ", ".join(STATES)
                raise UsageError(f"--retry: must be one of {allowed}, got {state!r}")

    @property
    def restarts(self) -> bool:
        """Whether runs that are done are rerun, from their first step."""
        return self.fresh or any(state in DONE for state in self.retry)

    def starts_over(self, folder: Path) -> bool:
        """Whether a run that is done is rerun."""
        return self.restarts and began_before(folder, self.before)


DEFAULT_POLICY = RunPolicy()


@dataclass(frozen=True)
class Job:
    """Runs that are computed together: one, or the seeds of an ensemble."""

    runs: tuple[RunConfig, ...]
    attempt: int = 1  # how often the job has been submitted


def group_into_jobs(runs: Sequence[RunConfig]) -> Iterator[Job]:
    """Yield the jobs of some runs; the seeds of a configuration with `stack` are one job."""
    ensembles: dict[RunConfig, list[RunConfig]] = {}
    for config in runs:
        if config.stack:
            ensembles.setdefault(config.model_copy(update={"seed": 0}), []).append(config)
        else:
            yield Job((config,))
    for members in ensembles.values():
        for first in range(0, len(members), MAX_ENSEMBLE):
            yield Job(tuple(members[first : first + MAX_ENSEMBLE]))


def execute_job(job: Job, study: Path, policy: RunPolicy) -> Iterator[Event]:
    """Compute a job, each run in its folder below `study`; yields, of each, as `execute_run` does.

    An error in training ends all runs of an ensemble; one in writing a run ends that run alone.
    Only runs that resume from the same epoch train together.
    """
    yield from _execute([Recording(c, study / c.run_id, policy) for c in job.runs])


def execute_run(
    config: RunConfig, folder: Path, policy: RunPolicy = DEFAULT_POLICY
) -> Iterator[Event]:
    """Train one run and write it to its folder; yields an event per epoch and one at the end.

    An error ends the run as failed. A run that another process is running or has just finished is
    not started. Closing the iterator ends the run as interrupted.
    """
    yield from _execute([Recording(config, folder, policy)])


def _execute(recordings: Sequence["Recording"]) -> Iterator[Event]:
    by_epoch: dict[int | None, list[Recording]] = {}
    try:
        for recording in recordings:
            yield recording.open()
            if recording.is_open:
                epoch = (recording.writer.checkpoint or {}).get("epoch")
                by_epoch.setdefault(epoch, []).append(recording)
        for members in by_epoch.values():
            yield from _train(members)
    except BaseException as error:
        for recording in recordings:
            recording.close(error)
        raise


def _train(members: Sequence["Recording"]) -> Iterator[Event]:
    """Train runs, several of them as one network."""
    try:
        if members[0].config.stack:
            for member in members:
                try:
                    member.writer.record_stack([other.config.seed for other in members])
                except Exception as error:
                    yield member.close(error)
        for epochs in _epochs(members):
            # Written for all before anything is reported: what stops a study between two events
            # leaves all seeds with a checkpoint of the same epoch, from which they resume together.
            yield from [
                event
                for index, epoch in epochs.items()
                if members[index].is_open
                for event in _write(members[index], epoch)
            ]
            if not any(member.is_open for member in members):
                return
    except Exception as error:
        for member in members:
            if member.is_open:
                yield member.close(error)


def _epochs(members: Sequence["Recording"]) -> Iterator[dict[int, "Epoch"]]:
    from nsrelu_bench.training import run, run_ensemble

    configs = [member.config for member in members]
    checkpoints = [member.writer.checkpoint for member in members]
    if len(members) == 1:
        return ({0: epoch} for epoch in run(configs[0], checkpoints[0]))
    return run_ensemble(configs, checkpoints)


def _write(member: "Recording", epoch: "Epoch") -> list[Event]:
    """Write an epoch, and end the run if it is the last one or can't be written."""
    try:
        event = member.add(epoch)
        last = epoch.metrics["epoch"] == member.config.total_epochs
        events = [] if event.ended else [event]
        return [*events, member.close()] if last or event.ended else events
    except Exception as error:
        return [member.close(error)]


class Recording:
    """Writes the epochs of one run to its folder, and returns an event for each."""

    def __init__(self, config: RunConfig, folder: Path, policy: RunPolicy) -> None:
        self.config = config
        self.is_open = False
        self._metrics: dict[str, Any] = {}
        self.writer = RunWriter(
            folder,
            config,
            fresh=policy.restarts,
            before=policy.before,
            checkpoint_after=policy.checkpoint_after,
        )

    def open(self) -> Event:
        """Claim the folder; the event says whether there is anything to run."""
        try:
            self.writer.__enter__()
        except RunLockedError:
            return Event(self.config, Status("running"), elsewhere=True)
        except RunDoneError as done:
            return Event(self.config, done.status, kept=True)
        except Exception as error:
            return self._failed(error)
        self.is_open = True
        return self._event()

    def add(self, epoch: "Epoch") -> Event:
        """Write an epoch."""
        self.writer.append(epoch)
        self._metrics = epoch.metrics
        return self._event()

    def close(self, error: BaseException | None = None) -> Event:
        """End the run: completed or diverged, or by an error failed or interrupted."""
        if not self.is_open:
            return self._event()
        self.is_open = False
        try:
            self.writer.__exit__(type(error), error, None)
        except Exception as unwritten:
            return self._failed(unwritten)
        return self._failed(error) if isinstance(error, Exception) else self._event()

    def _event(self) -> Event:
        return Event(self.config, self.writer.status, self._metrics)

    def _failed(self, error: Exception) -> Event:
        status = failed(self.writer.status, error)
        traceback = "".join(format_exception(error))
        return Event(self.config, status, self._metrics, traceback=traceback)
