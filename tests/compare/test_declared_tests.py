"""Where the family of tests is declared: in studies, and on the command line."""

import json
import re
from pathlib import Path

import pytest
from helpers.made_up import TWO
from typer.testing import CliRunner

from nsrelu_bench.cli import app as cli
from nsrelu_bench.compare.declared_tests import declared_family, read_margins
from nsrelu_bench.config.registry import CLASSES, DATASETS, TEST_IMAGES
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.config.study import read_study
from nsrelu_bench.data import load_dataset
from nsrelu_bench.errors import UsageError
from nsrelu_bench.records.frames import complete, to_csv


def make_study(folder: Path, text: str = "") -> Path:
    """Write a study that is a summary.csv, and what it declares."""
    folder.mkdir()
    runs = complete(TWO.assign(study=folder.name))
    (folder / "summary.csv").write_text(to_csv(runs))
    if text:
        (folder / "study.yaml").write_text(text)
    return folder


def compared(*arguments: str | Path) -> dict:
    answer = CliRunner().invoke(cli.app, ["compare", *map(str, arguments), "--json"])
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


def test_a_study_declares_its_family(tmp_path: Path) -> None:
    study = make_study(tmp_path / "a", "primary: grad_norm\nsecondary: [test_accuracy]\n")
    assert declared_family(study) == {"primary": "grad_norm", "secondary": ["test_accuracy"]}
    content = compared(study)
    assert (content["primary"], content["secondary"]) == ("grad_norm", ["test_accuracy"])


def test_options_win_over_what_a_study_declares(tmp_path: Path) -> None:
    study = make_study(tmp_path / "a", "primary: grad_norm\nsecondary: [test_accuracy]\n")
    content = compared(
        study, "--primary", "test_accuracy", "--secondary", "none", "--margin", "0.5"
    )
    assert (content["primary"], content["secondary"]) == ("test_accuracy", [])
    assert content["margins"] == {"test_accuracy": 0.005}


def test_studies_that_declare_nothing_have_the_usual_family(tmp_path: Path) -> None:
    assert declared_family(make_study(tmp_path / "a")) == {}
    assert compared(tmp_path / "a")["secondary"] == ["zero_fraction", "dead_fraction"]


def test_studies_that_declare_different_metrics_are_refused(tmp_path: Path) -> None:
    one = make_study(tmp_path / "a", "primary: grad_norm\n")
    other = make_study(tmp_path / "b", "primary: val_accuracy\n")
    message = (
        f"{one} and {other} have different primary metrics, grad_norm and val_accuracy;"
        " choose with --primary"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        declared_family(tmp_path)
    assert compared(one, other, "--primary", "test_accuracy")["primary"] == "test_accuracy"


def test_what_one_study_declares_is_not_tested_in_another(tmp_path: Path) -> None:
    make_study(tmp_path / "a", "primary: test_accuracy\n")
    make_study(tmp_path / "b")
    assert declared_family(tmp_path) == {"primary": "test_accuracy"}
    make_study(tmp_path / "c", "secondary: []\n")
    message = "a and .*c have different secondary metrics, .'zero_fraction', 'dead_fraction'. and"
    with pytest.raises(UsageError, match=message):
        declared_family(tmp_path)


@pytest.mark.parametrize(
    ("texts", "margins"),
    [
        ([], {}),
        (["0.5"], {"test_accuracy": 0.005}),
        (
            ["0.5,zero_fraction=3", "grad_norm=2"],
            {"test_accuracy": 0.005, "zero_fraction": 0.03, "grad_norm": 2},
        ),
    ],
)
def test_margins_are_in_points(texts: list[str], margins: dict[str, float]) -> None:
    assert read_margins(texts, "test_accuracy") == pytest.approx(margins)


def test_a_margin_that_is_no_number_is_refused() -> None:
    with pytest.raises(UsageError, match="margin must be a number or metric=number, got 'zeros=x'"):
        read_margins(["zeros=x"], "test_accuracy")


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("primary: accuracy", "primary: unknown metric 'accuracy'; did you mean"),
        ("secondary: zero_fraction", "secondary: must be a list of metrics, got 'zero_fraction'"),
        ("secondary: [dead_fraction, zeros]", "secondary[1]: unknown metric 'zeros'"),
    ],
)
def test_a_study_that_declares_no_metric_is_refused(
    tmp_path: Path, text: str, mistake: str
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(mistake)):
        read_study(file)


def test_what_a_study_declares_changes_no_run(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("primary: val_accuracy\nsecondary: [zero_fraction]\n")
    study = read_study(file)
    assert [run.run_id for run in study.runs] == [RunConfig().run_id]
    assert study.asked["primary"] == "val_accuracy"


def test_every_data_set_has_its_classes_and_test_images() -> None:
    assert set(CLASSES) == set(TEST_IMAGES) == set(DATASETS)


@pytest.mark.parametrize("name", ["mnist5k", "digits", "synthetic"])
def test_classes_and_test_images_are_those_of_the_data(name: str) -> None:
    data = load_dataset(RunConfig(dataset=name))
    assert (CLASSES[name], TEST_IMAGES[name]) == (data.classes, len(data.test))
