from nsrelu_bench import models
from nsrelu_bench.activations import functional
from nsrelu_bench.config.run import SETTINGS, RunConfig


def test_every_setting_is_described() -> None:
    assert set(RunConfig.model_fields) < set(SETTINGS)
    for setting in SETTINGS.values():
        assert setting.help[0].isupper()
        assert not setting.help.endswith(".")
        assert len(setting.help) <= 90


def test_a_closed_choice_names_what_the_code_offers() -> None:
    assert set(SETTINGS["impl"].names) == set(functional.IMPLS)
    assert set(SETTINGS["init"].names) == set(models.INITS)
    assert SETTINGS["impl"].closed
    assert SETTINGS["optimizer"].metavar == "[sgd|adam|adamw]"


def test_an_open_choice_has_known_names() -> None:
    assert not SETTINGS["act"].closed
    assert "nsrelu" in SETTINGS["act"].names
    assert (SETTINGS["train_size"].kind, SETTINGS["train_size"].default) == (int, "all")
