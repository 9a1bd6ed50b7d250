"""Training: one run, or several seeds as one network."""

from nsrelu_bench.training.ensemble import run_ensemble
from nsrelu_bench.training.epoch import Epoch
from nsrelu_bench.training.loop import run

__all__ = ["Epoch", "run", "run_ensemble"]
