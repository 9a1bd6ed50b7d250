"""What a run and a study are: activations by name, settings, grids. No torch."""

from nsrelu_bench.config.activation_spec import (
    ACTIVATION_NAMES,
    FUNCTION_PARAMETERS,
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
from nsrelu_bench.config.reading import override, read_run, read_setting, run_config
from nsrelu_bench.config.registry import (
    CLASSES,
    DATASETS,
    FIGURES,
    METRICS,
    MODEL_SIZES,
    OPTIMIZERS,
    PLUGIN,
    PLUGIN_FORM,
    SCHEDULES,
    SITE_MEASURES,
    TEST_IMAGES,
    check_name,
    is_own,
)
from nsrelu_bench.config.run import ADDED, SETTINGS, RunConfig, resolve_device
from nsrelu_bench.config.run_names import find_varying, name_run, name_setting
from nsrelu_bench.config.setting import Setting
from nsrelu_bench.config.study import Study, make_study, read_study
from nsrelu_bench.config.template import study_schema, study_template
from nsrelu_bench.config.yaml import parse_settings, read_settings, write_yaml

__all__ = [
    "ACTIVATION_NAMES",
    "ADDED",
    "CLASSES",
    "DATASETS",
    "FIGURES",
    "FUNCTION_PARAMETERS",
    "GATES",
    "LEARNABLE",
    "METRICS",
    "MODEL_SIZES",
    "NUMBER",
    "OPTIMIZERS",
    "PLUGIN",
    "PLUGIN_FORM",
    "SCHEDULES",
    "SETTINGS",
    "SITE_MEASURES",
    "TEST_IMAGES",
    "ActivationSpec",
    "FunctionSpec",
    "RunConfig",
    "Setting",
    "Study",
    "check_name",
    "check_parameter",
    "find_varying",
    "format_number",
    "is_own",
    "make_study",
    "name_run",
    "name_setting",
    "override",
    "parse_activation",
    "parse_settings",
    "read_run",
    "read_setting",
    "read_settings",
    "read_study",
    "resolve_device",
    "run_config",
    "same_activation",
    "study_schema",
    "study_template",
    "write_yaml",
]
