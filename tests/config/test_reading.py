from pathlib import Path

import pytest

from nsrelu_bench.config.reading import override, read_run, read_setting, run_config
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.config.yaml import format_yaml
from nsrelu_bench.errors import UsageError


def test_a_written_run_can_be_read_and_overridden(tmp_path: Path) -> None:
    written = RunConfig(act="nsrelu(0.1)", lr=0.3).settings
    (tmp_path / "config.yaml").write_text(format_yaml(written))
    settings = read_run(tmp_path / "config.yaml")
    assert run_config(override(settings, {"leak": 0.2})).act == "nsrelu(0.2)"
    assert run_config(override(settings, {"act": "relu"})).act == "relu"
    assert run_config(override(settings, {"optimizer": "adam"})).lr == 0.3


def test_a_stronger_activation_ignores_a_weaker_leak() -> None:
    weaker = {"act": "nsrelu", "leak": 0.2}
    assert run_config(override(weaker, {"act": "nsrelu(0.3)"})).act == "nsrelu(0.3)"
    assert run_config(override(weaker, {"leak": 0.3})).act == "nsrelu(0.3)"
    assert run_config(override(weaker, {"act": "relu"})).act == "relu"


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("lr=1e-3", ("lr", 0.001)),
        ("act=nsrelu(0.1)", ("act", "nsrelu(0.1)")),
        ("data_dir=007", ("data_dir", "007")),
        ("lr=[0.1, 0.2]", ("lr", [0.1, 0.2])),
        ("train_size=null", ("train_size", None)),
    ],
)
def test_a_setting_is_read_as_in_a_file(text: str, setting: tuple[str, object]) -> None:
    assert read_setting(text) == setting


@pytest.mark.parametrize("text", ["lr", "=3", "lr=[1", "a b=3", "lr=1\nseed: 3"])
def test_what_is_not_a_setting_is_one_line(text: str) -> None:
    with pytest.raises(UsageError) as error:
        read_setting(text)
    assert str(error.value) == (
        f"--set: must be a setting and its value, e.g. lr=0.1, got {text!r}"
    )


def test_a_setting_too_small_to_act_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"--set: lr: must be 0 or at least 1\.2e-38, got 1e-400"):
        read_setting("lr=1e-400")
