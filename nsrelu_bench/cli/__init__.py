"""The command line."""

from nsrelu_bench.cli import results, runs, tools
from nsrelu_bench.cli.app import main

__all__ = ["main", "results", "runs", "tools"]
