import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fake_run import FAKE_CONFIG, fake_run
from helpers.tiny_runs import stop_after, tiny

from nsrelu_bench import training
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.records import writer as records
from nsrelu_bench.records.checkpoint import load_state, pack, unpack
from nsrelu_bench.records.environment import environment
from nsrelu_bench.records.writer import RunWriter
from nsrelu_bench.sweep.execution import RunPolicy, execute_run

TRAININGS: dict[str, dict[str, Any]] = {
    "mlp": {"optimizer": "adam"},
    "cnn": {
        "model": "cnn",
        "batch_norm": True,
        "dropout": 0.2,
        "schedule": "cosine",
        "train_size": 300,
        "batch_size": 32,
    },
    "between": {"probe_every": 7, "train_size": 500},
    "tasks": {"tasks": 2, "optimizer": "adamw", "epochs": 1, "augment": "crop+flip"},
}


def written(folder: Path) -> dict[str, bytes]:
    """What is in the CSV files that do not depend on the clock."""
    files = [path for path in folder.glob("*.csv") if path.name != "timing.csv"]
    return {path.name: path.read_bytes() for path in files}


def environment_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "env.json").read_text())
    return content


def finish(config: RunConfig, folder: Path, **policy: Any) -> None:
    *_, last = execute_run(config, folder, RunPolicy(**policy))
    assert last.traceback is None
    assert last.status.state == "completed"


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run without training that was stopped after its epoch 0."""
    monkeypatch.setattr(training, "run", fake_run)
    stop_after(0, FAKE_CONFIG, tmp_path / "run")
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_resumed_run_gives_the_bits_of_an_unbroken_one(tmp_path: Path, name: str) -> None:
    config = tiny(**TRAININGS[name])
    finish(config, tmp_path / "whole")
    assert len(written(tmp_path / "whole")) == (4 if config.probe_every else 3)
    for epoch in range(config.total_epochs):
        folder = tmp_path / str(epoch)
        stop_after(epoch, config, folder)
        finish(config, folder)
        assert environment_of(folder)["resumed_after"] == epoch
        assert written(folder) == written(tmp_path / "whole")
        assert not (folder / "checkpoint.pt").exists()


def test_a_run_may_be_stopped_again_and_again(tmp_path: Path) -> None:
    config = tiny(epochs=4, dropout=0.1)
    finish(config, tmp_path / "whole")
    for epoch in range(4):
        stop_after(epoch, config, tmp_path / "run")
    finish(config, tmp_path / "run")
    assert environment_of(tmp_path / "run")["resumed_after"] == 3
    assert written(tmp_path / "run") == written(tmp_path / "whole")


def test_a_short_run_saves_no_checkpoint(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", FAKE_CONFIG) as writer:
        for epoch in fake_run(FAKE_CONFIG):
            writer.append(epoch)
            assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_checkpoints_are_saved_at_their_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(records.time, "monotonic", lambda: now)
    config = tiny(epochs=9)
    kept = []
    with RunWriter(tmp_path / "run", config, checkpoint_after=25) as writer:
        for epoch in fake_run(config):
            now += 10
            writer.append(epoch)
            path = tmp_path / "run" / "checkpoint.pt"
            kept.append(unpack(path.read_bytes())[0]["epoch"] if path.exists() else None)
    # Not after the last epoch: there is nothing to go on to.
    assert kept == [None, None, 2, 2, 2, 5, 5, 5, 8, 8]


def test_fresh_ignores_a_checkpoint(stopped: Path) -> None:
    finish(FAKE_CONFIG, stopped, fresh=True)
    assert environment_of(stopped)["resumed_after"] is None
    assert environment_of(stopped)["refused"] is None


def test_only_intact_checkpoints_are_loaded() -> None:
    packed = pack({"epoch": 3}, {"weights": torch.arange(50.0), "step": 4})
    about, state = unpack(packed)
    assert about == {"epoch": 3}
    assert load_state(state)["weights"].equal(torch.arange(50.0))
    chance = random.Random(0)  # noqa: S311
    bits = [*range(8 * 120), *chance.sample(range(8 * len(packed)), 2000)]
    for bit in bits:
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="is damaged"):
            unpack(bytes(flipped))
    for length in range(len(packed)):
        with pytest.raises(ValueError, match="is damaged"):
            unpack(packed[:length])
    with pytest.raises(ValueError, match="is damaged"):
        unpack(packed + b"\0")


#: What happens to what a run left, and why its checkpoint is then refused.
REFUSED = {
    "flipped": "is damaged",
    "other run": "belongs to another",
    "other torch": "was saved with another packages",
    "other processor": "was saved with another processor",
    "row changed": "does not match metrics.csv",
    "row lost": "does not match metrics.csv",
    "file lost": "does not match layers.csv",
}


def spoil(folder: Path, kind: str, patch: pytest.MonkeyPatch) -> None:
    checkpoint, metrics = folder / "checkpoint.pt", folder / "metrics.csv"
    packed, rows = checkpoint.read_bytes(), metrics.read_bytes()
    about, state = unpack(packed)
    length = about["files"]["metrics.csv"][0]
    there = environment(FAKE_CONFIG)
    if kind == "flipped":
        checkpoint.write_bytes(packed[:-900] + bytes([packed[-900] ^ 4]) + packed[-899:])
    elif kind == "other run":
        checkpoint.write_bytes(pack(about | {"run_id": "another"}, load_state(state)))
    elif kind == "other torch":
        packages = there["packages"] | {"torch": "2.9.9"}
        patch.setattr(records, "environment", lambda _: there | {"packages": packages})
    elif kind == "other processor":
        patch.setattr(records, "environment", lambda _: there | {"processor": "6502"})
    elif kind == "row changed":
        metrics.write_bytes(rows[: length - 3] + b"7" + rows[length - 2 :])
    elif kind == "row lost":
        metrics.write_bytes(rows[: length - 1])
    else:
        (folder / "layers.csv").unlink()


@pytest.mark.parametrize("kind", REFUSED)
def test_a_checkpoint_that_would_give_other_numbers_is_refused(
    stopped: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(FAKE_CONFIG, tmp_path / "whole")
    spoil(stopped, kind, monkeypatch)
    finish(FAKE_CONFIG, stopped)
    assert environment_of(stopped)["refused"].startswith(f"checkpoint.pt {REFUSED[kind]}")
    assert environment_of(stopped)["resumed_after"] is None
    assert written(stopped) == written(tmp_path / "whole")


def test_a_checkpoint_that_stays_behind_is_harmless(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        finish(FAKE_CONFIG, stopped)
    assert (stopped / "checkpoint.pt").exists()
    *_, last = execute_run(FAKE_CONFIG, stopped)
    assert last.kept
