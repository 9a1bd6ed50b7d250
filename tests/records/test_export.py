import importlib.util
import io
from pathlib import Path

import pandas as pd
import pytest
from helpers.command_line import ask
from helpers.tiny_runs import tiny

from nsrelu_bench.records import CONFIG_COLUMNS, load
from nsrelu_bench.records.export import TABLES

LENGTHS = {"runs": 3, "metrics": 8, "layers": 16, "quantiles": None}


def test_every_frame_has_the_settings_of_its_runs(study: Path) -> None:
    frames = load(study)
    assert len(frames.metrics) == LENGTHS["metrics"]
    runs = frames.runs.set_index("run_id")
    for frame in (frames.metrics, frames.layers, frames.quantiles):
        assert {"study", "run_id", *CONFIG_COLUMNS} <= set(frame)
        for run_id, part in frame.groupby("run_id"):
            for name in ("act", "width", "seed", "optimizer", "batch_norm", "leak"):
                (value,) = part[name].unique()
                expected = runs.loc[run_id, name]
                assert value == expected or (pd.isna(value) and pd.isna(expected))
        assert frame["seed"].dtype == "int64"


def test_the_rate_of_an_epoch_stays_in_metrics(study: Path) -> None:
    metrics = load(study).metrics
    text = (study / tiny().run_id / "metrics.csv").read_text()
    rates = pd.read_csv(io.StringIO(text))["lr"].tolist()
    assert metrics.loc[metrics["run_id"] == tiny().run_id, "lr"].tolist() == rates


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_exported_as_csv(study: Path, tmp_path: Path, table: str) -> None:
    out = tmp_path / "new" / "table.csv"
    answer = ask("export", str(study), "--table", table, "--out", str(out))
    assert (answer.code, answer.out, answer.err) == (0, f"{out}\n", "")
    frame = pd.read_csv(out)
    assert LENGTHS[table] in (len(frame), None)
    assert set(CONFIG_COLUMNS) <= set(frame)
    assert ask("export", str(study), "--table", table).out == out.read_text()


@pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="needs pyarrow")
@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_exported_as_parquet(study: Path, tmp_path: Path, table: str) -> None:
    out = tmp_path / "table.parquet"
    assert ask("export", str(study), "--table", table, "--out", str(out)).code == 0
    expected = getattr(load(study), table)
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected, check_dtype=False)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--out", "t.xlsx"], 2, "--out: must end in .csv or .parquet, got 'xlsx'"),
        (["--table", "epochs"], 2, "unknown table 'epochs'; choose from: runs, metrics, layers"),
        (["nowhere"], 1, "no runs in 'nowhere' (there is no such folder)"),
    ],
)
def test_a_wrong_export_is_one_line(
    study: Path, arguments: list[str], code: int, message: str
) -> None:
    answer = ask("export", *([str(study)] if arguments[0] != "nowhere" else []), *arguments)
    assert (answer.code, answer.err.count("\n")) == (code, 1)
    assert answer.err.startswith(f"nsrelu-bench: {message}")


def test_parquet_without_pyarrow_is_one_line(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    answer = ask("export", str(study), "--out", str(tmp_path / "t.parquet"))
    assert answer.code == 1
    assert "pip install 'nsrelu-bench[parquet]'" in answer.err
