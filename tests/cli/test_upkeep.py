import json
import re
from pathlib import Path

import pytest
from helpers.command_line import ask
from helpers.tiny_runs import TINY, make

from nsrelu_bench.config import SETTINGS, make_study, read_study
from nsrelu_bench.records import save_study


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A study of two runs, whose file now asks for one of them and for one that is not there."""
    study = tmp_path / "results" / "small"
    for lr in (0.1, 0.2):
        make(study, act="relu", lr=lr)
    settings = TINY | {"act": "relu", "name": "small", "grid": {"lr": [0.1, 0.3]}}
    save_study(make_study(settings, "small"), study)
    return tmp_path


def test_init_writes_a_study_that_can_be_run(tmp_path: Path) -> None:
    answer = ask("init", "leaks.yaml", cwd=tmp_path)
    assert (answer.code, answer.out) == (0, "leaks.yaml\n")
    assert answer.err.startswith("next: nsrelu-bench sweep leaks.yaml --dry-run\n")
    study = read_study(tmp_path / "leaks.yaml")
    assert (study.name, len(study.runs)) == ("leaks", 36)
    again = ask("init", "leaks.yaml", cwd=tmp_path)
    assert again.err == "nsrelu-bench: leaks.yaml: exists; name another file, or remove it\n"


def test_every_setting_of_the_template_can_be_uncommented(tmp_path: Path) -> None:
    ask("init", cwd=tmp_path)
    text = (tmp_path / "study.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 130
    lines = re.findall(r"^# (\w+: .*?) +# [A-Z]", text, re.MULTILINE)
    found = {line.partition(":")[0] for line in lines}
    assert {*SETTINGS} - found == {"act", "dataset", "epochs", "lr", "seed", "replicate"}
    for line in lines:
        path = tmp_path / "one.yaml"
        path.write_text(line)
        assert len(read_study(path).runs) == 1, line


def test_the_schema_has_every_setting_with_its_limits() -> None:
    schema = json.loads(ask("schema").out)
    assert {*SETTINGS} < {*schema["properties"]}
    assert schema["properties"]["epochs"]["minimum"] == 1
    assert schema["properties"]["impl"]["enum"][0] == "native"
    assert "nsrelu" in schema["properties"]["act"]["examples"]
    grid = schema["properties"]["grid"]["properties"]
    assert grid["lr"] == {"type": "array", "items": schema["properties"]["lr"], "minItems": 1}
    assert not schema["additionalProperties"]
    assert '"usual"' not in json.dumps(schema)


def test_show_prints_one_run(changed: Path) -> None:
    answer = ask("show", "digits-mlp-relu-s0", "--results", "results", cwd=changed)
    assert answer.err.startswith("nsrelu-bench: 'digits-mlp-relu-s0' is the beginning of 2 runs: ")
    name = min(path.name for path in (changed / "results" / "small").glob("*/"))
    text = ask("show", name, cwd=changed).out
    assert f"run: {name}\n" in text
    assert re.search(r"^  act +relu$", text, re.MULTILINE)
    assert re.search(r"^  state +completed$", text, re.MULTILINE)
    assert re.search(r"^  test_accuracy +0\.\d+$", text, re.MULTILINE)
    content = json.loads(ask("show", f"results/small/{name}", "--json", cwd=changed).out)
    assert content["settings"]["width"] == TINY["width"]
    assert "metrics.csv" in content["files"]
    missing = ask("show", "nothing", cwd=changed)
    assert missing.err == "nsrelu-bench: no run 'nothing' in 'results'; there are 2 runs\n"


@pytest.mark.slow
def test_runs_that_a_study_no_longer_asks_for_are_left_out(changed: Path) -> None:
    answer = ask("compare", "--json", cwd=changed)
    assert "left out 1 runs in results/small that study.yaml does not ask for" in answer.err
    assert "--all includes them" in answer.err
    assert "left out" not in ask("compare", "--all", cwd=changed).err
    rows = [ask("compare", *flag, "--json", cwd=changed).out for flag in ([], ["--all"])]
    assert rows[0] != rows[1]


def test_clean_removes_them_after_a_question(changed: Path) -> None:
    listed = ask("clean", "results/small", "--dry-run", cwd=changed)
    (folder,) = listed.out.split()
    refused = ask("clean", "results/small", cwd=changed)
    assert refused.code == 2
    assert "without a terminal, give --yes" in refused.err
    assert (changed / folder).exists()
    assert ask("clean", "results/small", "--yes", cwd=changed).code == 0
    assert not (changed / folder).exists()
    left = ask("clean", "results/small", cwd=changed)
    assert (left.code, left.out) == (0, "")
    assert "every run is one that the study asks for" in left.err


def test_paths_without_runs_are_ignored_among_others(changed: Path) -> None:
    (changed / "results" / "notes.txt").write_text("x")
    (changed / "results" / "figures").mkdir()
    paths = ["results/figures", "results/notes.txt", "results/small"]
    answer = ask("compare", *paths, cwd=changed)
    assert answer.code == 0
    assert (
        "nsrelu-bench: without runs, and ignored: results/figures, results/notes.txt"
        in answer.err.splitlines()
    )
