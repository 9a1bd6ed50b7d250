"""A template and the JSON schema of a study's file, made from the settings' fields."""

import json
from typing import Any

from nsrelu_bench.config.registry import METRICS
from nsrelu_bench.config.run import LABEL_PARTS, SETTINGS, ActivationParts, RunConfig
from nsrelu_bench.config.study import MAX_RUNS, NAME

HEAD = """\
# A study: every combination of the grid's values, for every seed. Run it with
#   nsrelu-bench sweep THIS-FILE
# name: leaks                        # of the folder in results/; otherwise that of this file
question: Does the leak change accuracy?
primary: test_accuracy               # the metric that decides
secondary: [zero_fraction, dead_fraction]
dataset: mnist5k
epochs: 5
grid:
  act: [relu, leaky_relu(0.1), nsrelu(0.1)]
  lr: [0.02, 0.05]
# exclude:                           # leave out runs that have all values of an entry
#   - {act: relu, lr: 0.05}
# include:                           # add further grids, with the settings outside of them
#   - {act: relu, batch_norm: true}
seeds: 6                             # 0 to 5; or a list

# Other settings, with their defaults. Each can be outside the grid or, as a list, in it.
"""


def study_template() -> str:
    """Return the text of a study with comments."""
    lines = [HEAD]
    values: dict[str, Any] = {"leak": 0.1, "alpha": 1.0, "backward": "leaky_relu", "gate": "always"}
    values |= RunConfig().settings
    section = ""
    for name, setting in sorted(SETTINGS.items(), key=lambda item: item[1].section):
        if name in ("act", "dataset", "epochs", "lr", "seed", "replicate"):
            continue
        if setting.section != section:
            section = setting.section
            lines.append(f"\n# {section.capitalize()}\n")
        value = json.dumps(values[name]) if not isinstance(values[name], str) else values[name]
        lines.append(f"{f'# {name}: {value}':36} # {setting.help}\n")
    return "".join(lines)


def study_schema() -> dict[str, Any]:
    """Return the JSON schema (2020-12) of a study's file."""
    fields = RunConfig.model_json_schema()["properties"]
    fields |= ActivationParts.model_json_schema()["properties"]
    settings = {name: _plain(field, name) for name, field in fields.items()}
    lists = {
        name: {"type": "array", "items": field, "minItems": 1} for name, field in settings.items()
    }
    either = {name: {"anyOf": [settings[name], lists[name]]} for name in settings}
    metric = {"type": "string", "examples": list(METRICS)}
    count = {"type": "integer", "minimum": 1, "maximum": MAX_RUNS}
    repeats = {"anyOf": [count, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]}

    def mapping(properties: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "additionalProperties": False}

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Study of nsrelu-bench",
        **mapping(
            {
                "name": {"type": "string", "pattern": f"^{NAME.pattern}$"},
                "question": {"type": "string", "description": "What the study is to answer"},
                "primary": metric | {"description": "The metric that decides"},
                "secondary": {"type": "array", "items": metric},
                **settings,
                "grid": mapping(lists) | {"description": "Lists, combined with each other"},
                "exclude": {"type": "array", "items": mapping(either)},
                "include": {"type": "array", "items": mapping(either)},
                "seeds": repeats,
                "replicates": repeats,
            }
        ),
    }


def _plain(field: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the schema of a setting without what only option texts need."""
    kept = {k: v for k, v in field.items() if k not in ("section", "usual", "names", "metavar")}
    if SETTINGS[name].names and not SETTINGS[name].closed:
        kept["examples"] = list(SETTINGS[name].names)
    if name in LABEL_PARTS:
        kept.pop("default", None)
    return kept
