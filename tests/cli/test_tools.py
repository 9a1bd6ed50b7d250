import json
from pathlib import Path

import pytest
from helpers.command_line import ask

from nsrelu_bench.activations import functional
from nsrelu_bench.config import (
    DATASETS,
    FIGURES,
    GATES,
    MODEL_SIZES,
    OPTIMIZERS,
    SCHEDULES,
    SITE_MEASURES,
)
from nsrelu_bench.plot import figure_specs
from nsrelu_bench.tools import check

FEW_CASES = {"values", "double backward", "torch.func.jvp", "in place", "other forms"}


@pytest.fixture
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check few cases: tests/tools/test_check.py has them all."""
    for name in ("CASES", "GATE_CASES"):
        cases = getattr(check, name).items()
        monkeypatch.setattr(check, name, {case: run for case, run in cases if case in FEW_CASES})


@pytest.mark.usefixtures("few_cases")
def test_check_agrees() -> None:
    answer = ask("check", "--no-compile")
    assert answer.code == 0
    for subject in (*functional.IMPLS, *(set(GATES) - {"always"})):
        assert subject in answer.out


@pytest.mark.usefixtures("few_cases")
def test_check_exits_1_on_a_disagreement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(functional.IMPLS, "native", lambda x, _: x.relu())
    answer = ask("check", "--no-compile")
    assert answer.code == 1
    assert "disagree" in answer.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("born-dead --width 2.5", "--width: must be a whole number, got '2.5'"),
        ("born-dead --width 1e9", "--width: must be a whole number, got '1e9'"),
        ("born-dead --depth 2,,3", "--depth: must be a whole number, got ''"),
        ("born-dead --width 0", "--width: must be from 1 to 100000, got 0"),
        ("born-dead --depth 1", "--depth: must be from 2 to 100000, got 1"),
        ("born-dead --trials 0", "--trials: must be from 1 to 1000000000, got 0"),
        ("born-dead --seed -1", "--seed: must be from 0 to 9223372036854775807, got -1"),
        ("ops --sizes 4,99", "--sizes: must be from 1 to 28, got 99"),
        ("ops --threads 0", "--threads: must be from 1 to 1024, got 0"),
    ],
)
def test_a_wrong_value_is_one_line(arguments: str, line: str) -> None:
    answer = ask(*arguments.split())
    assert (answer.code, answer.err) == (2, f"nsrelu-bench: {line}\n")


def test_born_dead_prints_a_table_or_json() -> None:
    arguments = ("born-dead", "--width", "1", "--depth", "2,3", "--trials", "100")
    assert ask(*arguments).out.split()[:3] == ["width", "depth", "trials"]
    first, second = json.loads(ask(*arguments, "--json").out)
    assert (first["depth"], first["probability"]) == (2, 0)
    assert 0.3 < second["probability"] < 0.7


def test_ops_checks_its_folder_before_it_measures(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = ask("ops", "--out", "file/x", "--sizes", "28", cwd=tmp_path)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == "nsrelu-bench: file/x: can't be written (Not a directory)\n"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("activations", ["relu", "nsrelu"]),
        ("gates", GATES),
        ("models", MODEL_SIZES),
        ("datasets", [*DATASETS, "folder", "package.module"]),
        ("optimizers", OPTIMIZERS),
        ("schedules", SCHEDULES),
        ("metrics", ["test_accuracy", "val_loss", *SITE_MEASURES]),
        ("figures", FIGURES),
    ],
)
def test_list_names_everything_of_a_kind(kind: str, names: list[str]) -> None:
    lines = ask("list", kind).out.splitlines()
    assert lines[0] == f"{kind}:"
    assert {*names} <= {line.strip().partition(":")[0] for line in lines}
    assert "\n".join(lines) in ask("list").out


def test_every_figure_is_described() -> None:
    assert list(figure_specs.PLANS) == list(FIGURES)


@pytest.mark.parametrize(("found", "used"), [("cuda", "cuda"), ("mps", "cpu"), ("cpu", "cpu")])
def test_ops_takes_a_device_that_is_there(
    found: str, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    monkeypatch.setattr("nsrelu_bench.cli.tools.resolve_device", lambda _: found)
    monkeypatch.setattr(
        "nsrelu_bench.tools.ops.run_ops",
        lambda sizes, dtypes, **options: given.extend([sizes, dtypes, options["device"]]) or [],
    )
    monkeypatch.setattr("nsrelu_bench.tools.ops.save_ops", lambda *_: [])
    ask("ops", "--device", "auto", "--sizes", "2, 3", "--dtypes", "float32, float64", cwd=tmp_path)
    assert given == [[4, 8], ["float32", "float64"], used]
