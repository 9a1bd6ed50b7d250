"""Runs as a frame with one type per column, and such frames as CSV."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from nsrelu_bench.config import ADDED, RunConfig
from nsrelu_bench.records.environment import ENVIRONMENT, INPUTS
from nsrelu_bench.records.schema import COLUMNS
from nsrelu_bench.records.status import Status
from nsrelu_bench.text import printable

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


def _configuration_columns() -> Iterator[str]:
    for name in RunConfig.model_fields:
        yield name
        if name == "act":
            yield "leak"


CONFIG_COLUMNS = tuple(_configuration_columns())

#: Columns of metrics.csv that say where a row belongs, and are not results.
COUNTERS = ("lr", "task")

_ENDED = tuple(field.name for field in fields(Status))
_METRICS = tuple(name for name in COLUMNS["metrics.csv"] if name not in (*COUNTERS, *_ENDED))


def _kinds(annotation: Any) -> set[Any]:
    """Return the plain types of a setting: {int, NoneType} for ``Annotated[int, ...] | None``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return set().union(*map(_kinds, arguments))
    return _kinds(arguments[0]) if origin is Annotated else {origin or annotation}


def _column_types() -> dict[str, str]:
    """Return the type of each column that is known, by name."""
    types = dict.fromkeys(("epoch", "diverged_epoch", "diverged_step", "leak", *_METRICS), FLOAT)
    for name, field in RunConfig.model_fields.items():
        kinds = _kinds(field.annotation)
        if kinds & {str, Literal}:
            types[name] = TEXT
        elif int in kinds:
            types[name] = WHOLE
        elif float in kinds:
            types[name] = FLOAT
    return types | dict.fromkeys(IDENTIFIERS, TEXT)


#: Text stays text, even where it looks like a number or a missing value. Whole numbers stay whole
#: where others are missing: a seed has more digits than a float.
TEXT, WHOLE, FLOAT = "str", "Int64", "float64"
IDENTIFIERS = ("study", "run_id", "state", "error", "backward", "fingerprint", *ENVIRONMENT)
TYPES = _column_types()


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

    Whole numbers have a type that can be missing, so that such frames can be put together.
    Settings that did not exist when a run was made get the value that all runs had then.
    """
    known = ["study", "run_id", *_ENDED, *CONFIG_COLUMNS, *ENVIRONMENT]
    measured = [name for name in _METRICS if name in table]
    others = [name for name in table if name not in (*known, *measured)]
    table = table.reindex(columns=[*known, *measured, *others])
    table = table.astype({name: kind for name, kind in TYPES.items() if name in table})
    for name, usual in ADDED.items():
        table[name] = table[name].astype(object).fillna(usual).astype(type(usual))
    return table


def with_plain_types(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a frame of runs whose whole numbers have a plain type where that loses nothing."""
    whole = [name for name, kind in TYPES.items() if kind == WHOLE and name in table]
    return table.astype({name: _plain_type(table[name]) for name in whole})


def _plain_type(column: "pd.Series[Any]") -> str:
    if column.notna().all():
        return "int64"
    return FLOAT if column.isna().all() or column.max() < 2**53 else WHOLE


def find_mixed(runs: "pd.DataFrame") -> dict[str, list[str]]:
    """Return what differs between runs and may change numbers, besides settings, with its values.

    Data are compared per data set, and sources per plug-in.
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
    """Read a CSV of `to_csv` or of a run, each column with its type.

    Raises:
        ValueError: It is damaged, or a cell has another type.
    """
    import pandas as pd

    table = pd.read_csv(io.StringIO(text), dtype=TYPES, keep_default_na=False, na_values=[""])
    texts = {str(name): table[name].map(_unescape) for name in _text_columns(table)}
    return make_printable(table.assign(**texts))


def make_printable(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table in which the texts have escapes for what a terminal would act on."""
    changed = {}
    for name in _text_columns(table):
        values = [value for value in table[name].unique() if isinstance(value, str)]
        escapes = {value: printable(value) for value in values if not value.isprintable()}
        if escapes:
            changed[str(name)] = table[name].replace(escapes)
    return table.assign(**changed) if changed else table


def to_csv(table: "pd.DataFrame") -> str:
    """Format a table as CSV in which no text is a formula that a spreadsheet would run.

    A text that begins like a formula gets an apostrophe before it, which `read_csv` removes.
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


#: What a spreadsheet takes for a formula, and what `to_csv` writes for it.
FORMULA = re.compile(r"'*([=@\t]|[+-].*[(|!])", re.DOTALL)
