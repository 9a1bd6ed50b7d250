"""Read a study, a grid of settings times seeds, and expand it to runs."""

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nsrelu_bench.config.reading import brief, mistake_lines, override, run_config
from nsrelu_bench.config.registry import METRICS, is_own
from nsrelu_bench.config.run import RunConfig, resolve_device
from nsrelu_bench.config.yaml import read_settings
from nsrelu_bench.errors import UsageError, unknown

#: The keys that repeat each configuration, and the setting that each varies.
REPEAT_KEYS = {"seeds": "seed", "replicates": "replicate"}

#: A grid larger than this is a mistake, and is refused before it is expanded.
MAX_RUNS = 100_000


@dataclass(frozen=True)
class Study:
    """The runs of one config file, without duplicates, in the order of the grid.

    `name` is that of its folder, `asked` the settings as they were given, before their expansion.
    """

    name: str
    runs: list[RunConfig]
    asked: Mapping[str, Any]


def read_study(path: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read a study: settings, a grid of lists to combine, what to leave out and add, and seeds.

    Raises:
        UsageError: One line for each mistake in the file, with its place and what is allowed.
    """
    stronger = overrides or {}
    settings = override(read_settings(path), stronger)
    if "grid" in settings:
        settings["grid"] = _without(settings["grid"], stronger)
    if isinstance(settings.get("include"), list):
        settings["include"] = [_without(entry, stronger) for entry in settings["include"]]
    name = re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]+", "-", path.stem).strip("-")[:64] or "study"
    return make_study(settings, name, lambda key: f"{path}: {key}", strict=not stronger)


def _without(grid: Any, keys: Collection[str]) -> Any:
    """Drop from a grid the settings of a stronger source."""
    return {k: v for k, v in grid.items() if k not in keys} if isinstance(grid, Mapping) else grid


def make_study(
    settings: Mapping[str, Any],
    default_name: str,
    place: Callable[[str], str] = str,
    *,
    strict: bool = True,
) -> Study:
    """Expand settings with a `grid` and `seeds` to the runs of a study.

    `exclude` leaves out the combinations that have all values of one of its entries; each entry
    of `include` adds a grid of its own, on top of the settings outside it. No run depends on the
    `question`, nor on the `primary` and `secondary` metrics that compare tests.

    Args:
        settings: As in a study's file.
        default_name: The name where they have none.
        place: Names a setting to the user.
        strict: Whether an entry of `exclude` that leaves nothing out is a mistake.

    Raises:
        UsageError: One line for each mistake, with its place and what is allowed.
    """
    fixed = _resolve_devices(settings)
    asked = {"name": default_name} | fixed
    name = fixed.pop("name", default_name)
    given = {key: fixed.pop(key, None) for key in REPEAT_KEYS}
    repeats = {key: value for key, value in given.items() if value is not None}
    grid = fixed.pop("grid", None) or {}
    exclude = fixed.pop("exclude", None) or []
    include = fixed.pop("include", None) or []
    mistakes = _question_mistakes(fixed.pop("question", None), place)
    mistakes += _family_mistakes(fixed.pop("primary", None), fixed.pop("secondary", None), place)
    mistakes += _study_mistakes(name, fixed, grid, repeats, place)
    mistakes += _entry_mistakes(exclude, place("exclude"))
    mistakes += _entry_mistakes(include, place("include"))
    if mistakes:
        raise UsageError("\n".join(mistakes))

    repeating = {
        REPEAT_KEYS[key]: list(range(value)) if isinstance(value, int) else value
        for key, value in repeats.items()
    }
    parts = [(override(fixed, entry), entry) for entry in map(_listed, include)]
    grids = [
        (base, {**axes, **{key: repeating[key] for key in repeating if key not in axes}})
        for base, axes in ((fixed, grid), *parts)
    ]
    size = sum(math.prod(map(len, axes.values())) for _, axes in grids)
    if size > MAX_RUNS:
        raise UsageError(f"{place('grid')}: makes {size} runs, at most {MAX_RUNS} are allowed")
    runs, *added = [_expand(base, axes, place) for base, axes in grids]
    for index, entry in enumerate(map(_listed, exclude)):
        kept = [run for run in runs if not _has_all(run, entry)]
        if strict and len(kept) == len(runs):
            raise UsageError(f"{place('exclude')}[{index}]: leaves out no run of the grid")
        runs = kept
    return Study(name, _distinct(itertools.chain(runs, *added), place), asked)


def _resolve_devices(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the device "auto" by what it is here, so that a study has the same runs elsewhere."""
    resolved = dict(settings)
    device = settings.get("device")
    if isinstance(device, list):
        resolved["device"] = [resolve_device(d) if d == "auto" else d for d in device]
    elif device == "auto":
        resolved["device"] = resolve_device(device)
    if isinstance(settings.get("grid"), Mapping):
        resolved["grid"] = _resolve_devices(settings["grid"])
    if isinstance(include := settings.get("include"), list):
        resolved["include"] = [
            _resolve_devices(e) if isinstance(e, Mapping) else e for e in include
        ]
    return resolved


def _distinct(runs: Iterable[RunConfig], place: Callable[[str], str]) -> list[RunConfig]:
    """Return runs without duplicates.

    Raises:
        UsageError: Two different runs have the same id: its eight hex digits agree by chance.
    """
    found: dict[str, RunConfig] = {}
    for run in runs:
        other = found.setdefault(run.run_id, run)
        if other is run or other == run:
            continue
        ours, theirs = run.settings, other.settings
        differ = [name for name in ours if name != "data_dir" and ours[name] != theirs[name]]
        if differ:
            first, second = (
                ", ".join(f"{name} {settings[name]}" for name in differ)
                for settings in (theirs, ours)
            )
            raise UsageError(
                f"{place('grid')}: {first} and {second} have the same run id, {run.run_id};"
                " change the last digit of one"
            )
    return list(found.values())


def _listed(entry: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: value if isinstance(value, list) else [value] for key, value in entry.items()}


def _expand(
    base: Mapping[str, Any], axes: Mapping[str, list[Any]], place: Callable[[str], str]
) -> list[RunConfig]:
    combinations = itertools.product(*axes.values())
    return [
        run_config({**base, **dict(zip(axes, values, strict=True))}, place)
        for values in combinations
    ]


def _has_all(run: RunConfig, entry: Mapping[str, list[Any]]) -> bool:
    return all(any(_has(run, key, value) for value in values) for key, values in entry.items())


def _has(run: RunConfig, key: str, value: Any) -> bool:
    """Return whether a run has a setting: giving it leaves the run the same."""
    if (
        key in ("leak", "alpha")
        and key not in run.activation.forward.values | run.activation.backward.values
    ):
        return False
    try:
        return run_config(override(run.settings, {key: value})) == run
    except UsageError:  # it contradicts another setting of the run
        return False


def _study_mistakes(
    name: Any,
    fixed: Mapping[str, Any],
    grid: Any,
    repeats: Mapping[str, Any],
    place: Callable[[str], str],
) -> list[str]:
    """Check each setting of a study separately, so that all mistakes are reported at once."""
    mistakes = []
    if not isinstance(name, str) or not NAME.fullmatch(name):
        mistakes.append(
            f"{place('name')}: must be letters, digits, '.', '_' and '-', at most 64,"
            f" and begin with a letter or digit, got {brief(name)}"
        )
    outside = {**fixed, **(grid if isinstance(grid, Mapping) else {})}
    for key, value in repeats.items():
        if not _valid_repeats(value):
            mistakes.append(f"{place(key)}: must be a number from 1 or a list, got {brief(value)}")
        if REPEAT_KEYS[key] in outside:
            mistakes.append(f"{place(REPEAT_KEYS[key])}: can't be given together with {key}")
    for key, value in fixed.items():
        mistakes += _setting_mistakes(key, value, place(str(key)))
    if not isinstance(grid, Mapping):
        return [*mistakes, f"{place('grid')}: must map settings to lists, got {brief(grid)}"]
    for key, values in grid.items():
        where = place(f"grid.{key}")
        if not isinstance(values, list) or not values:
            mistakes.append(f"{where}: must be a list of values, got {brief(values)}")
            continue
        if key in fixed:
            mistakes.append(f"{where}: is also given outside the grid")
        for index, value in enumerate(values):
            mistakes += _setting_mistakes(key, value, f"{where}[{index}]")
    return mistakes


def _question_mistakes(question: Any, place: Callable[[str], str]) -> list[str]:
    if question is None or (isinstance(question, str) and 0 < len(question.strip()) <= 500):
        return []
    return [f"{place('question')}: must be a text of at most 500 characters, got {brief(question)}"]


def _family_mistakes(primary: Any, secondary: Any, place: Callable[[str], str]) -> list[str]:
    """Check the metrics that `compare` tests; no run depends on them."""
    mistakes = []
    if secondary is not None and not isinstance(secondary, list):
        mistakes.append(f"{place('secondary')}: must be a list of metrics, got {brief(secondary)}")
        secondary = None
    named = [("primary", primary)] if primary is not None else []
    named += [(f"secondary[{index}]", name) for index, name in enumerate(secondary or [])]
    for key, name in named:
        if name not in METRICS and not (isinstance(name, str) and is_own(name)):
            wrong = name if isinstance(name, str) else brief(name)
            mistakes.append(f"{place(key)}: {unknown(wrong, METRICS, 'metric', brief=True)}")
    return mistakes


def _entry_mistakes(entries: Any, where: str) -> list[str]:
    """Check a list of mappings from settings to a value or a list of values."""
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        return [
            f"{where}: must be a list of mappings from settings to values, got {brief(entries)}"
        ]
    mistakes = []
    for index, entry in enumerate(entries):
        if not entry or [] in entry.values():
            mistakes.append(
                f"{where}[{index}]: must name a setting and its values, got {brief(entry)}"
            )
        for key, values in _listed(entry).items():
            for value in values:
                mistakes += _setting_mistakes(key, value, f"{where}[{index}].{key}")
    return mistakes


def _valid_repeats(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(s, int) and not isinstance(s, bool) for s in value)
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RUNS


def _setting_mistakes(key: Any, value: Any, where: str) -> list[str]:
    try:
        RunConfig.model_validate({key: value})
    except ValidationError as error:
        return mistake_lines(error, lambda _: where)
    return []


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
