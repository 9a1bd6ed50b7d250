"""The state of a run between two epochs, as bytes that vouch for themselves.

A line that names the format, the SHA-256 of all that follows, a line of JSON that says what the
state is of, and the state as `torch.save` writes it. Of a file that is torn, or in which a bit is
another, nothing is loaded.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

#: Its number is raised by one when what `train.run` keeps, or how it is kept, changes.
FORMAT = b"nsrelu-bench checkpoint 1\n"


def pack(about: Mapping[str, Any], state: Mapping[str, Any]) -> bytes:
    """Turn a state into bytes.

    Args:
        about: What it is the state of; plain values.
        state: Tensors and plain values.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = json.dumps(about).encode() + b"\n" + buffer.getbuffer()
    return FORMAT + _digest(content) + b"\n" + content


def unpack(packed: bytes) -> tuple[dict[str, Any], bytes]:
    """Return what `pack` was told about a state, and the state for `load_state`.

    Raises:
        ValueError: These are not the bytes that `pack` made.
    """
    digest, _, content = packed.removeprefix(FORMAT).partition(b"\n")
    if not packed.startswith(FORMAT) or digest != _digest(content):
        raise ValueError("is damaged")
    about, _, state = content.partition(b"\n")
    return json.loads(about), state


def load_state(state: bytes) -> dict[str, Any]:
    """Return a state that was packed; only tensors and plain values are read, no code is run."""
    import torch

    loaded: dict[str, Any] = torch.load(io.BytesIO(state), weights_only=True)
    return loaded


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
