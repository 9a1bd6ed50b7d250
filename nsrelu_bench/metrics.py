"""The measures as functions, under their public name; see `nsrelu_bench.measures.metrics`."""

from nsrelu_bench.measures.metrics import *  # noqa: F403
from nsrelu_bench.measures.sums import *  # noqa: F403
