"""Checkpoints: the state of a run between two epochs, in a file with its own hash.

The file has a line with the format, a line with the SHA-256 of the rest, a line of JSON that
describes the state, and the state as `torch.save` writes it. A truncated or changed file is not
loaded.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsrelu_bench.config import RunConfig
from nsrelu_bench.files import file_sha256
from nsrelu_bench.records.environment import DECISIVE
from nsrelu_bench.records.schema import csv_files

#: The number goes up by one when the content or the format of a checkpoint changes.
FORMAT = b"nsrelu-bench checkpoint 2\n"


def pack(about: Mapping[str, Any], state: Mapping[str, Any]) -> bytes:
    """Return the content of a checkpoint file: a state, and what `describe` returns about it."""
    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = json.dumps(about).encode() + b"\n" + buffer.getbuffer()
    return FORMAT + _digest(content) + b"\n" + content


def unpack(packed: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the description of a state, and its bytes for `load_state`.

    Raises:
        ValueError: `pack` did not write these bytes.
    """
    digest, _, content = packed.removeprefix(FORMAT).partition(b"\n")
    if not packed.startswith(FORMAT) or digest != _digest(content):
        raise ValueError("is damaged")
    about, _, state = content.partition(b"\n")
    return json.loads(about), state


def load_state(state: bytes) -> dict[str, Any]:
    """Load a state; only tensors and plain values are read, no code is run."""
    import torch

    loaded: dict[str, Any] = torch.load(io.BytesIO(state), weights_only=True)
    return loaded


def describe(
    folder: Path, config: RunConfig, epoch: int | None, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe the state of a run: its id, epoch, environment, and its CSV files so far."""
    files = {}
    for name in csv_files(config):
        files[name] = (folder / name).stat().st_size, file_sha256(folder / name)
    return {
        "run_id": config.run_id,
        "epoch": epoch,
        "environment": {name: environment.get(name) for name in DECISIVE},
        "stacked": environment.get("stacked"),
        "started": environment.get("started"),
        "files": files,
    }


def check_resumable(
    about: Mapping[str, Any], folder: Path, config: RunConfig, environment: Mapping[str, Any]
) -> None:
    """Check that a run resumed from a checkpoint gives the bits of an uninterrupted run.

    Raises:
        ValueError: It would not; the message says why.
    """
    if about["run_id"] != config.run_id:
        raise ValueError(f"belongs to {about['run_id']}")
    for name in DECISIVE:
        if (saved := about["environment"].get(name)) != environment.get(name):
            raise ValueError(f"was saved with another {name}: {saved}")
    for name in csv_files(config):
        length, digest = about["files"][name]
        path = folder / name
        if not path.exists() or file_sha256(path, length) != digest:
            raise ValueError(f"does not match {name}")


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
