"""Convert runs to frames with one type per column, and such frames to CSV and back."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from nsrelu_bench.config import ADDED, SETTINGS, RunConfig
from nsrelu_bench.records.environment import ENVIRONMENT, INPUTS
from nsrelu_bench.records.schema import COLUMNS
from nsrelu_bench.records.status import Status
from nsrelu_bench.text import printable

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


#: The settings of a run; `leak`, which is part of `act`, has a column too.
CONFIG_COLUMNS = ("act", "leak", *(name for name in RunConfig.model_fields if name != "act"))

#: Columns of metrics.csv that are not results, but say where a row belongs.
COUNTERS = ("lr", "task")

_ENDED = tuple(field.name for field in fields(Status))
_METRICS = tuple(name for name in COLUMNS["metrics.csv"] if name not in (*COUNTERS, *_ENDED))

#: The columns that a run has in summary.csv whatever was measured: `classes` is the number of
#: classes of its data set.
_OF_RUNS = ("study", "run_id", *_ENDED, *CONFIG_COLUMNS, *ENVIRONMENT, "classes")

#: All columns of the frames of runs, epochs and layers, except for measures of the user's own.
KNOWN_COLUMNS = tuple(
    dict.fromkeys(
        (*_OF_RUNS, *COLUMNS["metrics.csv"], *COLUMNS["layers.csv"], "fingerprint"),
    )
)


#: Text stays text, even if it looks like a number or a missing value. Whole numbers stay whole
#: beside missing ones: a seed has more digits than a float.
TEXT, WHOLE, FLOAT = "str", "Int64", "float64"
IDENTIFIERS = ("study", "run_id", "state", "error", "backward", "fingerprint", *ENVIRONMENT)

#: The types of the columns that are known; a bool has none that can be missing.
TYPES: dict[str, str] = {
    **dict.fromkeys(("epoch", "diverged_epoch", "diverged_step", "leak", *_METRICS), FLOAT),
    **{
        name: {str: TEXT, int: WHOLE, float: FLOAT}[SETTINGS[name].kind]
        for name in RunConfig.model_fields
        if SETTINGS[name].kind is not bool
    },
    **dict.fromkeys(IDENTIFIERS, TEXT),
    "classes": WHOLE,
}


def runs_frame(rows: Sequence[Row]) -> "pd.DataFrame":
    """Return rows of runs as a frame with every column of the schema."""
    import pandas as pd

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {
        name: pd.Series([row.get(name) for row in rows], dtype=TYPES.get(name)) for name in names
    }
    return complete(pd.DataFrame(columns))


def complete(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a frame of runs with every column of the schema, in its order and with its type.

    The type of whole numbers allows missing values, so that such frames can be concatenated.
    Settings that did not exist when a run was made get the value that all runs had then.
    """
    measured = [name for name in _METRICS if name in table]
    others = [name for name in table if name not in (*_OF_RUNS, *measured)]
    table = table.reindex(columns=[*_OF_RUNS, *measured, *others])
    for name, usual in ADDED.items():
        if table[name].dtype != type(usual) or table[name].isna().any():
            table[name] = table[name].astype(object).fillna(usual).astype(type(usual))
    return _with_types(table, {name: kind for name, kind in TYPES.items() if name not in ADDED})


def _with_types(table: "pd.DataFrame", types: Mapping[str, str]) -> "pd.DataFrame":
    """Return a frame whose columns have these types; copies only those that change."""
    changed: dict[str, Any] = {name: table[name] for name in types if name in table}
    changed = {n: c.astype(types[n]) for n, c in changed.items() if c.dtype.name != types[n]}
    return table.assign(**changed) if changed else table


def with_plain_types(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a frame of runs whose whole numbers have a plain type if that loses no digits."""
    whole = [name for name, kind in TYPES.items() if kind == WHOLE and name in table]
    return _with_types(table, {name: _plain_type(table[name]) for name in whole})


def _plain_type(column: "pd.Series[Any]") -> str:
    if column.notna().all():
        return "int64"
    return FLOAT if column.isna().all() or column.max() < 2**53 else WHOLE


def find_mixed(runs: "pd.DataFrame") -> dict[str, list[str]]:
    """Return what else than settings differs between runs and may change numbers, with its values.

    Data are compared by data set, and sources by plug-in.
    """
    found = {
        name: set(runs[name].dropna())
        for name in ENVIRONMENT
        if name in runs and name not in INPUTS
    }
    if "data_digest" in runs:
        for dataset, part in runs.groupby("dataset"):
            found[f"the data of {dataset}"] = set(part["data_digest"].dropna())
    if "source_digest" in runs:
        for text in runs["source_digest"].dropna().unique():
            for plugin, digest in (source.split(" ") for source in text.split(", ")):
                found.setdefault(f"the source of {plugin}", set()).add(digest)
    return {name: sorted(values) for name, values in found.items() if len(values) > 1}


def read_csv(text: str) -> "pd.DataFrame":
    """Read a CSV file of `to_csv` or of a run, each column with its type.

    Raises:
        ValueError: It is damaged, or a cell has another type.
    """
    import pandas as pd

    table = pd.read_csv(io.StringIO(text), dtype=TYPES, keep_default_na=False, na_values=[""])
    texts = {str(name): table[name].map(_unescape) for name in _text_columns(table)}
    return make_printable(table.assign(**texts))


def make_printable(table: "pd.DataFrame") -> "pd.DataFrame":
    """Escape the control characters in the texts of a table."""
    changed = {}
    for name in _text_columns(table):
        values = [value for value in table[name].unique() if isinstance(value, str)]
        escapes = {value: printable(value) for value in values if not value.isprintable()}
        if escapes:
            changed[str(name)] = table[name].replace(escapes)
    return table.assign(**changed) if changed else table


def to_csv(table: "pd.DataFrame") -> str:
    """Format a table as CSV in which no text is a formula that a spreadsheet would run.

    A text that begins like a formula gets a leading apostrophe, which `read_csv` removes.
    """
    texts = {str(name): table[name].map(_escape) for name in _text_columns(table)}
    return table.assign(**texts).to_csv(index=False, lineterminator="\n")


def _text_columns(table: "pd.DataFrame") -> list[Any]:
    return [name for name in table if table[name].dtype.kind in "OSU"]


def _escape(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def _unescape(value: Any) -> Any:
    escaped = isinstance(value, str) and value.startswith("'") and FORMULA.match(value)
    return value[1:] if escaped else value


#: What a spreadsheet takes for a formula, with any apostrophes that `to_csv` has put before it.
FORMULA = re.compile(r"'*([=@\t]|[+-].*[(|!])", re.DOTALL)
