"""Activation functions by name; docs/activations.md has a card for each."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def bsilu(x: Tensor, alpha: float) -> Tensor:
    """B-SiLU: (x + alpha) sigmoid(x) - alpha / 2.

    Source: SUGAR, arXiv 2505.22074, eq. 7.
    """
    if x.dtype == torch.float16:
        # The form below would overflow in the backward, with a gradient of 1000 at x = 66.
        return F.silu(x) + alpha * x.sigmoid() - alpha / 2
    return (x + alpha) * x.sigmoid() - alpha / 2


def nelu(x: Tensor, alpha: float) -> Tensor:
    """NeLU: x where x > 0, -alpha / (1 + x^2) elsewhere; the slope there is negative, at 0 it is 0.

    Source: SUGAR, arXiv 2505.22074, which uses its derivative, 2 alpha x / (1 + x^2)^2.
    """
    return torch.where(x > 0, x, -alpha / (1 + x * x))


def helu(x: Tensor, alpha: float) -> Tensor:
    """Return max(x + alpha, 0), whose slope is 1 where x > -alpha; 0 at -alpha.

    Source: HeLU, arXiv 2411.10573, whose backward it is; the forward there is ReLU.
    """
    return relu_of_input(x + alpha)


def relu_of_input(x: Tensor) -> Tensor:
    """ReLU whose gradient is computed from the input, where F.relu's is from the result."""
    return F.threshold(x, 0.0, 0.0)


def rrelu(x: Tensor, lower: float, upper: float, training: bool = False) -> Tensor:
    """Leaky ReLU with a slope drawn for each element; in evaluation, the mean of the limits.

    Raises:
        TypeError: `x` is of float16 on the CPU.
    """
    if x.dtype == torch.float16 and x.device.type == "cpu":
        raise TypeError("rrelu takes no float16 on the CPU: PyTorch has no kernel for it")
    return F.rrelu(x, lower, upper, training)


def check_dtype(x: Tensor) -> None:
    """Raise TypeError unless `x` is of a floating-point type."""
    if x.dtype not in DTYPES:
        *most, last, got = [str(dtype).removeprefix("torch.") for dtype in (*DTYPES, x.dtype)]
        raise TypeError(f"activations need a tensor of {', '.join(most)} or {last}, got {got}")


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Every function of `config.FUNCTION_PARAMETERS`, as f(x, *parameters). All gradients except relu's
# are computed from the input, so that the values can be overwritten.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "identity": torch.clone,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "prelu": F.leaky_relu,
    "rrelu": rrelu,
    "bsilu": bsilu,
    "nelu": nelu,
    "helu": helu,
}
