"""Settings that are compared like activations: ``relu redo=100`` beside ``relu``."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nsrelu_bench.compare.grouping import format_setting, settings_of
from nsrelu_bench.errors import lookup

#: Settings of the activation that its label leaves out.
ACT_SETTINGS = ("local", "leak_schedule")


def name_arms(
    runs: pd.DataFrame, config_columns: Sequence[str], arms: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Make settings part of the activations' labels, so that they are compared with one baseline.

    A value is left out of the label where it is that of most runs: with ``arms=["redo"]``
    the runs of relu are "relu" and "relu redo=100".

    Args:
        runs: One row per run, each with a configuration.
        config_columns: The columns of `runs` that are configuration.
        arms: The settings, beside those of the activation itself.

    Returns:
        The runs, with new labels in the column `act`, and the configuration without the settings.

    Raises:
        UsageError: There is no such setting.
    """
    settings = settings_of(runs, config_columns)
    for name in arms:
        lookup(dict.fromkeys(settings), name, "setting")
    folded = [name for name in dict.fromkeys((*ACT_SETTINGS, *arms)) if name in settings]
    act = runs["act"].astype(str)
    for name in folded:
        texts = runs[name].map(format_setting)
        suffixes = [_suffix(name, text) for text in texts]
        act += np.where(texts.isin(texts.mode()[:1]), "", suffixes)
    return runs.assign(act=act), [name for name in config_columns if name not in folded]


def _suffix(name: str, text: str) -> str:
    """Return what a setting adds to a label: " local", " redo=100"; nothing if it is not used."""
    if text == "true":
        return f" {name}"
    return f" {name}={text}" if text else ""
