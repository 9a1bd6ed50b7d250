"""Export runs with their settings as one table in one file, for R, spreadsheets and other tools."""

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

from nsrelu_bench.errors import BenchError, UsageError, lookup
from nsrelu_bench.records.frames import to_csv
from nsrelu_bench.records.reader import load, load_runs

#: The tables that can be exported, with what a row is.
TABLES = {
    "runs": "one row per run: how it ended, its settings, its final metrics",
    "metrics": "one row per run and epoch",
    "layers": "one row per run, epoch and layer",
    "quantiles": "one row per run, layer and quantile of the pre-activations",
}


def export(paths: Sequence[Path], table: str, form: str) -> bytes:
    """Return the content of a file with one of the `TABLES` of some runs, as "csv" or "parquet".

    Each row has the study, the run id and the settings.

    Raises:
        UsageError: There is no such table or form.
        BenchError: There is no run or row, or pyarrow is missing.
    """
    lookup(TABLES, table, "table")
    if form not in ("csv", "parquet"):
        raise UsageError(f"--out: must end in .csv or .parquet, got {form!r}")
    if form == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise BenchError(
            "Parquet needs pyarrow, which is not installed; pip install 'nsrelu-bench[parquet]'"
        )
    frame = load_runs(*paths) if table == "runs" else getattr(load(*paths), table)
    if frame.empty:
        raise BenchError(f"no run has {table}.csv")
    if form == "csv":
        return to_csv(frame).encode()
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
