from pathlib import Path

import pytest

from nsrelu_bench.config.study import read_study
from nsrelu_bench.config.yaml import format_yaml, parse_yaml, read_settings
from nsrelu_bench.errors import UsageError


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("- relu\n", "must be a mapping of settings"),
        ("", "must be a mapping of settings"),
        ("a: [1\n", "line 2: expected ','"),
        ("1: 2\n", "must be a mapping of settings"),
    ],
)
def test_a_file_without_settings_is_reported_with_its_line(
    tmp_path: Path, text: str, reported: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        read_settings(path)
    assert str(error.value).startswith(f"{path}:")
    assert reported in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_not_a_text_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Is a directory"):
        read_settings(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        read_settings(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_settings(tmp_path / "binary")
    (tmp_path / "large").write_bytes(b"#" * 2_000_000)
    with pytest.raises(UsageError, match="larger than"):
        read_settings(tmp_path / "large")


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = write(tmp_path, "lr: 1e-3\nbatch_norm: true\nwidth: 010\n")
    study = read_study(path)
    assert (study.runs[0].lr, study.runs[0].batch_norm, study.runs[0].width) == (0.001, True, 10)


@pytest.mark.parametrize("text", ["2024", "007", "1e5", "2024-01-01", "null", "~", "true", ".nan"])
def test_a_name_that_looks_like_something_else_stays_text(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"data_dir: {text}\ngrid: {{dataset: [{text}]}}\ntrain_size: null")
    assert read_settings(path) == {
        "data_dir": text,
        "grid": {"dataset": [text]},
        "train_size": None,
    }
    assert parse_yaml(format_yaml({"data_dir": text})) == {"data_dir": text}


@pytest.mark.parametrize(
    "code", [0x1, 0x9, 0xA, 0xD, 0x7F, 0x85, 0x9F, 0xA0, 0x2028, 0x2029, 0xFEFF]
)
def test_a_rare_character_of_a_path_is_read_as_written(code: int) -> None:
    for path in (f"a{chr(code)}b", chr(code), f"a {chr(code)} b{chr(code)}"):
        assert parse_yaml(format_yaml({"data_dir": path})) == {"data_dir": path}


def test_an_empty_value_and_an_alias_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path, "data_dir:\nepochs: &n 7\nname: *n\nwidth: *n")
    assert read_settings(path) == {"data_dir": None, "epochs": 7, "name": "7", "width": 7}


@pytest.mark.parametrize("text", ["1e-400", "-0.001e-999", "[0.1, 1e-400]", "{a: 1e-400}"])
def test_a_number_too_small_for_a_float_is_refused(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"epochs: 1\nlr: {text}")
    with pytest.raises(UsageError, match=r"line 2: must be 0 or at least 1.2e-38, got -?[\d.]+e-"):
        read_settings(path)
    assert read_settings(write(tmp_path, "lr: 0.0e-400")) == {"lr": 0.0}
