"""What the tests share: one torch thread, and a run that takes a fraction of a second."""

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Two threads beside another busy process can be far slower than one. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell ignores it for what it starts in the background, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSRELU_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_cover_of_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start processes without coverage too, in a test that is not traced."""
    # Its own MonkeyPatch: the one of a test must not be there before the test's other fixtures.
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.node.get_closest_marker("no_cover"):
            monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture(scope="session")
def trained_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers.tiny_runs import DIVERGING, make  # here, as it loads torch

    folder = tmp_path_factory.mktemp("trained") / "study"
    make(folder, act="relu")
    make(folder, act="nsrelu(0.1)")
    make(folder, **DIVERGING)
    return folder


@pytest.fixture(scope="module")
def study(trained_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with two completed runs and a diverged one."""
    return shutil.copytree(trained_study, tmp_path_factory.mktemp("results") / "study")


@pytest.fixture
def results(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a study with two completed runs and a diverged one, as results/study below cwd."""
    shutil.copytree(study, tmp_path / "results" / "study")
    (tmp_path / "results" / "study" / "summary.csv").unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("results/study")


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw two figures in a report, not twelve: for tests of all but the figures."""
    monkeypatch.setattr("nsrelu_bench.plot.report.ORDER", ("curves", "pairs"))


# Nothing that is imported becomes garbage: not searching it saves a tenth of the time.
gc.disable()


# In a worker of xdist coverage starts three times: by itself, as in every process of the tests, and
# pytest-cov 7 starts it as in the main process, too. Where that pauses, the others would go on.


def pytest_xdist_setupnodes() -> None:
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # each worker sets it again, for its processes


def pytest_configure(config: pytest.Config) -> None:
    cov = config.pluginmanager.getplugin("_cov")
    if cov and cov.cov_controller and hasattr(config, "workerinput"):
        cov.cov_controller.cov.stop()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "reliability" in item.path.parts:
            item.add_marker(pytest.mark.reliability)
        # Tracing takes a third of the time, and most slow tests run no line that no other runs.
        if item.get_closest_marker("slow") and not item.get_closest_marker("covers"):
            item.add_marker(pytest.mark.no_cover)
    # What one process has to do alone goes first, so that at the end none waits for it.
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
