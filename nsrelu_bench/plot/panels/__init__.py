"""Draw single panels, one function for each kind.

Each function takes `groups`, runs as `nsrelu_bench.compare.name_groups` returns them, and the name
of a metric. It draws on `ax` or in a new figure, and returns the axes; `figures` puts panels side
by side. An activation has the same colour, marker and dash everywhere (`style.activation_style`).
Runs that diverged are drawn or counted, never silently left out. Nothing here uses pyplot or a
global figure.
"""

from nsrelu_bench.plot.panels.epochs import curves
from nsrelu_bench.plot.panels.finals import leak_curve, pareto_front, setting_curve, tradeoff
from nsrelu_bench.plot.panels.heat_maps import gradient_depth, phase
from nsrelu_bench.plot.panels.histogram import histogram
from nsrelu_bench.plot.panels.runs import pairs, profile

__all__ = [
    "curves",
    "gradient_depth",
    "histogram",
    "leak_curve",
    "pairs",
    "pareto_front",
    "phase",
    "profile",
    "setting_curve",
    "tradeoff",
]
