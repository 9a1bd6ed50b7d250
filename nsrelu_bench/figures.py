"""Figures, under their public name; see `nsrelu_bench.plot.figures`."""

from nsrelu_bench.plot.figures import *  # noqa: F403
