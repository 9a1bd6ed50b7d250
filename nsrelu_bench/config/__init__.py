"""What a run and a study are: activations by name, settings, grids. No torch."""

from nsrelu_bench.config.activation_spec import (
    ACTIVATION_NAMES,
    ALIASES,
    FUNCTIONS,
    GATES,
    LEARNABLE,
    NUMBER,
    ActivationSpec,
    FunctionSpec,
    check_parameter,
    format_number,
    parse_activation,
    same_activation,
)
from nsrelu_bench.config.registry import (
    AUGMENTATIONS,
    DATASETS,
    FIGURES,
    MEASURES,
    MODELS,
    PLUGIN,
    SCORES,
)
from nsrelu_bench.config.run import ADDED, SETTINGS, RunConfig, override, read_run, run_config
from nsrelu_bench.config.setting import Setting
from nsrelu_bench.config.study import Study, make_study, read_study
from nsrelu_bench.config.yaml import parse_settings, read_setting, read_yaml, write_yaml

__all__ = [
    "ACTIVATION_NAMES",
    "ADDED",
    "ALIASES",
    "AUGMENTATIONS",
    "DATASETS",
    "FIGURES",
    "FUNCTIONS",
    "GATES",
    "LEARNABLE",
    "MEASURES",
    "MODELS",
    "NUMBER",
    "PLUGIN",
    "SCORES",
    "SETTINGS",
    "ActivationSpec",
    "FunctionSpec",
    "RunConfig",
    "Setting",
    "Study",
    "check_parameter",
    "format_number",
    "make_study",
    "override",
    "parse_activation",
    "parse_settings",
    "read_run",
    "read_setting",
    "read_study",
    "read_yaml",
    "run_config",
    "same_activation",
    "write_yaml",
]
