"""The command line."""

from nsrelu_bench.cli import export, results, runs, study, tools
from nsrelu_bench.cli.app import main

__all__ = ["export", "main", "results", "runs", "study", "tools"]
