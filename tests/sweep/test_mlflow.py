"""MLflow gets what the CSV files hold, each run once; it changes nothing about a run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.tiny_runs import stop_after, tiny

from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.sweep.execution import RunPolicy
from nsrelu_bench.sweep.scheduler import run_all

# MLflow's own, of the packages that it uses.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LOGGED_RUN = tiny(act="nsrelu(0.1)")


def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['mlflow'] = None\n"
        "sys.argv = ['nsrelu-bench', 'train', '--log', 'mlflow']\n"
        "from nsrelu_bench.cli import main; main()"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert answer.returncode == 2
    assert answer.stderr == (
        "nsrelu-bench: --log mlflow: needs MLflow; pip install 'nsrelu-bench[mlflow]'\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's folder, beside which the database will be."""
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    pytest.importorskip("alembic", reason="needs the extra mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results" / "tiny"


def follow(study: Path, *runs: RunConfig, fresh: bool = False, stop: int | None = None) -> None:
    """Run and log; stop after so many events."""
    from nsrelu_bench.sweep import mlflow

    policy = RunPolicy(fresh=fresh, checkpoint_after=0)
    events = mlflow.follow(run_all(runs, study, workers=0, policy=policy), study)
    for number, _ in enumerate(events, 1):
        if number == stop:
            break
    events.close()


def logged(study: Path) -> list[tuple[Any, dict[str, dict[int, float]]]]:
    """Return what the database has: each run, and the values of its metrics by epoch."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{study.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(study.name)
    assert experiment is not None
    found = []
    for run in client.search_runs([experiment.experiment_id]):
        history = {
            name: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        assert all(len(points) == len(dict(points)) for points in history.values())
        found.append((run, {name: dict(points) for name, points in history.items()}))
    return found


@pytest.mark.slow
def test_a_run_is_logged_once_with_its_settings_and_measures(study: Path) -> None:
    for fresh in (False, False, True):
        follow(study, LOGGED_RUN, fresh=fresh)
        ((run, metrics),) = logged(study)
        assert run.info.run_name == LOGGED_RUN.run_id
        assert run.info.status == "FINISHED"
        assert run.data.params["act"] == "nsrelu(0.1)"
        assert set(run.data.params) == set(LOGGED_RUN.settings)
        folder = study / LOGGED_RUN.run_id
        table = pd.read_csv(folder / "metrics.csv", index_col="epoch")
        for name in ("test_accuracy", "dead_units", "died_units"):
            assert metrics[name] == table[name].dropna().to_dict()
        layers = pd.read_csv(folder / "layers.csv").query("layer == 'act2'").set_index("epoch")
        assert metrics["zero_fraction/act2"] == layers["zero_fraction"].to_dict()
    assert {path.name for path in study.parent.parent.iterdir()} == {"results"}


@pytest.mark.slow
def test_an_interrupted_run_and_its_rest_are_one_run(study: Path) -> None:
    config = tiny(epochs=4)
    follow(study, config, stop=3)
    ((run, metrics),) = logged(study)
    assert run.info.status == "KILLED"
    assert set(metrics["test_accuracy"]) == {0, 1}
    follow(study, config)
    ((run, metrics),) = logged(study)
    assert run.info.status == "FINISHED"
    assert set(metrics["test_accuracy"]) == {0, 1, 2, 3, 4}


@pytest.mark.slow
def test_a_run_that_was_resumed_without_a_log_is_logged_whole(study: Path) -> None:
    config = tiny(epochs=3)
    stop_after(1, config, study / config.run_id)
    follow(study, config)
    ((_, metrics),) = logged(study)
    assert set(metrics["test_accuracy"]) == {0, 1, 2, 3}


@pytest.mark.slow
def test_diverged_and_failed_runs_say_so(study: Path) -> None:
    follow(study, tiny(act="nsrelu(1)", lr=1e4, epochs=3), tiny(train_size=9999))
    states = {run.data.tags["nsrelu.state"]: run.info.status for run, _ in logged(study)}
    assert states == {"diverged": "FINISHED", "failed": "FAILED"}


def test_a_store_that_cannot_be_used_is_one_line(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://nowhere")
    from nsrelu_bench.errors import BenchError

    with pytest.raises(BenchError, match=r"^--log mlflow: ftp://nowhere can't be used: "):
        follow(study, LOGGED_RUN)
    assert not (study / LOGGED_RUN.run_id).exists()
