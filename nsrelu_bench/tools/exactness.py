"""What `check` compares with: values by definition, inputs, and equality bit for bit."""

import numpy as np
import torch
from torch import Tensor


def relu_value(x: Tensor) -> Tensor:
    """Max(x, 0), NaN where x is NaN."""
    values = x.detach().double().numpy()
    return torch.from_numpy(np.where(values <= 0, 0.0, values)).to(x.dtype)


def hold(what: str, x: Tensor, actual: Tensor, expected: Tensor) -> None:
    """Hold `actual` equal to `expected`, bit for bit but for the sign of zero and NaN's payload."""
    hold_that(actual.dtype == expected.dtype, f"{what} has dtype {actual.dtype}")
    hold_that(actual.shape == expected.shape, f"{what} has shape {tuple(actual.shape)}")
    actual = actual.detach()
    differs = (actual != expected) & ~(actual.isnan() & expected.isnan())
    if differs.any():
        where, got, wanted = (t.detach()[differs][0].item() for t in (x, actual, expected))
        raise AssertionError(f"{what} {got} at x = {where}, expected {wanted} ({x.dtype})")


def hold_that(condition: bool, otherwise: str) -> None:
    """Raise AssertionError with the message `otherwise` unless the condition holds."""
    if not condition:
        raise AssertionError(otherwise)


def normal(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Return normal random numbers, the same on every call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def subnormals(f: torch.finfo) -> list[float]:
    """Give the smallest and a large one, of either sign."""
    return [sign * f.smallest_normal * part for sign in (-1, 1) for part in (f.eps, 0.5)]
