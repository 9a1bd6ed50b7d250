"""The HTML report, under its public name; see `nsrelu_bench.plot.report`."""

from nsrelu_bench.plot.report import *  # noqa: F403
