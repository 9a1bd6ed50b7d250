"""A folder is taken for a run only if it holds that run, with the data and sources of today."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_runs import stop_after, tiny
from PIL import Image

from nsrelu_bench.compare import compare
from nsrelu_bench.config import RunConfig
from nsrelu_bench.errors import BenchError
from nsrelu_bench.records import (
    CONFIG_COLUMNS,
    RunWriter,
    load_runs,
    read_environment,
    write_summary,
)
from nsrelu_bench.sweep import RunPolicy, plan_runs, run_all

NET = """\
from torch import nn


def make(activation, shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, {width}), activation(), nn.Linear({width}, 10))
"""


def draw(folder: Path, seed: int) -> None:
    """Draw a data set of two classes in a folder."""
    random = np.random.default_rng(seed)
    shutil.rmtree(folder, ignore_errors=True)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


def write_net(width: int) -> None:
    sys.modules.pop("mynet", None)  # as in a new process
    Path("mynet.py").write_text(NET.format(width=width))


class Input:
    """What a run is given: how it is made for the first time, and changed."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.settings: dict[str, Any] = {
            "data": {"dataset": "folder:images", "batch_size": 8},
            "source": {"model": "mynet:make", "dataset": "digits", "train_size": 100},
        }[kind]

    def config(self, seed: int = 0) -> RunConfig:
        size = {} if self.kind == "source" else {"width": 8, "depth": 2}
        return RunConfig(epochs=1, probe_size=10, seed=seed, **self.settings, **size)

    def make(self, version: int) -> None:
        if self.kind == "data":
            draw(Path("images"), version)
        else:
            write_net(8 + version)


@pytest.fixture(params=["data", "source"])
def given(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Input:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    given = Input(request.param)
    given.make(0)
    return given


def sweep(*configs: RunConfig, **policy: Any) -> list[str]:
    events = list(run_all(configs, Path("study"), policy=RunPolicy(**policy)))
    assert not [event.traceback for event in events if event.traceback]
    return [event.status.state for event in events if event.ended or event.kept]


def test_a_done_run_with_other_inputs_is_refused(given: Input) -> None:
    sweep(given.config())
    then = read_environment(Path("study") / given.config().run_id)
    assert sweep(given.config()) == ["completed"]
    given.make(1)
    with pytest.raises(BenchError, match=f"is done, but its {given.kind} has changed: SHA-256"):
        list(plan_runs([given.config()], Path("study")))
    assert sweep(given.config(), fresh=True) == ["completed"]
    now = read_environment(Path("study") / given.config().run_id)
    changed = {name for name in now if now[name] != then[name]} - {"started"}
    assert changed == {f"{given.kind}_digest"}
    assert sweep(given.config()) == ["completed"]


def test_compare_warns_of_mixed_inputs(given: Input) -> None:
    sweep(given.config())
    given.make(1)
    sweep(given.config(seed=1))
    mixed = compare(load_runs("study"), CONFIG_COLUMNS).mixed
    what = {"data": "the data of folder:images", "source": "the source of mynet:make"}
    (digests,) = [values for name, values in mixed.items() if name == what[given.kind]]
    assert [len(digest) for digest in digests] == [12, 12]


def test_a_checkpoint_with_other_inputs_is_refused(given: Input) -> None:
    config = given.config().model_copy(update={"epochs": 2})
    stop_after(0, config, Path("study") / config.run_id)
    given.make(1)
    assert sweep(config) == ["completed"]
    refused = read_environment(Path("study") / config.run_id)["refused"]
    assert refused.startswith(f"checkpoint.pt was saved with another {given.kind}_digest")


def test_inputs_that_are_gone_or_unknown_keep_a_done_run(given: Input) -> None:
    sweep(given.config())
    shutil.rmtree("images", ignore_errors=True)
    Path("mynet.py").unlink(missing_ok=True)
    assert sweep(given.config()) == ["completed"]
    given.make(1)
    (Path("study") / given.config().run_id / "env.json").write_text("{}")  # of an older version
    assert sweep(given.config()) == ["completed"]


def test_two_data_sets_are_not_mixed_inputs(tmp_path: Path) -> None:
    for settings in ({"dataset": "digits"}, {"dataset": "synthetic", "train_size": 100}):
        list(run_all([tiny(**settings)], tmp_path / "study"))
    runs = load_runs(tmp_path / "study")
    assert runs["data_digest"].nunique() == 2
    assert compare(runs, CONFIG_COLUMNS).mixed == {}


@pytest.mark.parametrize("state", ["completed", "interrupted"])
def test_the_folder_of_another_run_is_never_taken(tmp_path: Path, state: str) -> None:
    """Eight hex digits of two ids may agree."""
    ours, theirs = tiny(lr=0.019619), tiny(lr=0.058631)
    folder = tmp_path / ours.run_id
    if state == "completed":
        list(run_all([theirs], tmp_path))
        (tmp_path / theirs.run_id).rename(folder)
    else:
        stop_after(0, theirs, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    message = "has another run, with lr 0.058631 instead of lr 0.019619"
    for fresh in (False, True):
        with pytest.raises(BenchError, match=message), RunWriter(folder, ours, fresh=fresh):
            pass
    if state == "completed":
        with pytest.raises(BenchError, match=message):
            list(plan_runs([ours], tmp_path))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_data_dir_is_the_same_run(tmp_path: Path) -> None:
    list(run_all([tiny()], tmp_path))
    assert [due for _, _, due in plan_runs([tiny(data_dir="elsewhere")], tmp_path)] == [False]
    write_summary(tmp_path)
