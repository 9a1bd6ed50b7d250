"""Figures and the HTML report."""

from nsrelu_bench.plot import (
    matplotlib_import as matplotlib_import,  # before all that import matplotlib
)
from nsrelu_bench.plot.figures import draw_all
from nsrelu_bench.plot.report import write_report

__all__ = ["draw_all", "write_report"]
