"""Properties that hold for everything that hypothesis thinks of.

What is written reads back the same; a run id depends on nothing but the run; a grid is what its
axes say; and a folder that was cut off at any byte is read as far as it can be trusted.
"""

import csv
import io
import itertools
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.fake_run import fake_run
from helpers.tiny_runs import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsrelu_bench import training
from nsrelu_bench.config import activation_spec as labels
from nsrelu_bench.config import yaml
from nsrelu_bench.config.reading import run_config
from nsrelu_bench.config.registry import DATASETS, OPTIMIZERS, SITE_MEASURES
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.config.study import make_study
from nsrelu_bench.config.yaml import format_yaml, parse_yaml, read_settings
from nsrelu_bench.records import RunWriter, load, load_runs, read_status, to_csv
from nsrelu_bench.records import writer as records
from nsrelu_bench.records.corruption import find_corruption
from nsrelu_bench.records.schema import COLUMNS
from nsrelu_bench.sweep.execution import execute_run
from nsrelu_bench.text import printable
from nsrelu_bench.training.loop import Epoch

#: No deadlines: what else runs on the machine is no property of the code.
settings.register_profile("here", deadline=None, max_examples=50)
settings.load_profile("here")


def amounts(most: float, **options: Any) -> st.SearchStrategy[float]:
    """Numbers that are 0 or large enough to act."""
    return st.just(0.0) | st.floats(1.2e-38, most, **options)


ANY_LEAK = amounts(1)
ANY_ACT = (
    st.sampled_from(["relu", "gelu", "silu", "relu/gelu", "elu", "relu/bsilu"])
    | st.builds("nsrelu({!r})".format, ANY_LEAK)
    | st.builds("leaky_relu({!r})".format, ANY_LEAK)
    | st.builds("leaky_relu({!r})/relu".format, ANY_LEAK)
)
ANY_COUNT = st.integers(1, 10**9)
ANY_SETTING: dict[str, st.SearchStrategy[Any]] = {
    "act": ANY_ACT,
    "impl": st.sampled_from(["native", "detach", "function", "mismatch"]),
    "dataset": st.sampled_from([*DATASETS]),
    "data_dir": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
    "train_size": st.none() | ANY_COUNT,
    "probe_size": ANY_COUNT,
    "measures": st.lists(st.sampled_from([*SITE_MEASURES]), min_size=1).map(",".join),
    "model": st.sampled_from(["mlp", "cnn"]),
    "width": ANY_COUNT,
    "depth": ANY_COUNT,
    "batch_norm": st.booleans(),
    "dropout": amounts(1, exclude_max=True),
    "init": st.sampled_from(["he", "xavier", "default"]),
    "epochs": ANY_COUNT,
    "batch_size": ANY_COUNT,
    "optimizer": st.sampled_from([*OPTIMIZERS]),
    "lr": amounts(1e6),
    "momentum": amounts(1, exclude_max=True),
    "weight_decay": amounts(1e6),
    "clip_norm": amounts(1e6),
    "schedule": st.sampled_from(["constant", "cosine"]),
    "leak_schedule": st.sampled_from(["constant", "linear"]),
    "seed": st.integers(0, 2**63 - 1),
    "threads": st.integers(1, 1024),
}
ANY_SETTINGS = st.fixed_dictionaries({}, optional=ANY_SETTING)


@pytest.mark.slow
@given(ANY_SETTINGS)
def test_a_configuration_written_as_yaml_reads_back_the_same(given_settings: Any) -> None:
    run = RunConfig(**given_settings)
    text = format_yaml(run.settings)
    again = RunConfig(**parse_yaml(text))
    assert again == run
    assert again.run_id == run.run_id
    assert format_yaml(again.settings) == text


ANY_WORD = st.text("abcxyz019_.:-+ ,()#'[{&*!|>%~\t", max_size=8)
LINES = st.lists(st.tuples(st.sampled_from(["lr", "act", "seed", "x_y"]), ANY_WORD), max_size=4)


@given(LINES, st.sampled_from(["\n", "\n\n", "\n  ", "\n- ", ""]))
@settings(max_examples=400)
def test_lines_parsed_one_by_one_are_the_whole_file(lines: Any, end: str) -> None:
    text = "".join(f"{key}: {value}{end}" for key, value in lines)
    found = yaml._parse_lines(text)
    if found is not None and lines:
        assert found == yaml._parse_document(text)
        assert [type(value) for value in found.values()] == [
            type(value) for value in yaml._parse_document(text).values()
        ]


def test_what_a_run_writes_is_parsed_line_by_line() -> None:
    text = format_yaml(RunConfig(dataset="digits", act="leaky_relu(0.1)/relu").settings)
    assert yaml._parse_lines(text) == yaml._parse_document(text)


@given(ANY_SETTINGS, st.randoms(use_true_random=False))
def test_a_run_id_does_not_depend_on_the_order_of_the_keys(
    given_settings: Any, shuffle: random.Random
) -> None:
    keys = list(given_settings)
    shuffle.shuffle(keys)
    shuffled = RunConfig(**{key: given_settings[key] for key in keys})
    assert shuffled.run_id == RunConfig(**given_settings).run_id
    assert RunConfig(**shuffled.settings).run_id == shuffled.run_id


@given(ANY_SETTINGS, ANY_SETTINGS)
def test_run_ids_are_equal_where_the_numbers_are(first: Any, second: Any) -> None:
    one, other = RunConfig(**first), RunConfig(**second)
    decisive = [{**run.settings, "data_dir": ""} for run in (one, other)]
    assert (one.run_id == other.run_id) == (decisive[0] == decisive[1])


@pytest.mark.slow
def test_run_ids_do_not_depend_on_pythons_hash_seed() -> None:
    draw = random.Random(0)  # noqa: S311
    many = [
        {"act": f"nsrelu({draw.random()!r})", "lr": draw.random(), "seed": draw.randrange(2**63)}
        for _ in range(50)
    ]
    code = (
        "import json, sys; from nsrelu_bench.config import RunConfig\n"
        "print(json.dumps([RunConfig(**settings).run_id for settings in json.load(sys.stdin)]))"
    )
    for seed in ("1", "4294967295"):
        answer = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(many),
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(answer.stdout) == [RunConfig(**settings).run_id for settings in many]


AXES = {
    "act": st.sampled_from(["relu", "nsrelu", "nsrelu(0.1)", "leaky_relu(0.5)"]),
    "lr": st.sampled_from([0.1, 0.2, 1, 1.0]),
    "width": st.integers(1, 3),
    "batch_norm": st.booleans(),
}


@given(
    st.fixed_dictionaries(
        {},
        optional={name: st.lists(values, min_size=1, max_size=4) for name, values in AXES.items()},
    ),
    st.none() | st.integers(1, 4) | st.lists(st.integers(0, 5), min_size=1, max_size=4),
)
def test_a_grid_is_every_combination_once_in_order(grid: Any, seeds: Any) -> None:
    study = make_study({"grid": grid} | ({} if seeds is None else {"seeds": seeds}), "study")
    drawn = [0] if seeds is None else list(range(seeds)) if isinstance(seeds, int) else seeds
    expected: list[RunConfig] = []
    for *values, seed in itertools.product(*grid.values(), drawn):
        run = RunConfig(**dict(zip(grid, values, strict=True)), seed=seed)
        if run not in expected:
            expected.append(run)
    assert study.runs == expected
    assert len({run.run_id for run in study.runs}) == len(study.runs)


# What is on disk.

FLOATS = st.floats(allow_nan=True, allow_infinity=True) | st.none()


@given(st.lists(st.fixed_dictionaries({"train_loss": FLOATS, "test_accuracy": FLOATS}), max_size=5))
@settings(max_examples=25)
def test_metrics_written_read_back_the_same(rows: list[dict[str, float | None]]) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "environment", lambda _: {})
        folder = Path(place) / "run"
        with RunWriter(folder, tiny()) as writer:
            for number, row in enumerate(rows):
                writer.append(Epoch({"epoch": number, "step": 0, **row}, [], {"epoch": number}))
        with (folder / "metrics.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        assert bool(find_corruption(folder / "metrics.csv")) == (not rows)
    assert [row["epoch"] for row in table] == [str(number) for number in range(len(rows))]
    for read, row in zip(table, rows, strict=True):
        for name, value in row.items():
            known = value is not None and math.isfinite(value)
            assert float(read[name]) == value if known else read[name] == ""


ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@pytest.mark.slow
@given(
    st.lists(ANY_TEXT | st.sampled_from(["=1", "'=", "''@", "-a(", "+1", "\t", "NA"]), min_size=1)
)
@settings(max_examples=60)
def test_a_table_with_any_texts_survives_csv_and_back(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        rows = [
            {"run_id": f"run{number}", "state": "completed", "act": "relu", "seed": number}
            | {"data_dir": text, "lr": 0.1 + number / 3}
            for number, text in enumerate(texts)
        ]
        table = pd.DataFrame(rows)
        written = to_csv(table)
        (Path(place) / "summary.csv").write_text(written, encoding="utf-8", newline="")
        again = load_runs(Path(place))
    assert [text if isinstance(text, str) else "" for text in again["data_dir"]] == [
        printable(text) for text in texts
    ]
    assert list(again["lr"]) == list(table["lr"])
    cells = [cell for row in csv.reader(io.StringIO(written, newline="")) for cell in row]
    assert not any(cell.startswith(("=", "@", "\t")) for cell in cells)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A done run of made-up numbers."""
    config = tiny()
    folder = tmp_path_factory.mktemp("whole") / "study" / config.run_id
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "run", fake_run)
        patch.setattr(records, "environment", lambda _: {})
        list(execute_run(config, folder))
    return folder


@pytest.fixture(scope="module")
def whole_loss(whole: Path) -> float:
    return float(load(whole).runs["train_loss"].iloc[0])


@pytest.mark.covers
@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_run_is_never_read_wrong(
    whole: Path, whole_loss: float, data: st.DataObject
) -> None:
    """Bytes lost, zeroed or added at any place of any file: the numbers are those, or none."""
    name = data.draw(st.sampled_from(["status.json", "config.yaml", *COLUMNS][:5]))
    if not (whole / name).exists():
        return
    content = (whole / name).read_bytes()
    at = data.draw(st.integers(0, len(content)))
    how = data.draw(st.sampled_from(["cut", "zeroed", "doubled", "noise"]))
    noise = data.draw(st.binary(min_size=1, max_size=8))
    changed = {
        "cut": content[:at],
        "zeroed": content[:at] + bytes(len(content) - at),
        "doubled": content + content[at:],
        "noise": content[:at] + noise + content[at:],
    }[how]
    path = whole / name
    try:
        path.write_bytes(changed)
        found = load(whole.parent).runs.iloc[0]
        status = read_status(whole)
        assert isinstance(find_corruption(path), str)
    finally:
        path.write_bytes(content)
    if found["state"] == "completed":
        assert found["train_loss"] == whole_loss
        assert changed == content or name == "status.json"
    else:
        assert found["error"] or found["state"] in ("running", "interrupted", "diverged")
        assert "train_loss" not in found or pd.isna(found["train_loss"])
    if name.endswith(".csv") and changed != content:
        assert status.state == "failed"
        assert str(status.error).startswith(f"{name} is not as it was written")


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_as_settings_are_lines_of_mistakes(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "s.yaml"
        path.write_bytes(content)
        try:
            run_config(read_settings(path))
        except ValueError as error:  # a UsageError is one
            lines = str(error).splitlines()
            assert lines
            assert all(len(line) < 2000 for line in lines)


@given(st.text(max_size=40))
def test_any_text_is_an_activation_or_a_mistake(text: str) -> None:
    try:
        label = labels.parse_activation(text)
    except ValueError:
        return
    assert labels.parse_activation(str(label)) == label
