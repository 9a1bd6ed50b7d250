import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers.command_line import ask
from helpers.tiny_runs import make

from nsrelu_bench.config import read_settings

TINY_TRAINING = ["--dataset", "digits", "--width", "8", "--depth", "2", "--epochs", "2"]
TINY_TRAINING += ["--probe-size", "200"]
SMALL_STUDY = """
name: small
dataset: digits
width: 8
depth: 1
epochs: 1
grid: {act: [relu, nsrelu(0.1)]}
seeds: 2
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a study in a folder of its own, which is the current one."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_STUDY)
    return path


def settings(folder: Path, name: str) -> set[object]:
    """Return the values that a setting has in the runs below a folder."""
    return {read_settings(path)[name] for path in folder.glob("results/*/*/config.yaml")}


@pytest.mark.slow
def test_the_default_run_learns_to_read_digits(tmp_path: Path) -> None:
    answer = ask("train", "--act", "nsrelu", "--leak", "0.1", cwd=tmp_path)
    (folder,) = tmp_path.glob("results/runs/*/")
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["test_accuracy"].iloc[-1] > 0.9
    assert len(metrics) == 11
    assert str(folder.relative_to(tmp_path)) in answer.out.splitlines()
    assert "nsrelu(0.1) on mnist5k, mlp" in answer.out
    assert "epoch 10/10" in answer.err


def test_a_run_that_is_done_is_kept_and_printed_as_json(tmp_path: Path) -> None:
    make(tmp_path / "results" / "runs", act="relu")
    arguments = ["train", "--act", "relu", *TINY_TRAINING]
    assert "completed (done before)" in ask(*arguments, cwd=tmp_path).out
    answer = ask(*arguments, "--json", "--quiet", cwd=tmp_path)
    (row,) = json.loads(answer.out)
    assert (row["act"], row["state"], row["seed"]) == ("relu", "completed", 0)
    assert answer.err == ""


def test_fresh_repeats_a_run_that_is_done(tmp_path: Path) -> None:
    make(tmp_path / "results" / "runs", act="relu")
    answer = ask("train", "--act", "relu", *TINY_TRAINING, "--fresh", cwd=tmp_path)
    assert answer.code == 0
    assert "done before" not in answer.out


def test_seeds_give_a_run_each_and_event_files(tmp_path: Path) -> None:
    ask("train", *TINY_TRAINING, "--seeds", "2", "--seed", "5", "--tensorboard", cwd=tmp_path)
    assert settings(tmp_path, "seed") == {5, 6}
    assert len(list(tmp_path.glob("results/runs/*/events.out.tfevents.*"))) == 2


def test_a_broken_torchvision_is_one_line_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('no nms here')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    answer = ask("train", "--dataset", "mnist", cwd=tmp_path)
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert "torchvision, which does not load (no nms here)" in answer.err


def test_a_runs_config_repeats_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "first", act="nsrelu(0.1)")
    config = ["--config", str(folder / "config.yaml")]
    ask("train", *config, cwd=tmp_path)
    again = tmp_path / "results" / "runs" / folder.name
    assert (again / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "variables", "flags", "expected"),
    [
        ({"lr": 0.2}, {}, [], {"lr": 0.2}),
        ({"lr": 0.2}, {"NSRELU_LR": "0.3"}, [], {"lr": 0.3}),
        ({"lr": 0.2}, {"NSRELU_LR": "0.3"}, ["--lr", "0.4"], {"lr": 0.4}),
        ({"act": "nsrelu(0.1)"}, {}, ["--leak", "0.3"], {"act": "nsrelu(0.3)"}),
        ({}, {"NSRELU_LEAK": "0.2"}, ["--act", "nsrelu(0.3)"], {"act": "nsrelu(0.3)"}),
        ({}, {"NSRELU_ACT": "nsrelu(0.3)"}, ["--leak", "0.4"], {"act": "nsrelu(0.4)"}),
        ({}, {"NSRELU_BATCH_NORM": "yes"}, [], {"batch_norm": True}),
        ({"batch_norm": True}, {}, ["--no-batch-norm"], {"batch_norm": False}),
    ],
)
def test_a_flag_wins_over_a_variable_and_that_over_a_file(
    file: dict[str, object],
    variables: dict[str, str],
    flags: list[str],
    expected: dict[str, object],
    tmp_path: Path,
) -> None:
    tiny = {"dataset": "digits", "width": 8, "depth": 2, "epochs": 2, "probe_size": 200}
    make(tmp_path / "results" / "runs", **expected)
    (tmp_path / "run.yaml").write_text(json.dumps(tiny | file))
    answer = ask("train", "--config", "run.yaml", *flags, cwd=tmp_path, **variables)
    assert "completed (done before)" in answer.out


def test_a_failed_run_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    answer = ask("train", *TINY_TRAINING, "--train-size", "9999", cwd=tmp_path)
    assert answer.code == 1
    assert answer.err == ("nsrelu-bench: train_size: digits has 1257 training examples, got 9999\n")


def test_results_that_can_not_be_written_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = ask("train", *TINY_TRAINING, "--results", "file", cwd=tmp_path)
    assert answer.code == 1
    assert answer.err == "nsrelu-bench: file/runs: can't be written (Not a directory)\n"


def test_another_implementation_of_a_gate_is_refused(tmp_path: Path) -> None:
    gated = ["train", "--act", "nsrelu", "--gate", "rescue", *TINY_TRAINING]
    answer = ask(*gated, "--impl", "detach", cwd=tmp_path)
    assert (answer.code, answer.err) == (
        *(2, "nsrelu-bench: --impl: rescue(0.1) has a gate, which needs native, got detach\n"),
    )
    assert not (tmp_path / "results").exists()
    file = tmp_path / "config.yaml"
    file.write_text("{act: rescue(0.1), impl: detach, dataset: digits, epochs: 1, width: 4}")
    assert ask("train", "--config", str(file), "--impl", "native", cwd=tmp_path).code == 0
    assert ask("train", "--config", str(file), cwd=tmp_path).out.count("done before") == 1


# Studies.


def test_a_study_is_swept_and_resumed(study: Path) -> None:
    first = ask("sweep", "small.yaml")
    assert "4 runs in results/small: 4 completed" in first.out
    assert first.err.count("completed") == 4
    again = ask("sweep", "small.yaml", "--seeds", "3")
    assert "6 runs in results/small: 6 completed (4 done before)" in again.out
    assert len(pd.read_csv("results/small/summary.csv")) == 6


def test_failed_runs_of_a_study_are_exit_code_3(study: Path) -> None:
    answer = ask("sweep", "small.yaml", "--set", "train_size=2000", "--seeds", "1")
    assert answer.code == 3
    assert "2 runs in results/small: 2 failed" in answer.out
    assert answer.err.count("failed: train_size: digits has 1257") == 2


def test_new_runs_that_retry_leaves_out_are_counted(study: Path) -> None:
    retry = ["sweep", "small.yaml", "--retry", "failed", "--seeds"]
    ask("sweep", "small.yaml", "--set", "act=relu", "--seeds", "1")
    assert ask(*retry, "1").out.splitlines()[0] == (
        "1 run in results/small: 1 completed (1 done before);"
        " 1 new run, not started because of --retry"
    )
    listed = ask(*retry, "2", "--dry-run").out
    assert [line.split()[:2] for line in listed.splitlines()] == [
        *(["keep", "completed"], ["skip", "new"], ["skip", "new"], ["skip", "new"], ["4", "runs,"])
    ]


@pytest.mark.parametrize("state", ["failed", "completed"])
def test_retry_without_runs_says_so(study: Path, state: str) -> None:
    retry = ["sweep", "small.yaml", "--retry", state]
    line = "0 runs in results/small; {}, not started because of --retry\n"
    answer = ask(*retry)
    assert (answer.code, answer.out, answer.err) == (0, line.format("4 new runs"), "")
    one = ask(*retry, "--set", "act=relu", "--seeds", "1")
    assert (one.code, one.out) == (0, line.format("1 new run"))
    (row,) = json.loads(ask(*retry, "--set", "act=relu", "--seeds", "1", "--json").out)
    assert list(row) == ["run_id"]
    assert ask("compare", "results/small").err == (
        "nsrelu-bench: 'results/small' has a study.yaml but no run folders; run its sweep to"
        " create them\n"
    )


def test_runs_that_all_lack_a_folder_are_counted(study: Path) -> None:
    for row in json.loads(ask("sweep", "small.yaml", "--dry-run", "--json").out):
        Path("results/small").mkdir(parents=True, exist_ok=True)
        Path("results/small", row["run_id"]).touch()  # a file where its folder would be
    answer = ask("sweep", "small.yaml")
    assert (answer.code, answer.out) == (3, "4 runs in results/small: 4 failed\n")


@pytest.mark.parametrize("acts", [["relu"], ["relu", "nsrelu(0.1)"]], ids=["one", "two"])
def test_failed_runs_that_are_not_retried_are_exit_code_3(study: Path, acts: list[str]) -> None:
    study.write_text(SMALL_STUDY.replace("[relu, nsrelu(0.1)]", json.dumps(acts)))
    broken = ["sweep", "small.yaml", "--set", "train_size=2000", "--seeds", "1"]
    ask(*broken)
    answer = ask(*broken, "--retry", "interrupted", "--traceback")
    assert answer.code == 3
    assert "not retried)" in answer.out
    assert "None" not in answer.err


def test_a_run_without_a_folder_is_counted_with_the_others(study: Path) -> None:
    ask("sweep", "small.yaml", "--seeds", "1")
    gone = min(Path("results/small").glob("*/"))
    shutil.rmtree(gone)
    gone.touch()  # a file where its folder would be
    answer = ask("sweep", "small.yaml", "--seeds", "1")
    assert answer.code == 3
    assert "2 runs in results/small: 1 completed, 1 failed (1 done before)" in answer.out


def test_set_changes_a_study_and_other_runs_are_reported(study: Path) -> None:
    ask("sweep", "small.yaml", "--seeds", "1")
    answer = ask("sweep", "small.yaml", "--set", "lr=1e-3", "--seeds", "1")
    assert settings(study.parent, "lr") == {0.02, 0.001}
    assert "2 other runs in results/small, which this study does not ask for" in answer.err
    assert answer.err.splitlines()[-3] == "next: nsrelu-bench compare results/small"


def test_a_dry_run_lists_the_runs_and_runs_nothing(study: Path) -> None:
    lines = ask("sweep", "small.yaml", "--dry-run").out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [["run", "new"]] * 4
    assert not Path("results").exists()


def test_shards_share_the_runs_of_a_study(study: Path) -> None:
    shards = [
        ask("sweep", "small.yaml", "--shard", f"{k}/3", "--dry-run", "--json").out
        for k in (1, 2, 3)
    ]
    runs = [[row["run_id"] for row in json.loads(shard)] for shard in shards]
    assert [len(ids) for ids in runs] == [2, 1, 1]
    assert len({*runs[0], *runs[1], *runs[2]}) == 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--shard 0/3", "--shard: must be K/N with K from 1 to N, got '0/3'"),
        ("--shard 4/3", "--shard: must be K/N with K from 1 to N, got '4/3'"),
        ("--engine rey", "unknown engine 'rey'; did you mean 'ray'? choose from: local, ray"),
        ("--collect", "--collect: goes with --engine ray"),
        (
            "--fresh-since soon",
            "--fresh-since: must be a time such as 2026-12-31T23:59+00:00, got 'soon'",
        ),
        (
            "--fresh --fresh-since 2026-12-31",
            "--fresh-since: repeats less than --fresh; give one of them",
        ),
        ("--address here", "--address: goes with --engine ray"),
        ("--checkpoint-after -1", "--checkpoint-after: must be from 0 to 1000000000, got -1.0"),
        (
            "--engine ray --gpus-per-run 0",
            "--gpus-per-run: must be above 0 and at most 1, got 0",
        ),
    ],
)
def test_a_wrong_option_of_sweep_is_one_line(study: Path, arguments: str, line: str) -> None:
    answer = ask("sweep", "small.yaml", *arguments.split())
    assert (answer.code, answer.err) == (2, f"nsrelu-bench: {line}\n")


def test_mistakes_in_a_study_are_a_line_each(study: Path) -> None:
    study.write_text(SMALL_STUDY.replace("relu,", "gelo,") + "epocs: 3\n")
    answer = ask("sweep", "small.yaml")
    assert answer.code == 2
    assert re.fullmatch(r"(nsrelu-bench: small.yaml: .*\n){2}", answer.err)
