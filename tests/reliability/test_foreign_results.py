"""A results folder from somebody else is read safely: it ends, in one line, and nothing is run."""

import json
import os
import resource
from pathlib import Path

import pandas as pd
import pytest
from helpers.command_line import ask
from helpers.tiny_runs import tiny

from nsrelu_bench.files import file_sha256
from nsrelu_bench.records import load, load_runs, read_status, write_summary

RELU_RUN = tiny(act="relu").run_id
READING_COMMANDS = (["compare"], ["plot", "--kind", "curves", "--format", "svg"], ["report"])
DEEP = "[" * 10_000


def put(path: Path, kind: str) -> None:
    """Put something in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        path.symlink_to(f"/dev/{kind}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["config.yaml", "status.json", "metrics.csv", "layers.csv", "env.json", "summary.csv"]
)
@pytest.mark.parametrize("kind", ["pipe", "zero", "large", "folder"])
def test_what_is_not_a_file_is_not_read(results: Path, name: str, kind: str) -> None:
    put(results / name if name == "summary.csv" else results / RELU_RUN / name, kind)
    assert len(load(results).runs) == 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20  # KiB


FOREIGN_STATUS = {"state": "completed", "epoch": 2}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (DEEP, "Invalid JSON: recursion limit exceeded"),
        ("7", "must be an object, got 7"),
        ('{"epoch": 1}', "state: Field required, got {'epoch': 1}"),
        ('{"state": ["completed"]}', "state: must be 'running', 'completed'"),
        ('{"state": "failed", "epoch": "two"}', "epoch: must be a valid integer, got 'two'"),
        ('{"state": "failed", "epoch": true}', "epoch: must be a valid integer, got True"),
        ('{"state": "failed", "epoch": 1e999}', "epoch: must be a valid integer, got inf"),
        (
            '{"state": "failed", "diverged_step": -1}',
            "diverged_step: must be greater than or equal",
        ),
        ('{"state": "failed", "error": {"a": 1}}', "error: must be a valid string, got {'a': 1}"),
        ('{"state": "completed", "sha256": 3}', "sha256: must be an object, got 3"),
        ('{"state": "completed", "sha256": {"a": 3}}', "sha256: a: must be a valid string, got 3"),
        ('{"state": "failed", "who": "me"}', "who: Extra inputs are not permitted, got 'me'"),
    ],
)
def test_a_status_of_other_types_is_a_failed_run(results: Path, content: str, reason: str) -> None:
    (results / RELU_RUN / "status.json").write_text(content)
    status = read_status(results / RELU_RUN)
    assert status.state == "failed"
    assert str(status.error).startswith(f"status.json can't be read ({reason}")
    assert "\n" not in str(status.error)


@pytest.mark.slow
@pytest.mark.usefixtures("few_figures")
def test_an_environment_of_other_types_is_ignored(results: Path) -> None:
    contents = (DEEP, "[]", '{"packages": 1, "command": 7, "platform": [], "torch": {}}')
    for folder, content in zip(results.glob("*/"), contents, strict=True):
        (folder / "env.json").write_text(content)
    for command in ("compare", "report"):
        answer = ask(command)
        assert (answer.code, answer.err) == (0, "")


@pytest.mark.parametrize("value", [str(10**19), "1e400", "-1", ".nan", "[1]", "0x" + "f" * 99])
def test_a_setting_out_of_range_is_a_failed_run(results: Path, value: str) -> None:
    path = results / RELU_RUN / "config.yaml"
    path.write_text(path.read_text().replace("width: 8", f"width: {value}"))
    error = load_runs(results).set_index("run_id").loc[RELU_RUN, "error"]
    assert str(error).startswith("config.yaml is not as it was written (width: ")
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["metrics.csv", "layers.csv"])
def test_a_number_of_many_digits_is_no_number(results: Path, name: str) -> None:
    folder = results / RELU_RUN
    text = (folder / name).read_text().replace("\n1,", f"\n{'9' * 30},")
    (folder / name).write_text(text)
    status = json.loads((folder / "status.json").read_text())
    status["sha256"][name] = file_sha256(folder / name)
    (folder / "status.json").write_text(json.dumps(status))
    error = load(results).runs.set_index("run_id").loc[RELU_RUN, "error"]
    assert str(error).startswith(f"{name} can't be read (line ")
    assert str(error).endswith(f" has {'9' * 30!r} as epoch, which is not a number)")


def test_drawing_nothing_but_unreadable_runs_is_one_line(results: Path) -> None:
    for folder in results.glob("*/"):
        put(folder / "layers.csv", "pipe")
    for command in READING_COMMANDS[1:]:
        answer = ask(*command)
        assert answer.code == 1
        assert answer.err.splitlines()[-1] in (
            "nsrelu-bench: no run has a configuration that can be read",
            "nsrelu-bench: no runs to compare",
        )


@pytest.mark.parametrize(("column", "value"), [("width", 10**19), ("epoch", "two"), ("seed", 0.5)])
def test_a_summary_of_other_types_is_one_line(results: Path, column: str, value: object) -> None:
    write_summary(results)
    table = pd.read_csv(results / "summary.csv", dtype=object)
    table[column] = value
    Path("results/sent").mkdir()
    table.to_csv("results/sent/summary.csv", index=False)
    answer = ask("compare", "results/sent")
    assert answer.code == 1
    assert answer.err.startswith("nsrelu-bench: results/sent/summary.csv: can't be read (")
    assert answer.err.count("\n") == 1


ESCAPE = "\x1b[2J\x07\u202e"


@pytest.mark.slow
@pytest.mark.usefixtures("few_figures")
def test_no_control_character_reaches_the_terminal(results: Path) -> None:
    status = {"state": "failed", "error": f"a{ESCAPE}b\nnsrelu-bench: all is well"}
    (results / RELU_RUN / "status.json").write_text(json.dumps(status))
    env = {"processor": f"fast{ESCAPE}", "packages": {"torch": ESCAPE}}
    (results / tiny().run_id / "env.json").write_text(json.dumps(env))
    (results / RELU_RUN).rename(results / f"run{ESCAPE}")
    results.rename(f"results/study{ESCAPE}")
    others = [["compare", f"none{ESCAPE}"], ["plot", f"none{ESCAPE}"], ["report", f"none{ESCAPE}"]]
    for command in (*READING_COMMANDS, *others):
        baseline = ["--baseline", "nsrelu(0.1)"] if command[0] == "compare" else []
        answer = ask(*command, *baseline)
        assert (answer.out + answer.err).replace("\n", "").isprintable()
        assert not [line for line in answer.err.splitlines() if line == "nsrelu-bench: all is well"]


@pytest.mark.slow
@pytest.mark.usefixtures("few_figures")
def test_names_that_are_not_text_are_compared(results: Path) -> None:
    (results / RELU_RUN).rename(results / "run\udcff")
    results.rename("results/study\udcff")
    for command in READING_COMMANDS:
        answer = ask(*command)
        assert (answer.code, answer.err) == (0, "")
    (place,) = Path("results").glob("study*")
    assert "run\\udcff" in set(load_runs(place)["run_id"])
    assert set(load(place).runs["study"]) == {"study\\udcff"}
    assert (place / "summary.csv").read_bytes().decode()
