"""Check that a folder has the run that is asked for, with the same inputs."""

from pathlib import Path
from typing import Any

from nsrelu_bench.config import RunConfig, parse_settings, run_config
from nsrelu_bench.errors import BenchError
from nsrelu_bench.files import read_bytes
from nsrelu_bench.records.environment import INPUTS, read_environment
from nsrelu_bench.records.input_digests import input_digests, may_change, shorten
from nsrelu_bench.records.schema import CONFIG


def check_configuration(folder: Path, config: RunConfig) -> None:
    """Check that the run in a folder has the settings of `config`; a new or damaged one passes.

    The eight hex digits of two run ids can be equal by chance.

    Raises:
        BenchError: It has other settings.
        OSError: Its config.yaml can't be read.
    """
    try:
        theirs = parse_settings(read_bytes(folder / CONFIG), CONFIG)
        ours = config.settings
        if theirs == ours:
            return
        theirs = run_config(theirs).settings
    except (FileNotFoundError, ValueError):
        return
    differ = [name for name in ours if name != "data_dir" and theirs[name] != ours[name]]
    if differ:
        raise BenchError(
            f"{folder}: has another run, with {_join(theirs, differ)} instead of"
            f" {_join(ours, differ)}; use another --results or another name of the study"
        )


def check_inputs(folder: Path, config: RunConfig) -> None:
    """Check that the data and the sources of a done run have not changed.

    Passes if they can't change, were not recorded, or are missing now.

    Raises:
        BenchError: They have changed.
        OSError: Its env.json can't be read.
    """
    if not may_change(config):
        return
    then = read_environment(folder)
    try:
        now = input_digests(config)
    except BenchError:
        return
    for name in INPUTS:
        before, after = then.get(name), now[name]
        if isinstance(before, str) and after is not None and before != after:
            what = "data" if name == "data_digest" else "source"
            raise BenchError(
                f"{folder}: is done, but its {what} has changed: SHA-256 {shorten(after)} instead"
                f" of {shorten(before)}; rerun it with --fresh"
            )


def _join(settings: dict[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name} {settings[name]}" for name in names[:3])
