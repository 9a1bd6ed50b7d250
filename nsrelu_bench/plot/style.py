"""Define the style of figures: that of each activation, sizes and fonts, colour scales."""

import math
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, to_hex

from nsrelu_bench.compare import parse_act
from nsrelu_bench.config import NUMBER

#: The colours of a family of activations at the cube roots of the leaks 0, 0.01, 0.1, 0.3 and 1;
#: they get darker, so that they differ in grey too.
SHADES = {
    "leaky_relu": ("#ffd166", "#f2b134", "#e0661a", "#a83c0a", "#4f1a00"),
    "nsrelu": ("#b5e48c", "#4fc3a1", "#2a8fe0", "#5a2fb5", "#2a0845"),
    "rescue": ("#ffc2dc", "#ff8fc0", "#e0218a", "#9c0d5c", "#4d0030"),
    "net_rescue": ("#f0a9a0", "#d9534f", "#9b1b30", "#6b0f1a", "#2d0006"),
    "up": ("#e6f2b8", "#cfe27a", "#94c22e", "#4d7000", "#263300"),
    "dead": ("#bfe3ea", "#8fcbd8", "#3fa0b5", "#1d6374", "#0a2c35"),
    "down": ("#e0e0e0", "#cccccc", "#adadad", "#707070", "#303030"),
}
PLACES = (0, 0.01 ** (1 / 3), 0.1 ** (1 / 3), 0.3 ** (1 / 3), 1)
#: Markers by the cube root of the leak: 0.01 has ^, 0.1 a square, 0.3 a triangle, 1 a star.
MARKERS = ("v", "<", "^", "p", "s", "D", ">", "P", "d", "*")
HOLLOW = ("leaky_relu", "up", "down")
Dash = str | tuple[float, tuple[float, ...]]
DASHES: dict[str, Dash] = {
    "leaky_relu": "--",
    "nsrelu": "-.",
    "rescue": (0, (7, 1.5)),
    "net_rescue": (0, (7, 1.5, 2.5, 1.5)),
    "up": (0, (4, 1, 1, 1, 1, 1)),
    "dead": (0, (2, 1)),
    "down": (0, (1, 2.5)),
}
#: The hues of other activations.
OTHERS = ("#cc79a7", "#882255", "#999933", "#117733", "#d55e00", "#661100", "#aa4499")
#: The dashes of a user's own, which are often compared with other arguments.
OWN_DASHES: tuple[Dash, ...] = (":", (0, (4, 2)), (0, (8, 2, 2, 2)))
#: Activations that are compared with each other: each gets the colour of `OTHERS` at its position.
NAMED = ("leaky_relu/relu", "relu/nelu", "relu/helu", "relu/bsilu", "relu/silu", "relu/gelu")
#: Settings that are compared with each other (`--arm`), likewise.
ARM_SETTINGS = (
    *("batch_norm", "layer_norm", "redo", "weight_decay"),
    *("clip_norm", "leak_schedule", "local"),
)

HEAT = "viridis"
HATCH: dict[str, Any] = {"fill": False, "hatch": "////", "ec": "0.6", "lw": 0}
FRONT: dict[str, Any] = {
    "color": "0.5",
    "ls": ":",
    "drawstyle": "steps-pre",
    "label": "Pareto front",
    "zorder": 0,
}

#: The tick on the axis of epochs where the gradient of a run lost the true one.
WARNING: dict[str, Any] = {
    "ls": "none",
    "marker": 2,  # matplotlib's TICKUP
    "markersize": 9,
    "markeredgewidth": 1.5,
    "clip_on": False,
    "zorder": 4,
}

#: Independent of the user's matplotlibrc, so that SVGs have the same bytes.
RC: dict[str, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.w_pad": 0.06,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "nsrelu-bench",
    "text.parse_math": False,  # a name may have a dollar sign
}


@dataclass(frozen=True)
class ActivationStyle:
    """How an activation is drawn: `color` as hex, the others as matplotlib has them."""

    color: str
    marker: str
    dash: Dash
    fill: str

    @property
    def point(self) -> dict[str, Any]:
        """Keyword arguments for a marker."""
        return {"color": self.color, "marker": self.marker, "markerfacecolor": self.fill}


def activation_style(act: str) -> ActivationStyle:
    """Return how an activation is drawn, the same in every figure.

    relu is black and solid. A family of `SHADES` has its own hues and dash; shade and marker depend
    on the leak. The colour of others depends on their name, their dash on the gate, and their
    marker on the whole label; so does the dash of a user's own. An arm, such as "relu redo=100",
    has the dash of its activation; its colour depends on the setting, its marker on both values.
    """
    act, *settings = re.split(r"(?<!,) ", act, maxsplit=1)
    if settings:
        return _arm_style(activation_style(act), *settings)
    family, leak = parse_act(act)
    if act == "relu":
        return ActivationStyle("#000000", "o", "-", "#000000")
    if leak is None or family not in SHADES:
        pair, _, gate = act.partition("@")
        name = re.sub(r"\(.*?\)", "", pair)
        hue = NAMED.index(name) if name in NAMED else zlib.crc32(name.encode()) % len(OTHERS)
        whole = zlib.crc32(act.encode())
        dash = OWN_DASHES[whole % len(OWN_DASHES)] if ":" in act else DASHES.get(gate, ":")
        marker = MARKERS[whole // 97 % len(MARKERS)]
        return ActivationStyle(OTHERS[hue], marker, dash, OTHERS[hue])
    place = min(max(leak, 0.0), 1.0) ** (1 / 3)
    stops = list(zip(PLACES, SHADES[family], strict=True))
    color = to_hex(LinearSegmentedColormap.from_list(family, stops)(place))
    marker = MARKERS[round(place * (len(MARKERS) - 1))]
    return ActivationStyle(color, marker, DASHES[family], "white" if family in HOLLOW else color)


def _arm_style(activation: ActivationStyle, settings: str) -> ActivationStyle:
    name, _, value = settings.partition("=")  # of several settings the whole text decides
    whole = zlib.crc32(settings.encode())
    color = OTHERS[ARM_SETTINGS.index(name) if name in ARM_SETTINGS else whole % len(OTHERS)]
    place = whole
    if NUMBER.fullmatch(value) and 0 < float(value) < math.inf:  # a factor of 2: another marker
        place = round(3 * math.log10(float(value)))
    if activation.marker in MARKERS:
        place += MARKERS.index(activation.marker)
    hollow = activation.fill != activation.color
    marker = MARKERS[place % len(MARKERS)]
    return ActivationStyle(color, marker, activation.dash, "white" if hollow else color)


@dataclass(frozen=True)
class FigureStyle:
    """The size and the fonts of a figure.

    Attributes:
        column: The width of a single panel in inches.
        page: The width of several.
        columns: The most panels side by side.
        dpi: Dots per inch of a PNG.
        rc: Parameters of matplotlib.
    """

    column: float
    page: float
    columns: int
    dpi: int
    rc: dict[str, Any]


def run_mark(outcome: str) -> dict[str, Any]:
    """Return the mark of a diverged or collapsed run, in proportion to the other marks."""
    size, width = mpl.rcParams["lines.markersize"], mpl.rcParams["lines.linewidth"]
    marker = {"diverged": "x", "collapsed": "1"}[outcome]
    return {"marker": marker, "markersize": 1.3 * size, "markeredgewidth": width}


def log_norm(grids: Iterable[pd.DataFrame]) -> LogNorm:
    """Return a scale over the positive values."""
    values = np.concatenate([grid.to_numpy(dtype=float).ravel() for grid in grids])
    values = values[values > 0]
    return LogNorm(values.min(), values.max()) if len(values) else LogNorm(0.1, 1)


def linear_norm(grids: Iterable[pd.DataFrame]) -> Normalize:
    """Return a scale over the finite values."""
    values = np.concatenate([grid.to_numpy(dtype=float).ravel() for grid in grids])
    values = values[np.isfinite(values)]
    return Normalize(values.min(), values.max()) if len(values) else Normalize(0, 1)


_PAPER = FigureStyle(
    column=3.3,
    page=6.9,
    columns=3,
    dpi=300,
    rc={
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.1,
        "lines.markersize": 3.5,
    },
)

_COLUMN_RC = _PAPER.rc | {"font.size": 6.5, "axes.titlesize": 6.5, "lines.markersize": 2.8}

#: "column" fits one column of a paper, with two panels side by side; "phone" stacks them.
STYLES: dict[str, FigureStyle] = {
    "paper": _PAPER,
    "column": replace(_PAPER, page=_PAPER.column, columns=2, rc=_COLUMN_RC),
    "phone": replace(_PAPER, page=_PAPER.column, columns=1),
    "talk": FigureStyle(
        column=8,
        page=13,
        columns=3,
        dpi=120,
        rc={
            "font.size": 16,
            "axes.titlesize": 16,
            "axes.linewidth": 1,
            "lines.linewidth": 2.2,
            "lines.markersize": 7,
        },
    ),
}
