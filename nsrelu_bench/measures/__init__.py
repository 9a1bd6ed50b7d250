"""What is measured in a network, and the probe that measures it."""

from nsrelu_bench.measures.measurement import Measurement, measure, pre_quantiles
from nsrelu_bench.measures.metrics import DeadUnitHistory
from nsrelu_bench.measures.probe import ActivationProbe

__all__ = ["ActivationProbe", "DeadUnitHistory", "Measurement", "measure", "pre_quantiles"]
