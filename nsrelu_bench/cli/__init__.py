"""The command line."""

from nsrelu_bench.cli import data_out, results, runs, study, tools
from nsrelu_bench.cli.app import main

__all__ = ["data_out", "main", "results", "runs", "study", "tools"]
