"""Options and studies as somebody who wants to break the tool would write them."""

from pathlib import Path

import pytest
from helpers.command_line import ask

from nsrelu_bench.config import ACTIVATION_NAMES
from nsrelu_bench.config.registry import (
    DATASETS,
    FOLDER_FORM,
    MODEL_SIZES,
    PLUGIN_FORM,
    SITE_MEASURES,
)
from nsrelu_bench.config.study import read_study
from nsrelu_bench.errors import unknown

SEED_LIMIT = 2**63


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        # Wrong types.
        ("--epochs=1e3", "--epochs: must be a whole number, got '1e3'"),
        ("--epochs=2.0", "--epochs: must be a whole number, got '2.0'"),
        ("--epochs=", "--epochs: must be a whole number, got ''"),
        ("--epochs=inf", "--epochs: must be a whole number, got 'inf'"),
        ("--lr=0x10", "--lr: must be a number, got '0x10'"),
        ("--lr=1:30", "--lr: must be a number, got '1:30'"),
        ("--lr=1,5", "--lr: must be a number, got '1,5'"),
        ("--lr=", "--lr: must be a number, got ''"),
        # Digits that float() and int() take.
        ("--lr=1_0", "--lr: must be a number, got '1_0'"),
        ("--epochs=٣", "--epochs: must be a whole number, got '٣'"),
        ("--seed=\uff11", "--seed: must be a whole number, got '\uff11'"),
        # Out of range, NaN, infinities.
        ("--epochs=-5", "--epochs: must be greater than or equal to 1, got -5"),
        (f"--epochs={10**12}", f"--epochs: must be less than or equal to {10**9}, got {10**12}"),
        ("--lr=nan", "--lr: must be a finite number, got nan"),
        ("--lr=inf", "--lr: must be a finite number, got inf"),
        ("--lr=1e400", "--lr: must be a finite number, got inf"),
        ("--lr=-1", "--lr: must be greater than or equal to 0, got -1.0"),
        ("--lr=1e7", "--lr: must be less than or equal to 1000000, got 10000000.0"),
        ("--weight-decay=nan", "--weight-decay: must be a finite number, got nan"),
        ("--dropout=1", "--dropout: must be less than 1, got 1.0"),
        ("--dropout=nan", "--dropout: must be less than 1, got nan"),
        ("--momentum=1", "--momentum: must be less than 1, got 1.0"),
        ("--width=0", "--width: must be greater than or equal to 1, got 0"),
        ("--depth=0", "--depth: must be greater than or equal to 1, got 0"),
        ("--probe-size=0", "--probe-size: must be greater than or equal to 1, got 0"),
        ("--train-size=0", "--train-size: must be greater than or equal to 1, got 0"),
        ("--probe-every=-1", "--probe-every: must be greater than or equal to 0, got -1"),
        ("--threads=0", "--threads: must be greater than or equal to 1, got 0"),
        ("--threads=100000", "--threads: must be less than or equal to 1024, got 100000"),
        ("--workers=0", "--workers: must be from 1 to 1024, got 0"),
        ("--batch-size=0", "--batch-size: must be greater than or equal to 1, got 0"),
        ("--workers=10000", "--workers: must be from 1 to 1024, got 10000"),
        ("--seeds=0", "--seeds: must be from 1 to 100000, got 0"),
        ("--leak=-1", "--leak: must be from 0 to 1, got -1"),
        ("--leak=nan", "--leak: must be from 0 to 1, got nan"),
        ("--act=gelo", f"--act: {unknown('gelo', [*ACTIVATION_NAMES, PLUGIN_FORM], 'activation')}"),
        ("--act=nsrelu(2)", "--act: leak must be from 0 to 1, got 2"),
        # Seeds.
        ("--seed=-1", "--seed: must be greater than or equal to 0, got -1"),
        (f"--seed={2**64}", f"--seed: must be less than {SEED_LIMIT}, got {2**64}"),
        (
            f"--seed={SEED_LIMIT - 1} --seeds=3",
            f"--seed: must be less than {SEED_LIMIT}, got {SEED_LIMIT}",
        ),
        ("--seeds=-1", "--seeds: must be from 1 to 100000, got -1"),
        ("--seeds=1000000", "--seeds: must be from 1 to 100000, got 1000000"),
        # Names: empty, Unicode, paths, long, the wrong case.
        (
            "--act=",
            "--act: activation must not be empty; choose from: "
            + ", ".join([*ACTIVATION_NAMES, PLUGIN_FORM]),
        ),
        (
            "--act=résumé",
            f"--act: {unknown('résumé', [*ACTIVATION_NAMES, PLUGIN_FORM], 'activation')}",
        ),
        ("--act=nsrelu(inf)", "--act: leak must be from 0 to 1, got inf"),
        (
            f"--act={'x' * 300}",
            f"--act: activation has 300 characters, at most 200 are allowed: '{'x' * 20}'...",
        ),
        (
            "--impl=NATIVE",
            "--impl: must be 'native', 'detach', 'function' or 'mismatch', got 'NATIVE'",
        ),
        (
            "--dataset=../x",
            f"--dataset: {unknown('../x', [*DATASETS, FOLDER_FORM, PLUGIN_FORM], 'dataset')}",
        ),
        ("--model=../x", f"--model: {unknown('../x', [*MODEL_SIZES, PLUGIN_FORM], 'model')}"),
        ("--measures=-", f"--measures: {unknown('', [*SITE_MEASURES, PLUGIN_FORM], 'measure')}"),
        # Files and folders in each other's place.
        ("--config=.", ".: Is a directory"),
        ("--config=/dev/null", "/dev/null: null is not a regular file"),
        ("--config=none.yaml", "none.yaml: No such file or directory"),
        # The command line itself.
        ("--results", "Option '--results' requires an argument."),
        ("--lr=0.1 extra", "Got unexpected extra argument(s) (extra)"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: str, line: str) -> None:
    answer = ask("train", *arguments.split(" "))
    assert (answer.code, answer.out, answer.err) == (2, "", f"nsrelu-bench: {line}\n")
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        # What YAML 1.1 reads as something else.
        ("batch_norm: no", "batch_norm: must be a valid boolean, got 'no'"),
        ("lr: 1:30", "lr: must be a valid number, got '1:30'"),
        ("epochs: 1_0", "epochs: must be a valid integer, got '1_0'"),
        (
            "%YAML 1.1\n---\nbatch_norm: no",
            "must be YAML 1.2, in which `no` is a word and 010 is 10",
        ),
        # Wrong types and values.
        ("epochs: ٣", "epochs: must be a valid integer, got '٣'"),
        ("epochs: '3'", "epochs: must be a valid integer, got '3'"),
        ("epochs: 1.0", "epochs: must be a valid integer, got 1.0"),
        ("epochs: null", "epochs: must be a valid integer, got None"),
        ("epochs: {}", "epochs: must be a valid integer, got {}"),
        ("lr: .nan", "lr: must be a finite number, got nan"),
        ("lr: -.inf", "lr: must be a finite number, got -inf"),
        ("lr: 2024-01-01", "lr: must be a valid number, got datetime.date(2024, 1, 1)"),
        ("seeds: true", "seeds: must be a number from 1 or a list, got True"),
        ("seeds: []", "seeds: must be a number from 1 or a list, got []"),
        ("seeds: 1.5", "seeds: must be a number from 1 or a list, got 1.5"),
        (f"seeds: {2**64}", f"seeds: must be a number from 1 or a list, got {2**64}"),
        (f"seeds: [{2**64}]", f"seed: must be less than {SEED_LIMIT}, got {2**64}"),
        # Keys.
        ("epochs: 1\nlr: 0.1\nepochs: 2", 'line 3: found duplicate key "epochs"'),
        ("grid: {lr: [0.1], lr: [0.2]}", 'line 1: found duplicate key "lr"'),
        ("version: 9\nepocs: 3", None),
        ("grid: {seeds: [1]}", "grid.seeds[0]: unknown setting 'seeds'; did you mean 'seed'?"),
        ("grid: {lr: []}", "grid.lr: must be a list of values, got []"),
        ("grid: [1]", "grid: must map settings to lists, got [1]"),
        ("? [a]\n: 1", "must be a mapping of settings"),
        # What is no plain YAML.
        ("lr: !number 1", "line 1: could not determine a constructor for the tag '!number'"),
        ("lr: 0.1\n---\nlr: 0.2", "line 2: but found another document"),
        ("\tlr: 0.1", "line 1: found character '\\t' that cannot start any token"),
        ("lr: 0.1\0", "unacceptable character #x0000: special characters are not allowed"),
        # Deeper than 2,000 calls, which the compiler of torch allows once it has run.
        pytest.param("[" * 2_000, "nesting is too deep", id="deep"),
        # Names.
        ("name: ../up", None),
        ("name: a/b", None),
        ("name: -x", None),
        ("name: ''", None),
        ("name: 'a b'", None),
        ("name: ë", None),
        ("name: ..", None),
        (f"name: {'x' * 300}", None),
    ],
)
def test_a_wrong_study_is_one_line_per_mistake(text: str, line: str | None) -> None:
    Path("s.yaml").write_text(text)
    answer = ask("sweep", "s.yaml")
    assert (answer.code, answer.out) == (2, "")
    if text.startswith("name"):
        line = (
            "name: must be letters, digits, '.', '_' and '-', at most 64, and begin with a letter"
            f" or digit, got {text[6:].strip(chr(39))!r}"
        ).replace("x" * 300, "x" * 12 + "..." + "x" * 13)
    if text.startswith("version"):  # a file of another version of the tool
        first, second = answer.err.splitlines()
        assert first.startswith("nsrelu-bench: s.yaml: version: unknown setting 'version'; ")
        assert second.startswith("nsrelu-bench: s.yaml: epocs: unknown setting 'epocs'; did you")
    else:
        assert answer.err == f"nsrelu-bench: s.yaml: {line}\n"
    assert not Path("results").exists()


@pytest.mark.parametrize("key", ["lr", "act", "name", "seeds", "grid", "grid: {lr"])
def test_a_bomb_of_anchors_is_refused_and_not_printed(key: str) -> None:
    levels = ["a: &a [" + "x, " * 10 + "]"]
    levels += [
        f"{name}: &{name} [{', '.join([f'*{last}'] * 10)}]"
        for last, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    levels.append(f"{key}: *i{' }' * key.count('{')}")
    Path("s.yaml").write_text("\n".join(levels))
    answer = ask("sweep", "s.yaml")
    assert answer.code == 2
    lines = answer.err.splitlines()
    assert max(map(len, lines)) < 1000
    place = key.replace(": {", ".")
    assert any(line.startswith(f"nsrelu-bench: s.yaml: {place}") for line in lines)


def test_a_refused_file_is_neither_run_nor_written_to() -> None:
    Path("s.yaml").write_text("lr: !!python/object/apply:os.system ['touch pwned']\n")
    answer = ask("sweep", "s.yaml")
    assert answer.err == (
        "nsrelu-bench: s.yaml: line 1: could not determine a constructor for the tag"
        " 'tag:yaml.org,2002:python/object/apply:os.system'\n"
    )
    assert sorted(path.name for path in Path().iterdir()) == ["s.yaml"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (".", ".: Is a directory"),
        ("s.yaml/x", "s.yaml/x: Not a directory"),
        ("x" * 300, f"{'x' * 300}: File name too long"),
        ("a\nb.yaml", "a"),  # its name has two lines, and so has the message
    ],
)
def test_a_study_that_is_no_file_is_one_line(path: str, line: str) -> None:
    Path("s.yaml").touch()
    answer = ask("sweep", path)
    assert answer.code == 2
    assert answer.err.splitlines()[0] == f"nsrelu-bench: {line}"


def test_every_way_to_write_a_run_in_yaml_is_the_same_run() -> None:
    texts = [
        "lr: 0.001\nwidth: 8\nact: nsrelu(0.5)\nseeds: [3]",
        "\ufefflr: 1e-3\r\nwidth: 0o10\r\nact: nsrelu\r\nleak: .5\r\nseed: 3\r\n",
        "width: &w 8\nlr: 1.0e-3\nact: 'nsrelu( 0.50 )'\nseeds: [3, 3]",
    ]
    runs = []
    for text in texts:
        Path("s.yaml").write_bytes(text.encode())
        runs.append(read_study(Path("s.yaml")).runs)
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) == 1


def test_anchors_may_save_typing() -> None:
    Path("s.yaml").write_text("grid: {lr: &rates [0.1, 0.2], weight_decay: *rates}")
    assert len(read_study(Path("s.yaml")).runs) == 4


def test_a_grid_of_equal_runs_is_one_run() -> None:
    Path("s.yaml").write_text(f"grid: {{lr: [{'0.1,' * 1000}]}}")
    assert len(read_study(Path("s.yaml")).runs) == 1


# Variables.


@pytest.mark.parametrize(
    ("variable", "value", "reported"),
    [
        ("NSRELU_EPOCHS", "0", "must be greater than or equal to 1, got 0"),
        ("NSRELU_EPOCHS", "many", "must be a whole number, got 'many'"),
        ("NSRELU_LR", "nan", "must be a finite number, got nan"),
        ("NSRELU_WORKERS", "0", "must be from 1 to 1024, got 0"),
        ("NSRELU_BATCH_NORM", "maybe", "must be a valid boolean, got 'maybe'"),
    ],
)
def test_a_wrong_value_names_the_variable_it_came_from(
    variable: str, value: str, reported: str
) -> None:
    answer = ask("train", **{variable: value})
    assert (answer.code, answer.err) == (2, f"nsrelu-bench: {variable}: {reported}\n")


@pytest.mark.parametrize("flag", ["--epochs 0", "--epochs=0"])
def test_a_wrong_option_is_named_if_a_variable_is_set_too(flag: str) -> None:
    answer = ask("train", *flag.split(), NSRELU_EPOCHS="5")
    assert answer.err == "nsrelu-bench: --epochs: must be greater than or equal to 1, got 0\n"


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("train --results link", 1, "link/runs: can't be written ({broken})"),
        ("train --config link", 2, "link: {broken}"),
        ("compare link", 1, "no runs in 'link' ({broken}); create one with nsrelu-bench train"),
    ],
)
def test_a_broken_link_is_named(arguments: str, code: int, line: str) -> None:
    Path("link").symlink_to("/nowhere/x")
    answer = ask(*arguments.split())
    broken = "link is a link to /nowhere/x, which does not exist"
    assert (answer.code, answer.err) == (code, f"nsrelu-bench: {line.format(broken=broken)}\n")
