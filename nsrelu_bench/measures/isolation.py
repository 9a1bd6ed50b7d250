"""Measure without changing the model, the random numbers or PyTorch's settings."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import nn


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module that torch.compile was given, or the module itself."""
    original: nn.Module = getattr(model, "_orig_mod", model)
    return original


@contextmanager
def run_eagerly() -> Iterator[None]:
    """Run compiled models uncompiled while this is open, and transformers off their fast path.

    Neither compiled code nor the fast path calls the hooks of an activation.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # Without dynamo nothing can be compiled.
    loaded = "torch._dynamo" in sys.modules
    try:
        with torch.compiler.set_stance("force_eager") if loaded else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put all modules in eval mode; restore their modes and the random number generators."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            for module, _ in modes:
                module.training = False  # not .eval(): a model may do more in it than set this
            yield
        finally:
            for module, training in modes:
                module.training = training
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
