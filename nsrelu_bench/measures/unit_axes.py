"""Which axis of the values at a site holds the units, and the values with the units second."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from nsrelu_bench.errors import BenchError, UsageError, lookup
from nsrelu_bench.measures.origins import Axes

#: An axis, or the axes that hold the units together, such as heads and their features.
Axis = int | tuple[int, ...]


@dataclass
class Layout:
    """Where the units are in the values at a site, and the weights that feed it."""

    pre: Axes
    dims: int  # of the input
    weights: tuple[nn.Parameter, ...]
    post: Axes | None = None  # None until the output is known


def check_unit_axis(
    unit_axis: Axis | Mapping[str, Axis] | None, modules: Mapping[str, nn.Module]
) -> dict[str, Axes]:
    """Return the axes that the user names, by site.

    Raises:
        UsageError: A site is unknown, or an axis is not a whole number or a tuple of them.
    """
    if unit_axis is None:
        return {}
    given = unit_axis if isinstance(unit_axis, Mapping) else dict.fromkeys(modules, unit_axis)
    found = {}
    for site, axis in given.items():
        lookup(modules, site.partition("#")[0], "site")
        axes = axis if isinstance(axis, tuple) else (axis,)
        if not axes or not all(type(one) is int for one in axes):
            raise UsageError(f"unit_axis: must be a whole number or a tuple of them, got {axis!r}")
        found[site] = axes
    return found


def find_axes(site: str, values: Tensor, asked: Axes | None, known: Axes | None) -> Axes:
    """Return the axes of the units at a site, counted from the last, which is -1.

    The user has `asked` for axes, from either end; others are `known` from where the values come.

    Raises:
        BenchError: There is no axis of examples, the axes asked for are not there, or none are
            asked for and it is not certain which hold the units.
    """
    shape, dims = tuple(values.shape), values.dim()
    if dims < 2:
        raise BenchError(
            f"site {site!r} has values of shape {shape}; needed: (examples, units) or more"
        )
    if asked is not None:
        axes = tuple(axis - dims if axis >= 0 else axis for axis in asked)
        if len({*axes}) < len(axes) or not all(-dims < axis < 0 for axis in axes):
            raise BenchError(
                f"unit_axis: must be from 1 to {dims - 1}, or from {1 - dims} to -1, for the"
                f" values of site {site!r} of shape {shape}, got {', '.join(map(str, asked))}"
            )
        return axes
    if known and all(-dims < axis for axis in known):
        return known
    if known:
        raise BenchError(
            f"site {site!r} has values of shape {shape} with units on the first axis, where the"
            " examples must be"
        )
    if known is None and dims == 2:
        return (-1,)
    raise BenchError(
        f"site {site!r} has values of shape {shape}, and it is not certain which axis holds the"
        f" units: pass unit_axis with its number, or a mapping such as {{{site!r}: -1}}"
    )


def units_second(values: Tensor, axes: Axes) -> Tensor:
    """Return the values as (N, U, ...)."""
    if axes == (1 - values.dim(),):
        return values
    return values.movedim(axes, tuple(range(1, 1 + len(axes)))).flatten(1, len(axes))
