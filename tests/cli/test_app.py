import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from helpers.command_line import CLI, ask, nsrelu
from helpers.tiny_runs import make

import nsrelu_bench
from nsrelu_bench.cli.options import VARIABLES
from nsrelu_bench.cli.runs import _resuming
from nsrelu_bench.errors import unknown
from nsrelu_bench.records import RunWriter, read_status
from nsrelu_bench.sweep import RunPolicy
from nsrelu_bench.training import Epoch

TINY_OPTIONS = ["--dataset", "digits", "--width", "8", "--depth", "2", "--epochs", "2"]


@pytest.mark.parametrize(
    ("arguments", "more"),
    [(["--help"], {"importlib.metadata"}), (["train", "--help"], set())],
    ids=["program", "command"],
)
def test_help_loads_nothing_heavy(arguments: list[str], more: set[str]) -> None:
    heavy = {"torch", "torchvision", "pandas", "matplotlib", "numpy", "scipy", "ruamel", "filelock"}
    code = (
        f"import sys; sys.argv = ['nsrelu-bench', *{arguments}]\n"
        "from nsrelu_bench.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert e.code == 0\n"
        f"found = {heavy | more} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_version_is_shown() -> None:
    assert re.fullmatch(r"nsrelu-bench \d+\.\d+\.\d+\n", ask("--version").out)
    assert nsrelu_bench.__version__ in ask("--version").out


def test_every_public_name_can_be_imported() -> None:
    for name in nsrelu_bench.__all__:
        assert getattr(nsrelu_bench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nsrelu_bench.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("trian", "No such command 'trian'. Did you mean 'train'?"),
        (
            "train --epoch 3",
            "No such option: --epoch (Possible options: --depth, --epochs, --redo)",
        ),
        ("sweep", "Missing argument 'FILE'."),
        (
            "list x",
            "unknown kind 'x'; choose from: activations, gates, models, datasets, optimizers,"
            " schedules, metrics, figures",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: str, line: str) -> None:
    answer = ask(*arguments.split())
    assert (answer.code, answer.out, answer.err) == (2, "", f"nsrelu-bench: {line}\n")


def test_traceback_shows_where_an_error_came_from(tmp_path: Path) -> None:
    answer = ask("train", "--impl", "fast", "--traceback", cwd=tmp_path)
    assert answer.code == 2
    assert answer.err.startswith("Traceback")
    assert "nsrelu-bench: --impl: must be 'native', 'detach'" in answer.err.splitlines()[-1]


def test_traceback_shows_where_a_run_failed(tmp_path: Path) -> None:
    answer = ask("train", *TINY_OPTIONS, "--train-size", "9999", "--traceback", cwd=tmp_path)
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert "in load_dataset" in answer.err


def test_a_misspelt_variable_is_reported() -> None:
    assert (
        str(unknown("NSRELU_LAEK", VARIABLES, "variable", brief=True))
        in ask("list", "figures", NSRELU_LAEK="0.2").err
    )


def test_a_full_output_is_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*CLI, "list"]
        answer = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert answer.returncode == 1
    assert answer.stderr == "nsrelu-bench: standard output: No space left on device\n"


@pytest.mark.slow
def test_an_ascii_output_gets_question_marks(tmp_path: Path) -> None:
    for act in ("relu", "nsrelu"):
        for seed in (0, 1):
            make(tmp_path / "results" / "runs", act=act, seed=seed)
    assert " ? " in nsrelu("compare", cwd=tmp_path, PYTHONIOENCODING="ascii").stdout


def test_a_deleted_folder_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"rmdir {gone}; {sys.executable} -m nsrelu_bench list figures"
    package = str(Path(nsrelu_bench.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": package}
    answer = subprocess.run(
        ["sh", "-c", command], cwd=gone, env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert answer.stderr == (
        "nsrelu-bench: the current folder can't be used (No such file or directory);"
        " change to another\n"
    )


# Signals.


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_at_once_and_keeps_what_was_done(
    number: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunWriter.append

    def append_and_signal(writer: RunWriter, epoch: Epoch) -> None:
        append(writer, epoch)
        if epoch.metrics["epoch"] == 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(RunWriter, "append", append_and_signal)
    options = [*TINY_OPTIONS, "--seeds", "2"]
    answer = ask("train", *options, "--fresh", cwd=tmp_path)
    assert (answer.code, answer.out) == (code, "")
    since = r"--fresh-since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00"
    command = f"nsrelu-bench train {since} {' '.join(options)}"
    assert re.search(
        rf"nsrelu-bench: Interrupted. Resume with: (env NSRELU_\S+ )?{command}\n$", answer.err
    )
    (folder,) = tmp_path.glob("results/runs/*/")
    assert read_status(folder).state == "interrupted"
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_ctrl_c_ends_the_runs_in_workers(tmp_path: Path) -> None:
    command = [*CLI, "train", *TINY_OPTIONS, "--epochs", "100000", "--seeds", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while len(rows := [*tmp_path.glob("results/runs/*/metrics.csv")]) < 2 or not all(
        path.read_text().count("\n") > 2 for path in rows
    ):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Interrupted. Resume with: " in errors
    assert "Traceback" not in errors
    assert [read_status(path.parent).state for path in rows] == ["interrupted"] * 2


WHEN = datetime(2026, 1, 2, tzinfo=UTC)
SINCE = "--fresh-since 2026-01-02T00:00:00+00:00"


@pytest.mark.parametrize(
    ("given", "policy", "resuming"),
    [
        ("sweep a.yaml", RunPolicy(), "sweep a.yaml"),
        ("train --fresh --seeds 2", RunPolicy(True, before=WHEN), f"train {SINCE} --seeds 2"),
        ("--traceback train --fresh", RunPolicy(True, before=WHEN), f"--traceback train {SINCE}"),
        (f"train {SINCE}", RunPolicy(True, before=WHEN), f"train {SINCE}"),
        ("sweep --retry=failed a", RunPolicy(retry=["failed"]), "sweep {again} --retry=failed a"),
        (
            "sweep --retry failed -- a",
            RunPolicy(retry=["failed"]),
            "sweep {again} --retry failed -- a",
        ),
        (
            "sweep a --retry diverged",
            RunPolicy(retry=["diverged"], before=WHEN),
            f"sweep {{again}} {SINCE} a --retry diverged",
        ),
    ],
    ids=["plain", "fresh", "traceback", "since", "retry", "dashes", "retry done"],
)
def test_the_command_that_resumes_asks_for_what_is_left(
    given: str, policy: RunPolicy, resuming: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["nsrelu-bench", *given.split()])
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert _resuming(policy) == f"nsrelu-bench {resuming.format(again='--retry interrupted')}"


def test_the_command_that_resumes_has_variables_and_is_quoted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["sweep", "my study.yaml", "--set", "act=nsrelu(0.1)", "--results", "it's\n\udcff\x1b1"]
    monkeypatch.setattr(sys, "argv", ["nsrelu-bench", *words])
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NSRELU_DATA_DIR", "of mine")
    command = _resuming(RunPolicy())
    assert command.isprintable()
    show = """sh -c 'printf "%s|" "$NSRELU_DATA_DIR" "$@"' -"""
    shell = ["bash", "-c", command.replace("nsrelu-bench", show)]
    given = subprocess.run(shell, stdout=subprocess.PIPE).stdout
    assert [os.fsdecode(word) for word in given.split(b"|")[:-1]] == ["of mine", *words]


TWO_SIGNALS = f"""
import os, signal, sys, time
from nsrelu_bench.cli import main
from nsrelu_bench.sweep.executors.local import ProcessPool

def wait(*_):
    os.kill(os.getpid(), signal.SIGINT)

def stop(_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)  # all that it would clean up

ProcessPool.wait, ProcessPool.stop = wait, stop
sys.argv = ["nsrelu-bench", "train", *{TINY_OPTIONS}, "--epochs", "100000"]
main()
"""


def test_a_second_signal_ends_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", TWO_SIGNALS],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _, errors = process.communicate(timeout=40)
    assert (process.returncode, errors) == (130, "")
    deadline = time.monotonic() + 20
    while subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.05)
