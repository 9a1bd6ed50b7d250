"""What to call a run for people: what it is, and what tells it from the others of its study."""

from collections.abc import Sequence
from typing import Any

from nsrelu_bench.config.activation_spec import format_number
from nsrelu_bench.config.run import RunConfig

#: The settings that every name and every id has.
ALWAYS_NAMED = ("act", "dataset", "model", "seed")


def find_varying(runs: Sequence[RunConfig]) -> list[str]:
    """Return the settings that differ between runs, beside those that every name has."""
    all_settings = [config.settings for config in runs]
    return [
        name
        for name in RunConfig.model_fields
        if name not in ALWAYS_NAMED and len({repr(settings[name]) for settings in all_settings}) > 1
    ]


def name_run(config: RunConfig, varying: Sequence[str] = ("lr",)) -> str:
    """Name a run, with the settings that `find_varying` has found for its study.

    For example "nsrelu(0.1) on mnist5k, mlp, lr 0.01, seed 3".
    """
    values = [name_setting(config, name) for name in varying]
    kind = [f"{config.act} on {config.dataset}", config.model]
    return ", ".join([*kind, *values, f"seed {config.seed}"])


def name_setting(config: RunConfig, name: str) -> str:
    """Name a setting of a run: "lr 0.01", "batch_norm true", "momentum none"."""
    value: Any = config.settings[name]
    if isinstance(value, bool) or value is None:
        return f"{name} {str(value).lower()}"
    return f"{name} {format_number(value) if isinstance(value, float) else value}"
