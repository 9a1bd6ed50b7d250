from nsrelu_bench import models
from nsrelu_bench.activations import functional
from nsrelu_bench.config.run import SETTINGS, RunConfig
from nsrelu_bench.training import optimizers


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
    assert SETTINGS["precision"].metavar == "[fp32|bf16]"


def test_an_open_choice_has_known_names() -> None:
    assert not SETTINGS["act"].closed
    assert "nsrelu" in SETTINGS["act"].names
    assert set(SETTINGS["schedule"].names) == set(optimizers.SCHEDULE_FACTORS)
    assert (SETTINGS["train_size"].kind, SETTINGS["train_size"].default) == (int, "all")
