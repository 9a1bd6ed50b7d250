"""Names stay text and seeds whole numbers, in every frame and file."""

import shutil
from pathlib import Path

import pytest
from helpers.fake_run import fake_run
from helpers.tiny_runs import tiny

from nsrelu_bench.records import RunWriter, load, load_runs, write_summary

#: Names that a reader of CSV files takes for a number, a date or a missing value.
ODD_NAMES = [
    "1",
    "007",
    "1e3",
    "nan",
    "NA",
    "None",
    "null",
    "True",
    "2024-01-01",
    "inf",
    "-0",
    "0x1F",
]
LARGE = 2**63 - 1


def write(study: Path, names: list[str] | None = None, run_id: str | None = None, seed: int = 0):
    """Write a done run whose layers have the given names."""
    config = tiny(epochs=2, seed=seed)
    with RunWriter(study / (run_id or config.run_id), config) as writer:
        for epoch in fake_run(config):
            for rows in (epoch.layers, epoch.quantiles):
                rows[:] = [rows[0] | {"layer": name} for name in names or ["a"] if rows]
            writer.append(epoch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_of_studies_and_runs_stay_text(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, run_id=name)
    write_summary(tmp_path / name)
    shutil.copytree(tmp_path / name, tmp_path / "only" / name)
    shutil.rmtree(tmp_path / "only" / name / name)  # leaves the summary
    frames = load(tmp_path / name)
    runs = [frames.runs, load_runs(tmp_path / name), load_runs(tmp_path / "only" / name)]
    for frame in (*runs, frames.metrics, frames.layers, frames.quantiles):
        assert set(frame["study"]) == set(frame["run_id"]) == {name}


def test_names_of_layers_stay_text(tmp_path: Path) -> None:
    write(tmp_path / "study", names=ODD_NAMES)
    frames = load(tmp_path)
    assert frames.layers["layer"].unique().tolist() == ODD_NAMES
    assert frames.quantiles["layer"].unique().tolist() == ODD_NAMES


def test_a_damaged_configuration_leaves_large_seeds_exact(tmp_path: Path) -> None:
    seeds = [LARGE, LARGE - 1, 2**53 + 1]
    for seed in seeds:
        write(tmp_path / "study", seed=seed)
    write(tmp_path / "study", seed=5)
    (tmp_path / "study" / tiny(epochs=2, seed=5).run_id / "config.yaml").write_text("act: [")
    for frame in (load(tmp_path).runs, load_runs(tmp_path), load_runs(tmp_path)):
        assert sorted(frame["seed"].dropna()) == sorted(seeds)
        assert sorted(frame.loc[frame["state"] == "completed", "seed"]) == sorted(seeds)
