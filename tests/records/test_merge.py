import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.command_line import ask
from helpers.tiny_runs import make, stop_after, tiny

from nsrelu_bench.errors import BenchError
from nsrelu_bench.records import find_runs, load, load_runs, merge_studies, read_status
from nsrelu_bench.records import merge as merging

RUN = tiny().run_id


@pytest.fixture
def shards(tmp_path: Path, study: Path) -> list[Path]:
    """Two shards of a study that have one of three runs in common."""
    folders = [tmp_path / "one" / "leaks", tmp_path / "two" / "leaks"]
    runs = sorted(path for path in study.iterdir() if path.is_dir())
    for folder, chosen in zip(folders, (runs[:2], runs[1:]), strict=True):
        for run in chosen:
            shutil.copytree(run, folder / run.name)
        (folder / "study.yaml").write_text("name: leaks\n")
    return folders


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def test_shards_become_one_study(shards: list[Path], study: Path, tmp_path: Path) -> None:
    target = tmp_path / "results" / "leaks"
    merged = merge_studies(shards, target)
    runs = sorted(path.name for path in study.iterdir() if path.is_dir())
    assert (merged.copied, merged.kept, merged.running) == (runs, [], [])
    for run in runs:
        assert contents(target / run) == contents(study / run)
        assert read_status(target / run).done
    assert (target / "study.yaml").read_text() == "name: leaks\n"
    assert sorted(load_runs(target)["run_id"]) == runs
    merged = merge_studies(shards, target)
    assert (merged.copied, merged.kept) == ([], runs)


def test_a_study_can_be_merged_into_itself(shards: list[Path]) -> None:
    before = contents(find_runs(shards[0])[0])
    merged = merge_studies(shards, shards[0])
    assert (len(merged.copied), len(merged.kept)) == (1, 2)
    assert before == contents(shards[0] / merged.kept[0])


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1])
def test_the_run_that_got_furthest_is_taken(shards: list[Path], tmp_path: Path, order: int) -> None:
    config = tiny(seed=7, epochs=3)
    for epoch, folder in enumerate(shards):
        stop_after(epoch, config, folder / config.run_id)
    # The one that got furthest was killed: its status does not say how far.
    (shards[-1] / config.run_id / "status.json").write_text('{"state": "running"}')
    target = tmp_path / "all"
    merge_studies(shards[::order], target)
    status = read_status(target / config.run_id)
    assert (status.state, status.epoch) == ("interrupted", None)
    assert (target / config.run_id / "metrics.csv").read_text().count("\n") == 4
    assert (target / config.run_id / "checkpoint.pt").exists()
    make(shards[0], seed=7, epochs=3)
    merge_studies(shards[::order], target)
    assert read_status(target / config.run_id).done
    assert not (target / config.run_id / "checkpoint.pt").exists()


def test_different_results_are_refused_before_anything_is_copied(
    shards: list[Path], tmp_path: Path
) -> None:
    make(tmp_path / "other", lr=0.03)
    shutil.rmtree(shards[1] / RUN, ignore_errors=True)
    shutil.copytree(tmp_path / "other" / tiny(lr=0.03).run_id, shards[1] / RUN)
    make(shards[0])
    with pytest.raises(BenchError, match="are results of one run, and differ; leave one of them"):
        merge_studies(shards, tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_running_run_is_left_out(shards: list[Path], tmp_path: Path) -> None:
    folder = shards[0] / "run"
    shutil.copytree(
        shards[1] / sorted(p.name for p in shards[1].iterdir() if p.is_dir())[0], folder
    )
    (folder / "status.json").write_text('{"state": "running"}')
    with FileLock(folder / ".lock"):
        merged = merge_studies(shards, tmp_path / "all")
    assert merged.running == ["run"]
    assert not (tmp_path / "all" / "run").exists()


def test_an_interrupted_merge_can_be_repeated(
    shards: list[Path], study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "all"
    copies = 0
    replace = merging.replace_file

    def stop(path: Path, content: bytes) -> None:
        nonlocal copies
        copies += 1
        if copies == 10:
            raise KeyboardInterrupt
        replace(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(merging, "replace_file", stop)
        with pytest.raises(KeyboardInterrupt):
            merge_studies(shards, target)
    assert {path.name for path in target.iterdir()}
    merge_studies(shards, target)
    assert len(load(target).runs) == 3
    assert set(load(target).runs["state"]) == {"completed", "diverged"}


def test_the_command_names_the_folder_as_its_sources(shards: list[Path], tmp_path: Path) -> None:
    results = str(tmp_path / "results")
    answer = ask("merge", *map(str, shards), "--results", results)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"3 runs in {results}/leaks: 3 copied, 0 kept\n"
    shards[1].rename(shards[1].with_name("other"))
    answer = ask("merge", str(shards[0]), str(shards[1].with_name("other")))
    assert answer.code == 2
    assert answer.err == "nsrelu-bench: --out: needed where the folders have different names\n"
    answer = ask("merge", str(tmp_path / "none"))
    assert (answer.code, answer.err.count("\n")) == (1, 1)
