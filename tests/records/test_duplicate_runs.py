"""One run in several folders."""

import shutil
from pathlib import Path

import pytest
from helpers.tiny_runs import make, stop_after, tiny

from nsrelu_bench.compare import compare
from nsrelu_bench.records import CONFIG_COLUMNS, load, load_runs

RUN = tiny().run_id


@pytest.fixture
def copies(tmp_path: Path, study: Path) -> tuple[Path, Path]:
    """Two studies of one name with the same run."""
    folders = tmp_path / "a" / "same", tmp_path / "b" / "same"
    for folder in folders:
        shutil.copytree(study / RUN, folder / RUN)
    return folders


def test_equal_results_count_once(copies: tuple[Path, Path]) -> None:
    make(copies[1], seed=1)
    for paths in (copies, copies[::-1]):
        runs, frames = load_runs(*paths), load(*paths)
        assert set(runs["study"]) == {"same"}
        assert sorted(runs["seed"]) == [0, 1]
        assert sorted(frames.runs["seed"]) == [0, 1]
        assert len(frames.metrics) == 2 * 3


@pytest.mark.covers
@pytest.mark.slow
def test_different_results_are_both_kept_and_named(copies: tuple[Path, Path]) -> None:
    row = load_runs(copies[0])
    row["test_accuracy"] = 0.5
    shutil.rmtree(copies[1] / RUN)
    row.to_csv(copies[1] / "summary.csv", index=False)
    found = []
    for paths in (copies, copies[::-1]):
        runs = load_runs(*paths).sort_values("study")
        assert runs["study"].tolist() == ["a/same", "b/same"]
        found.append(runs["test_accuracy"].tolist())
        comparison = compare(runs, CONFIG_COLUMNS, baseline="nsrelu(0.1)")
        assert {section.split(",")[0] for section in comparison.rows["section"]} == {
            "study a/same",
            "study b/same",
        }
    assert found[0] == found[1]
    assert found[0][1] == 0.5


def test_a_done_run_is_taken_before_an_unfinished_one(
    copies: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.rmtree(copies[0] / RUN)
    stop_after(0, tiny(), copies[0] / RUN)
    for paths in (copies, copies[::-1]):
        assert load_runs(*paths)["state"].tolist() == ["completed"]
        assert load(*paths).runs["state"].tolist() == ["completed"]
        assert len(load(*paths).metrics) == 3
