"""Training: one run, or several seeds as one network."""

from nsrelu_bench.training.loop import Epoch, Together, run

__all__ = ["Epoch", "Together", "run"]
