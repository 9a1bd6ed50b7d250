"""The process around the tool: streams, signals, terminals, locales, folders, memory, space.

docs/reliability.md lists all cases, and the tests that hold the others.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command_line import ask
from helpers.made_up import MADE_UP_CONFIG, RELU, TWO, make_runs, study
from helpers.tiny_runs import tiny

from nsrelu_bench import text as columns
from nsrelu_bench.activations.functional import IMPLS
from nsrelu_bench.compare import comparison as compare
from nsrelu_bench.compare import tables
from nsrelu_bench.config.reading import read_run, run_config
from nsrelu_bench.records.status import read_status
from nsrelu_bench.sweep.execution import execute_run
from nsrelu_bench.tools import check, ops

CLI = [sys.executable, "-m", "nsrelu_bench"]
TRAIN_TINY = ["train", "--dataset", "digits", "--width", "8", "--depth", "2", "--epochs", "1"]
ONE = [*TRAIN_TINY, "--workers", "1"]
ENDLESS = [*ONE, "--epochs", "100000"]


def run(
    *command: str, cwd: Path, wrapper: str = 'exec "$@"', **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a shell that does something to it first."""
    whole = ["bash", "-c", wrapper, "bash", *CLI, *command]
    variables = {key: value for key, value in (os.environ | environment).items() if value}
    return subprocess.run(whole, cwd=cwd, env=variables, capture_output=True, text=True)


def runs_in(results: Path) -> list[Path]:
    return sorted(path.parent for path in results.glob("*/*/config.yaml"))


@pytest.fixture
def under_way(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """An endless training in its second epoch, without standard input or output."""
    process = subprocess.Popen(
        ["bash", "-c", 'exec "$@" <&- >&-', "bash", *CLI, *ENDLESS],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # under nohup too
    )
    rows = 0
    while rows < 3:
        assert process.poll() is None
        time.sleep(0.02)
        rows = sum(
            (folder / "metrics.csv").read_text().count("\n")
            for folder in runs_in(tmp_path / "results")
            if (folder / "metrics.csv").exists()
        )
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# Signals.


@pytest.mark.covers
@pytest.mark.slow
def test_a_closed_terminal_interrupts_a_run(
    tmp_path: Path, under_way: "subprocess.Popen[str]"
) -> None:
    under_way.send_signal(signal.SIGHUP)
    _, reported = under_way.communicate(timeout=30)
    assert under_way.returncode == 129
    assert "nsrelu-bench: Interrupted. Resume with: " in reported.splitlines()[-1]
    assert "Traceback" not in reported
    (folder,) = runs_in(tmp_path / "results")
    assert read_status(folder).state == "interrupted"


def test_removing_the_results_of_a_run_is_one_line(tmp_path: Path) -> None:
    config = tiny()
    folder = tmp_path / "study" / config.run_id
    events = []
    for event in execute_run(config, folder):
        events.append(event)
        if event.status.epoch == 1:
            shutil.rmtree(tmp_path / "study", ignore_errors=True)
    reported = f"{folder}: can't be written (No such file or directory)"
    assert (events[-1].status.state, events[-1].status.error) == ("failed", reported)
    assert not folder.exists()


# Streams.


def test_a_closed_pipe_ends_it_silently(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    answer = subprocess.run(
        [*CLI, "list"], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (answer.returncode, answer.stderr) == (1, "")


@pytest.mark.parametrize(
    ("wrapper", "code", "reported"),
    [
        ('exec "$@" > /dev/full', 1, "nsrelu-bench: standard output: No space left on device\n"),
        ('exec "$@" <&- >&-', 0, ""),
    ],
    ids=["full", "closed"],
)
def test_a_full_output_is_one_line_and_a_closed_one_fine(
    tmp_path: Path, wrapper: str, code: int, reported: str
) -> None:
    answer = run("list", cwd=tmp_path, wrapper=wrapper)
    assert (answer.returncode, answer.stderr) == (code, reported)


# Locales and terminals.


def test_a_plain_locale_takes_unicode(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    answer = run("train", "--act", "résumé", cwd=tmp_path, **plain)
    assert answer.returncode == 2
    assert answer.stderr.startswith("nsrelu-bench: --act: unknown activation 'r")
    assert answer.stderr.count("\n") == 1


WIDE = study(
    TWO,
    make_runs("leaky_relu(0.1)", RELU),
    make_runs("nsrelu(0.1)", RELU, lr=0.2),
    make_runs("relu", RELU, lr=0.2),
)


@pytest.mark.parametrize("width", [40, 60, 72, 100])
def test_a_table_fits_the_terminal(width: int) -> None:
    text = tables.format_table(compare.compare(WIDE, MADE_UP_CONFIG), width=width)
    lines = re.sub(r"\x1b\[\d+m", "", text).splitlines()
    assert max(map(len, lines)) <= width
    above = lines[: next(i for i, line in enumerate(lines) if line.startswith("Mean ±"))]
    numbers = re.findall(r"\d+\.\d ?± ?\d+\.\d", "\n".join(above))
    differences = re.findall(r"[+-]\d+\.\d \[-?\d+\.\d, -?\d+\.\d\]", "\n".join(above))
    # Accuracy, zeros and dead units of five groups, and three differences, all in one piece.
    assert (len(numbers), len(differences)) == (3 * 5, 3)
    assert not any(re.search(r"±\s*$", line) for line in above)


@pytest.mark.parametrize("width", [40, 60])
def test_check_and_ops_fit_the_terminal(width: int) -> None:
    checks = [
        check.Check(impl, case, "documented", "a reason that is longer than any terminal is wide")
        for impl in (*IMPLS, "native in place")
        for case in ("no gradient needed", "0")
    ]
    rows = [
        ops.Row("cpu", "float32", False, 2**e, form, 1e-3, 0.1, 1.0, 1.0, 0.5, 1.0, 2.0)
        for form in ops.FORMS
        for e in (8, 12, 16, 20, 24)
    ]
    for text in (check.format_checks(checks, width), ops.format_ops(rows, width)):
        assert max(map(len, text.splitlines())) <= width
    assert ops.format_ops(rows, width).count("native in place") > 1
    whole = ops.format_ops(rows)
    assert len(whole.splitlines()[1].split()) == 10


def test_columns_go_into_as_few_blocks_as_fit() -> None:
    rows = [["name", "a", "bb", "ccc"], ["x", "1", "22", "333"]]
    assert columns.align(rows) == ["name  a  bb  ccc", "x     1  22  333"]
    assert columns.align(rows, 11) == ["name  a  bb", "x     1  22", "", "name  ccc", "x     333"]
    assert columns.split_columns([90, 1, 1], 80) == [[0, 1], [0, 2]]


@pytest.mark.parametrize(
    ("variables", "escapes"), [({"TERM": "dumb"}, False), ({"TERM": "xterm"}, True)]
)
def test_a_dumb_terminal_gets_no_escapes(
    variables: dict[str, str], escapes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    text = tables.format_table(compare.compare(TWO, MADE_UP_CONFIG), width=100)
    assert ("\x1b" in text) == escapes


def test_no_color_turns_colours_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = tables.format_table(compare.compare(TWO, MADE_UP_CONFIG), width=100)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", text)


# Folders.


@pytest.mark.slow
def test_no_home_or_temporary_folder_is_needed(tmp_path: Path) -> None:
    """HOME and TMPDIR lead nowhere, and nothing is said of it."""
    table = TWO.assign(data_dir="data").to_csv(index=False)
    (tmp_path / "results" / "study").mkdir(parents=True)
    (tmp_path / "results" / "study" / "summary.csv").write_text(table)
    nowhere = {"HOME": "/proc/nowhere", "TMPDIR": "/proc/nowhere", "MPLCONFIGDIR": ""}
    code = (
        "import sys; sys.argv = ['nsrelu-bench', 'compare']\n"
        "import logging; logging.raiseExceptions = False\n"
        "from nsrelu_bench import cli\n"
        "try: cli.main()\n"
        "finally:\n"
        "    import nsrelu_bench.figures\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={k: v for k, v in (os.environ | nowhere).items() if v},
        capture_output=True,
        text=True,
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "nsrelu(0.1)" in answer.stdout


def test_without_a_network_a_download_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("no_proxy", "*")
    answer = ask(*ONE, "--dataset", "mnist", "--data-dir", "none", cwd=tmp_path)
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "Temporary failure in name resolution" in answer.err
    assert "use mnist5k, which needs no download" in answer.err


# Memory and space.


@pytest.mark.covers
@pytest.mark.slow
def test_a_run_without_memory_is_one_line(tmp_path: Path) -> None:
    answer = run(*ONE, cwd=tmp_path, wrapper='ulimit -v 1500000; exec "$@"')
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    (line,) = answer.stderr.splitlines()
    assert line.startswith("nsrelu-bench: ")


def test_a_model_larger_than_memory_is_one_line(tmp_path: Path) -> None:
    config = tiny(width=100_000_000)
    *_, event = execute_run(config, tmp_path / config.run_id)
    assert event.status.state == "failed"
    assert "can't allocate memory" in str(event.status.error)
    assert "\n" not in str(event.status.error)


@pytest.mark.slow
def test_a_run_resumes_after_its_disk_was_full(
    tmp_path: Path,
) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("can't mount a small file system here")
    # 24 KiB hold some of the 60 steps.
    command = [
        *ONE,
        "--probe-every",
        "1",
        "--probe-size",
        "100",
        "--epochs",
        "3",
        "--results",
        str(place),
    ]
    try:
        answer = ask(*command)
        assert answer.code == 1
        last = answer.err.splitlines()[-1]
        assert last.startswith(f"nsrelu-bench: {place}/runs")
        assert last.endswith(": can't be written (No space left on device)")
        (folder,) = runs_in(place)
        assert not read_status(folder).done
        subprocess.run(["mount", "-o", "remount,size=8m", str(place)], check=True)
        config = run_config(read_run(folder / "config.yaml"))
        *_, event = execute_run(config, folder)
        assert event.status.state == "completed"
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
