import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers.command_line import CLI, nsrelu

import nsrelu_bench
from nsrelu_bench.cli import app as cli
from nsrelu_bench.cli.options import flag_of
from nsrelu_bench.config import SETTINGS
from nsrelu_bench.config import activation_spec as labels
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.errors import unknown
from nsrelu_bench.records.status import read_status

ACTIVATIONS = labels.ACTIVATION_NAMES
TINY = ["--dataset", "digits", "--width", "8", "--depth", "2", "--epochs", "2"]


def run_folders(cwd: Path, study: str = "runs") -> list[Path]:
    return sorted(path.parent for path in (cwd / "results" / study).glob("*/config.yaml"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which relu and nsrelu(0.1) were trained with two seeds each."""
    folder = tmp_path_factory.mktemp("trained")
    for act in ("relu", "nsrelu"):
        nsrelu("train", "--act", act, *TINY, "--seeds", "2", cwd=folder)
    return folder


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['nsrelu-bench', '--help']\n"
        "from nsrelu_bench.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'torchvision', 'pandas', 'matplotlib', 'numpy', 'scipy', 'ruamel'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_setting_has_an_option_that_states_its_default() -> None:
    text = " ".join(nsrelu("train", "--help", cwd=Path()).stdout.split())
    for name, setting in SETTINGS.items():
        entry = re.split(rf" {flag_of(name)}(?: / --no\S+)? ", text)[1].partition(" --")[0]
        assert setting.help in entry
        assert f"[default: {setting.default}]" in entry or not setting.default


def test_the_defaults_that_help_states_are_those_of_a_run() -> None:
    for name, value in RunConfig().settings.items():
        said = SETTINGS[name].default
        if isinstance(value, bool):
            assert said == ("yes" if value else "no")
        elif value is None:
            assert said == "all"
        else:
            shown = f"{value:g}" if isinstance(value, float) else str(value).partition("(")[0]
            assert said.split()[0] == shown


def test_the_default_run_learns_to_read_digits(tmp_path: Path) -> None:
    answer = nsrelu("train", "--act", "nsrelu", "--leak", "0.1", cwd=tmp_path)
    (folder,) = run_folders(tmp_path)
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["test_accuracy"].iloc[-1] > 0.9
    assert len(metrics) == 11
    assert answer.stdout.splitlines()[-1] == str(folder.relative_to(tmp_path))
    assert "nsrelu(0.1) on mnist5k, mlp" in answer.stdout
    assert "epoch 10/10" in answer.stderr


def test_train_prints_json_for_programs(trained: Path) -> None:
    answer = nsrelu("train", "--act", "relu", *TINY, "--json", "--quiet", cwd=trained)
    (row,) = json.loads(answer.stdout)
    assert (row["act"], row["state"], row["seed"]) == ("relu", "completed", 0)
    assert answer.stderr == ""


def test_a_run_that_is_done_is_not_made_again_unless_asked(trained: Path) -> None:
    again = nsrelu("train", "--act", "relu", *TINY, cwd=trained)
    assert "completed (done before)" in again.stdout
    fresh = nsrelu("train", "--act", "relu", *TINY, "--fresh", cwd=trained)
    assert "done before" not in fresh.stdout


def test_a_broken_torchvision_does_not_matter_where_none_is_needed(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('no nms here')")
    broken = {"PYTHONPATH": str(tmp_path)}
    nsrelu("train", "--epochs", "1", cwd=tmp_path, **broken)
    told = nsrelu("train", "--dataset", "mnist", cwd=tmp_path, code=1, **broken).stderr
    assert told.count("\n") == 1
    assert "torchvision, which does not load here (no nms here)" in told


def test_seeds_make_a_run_each(trained: Path, tmp_path: Path) -> None:
    assert len(run_folders(trained)) == 4
    nsrelu("train", *TINY, "--seeds", "2", "--seed", "5", cwd=tmp_path)
    assert {re.search(r"-s(\d+)-", path.name)[1] for path in run_folders(tmp_path)} == {"5", "6"}  # type: ignore[index]


def test_a_runs_config_repeats_it_and_flags_override_it(trained: Path, tmp_path: Path) -> None:
    folder = run_folders(trained)[0]
    config = str(folder / "config.yaml")
    nsrelu("train", "--config", config, cwd=tmp_path)
    (again,) = run_folders(tmp_path)
    assert again.name == folder.name
    assert (again / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()
    nsrelu("train", "--config", config, "--leak", "0.3", "--epochs", "1", cwd=tmp_path)
    assert any("nsrelu-0.3" in path.name for path in run_folders(tmp_path))


def test_a_flag_is_stronger_than_the_environment_and_that_than_the_file(
    trained: Path, tmp_path: Path
) -> None:
    config = str(run_folders(trained)[0] / "config.yaml")
    nsrelu("train", "--config", config, cwd=tmp_path, NSRELU_LR="0.3")
    nsrelu("train", "--config", config, "--lr", "0.4", cwd=tmp_path, NSRELU_LR="0.3")
    rates = {yaml_value(path / "config.yaml", "lr") for path in run_folders(tmp_path)}
    assert rates == {"0.3", "0.4"}


def test_a_flags_activation_is_stronger_than_a_variables_leak(tmp_path: Path) -> None:
    nsrelu("train", *TINY, "--act", "nsrelu(0.3)", cwd=tmp_path, NSRELU_LEAK="0.2")
    nsrelu("train", *TINY, "--leak", "0.4", cwd=tmp_path, NSRELU_ACT="nsrelu(0.3)")
    acts = {yaml_value(path / "config.yaml", "act") for path in run_folders(tmp_path)}
    assert acts == {"nsrelu(0.3)", "nsrelu(0.4)"}


def yaml_value(path: Path, key: str) -> str:
    return next(
        line.partition(": ")[2]
        for line in path.read_text().splitlines()
        if line.startswith(f"{key}: ")
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--act gelo", f"--act: {unknown('gelo', ACTIVATIONS, 'activation')}"),
        ("--leak -1", "--leak: must be from 0 to 1, got -1"),
        ("--leak nan", "--leak: must be from 0 to 1, got nan"),
        ("--epochs 0", "--epochs: must be greater than or equal to 1, got 0"),
        ("--batch-size 0", "--batch-size: must be greater than or equal to 1, got 0"),
        ("--impl fast", "--impl: must be 'native', 'detach', 'function' or 'mismatch', got 'fast'"),
        ("--seeds 0", "--seeds: must be from 1 to 100000, got 0"),
        ("--workers 10000", "--workers: must be from 1 to 1024, got 10000"),
        ("--config none.yaml", "none.yaml: No such file or directory"),
        ("--impl fast --traceback", "--impl: must be 'native', 'detach', 'function' or 'mismatch'"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    arguments: str, line: str, tmp_path: Path
) -> None:
    if arguments.endswith("--traceback"):
        command = [*CLI, "train", *arguments.split()]
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert answer.returncode == 2
        assert answer.stderr.startswith("Traceback")
        assert answer.stderr.splitlines()[-1].startswith(f"nsrelu-bench: {line}")
        return
    answer = nsrelu("train", *arguments.split(), cwd=tmp_path, code=2)
    assert answer.stderr == f"nsrelu-bench: {line}\n"
    assert answer.stdout == ""
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("train --epochs many", "--epochs: must be a whole number, got 'many'"),
        ("train --epochs 1_0", "--epochs: must be a whole number, got '1_0'"),
        ("train --lr \u0661", "--lr: must be a number, got '\u0661'"),
        ("trian", "No such command 'trian'. Did you mean 'train'?"),
        ("train --epoch 3", "No such option: --epoch (Possible options: --depth, --epochs)"),
        ("sweep", "Missing argument 'config'."),
        (
            "list x",
            "unknown kind 'x'; choose from: activations, gates, models, datasets, metrics, figures",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    arguments: str, line: str, tmp_path: Path
) -> None:
    answer = nsrelu(*arguments.split(), cwd=tmp_path, code=2)
    assert answer.stderr == f"nsrelu-bench: {line}\n"


def test_a_results_folder_that_can_not_be_written_is_one_line_and_exit_code_1(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    answer = nsrelu("train", *TINY, "--results", "file", cwd=tmp_path, code=1)
    assert answer.stderr == "nsrelu-bench: file/runs: can't be written (Not a directory)\n"


def test_a_run_that_fails_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    answer = nsrelu("train", *TINY, "--train-size", "9999", cwd=tmp_path, code=1)
    assert answer.stderr.count("\n") == 1
    assert "train_size: digits has 1257 training examples, got 9999" in answer.stderr


def test_the_traceback_is_shown_when_asked_for(tmp_path: Path) -> None:
    arguments = [*CLI, "train", *TINY, "--train-size", "9999", "--traceback"]
    answer = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr
    assert "in load_dataset" in answer.stderr


STUDY = """
name: small
dataset: digits
width: 8
depth: 2
epochs: 2
grid:
  act: [relu, nsrelu(0.1)]
seeds: 2
"""


def test_a_study_is_swept_resumed_compared_and_plotted(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(STUDY)
    first = nsrelu("sweep", "small.yaml", cwd=tmp_path)
    assert "4 runs in results/small: 4 completed" in first.stdout
    assert first.stderr.count("completed") == 4
    again = nsrelu("sweep", "small.yaml", "--seeds", "3", cwd=tmp_path)
    assert "6 runs in results/small: 6 completed (4 done before)" in again.stdout
    assert len(pd.read_csv(tmp_path / "results" / "small" / "summary.csv")) == 6
    table = nsrelu("compare", cwd=tmp_path).stdout
    assert "nsrelu(0.1)" in table
    figures = nsrelu("plot", "results/small", cwd=tmp_path).stdout.split()
    assert {"png", "svg"} == {path.rpartition(".")[2] for path in figures}
    assert all((tmp_path / path).stat().st_size > 1000 for path in figures)


def test_some_failed_runs_of_a_study_are_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(STUDY.replace("seeds: 2", "seeds: 1\ntrain_size: 2000"))
    answer = nsrelu("sweep", "bad.yaml", cwd=tmp_path, code=3)
    assert "2 runs in results/small: 2 failed" in answer.stdout
    assert answer.stderr.count("failed: train_size: digits has 1257") == 2


def test_a_study_is_changed_by_set(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(STUDY)
    nsrelu("sweep", "small.yaml", "--set", "act=relu", "--set", "lr=1e-3", cwd=tmp_path)
    folders = run_folders(tmp_path, "small")
    assert len(folders) == 2
    assert {yaml_value(folder / "config.yaml", "lr") for folder in folders} == {"0.001"}


def test_a_run_that_left_nothing_is_told_with_the_others(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(STUDY)
    nsrelu("sweep", "small.yaml", "--seeds", "1", cwd=tmp_path)
    gone = run_folders(tmp_path, "small")[0]
    shutil.rmtree(gone)
    gone.touch()  # a file where its folder would be
    answer = nsrelu("sweep", "small.yaml", "--seeds", "1", cwd=tmp_path, code=3)
    assert "2 runs in results/small: 1 completed, 1 failed (1 done before)" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--width 2.5", "--width: must be a whole number, got '2.5'"),
        ("--width 0", "--width: must be from 1 to 100000, got 0"),
        ("--depth 1", "--depth: must be from 2 to 100000, got 1"),
        ("--trials 0", "--trials: must be from 1 to 1000000000, got 0"),
        ("--seed -1", "--seed: must be from 0 to 9223372036854775807, got -1"),
    ],
)
def test_born_dead_tells_what_is_wrong(arguments: str, line: str) -> None:
    answer = nsrelu("born-dead", *arguments.split(), cwd=Path(), code=2)
    assert answer.stderr == f"nsrelu-bench: {line}\n"


def test_born_dead_prints_a_table_or_json() -> None:
    arguments = ("born-dead", "--width", "1", "--depth", "2,3", "--trials", "100")
    assert nsrelu(*arguments, cwd=Path()).stdout.split()[:3] == ["width", "depth", "trials"]
    first, second = json.loads(nsrelu(*arguments, "--json", cwd=Path()).stdout)
    assert (first["depth"], first["probability"]) == (2, 0)
    assert 0.3 < second["probability"] < 0.7


def test_mistakes_in_a_study_are_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(STUDY.replace("relu,", "gelo,") + "epocs: 3\n")
    answer = nsrelu("sweep", "bad.yaml", cwd=tmp_path, code=2)
    lines = answer.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("nsrelu-bench: bad.yaml: ") for line in lines)


def test_compare_shows_accuracy_zeros_dead_units_and_gradients_by_activation(
    trained: Path,
) -> None:
    answer = nsrelu("compare", cwd=trained).stdout
    for word in ("accuracy", "zeros", "dead", "grad norm", "relu", "nsrelu(0.1)"):
        assert word in answer
    rows = json.loads(nsrelu("compare", "--json", cwd=trained).stdout)
    assert rows


def test_a_comparison_can_go_into_a_file(trained: Path) -> None:
    shown = nsrelu("compare", "--format", "csv", cwd=trained).stdout
    answer = nsrelu("compare", "--format", "csv", "--out", "new/table.csv", cwd=trained)
    assert answer.stdout == "new/table.csv\n"
    assert (trained / "new" / "table.csv").read_text() == shown


def test_a_figure_that_has_no_data_is_told_and_not_an_error(trained: Path) -> None:
    answer = nsrelu("plot", "--kind", "leak", cwd=trained)
    assert answer.stdout == ""
    assert answer.stderr == "no figure leak: no activation has several leaks\n"


def test_a_report_lies_beside_the_runs_that_it_is_of(trained: Path) -> None:
    answer = nsrelu("report", "results/runs", cwd=trained)
    assert answer.stdout == "results/runs/report.html\n"
    page = (trained / "results" / "runs" / "report.html").read_text()
    assert "nsrelu-bench report results/runs" in page
    assert "nsrelu-bench train --act nsrelu --dataset digits" in page


def test_event_files_are_written_when_asked_for(tmp_path: Path) -> None:
    nsrelu("train", *TINY, "--tensorboard", cwd=tmp_path)
    (folder,) = run_folders(tmp_path)
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1


def test_where_there_are_no_results_it_says_how_to_make_some(tmp_path: Path) -> None:
    for command in ("compare", "plot"):
        answer = nsrelu(command, cwd=tmp_path, code=1)
        assert answer.stderr == (
            "nsrelu-bench: no runs in 'results' (there is no such folder);"
            " create one with nsrelu-bench train\n"
        )


SMALL = """
dataset: digits
width: 8
depth: 1
epochs: 1
grid: {act: [relu, nsrelu(0.1)]}
seeds: 2
"""


def test_a_dry_run_lists_the_runs_and_makes_none(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    told = nsrelu("sweep", "small.yaml", "--dry-run", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[:2] for line in told[:-1]] == [["run", "new"]] * 4
    assert told[-1] == "4 runs, 4 to run"
    assert not (tmp_path / "results").exists()
    nsrelu("sweep", "small.yaml", "--seeds", "1", cwd=tmp_path)
    rows = json.loads(nsrelu("sweep", "small.yaml", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert [(row["state"], row["due"]) for row in rows] == [("completed", False), ("new", True)] * 2
    kept = (tmp_path / "results" / "small" / "study.yaml").read_text()
    assert "seeds: 1\n" in kept
    assert "name: small\n" in kept


def test_shards_make_every_run_once(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    first = nsrelu("sweep", "small.yaml", "--shard", "1/3", cwd=tmp_path)
    assert first.stdout.startswith("2 runs in results/small: 2 completed")
    for shard in ("2/3", "3/3"):
        told = nsrelu("sweep", "small.yaml", "--shard", shard, cwd=tmp_path).stdout
        assert "1 completed" in told or "completed" in told
    whole = nsrelu("sweep", "small.yaml", cwd=tmp_path)
    assert whole.stdout == "4 runs in results/small: 4 completed (4 done before)\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--shard", "0/3"], "--shard: must be K/N with K from 1 to N, got '0/3'"),
        (["--shard", "4/3"], "--shard: must be K/N with K from 1 to N, got '4/3'"),
        (["--engine", "rey"], "unknown engine 'rey'; did you mean 'ray'? choose from: local, ray"),
        (["--collect"], "--collect: goes with --engine ray"),
        (["--address", "here"], "--address: goes with --engine ray"),
        (["--checkpoint-after", "-1"], "--checkpoint-after: must be from 0 to 1e9, got -1"),
        (
            ["--engine", "ray", "--gpus-per-run", "0"],
            "--gpus-per-run: must be above 0 and at most 64, got 0",
        ),
    ],
)
def test_a_wrong_way_to_make_a_study_is_one_line(
    arguments: list[str], line: str, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    answer = nsrelu("sweep", "small.yaml", *arguments, cwd=tmp_path, code=2)
    assert answer.stderr == f"nsrelu-bench: {line}\n"


def test_list_names_all_that_can_be_named() -> None:
    answer = nsrelu("list", cwd=Path()).stdout
    for word in ("activations:", "nsrelu", "models:", "cnn", "datasets:", "mnist5k"):
        assert word in answer
    assert "models:" not in nsrelu("list", "datasets", cwd=Path()).stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("seeds", ["1", "2"])
def test_an_interrupt_ends_at_once_and_keeps_what_was_done(
    number: signal.Signals, code: int, seeds: str, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [*CLI, "train", *TINY, "--epochs", "100000", "--seeds", seeds],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while sum(map(under_way, run_folders(tmp_path))) < int(seeds):
        assert process.poll() is None
    process.send_signal(number)
    _, told = process.communicate(timeout=10)
    assert process.returncode == code
    command = f"nsrelu-bench train {' '.join(TINY)} --epochs 100000 --seeds {seeds}"
    assert told.endswith(f"nsrelu-bench: Interrupted. Resume with: {command}\n")
    assert "Traceback" not in told
    for folder in run_folders(tmp_path):
        status = read_status(folder)
        assert status is not None
        assert status.state == "interrupted"


def test_the_command_that_goes_on_does_not_begin_anew(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*CLI, "train", *TINY, "--epochs", "100000", "--fresh"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(map(under_way, run_folders(tmp_path))):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=10)
    assert "--fresh" not in told
    assert told.endswith("--epochs 100000\n")


def test_a_second_interrupt_ends_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*CLI, "train", *TINY, "--epochs", "100000", "--seeds", "2"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while sum(map(under_way, run_folders(tmp_path))) < 2:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=5)
    assert process.returncode == 130
    assert "Traceback" not in told
    deadline = time.monotonic() + 5
    while subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def under_way(folder: Path) -> bool:
    path = folder / "metrics.csv"
    return path.exists() and path.read_text().count("\n") > 2


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*CLI, "train", *TINY],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    process.communicate()
    os.close(ours)
    assert process.returncode == 0
    assert "━".encode() in shown


def test_check_agrees(tmp_path: Path) -> None:
    answer = nsrelu("check", "--no-compile", cwd=tmp_path)
    for impl in ("native", "detach", "function", "mismatch"):
        assert impl in answer.stdout


def test_check_exits_1_on_a_disagreement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nsrelu_bench.activations import functional as activations

    monkeypatch.setitem(activations.IMPLS, "native", lambda x, _: x.relu())
    monkeypatch.setattr(sys, "argv", ["nsrelu-bench", "check", "--no-compile"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert "disagree" in capsys.readouterr().out


def test_the_public_names_are_there() -> None:
    for name in nsrelu_bench.__all__:
        assert getattr(nsrelu_bench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nsrelu_bench.nothing  # noqa: B018


def test_a_full_or_an_ascii_output_is_no_traceback(trained: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*CLI, "compare"]
        answer = subprocess.run(
            command, cwd=trained, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert answer.returncode == 1
    assert answer.stderr == "nsrelu-bench: [Errno 28] No space left on device\n"
    plain = nsrelu("compare", cwd=trained, PYTHONIOENCODING="ascii").stdout
    assert " ? " in plain


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("compare --out .", 1, r"\.: can't be written \(Is a directory\)"),
        ("plot --metric nope", 2, r"unknown metric 'nope'; choose from: dead_fraction, .*"),
        ("train --act nsrelu(2)", 2, r"--act: leak must be from 0 to 1, got 2"),
    ],
)
def test_more_mistakes_are_one_line(arguments: str, code: int, line: str, trained: Path) -> None:
    answer = nsrelu(*arguments.split(), cwd=trained, code=code)
    assert re.fullmatch(rf"nsrelu-bench: {line}\n", answer.stderr)


def test_a_changed_study_says_that_other_runs_lie_there(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(STUDY)
    assert "other runs" not in nsrelu("sweep", "small.yaml", cwd=tmp_path).stderr
    changed = nsrelu("sweep", "small.yaml", "--set", "lr=0.1", cwd=tmp_path).stderr
    assert "4 other runs lie in results/small, and are compared and drawn with these" in changed


def test_a_summary_without_runs_can_be_compared_and_not_drawn(
    trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "results" / "told").mkdir(parents=True)
    shutil.copy(trained / "results" / "runs" / "summary.csv", tmp_path / "results" / "told")
    assert "nsrelu(0.1)" in nsrelu("compare", cwd=tmp_path).stdout
    answer = nsrelu("plot", "results/told", cwd=tmp_path, code=1)
    assert "has a summary.csv but no run folders; run its sweep to create them" in answer.stderr


def test_the_version_is_told() -> None:
    assert re.fullmatch(r"nsrelu-bench \d+\.\d+\.\d+\n", nsrelu("--version", cwd=Path()).stdout)
