"""Results that were cut off, edited, moved, filled up or written by other tools.

docs/reliability.md lists all cases, and the tests that hold the others.
"""

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from helpers.command_line import ask
from helpers.tiny_runs import make, tiny

from nsrelu_bench.plot import report
from nsrelu_bench.records import load, load_runs, read_status, to_csv, write_summary
from nsrelu_bench.records.corruption import find_corruption
from nsrelu_bench.records.schema import COLUMNS
from nsrelu_bench.text import printable

RELU_RUN = tiny(act="relu").run_id


def damaged(content: bytes, how: str) -> bytes:
    """Damage a CSV file of three rows or more."""
    header, first, *rest = content.splitlines(keepends=True)
    return {
        "cut": content[:-3],
        "empty": b"",
        "header": header,
        "nul": content + bytes(20),
        "headers": header + content,
        "twice": content + content,
        "word": header + b"zero" + first[1:] + b"".join(rest),
        "wide": header + first[:-1] + b",1,2\n" + b"".join(rest),
        "latin1": content + b"\xe9\n",
        "quote": header + b'"' + first + b"".join(rest),
        "cells": b"\0" + content,
        "foreign": b"name;value\na;1\n",
    }[how]


def damage_with_hash(folder: Path, name: str, how: str) -> None:
    """Damage a file and record the hash of the damaged file."""
    content = damaged((folder / name).read_bytes(), how)
    (folder / name).write_bytes(content)
    status = json.loads((folder / "status.json").read_text())
    status["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder / "status.json").write_text(json.dumps(status))


WIDTH = len(COLUMNS["metrics.csv"])

DAMAGES = {
    "cut": "line 4 is cut off",
    "empty": "it is empty",
    "header": "it has no rows",
    "nul": "line 5 has NUL bytes",
    "headers": "line 2 is the header again",
    "twice": "line 5 is the header again",
    "word": "line 2 has 'zero' as epoch, which is not a number",
    "wide": f"line 2 has {WIDTH + 2} cells, the header has {WIDTH}",
    "latin1": "line 5 is not UTF-8 text",
    "cells": "line 1 has NUL bytes",
    "foreign": "line 1 is not a header",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_found_by_the_hash(results: Path, how: str) -> None:
    path = results / RELU_RUN / "metrics.csv"
    path.write_bytes(damaged(path.read_bytes(), how))
    row = load_runs(results).set_index("run_id").loc[RELU_RUN]
    reported = f"metrics.csv is not as it was written ({DAMAGES[how]})"
    assert (row["state"], row["error"]) == ("failed", reported)


@pytest.mark.parametrize("how", [*DAMAGES, "quote"])
def test_damage_is_found_even_if_the_hash_matches(results: Path, how: str) -> None:
    damage_with_hash(results / RELU_RUN, "metrics.csv", how)
    row = load_runs(results).set_index("run_id").loc[RELU_RUN]
    reported = f"metrics.csv can't be read ({DAMAGES.get(how, 'line 4 has 1 cells')}"
    assert row["state"] == "failed"
    assert row["error"].startswith(reported)


def test_compare_names_the_damaged_file_and_line(results: Path) -> None:
    path = results / RELU_RUN / "metrics.csv"
    path.write_bytes(damaged(path.read_bytes(), "cut"))
    answer = ask("compare", "--format", "json")
    assert answer.code == 0
    reported = "metrics.csv is not as it was written (line 4 is cut off)"
    assert answer.err == f"nsrelu-bench: study/{RELU_RUN} failed: {reported}\n"
    (row, *_) = [row for row in json.loads(answer.out)["rows"] if row["act"] == "relu"]
    assert (row["failed"], row["n"], row["mean"]) == (1, 0, None)


@pytest.mark.parametrize("name", ["layers.csv", "quantiles.csv"])
@pytest.mark.parametrize("how", ["empty", "nul", "twice"])
def test_a_report_leaves_out_damaged_runs(results: Path, name: str, how: str) -> None:
    damage_with_hash(results / RELU_RUN, name, how)
    frames = load(results)
    assert set(frames.metrics["run_id"]) == set(frames.runs["run_id"]) - {RELU_RUN}
    (row,) = frames.runs[frames.runs["run_id"] == RELU_RUN].to_dict("records")
    assert row["state"] == "failed"
    assert row["error"].startswith(f"{name} can't be read (")


def test_lost_digits_of_a_number_are_noticed(results: Path) -> None:
    path = results / RELU_RUN / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-2])  # 0.97 of 0.9731 is a number too
    assert find_corruption(path) == "line 4 is cut off"
    assert pd.isna(load(results).runs.set_index("run_id").loc[RELU_RUN, "test_accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("\0", "unacceptable character #x0000: special characters are not allowed"),
        ("act: [", "line 1: expected the node content, but found '<stream end>'"),
        ("act: gelo\n", "unknown activation 'gelo'; "),
        ("act: relu\nshape: round\n", "unknown setting 'shape'; "),
        ("", "must be a mapping of settings"),
    ],
    ids=["nul", "cut", "activation", "newer version", "empty"],
)
def test_a_run_without_a_configuration_is_reported(results: Path, text: str, reported: str) -> None:
    (results / RELU_RUN / "config.yaml").write_text(text)
    answer = ask("compare", "--format", "json", "--baseline", "nsrelu(0.1)")
    assert answer.code == 0
    begin = f"nsrelu-bench: study/{RELU_RUN} failed: config.yaml is not as it was written ("
    assert answer.err.startswith(begin)
    assert reported in answer.err
    assert {row["act"] for row in json.loads(answer.out)["rows"]} == {"nsrelu(0.1)", "nsrelu(1)"}


def test_a_report_lists_damaged_runs(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ORDER", ())
    (results / RELU_RUN / "config.yaml").write_text("act: [")
    assert ask("report", "--baseline", "nsrelu(0.1)").code == 0
    page = Path("results/report.html").read_text()
    assert "config.yaml is not as it was written" in page
    assert RELU_RUN in page


def test_a_study_of_only_damaged_runs_is_one_line(results: Path) -> None:
    for folder in results.iterdir():
        (folder / "config.yaml").write_text("x: 1")
    reported = {
        "compare": "no runs to compare",
        "plot": "no run has a configuration that can be read",
    }
    for command, line in reported.items():
        answer = ask(command)
        assert answer.code == 1
        assert answer.err.splitlines()[-1] == f"nsrelu-bench: {line}"


def test_many_damaged_runs_do_not_fill_the_screen(results: Path) -> None:
    config = (results / RELU_RUN / "config.yaml").read_text()
    for seed in range(1, 8):
        folder = results / f"{RELU_RUN}-{seed}"
        shutil.copytree(results / RELU_RUN, folder)
        (folder / "config.yaml").write_text(config.replace("seed: 0", f"seed: {seed}"))
    lines = ask("compare").err.splitlines()
    assert len(lines) == 6
    assert lines[-1] == "nsrelu-bench: 2 other runs failed"


def test_runs_of_an_older_version_are_compared(results: Path) -> None:
    """Settings and columns that came later are missing; the hashes are those of that time."""
    folder = results / RELU_RUN
    newest = {"tasks", "augment", "precision", "compile", "stack"}
    lines = (folder / "config.yaml").read_text().splitlines(keepends=True)
    (folder / "config.yaml").write_text(
        "".join(line for line in lines if line.partition(":")[0] not in newest)
    )
    metrics = pd.read_csv(folder / "metrics.csv").drop(
        columns=["effective_rank", "sign_disagreement"]
    )
    metrics.to_csv(folder / "metrics.csv", index=False)
    (folder / "quantiles.csv").unlink()
    status = json.loads((folder / "status.json").read_text())
    del status["sha256"]["quantiles.csv"]
    for name in status["sha256"]:
        status["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "status.json").write_text(json.dumps(status))
    answer = ask("compare", "--format", "json")
    assert (answer.code, answer.err) == (0, "")
    rows = [row for row in json.loads(answer.out)["rows"] if row["metric"] == "test_accuracy"]
    assert {row["act"]: row["pairs"] for row in rows}["nsrelu(0.1)"] == 1


def test_other_files_do_not_matter(results: Path) -> None:
    before = ask("compare").out
    (results / "notes.txt").write_text("mine")
    (results / ".DS_Store").write_bytes(b"\0\1")
    (results / "empty").mkdir()
    (results / RELU_RUN / "notes.txt").touch()
    (results / "loop").symlink_to(results.absolute())
    (results / "gone").symlink_to("/nonexistent")
    answer = ask("compare")
    assert (answer.code, answer.out, answer.err) == (0, before, "")


def test_a_folder_named_like_the_summary_is_one_line(
    results: Path,
) -> None:
    (results / "summary.csv").mkdir()
    assert ask("compare").code == 0
    with pytest.raises(Exception, match=r"summary.csv: can't be written \(Is a directory\)"):
        write_summary(results)


def test_a_linked_run_is_read_and_a_linked_summary_replaced(results: Path, tmp_path: Path) -> None:
    shutil.move(results / RELU_RUN, tmp_path / "elsewhere")
    (results / RELU_RUN).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "precious").write_text("mine")
    (results / "summary.csv").symlink_to(tmp_path / "precious")
    write_summary(results)
    assert (tmp_path / "precious").read_text() == "mine"
    assert set(load_runs(results)["run_id"]) == set(load(results).runs["run_id"])


def test_output_to_a_device_leaves_it_a_device(results: Path) -> None:
    answer = ask("compare", "--out", "/dev/null")
    assert (answer.code, answer.out) == (0, "/dev/null\n")
    assert Path("/dev/null").is_char_device()
    answer = ask("compare", "--out", "/dev/full")
    assert answer.code == 1
    assert answer.err == "nsrelu-bench: /dev/full: can't be written (No space left on device)\n"
    assert Path("/dev/full").is_char_device()


def test_a_file_that_is_a_link_is_written_through(results: Path) -> None:
    Path("there.csv").touch()
    Path("here.csv").symlink_to("there.csv")
    assert ask("compare", "--format", "csv", "--out", "here.csv").code == 0
    assert Path("here.csv").is_symlink()
    assert Path("there.csv").read_text().startswith("section,group,act")


# Spreadsheets.


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "@SUM(A1)",
        "+cmd|' /C calc'!A0",
        '-2+HYPERLINK("x")',
        "\t=1",
        "'=1",
        "''@x",
    ],
)
def test_no_text_in_a_csv_is_a_formula(results: Path, text: str) -> None:
    write_summary(results)
    path = results / "summary.csv"
    table = pd.read_csv(path).assign(data_dir=text)
    path.write_text(to_csv(table), newline="")
    with path.open(newline="") as file:
        cells = {row["data_dir"] for row in csv.DictReader(file)}
    assert cells == {f"'{text}"}
    shutil.copytree(results, "reported", ignore=lambda _, names: set(names) - {"summary.csv"})
    assert set(load_runs(Path("reported"))["data_dir"]) == {printable(text)}


@pytest.mark.parametrize("text", ["-effective_rank", "relu", "-1e-05", "a=b", "it's", ""])
def test_a_text_that_is_not_a_formula_is_unchanged(text: str) -> None:
    written = to_csv(pd.DataFrame({"text": [text, "x"], "number": [-0.5, 1.0]}))
    rows = list(csv.DictReader(io.StringIO(written)))
    assert [row["text"] for row in rows] == [text, "x"]
    assert [row["number"] for row in rows] == ["-0.5", "1.0"]


def test_a_study_folder_named_like_a_formula_is_harmless(results: Path) -> None:
    results.rename("results/=cmd()")
    make(Path("results/other"), act="relu", seed=5)
    answer = ask("compare", "results", "--format", "csv")
    assert answer.code == 0
    cells = [cell for row in csv.reader(io.StringIO(answer.out)) for cell in row]
    assert "'=cmd(), digits, mlp" in cells or any(cell.startswith("'=cmd()") for cell in cells)
    assert not any(cell.startswith("=") for cell in cells)


# Size, time, space.


@pytest.mark.slow
def test_ten_thousand_runs_are_compared(results: Path) -> None:
    write_summary(results)
    row = pd.read_csv(results / "summary.csv").query("state == 'completed'").iloc[[0]]
    many = row.loc[row.index.repeat(10_000)].reset_index(drop=True)
    many["seed"] = range(10_000)
    many["run_id"] = many["seed"].map("run-{}".format)
    Path("results/many").mkdir()
    many.to_csv("results/many/summary.csv", index=False)
    answer = ask("compare", "results/many", "--format", "json", "--baseline", row["act"].item())
    assert answer.code == 0
    assert {row["n"] for row in json.loads(answer.out)["rows"]} == {10_000}


def test_a_clock_set_back_does_not_matter(results: Path) -> None:
    write_summary(results)
    ahead = time.time() + 10**8
    os.utime(results / "summary.csv", (ahead, ahead))
    (results / RELU_RUN / "status.json").write_text('{"state": "interrupted"}')
    assert load_runs(results).set_index("run_id").loc[RELU_RUN, "state"] == "interrupted"
    assert (results / "summary.csv").stat().st_mtime < ahead


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that mounts a file system; skips where that is not allowed."""
    places: list[Path] = []

    def mount(*arguments: str) -> Path:
        place = tmp_path / f"mounted{len(places)}"
        place.mkdir()
        answer = subprocess.run(["mount", *arguments, str(place)], capture_output=True, text=True)
        if answer.returncode:
            pytest.skip(f"can't mount a file system here ({answer.stderr.strip()})")
        places.append(place)
        return place

    try:
        yield mount
    finally:
        for place in places:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.slow
def test_a_study_on_a_read_only_disk_is_compared(
    results: Path, mounted: Callable[..., Path], tmp_path: Path
) -> None:
    expected = ask("compare").out
    (results / "summary.csv").unlink()
    place = mounted("--bind", str(results.absolute()))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
    assert ask("compare", str(place)).out == expected
    answer = ask("plot", str(place), "--kind", "curves", "--format", "svg")
    assert answer.code == 1
    assert answer.err == (
        f"nsrelu-bench: {place}/figures/curves.svg: can't be written (Read-only file system)\n"
    )
    answer = ask("plot", str(place), "--kind", "curves", "--format", "svg", "--out", str(tmp_path))
    assert (answer.code, answer.out) == (0, f"{tmp_path}/curves.svg\n")


def test_a_full_disk_leaves_the_old_files(results: Path, mounted: Callable[..., Path]) -> None:
    place = mounted("-t", "tmpfs", "-o", "size=64k", "tmpfs")
    shutil.copytree(results / RELU_RUN, place / "study" / RELU_RUN)
    write_summary(place / "study")
    before = (place / "study" / "summary.csv").read_bytes()
    with suppress(OSError), (place / "rest").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    # So that the summary is out of date.
    (place / "study" / RELU_RUN / "status.json").write_text('{"state": "interrupted"}')
    with pytest.raises(Exception, match=r"can't be written \(No space left on device\)"):
        write_summary(place / "study")
    answer = ask("compare", "--out", str(place / "x.csv"))
    assert answer.code == 1
    reported = f"{place}/x.csv: can't be written (No space left on device)"
    assert answer.err == f"nsrelu-bench: {reported}\n"
    assert (place / "study" / "summary.csv").read_bytes() == before
    assert {path.name for path in place.iterdir()} == {"study", "rest"}


def test_a_damaged_status_says_what_is_wrong(results: Path) -> None:
    (results / RELU_RUN / "status.json").write_text('{"state": "compl')
    status = read_status(results / RELU_RUN)
    assert "status.json can't be read (Invalid JSON: EOF while parsing a string at line 1" in str(
        status.error
    )


def test_names_may_be_given_with_commas(results: Path) -> None:
    """As --format takes them."""
    answer = ask("compare", "--metric", "zero_fraction, dead_units", "--format", "json")
    content = json.loads(answer.out, parse_constant=lambda name: pytest.fail(name))
    assert content["metrics"] == ["zero_fraction", "dead_units"]
    answer = ask("plot", str(results), "--kind", "curves,leak", "--format", "svg")
    assert (answer.code, answer.out) == (0, f"{results}/figures/curves.svg\n")
    assert answer.err.startswith("no figure leak: ")
    answer = ask("plot", str(results), "--kind", "curves,leek")
    assert answer.code == 2
    assert answer.err.startswith("nsrelu-bench: unknown figure 'leek'; did you mean 'leak'? ")
