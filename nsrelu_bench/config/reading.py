"""Read, merge and check the settings of files and options; each mistake is one line."""

import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nsrelu_bench.config.activation_spec import forget
from nsrelu_bench.config.run import LABEL_PARTS, SETTINGS, RunConfig
from nsrelu_bench.config.yaml import parse_yaml, read_settings
from nsrelu_bench.errors import UsageError, unknown


def read_setting(text: str) -> tuple[str, Any]:
    """Read ``key=value``, the value as in a file.

    Raises:
        UsageError: It is something else.
    """
    from ruamel.yaml.error import YAMLError

    key, equals, value = text.partition("=")
    try:
        if equals and key.isidentifier():
            ((key, value),) = parse_yaml(f"{key}: {value}").items()
            return key, value
    except UsageError as error:
        raise UsageError(f"--set: {key}: {str(error).removeprefix('line 1: ')}") from None
    except (YAMLError, ValueError):
        pass
    raise UsageError(f"--set: must be a setting and its value, e.g. lr=0.1, got {text!r}")


def run_config(settings: Mapping[str, Any], place: Callable[[str], str] = str) -> RunConfig:
    """Return the configuration of plain settings; `place` names a setting to the user.

    Raises:
        UsageError: One line per mistake: the setting, its value and what is allowed.
    """
    try:
        return RunConfig.model_validate(dict(settings))
    except ValidationError as error:
        raise UsageError("\n".join(mistake_lines(error, place))) from None


def read_run(path: Path) -> dict[str, Any]:
    """Read the settings of one run from a YAML file such as a run folder's config.yaml.

    Raises:
        UsageError: The file can't be read, or a setting in it is wrong.
    """
    settings = read_settings(path)
    run_config(settings, lambda key: f"{path}: {key}")
    return settings


def override(settings: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings of two sources, such as a file and the command line."""
    merged = {**settings, **stronger}
    if "act" in stronger:
        # A stronger activation also replaces a leak or backward of the weaker source.
        merged = {k: v for k, v in merged.items() if k not in LABEL_PARTS or k in stronger}
    elif isinstance(settings.get("act"), str):
        # A separate leak or backward replaces that in the weaker source's label.
        merged["act"] = forget(settings["act"], set(LABEL_PARTS) & set(stronger))
    return merged


def mistake_lines(error: ValidationError, place: Callable[[str], str]) -> list[str]:
    """Describe each mistake that pydantic found in one line."""
    lines = []
    for detail in error.errors(include_url=False):
        if detail["type"] == "default_factory_not_called":
            continue  # it depends on a setting whose mistake is reported
        message = detail["msg"].replace("Input should be", "must be")
        message = message.removeprefix("Value error, ")
        # A mistake in a label is found before pydantic looks at its field, and names its part.
        part = next((part for part in LABEL_PARTS if _names_part(message, part, detail)), "act")
        key = str(detail["loc"][0]) if detail["loc"] else part
        named, _, rest = message.partition(": ")
        if not detail["loc"] and named in RunConfig.model_fields:
            key, message = named, rest
        if detail["type"] == "extra_forbidden":
            message = str(unknown(key, SETTINGS, "setting", brief=True))
        elif detail["type"] != "value_error":
            message = f"{message}, got {brief(detail['input'])}"
        where = place(key)
        lines.append(f"{where}: {message.removeprefix(f'{key} ') if key in where else message}")
    return lines


def _names_part(message: str, part: str, detail: Any) -> bool:
    """Whether a mistake in an activation's label is in the setting `part` of it."""
    given = isinstance(detail["input"], Mapping) and part in detail["input"]
    return message.startswith(f"{part} ") or (given and message.startswith(f"unknown {part} "))


def brief(value: Any) -> str:
    """Return a short text of a wrong value, however large it is."""
    short = reprlib.Repr()
    short.maxlevel = 2
    return short.repr(value)
