"""Compute digests of a run's inputs: its data, and the source of the user's own parts."""

import re

from nsrelu_bench.config import PLUGIN, RunConfig
from nsrelu_bench.plugins import load_plugin, source_digest


def input_digests(config: RunConfig, *, imported: bool = False) -> dict[str, str | None]:
    """Return the SHA-256 of a run's data, and that of the source of each plug-in.

    `imported` imports the plug-ins, so that the digests are of the sources that are run here.

    Raises:
        BenchError: The data set can't be loaded or a plug-in can't be found; with `imported`, a
            plug-in fails or was changed since it was imported.
    """
    from nsrelu_bench.data import data_digest

    if imported:
        for setting, name in plugins(config):
            load_plugin(setting, name)
    sources = sorted({f"{name} {source_digest(name)}" for _, name in plugins(config)})
    return {"data_digest": data_digest(config), "source_digest": ", ".join(sources) or None}


def plugins(config: RunConfig) -> list[tuple[str, str]]:
    """Return the user's own parts that a run uses, as (setting, ``package.module:name``)."""
    texts = {
        setting: value
        for setting, value in config.settings.items()
        if isinstance(value, str) and setting != "data_dir" and not _is_folder(value)
    }
    return [(key, match[0]) for key, text in texts.items() for match in PLUGIN.finditer(text)]


def may_change(config: RunConfig) -> bool:
    """Return whether the user can change the inputs of a run without changing its settings.

    Published data sets are checked by their hashes when they are read.
    """
    return _is_folder(config.dataset) or bool(plugins(config))


def shorten(digests: str) -> str:
    """Shorten each SHA-256 in a text to its first 12 digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", digests)


def _is_folder(value: str) -> bool:
    return value.startswith("folder:")
