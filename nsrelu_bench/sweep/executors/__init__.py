"""What computes runs: processes on this machine, or Ray."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nsrelu_bench.config import RunConfig
from nsrelu_bench.sweep.execution import Event, Job, RunPolicy

#: Seconds after which to check again a run that another process is running.
POLL_S = 0.5


@dataclass(frozen=True)
class Lost:
    """A job whose process is gone; of an ensemble, the runs that had not ended."""

    job: Job
    reason: str


class Executor(ABC):
    """Computes jobs, and reports; decides nothing."""

    #: How often a job is submitted if its process is lost each time.
    attempts = 1

    @abstractmethod
    def start(self, study: Path, policy: RunPolicy, runs: Sequence[RunConfig]) -> None:
        """Get ready for jobs of these runs, each with its folder below `study`.

        Raises:
            BenchError: The runs can't be computed here.
        """

    @abstractmethod
    def room(self) -> int:
        """Return how many more jobs can be submitted now."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Start a job, or queue it."""

    @abstractmethod
    def wait(self, timeout_s: float | None) -> list[Event | Lost]:
        """Return what has happened since the last call, after at most `timeout_s`; None: no limit.

        May return early with nothing.
        """

    @abstractmethod
    def stop(self) -> None:
        """End all jobs that are running, and free what `start` has acquired."""
