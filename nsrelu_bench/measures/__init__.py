"""The measures of a network, and the probe that takes them."""

from nsrelu_bench.measures.isolation import undisturbed
from nsrelu_bench.measures.measurement import Measurement, measure
from nsrelu_bench.measures.metrics import DORMANT_TAU, DeadUnitHistory
from nsrelu_bench.measures.own import load_measures
from nsrelu_bench.measures.probe import ActivationProbe
from nsrelu_bench.measures.quantiles import pre_quantiles

__all__ = [
    "DORMANT_TAU",
    "ActivationProbe",
    "DeadUnitHistory",
    "Measurement",
    "load_measures",
    "measure",
    "pre_quantiles",
    "undisturbed",
]
