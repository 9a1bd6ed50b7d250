"""Comparing groups of runs: statistics over seeds, verdicts, tables."""

from nsrelu_bench.compare.baseline import find_baseline, read_baseline, settings_to_match
from nsrelu_bench.compare.columns import metrics_for
from nsrelu_bench.compare.comparison import Comparison, compare, summarise
from nsrelu_bench.compare.conditions import RELU_BASELINE, Baseline, select
from nsrelu_bench.compare.declared_tests import (
    Family,
    choose_family,
    declared,
    declared_family,
    read_margins,
)
from nsrelu_bench.compare.grouping import (
    ACT_COLUMNS,
    ACT_SETTINGS,
    COUNTED_STATES,
    act_order,
    format_setting,
    join_settings,
    name_arms,
    name_groups,
    parse_act,
    rank,
    settings_of,
    varies,
    varying_settings,
)
from nsrelu_bench.compare.labels import (
    check_metric,
    is_percent,
    label,
    metrics_among,
    scale_of,
)
from nsrelu_bench.compare.notes import notes
from nsrelu_bench.compare.outcomes import collapsed
from nsrelu_bench.compare.power import format_plan, plan_seeds
from nsrelu_bench.compare.sign_flips import sign_flip_interval, sign_flip_p, step_down_p
from nsrelu_bench.compare.statistics import (
    clopper_pearson,
    cohen_dz,
    holm,
    interquartile_mean,
    mcnemar_p,
    probability_of_improvement,
    score_distribution,
    t_half_width,
)
from nsrelu_bench.compare.tables import format_table, sheets_of
from nsrelu_bench.compare.verdicts import verdict_clauses, verdicts

__all__ = [
    "ACT_COLUMNS",
    "ACT_SETTINGS",
    "COUNTED_STATES",
    "RELU_BASELINE",
    "Baseline",
    "Comparison",
    "Family",
    "act_order",
    "check_metric",
    "choose_family",
    "clopper_pearson",
    "cohen_dz",
    "collapsed",
    "compare",
    "declared",
    "declared_family",
    "find_baseline",
    "format_plan",
    "format_setting",
    "format_table",
    "holm",
    "interquartile_mean",
    "is_percent",
    "join_settings",
    "label",
    "mcnemar_p",
    "metrics_among",
    "metrics_for",
    "name_arms",
    "name_groups",
    "notes",
    "parse_act",
    "plan_seeds",
    "probability_of_improvement",
    "rank",
    "read_baseline",
    "read_margins",
    "scale_of",
    "score_distribution",
    "select",
    "settings_of",
    "settings_to_match",
    "sheets_of",
    "sign_flip_interval",
    "sign_flip_p",
    "step_down_p",
    "summarise",
    "t_half_width",
    "varies",
    "varying_settings",
    "verdict_clauses",
    "verdicts",
]
