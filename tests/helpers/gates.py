"""The definition of NSReLU's gates, element by element, in NumPy."""

import numpy as np

from nsrelu_bench.config import GATES

GATED = [gate for gate in GATES if gate != "always"]


def gated_gradient(x: np.ndarray, grad: np.ndarray, leak: float, gate: str, axis: int = 1):
    """Return dx for the gradient `grad` at the output; `axis` is that of the units."""
    dx = np.zeros_like(grad)
    for index in np.ndindex(*x.shape):
        unit, of_unit = (np.take(t, index[axis], axis) if x.ndim else t for t in (x, grad))
        off_for_all = all(value <= 0 for value in unit.flat)
        g = grad[index]
        passes = {
            "always": True,
            "up": g < 0,
            "dead": off_for_all,
            "rescue": off_for_all and g < 0,
            "net_rescue": off_for_all and sum(of_unit.ravel().tolist()) < 0,
            "down": g > 0,
        }
        if x[index] > 0:
            dx[index] = g
        elif x[index] <= 0 and passes[gate]:
            dx[index] = dx.dtype.type(leak) * g
    return dx
