"""NSReLU by its definition, in NumPy, and equality bit for bit; nothing from `activations`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


def relu_value(x: Tensor) -> Tensor:
    """Return max(x, 0), NaN where x is NaN."""
    values = x.detach().double().numpy()
    return torch.from_numpy(np.where(values <= 0, 0.0, values)).to(x.dtype)


def nsrelu_gradient(
    x: Tensor, grad: Tensor, leak: float, gate: str = "always", axis: int = -1
) -> Tensor:
    """Return `grad` where x > 0, leak * grad where x <= 0 and the gate is open, 0 elsewhere.

    Rounded once: 16-bit types compute in float32. `axis` is that of the units.
    """
    slope = nsrelu_slope(x, grad, leak, gate, axis)
    g = grad.detach().double().numpy().astype(slope.dtype)
    return torch.from_numpy(np.asarray(g * slope)).to(x.dtype)


def nsrelu_slope(
    x: Tensor, grad: Tensor, leak: float, gate: str = "always", axis: int = -1
) -> np.ndarray:
    """Return 1 where x > 0, `leak` where x <= 0 and the gate is open for `grad`, 0 elsewhere."""
    values = x.detach().double().numpy()
    g = grad.detach().double().numpy()
    off = values <= 0
    batch = tuple(other for other in range(x.dim()) if other != axis % x.dim())
    dead = np.all(off, axis=batch, keepdims=True) & off
    passes = {
        "always": off,
        "up": off & (g < 0),
        "dead": dead,
        "rescue": dead & (g < 0),
        "net_rescue": dead & (g.sum(axis=batch, keepdims=True) < 0),
        "down": off & (g > 0),
    }[gate]
    precision = np.float64 if x.dtype == torch.float64 else np.float32
    return np.where(values > 0, precision(1), np.where(passes, precision(leak), precision(0)))


def expect_equal(what: str, x: Tensor, actual: Tensor, expected: Tensor) -> None:
    """Raise AssertionError unless both are equal, except for the sign of zero and NaN's payload."""
    expect(actual.dtype == expected.dtype, f"{what} has dtype {actual.dtype}")
    expect(actual.shape == expected.shape, f"{what} has shape {tuple(actual.shape)}")
    actual = actual.detach()
    differs = (actual != expected) & ~(actual.isnan() & expected.isnan())
    if differs.any():
        where, got, wanted = (t.detach()[differs][0].item() for t in (x, actual, expected))
        raise AssertionError(f"{what} {got} at x = {where}, expected {wanted} ({x.dtype})")


def expect(condition: bool, otherwise: str) -> None:
    """Raise AssertionError with the message `otherwise` unless the condition is true."""
    if not condition:
        raise AssertionError(otherwise)


def normal(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Return normal random numbers, the same on every call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def gradients(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Return normal random multiples of 1/64.

    Their sums are exact, so that a gate that asks for the sign of one has only one answer.
    """
    return (64 * normal(shape, torch.float64, seed)).round().div(64).to(dtype)


def batch(
    shape: tuple[int, ...] = (50, 20), axis: int = -1, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return normal random numbers in which the first unit is off for all examples."""
    x = normal(shape, dtype)
    x.select(axis, 0).abs_().neg_()
    return x


def subnormals(f: torch.finfo) -> list[float]:
    """Return the smallest and a large subnormal number, with either sign."""
    return [sign * f.smallest_normal * part for sign in (-1, 1) for part in (f.eps, 0.5)]


@dataclass(frozen=True)
class Subject:
    """What is checked: an implementation of NSReLU, or a gate.

    Attributes:
        name: Its name in the table.
        make: Makes its module from a leak and the axis of the units.
        gate: The gate that it has.
        leaks: The leaks that are tried; with 0 there is nothing for a gate to pass.
    """

    name: str
    make: Callable[[float, int], nn.Module]
    gate: str = "always"
    leaks: tuple[float, ...] = (0.0, 0.01, 0.1, 1.0)

    def module(self, leak: float = 0.1, axis: int = -1) -> nn.Module:
        """Return a new module."""
        return self.make(leak, axis)

    def gradient(self, x: Tensor, grad: Tensor, leak: float = 0.1, axis: int = -1) -> Tensor:
        """Return the gradient at `x` by definition."""
        return nsrelu_gradient(x, grad, leak, self.gate, axis)

    def check(
        self,
        x: Tensor,
        leak: float = 0.1,
        axis: int = -1,
        module: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Check value and gradient at `x`, for gradients of either sign, and that `x` stays."""
        module = self.module(leak, axis) if module is None else module
        x = x.detach().requires_grad_()
        before = x.detach().clone()
        defined = ~before.isnan()  # at NaN there is no gradient that would be right
        for sign in (1, -1):
            y = module(x)
            expect_equal("value", x, y, relu_value(x))
            grad = sign * gradients(y.shape, y.dtype)
            (gradient,) = torch.autograd.grad(y, x, grad)
            expected = self.gradient(x, grad, leak, axis)
            expect_equal("gradient", before[defined], gradient[defined], expected[defined])
        expect_equal("input, which changed to", before, x, before)
