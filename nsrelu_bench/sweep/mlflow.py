"""Log the runs of a study to MLflow while they run.

A study is an experiment and a run is a run, with its settings as parameters and the content of
metrics.csv and layers.csv as metrics. It is read from these, and changes nothing about a run.
Without MLFLOW_TRACKING_URI, a database beside the study's folder holds them: no server is needed.
Needs the extra ``mlflow``.
"""

import logging
import os
import sys
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from nsrelu_bench.config import RunConfig
from nsrelu_bench.errors import BenchError, UsageError, error_reason
from nsrelu_bench.sweep.execution import Event
from nsrelu_bench.sweep.new_values import NewValues

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell a third party

try:
    import alembic  # noqa: F401 -- of the database
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run
    from mlflow.exceptions import MlflowException
except ImportError:
    raise UsageError("--log mlflow: needs MLflow; pip install 'nsrelu-bench[mlflow]'") from None

#: The database in the folder of all results.
MLFLOW_DATABASE = "mlflow.db"

#: Tags of a run: its id, and its state once it has ended.
RUN_ID_TAG, STATE_TAG = "nsrelu.run_id", "nsrelu.state"

#: What MLflow calls a run that has ended.
MLFLOW_STATES = {"completed": "FINISHED", "diverged": "FINISHED", "failed": "FAILED"}

#: The most metrics that one request may have.
METRICS_PER_REQUEST = 1000


def follow(events: Generator[Event, None, None], study: Path) -> Generator[Event, None, None]:
    """Pass on the events of `sweep.run_all`, and log the measures of each epoch.

    A run that is resumed or repeated replaces what was logged of it; one that was done before is
    logged if it is not yet. Where logging fails, the study goes on without it.

    Raises:
        BenchError: MLflow can't be reached at the beginning.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _database(study)
    with closing(events):
        try:
            logger: _Logger | None = _Logger(uri, study)
        except Exception as error:
            raise BenchError(f"--log mlflow: {uri} can't be used: {error_reason(error)}") from error
        try:
            for event in events:
                try:
                    if logger:
                        logger.log(event)
                except MlflowException as error:
                    logger = None
                    print(
                        f"nsrelu-bench: --log mlflow: {uri} can't be written"
                        f" ({error_reason(error)}); going on without it. The same command logs the"
                        " rest.",
                        file=sys.stderr,
                    )
                yield event
        finally:
            if logger:
                logger.close()


def _database(study: Path) -> str:
    folder = study.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / MLFLOW_DATABASE}"


class _Logger:
    """The experiment of a study, and its runs that are being logged."""

    def __init__(self, uri: str, study: Path) -> None:
        self._client = MlflowClient(uri, registry_uri=uri)
        self._study = study
        found = self._client.get_experiment_by_name(study.name)
        self._experiment = (
            found.experiment_id if found else self._client.create_experiment(study.name)
        )
        self._open: dict[str, tuple[str, NewValues]] = {}  # by the run's id: MLflow's id

    def log(self, event: Event) -> None:
        """Log what is new of a run."""
        config, state = event.config, event.status.state
        folder = self._study / config.run_id
        if event.elsewhere or not folder.is_dir():
            return
        if config.run_id not in self._open:
            earlier = self._find(config) if event.kept else []
            if any(run.data.tags.get(STATE_TAG) == state for run in earlier):
                return
            self._open[config.run_id] = self._begin(config), NewValues(folder)
        run, values = self._open[config.run_id]
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, epoch) for name, value, epoch in values]
        for first in range(0, len(metrics), METRICS_PER_REQUEST):
            self._client.log_batch(run, metrics=metrics[first : first + METRICS_PER_REQUEST])
        if event.ended:
            self._client.set_tag(run, STATE_TAG, state)
            self._client.set_terminated(run, MLFLOW_STATES.get(state, "KILLED"))
            del self._open[config.run_id]

    def close(self) -> None:
        """End the runs that were broken off."""
        for run, _ in self._open.values():
            self._client.set_terminated(run, "KILLED")

    def _begin(self, config: RunConfig) -> str:
        """Begin to log a run, in place of what was logged of it before."""
        for old in self._find(config):
            self._client.delete_run(old.info.run_id)
        run = self._client.create_run(
            self._experiment, tags={RUN_ID_TAG: config.run_id}, run_name=config.run_id
        )
        settings = [Param(name, str(value)) for name, value in config.settings.items()]
        self._client.log_batch(run.info.run_id, params=settings)
        return str(run.info.run_id)

    def _find(self, config: RunConfig) -> list[Run]:
        condition = f"tags.`{RUN_ID_TAG}` = '{config.run_id}'"
        return list(self._client.search_runs([self._experiment], condition))
