"""What panels show: lines, points, marks and colours."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.made_up import ACTS, CONFIG, EPOCHS, FRAMES, GONE, GRID, LOST, MadeUp, made_up
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nsrelu_bench.compare import name_groups
from nsrelu_bench.plot import panels, specs
from nsrelu_bench.plot.panel_data import NothingToDrawError
from nsrelu_bench.plot.style import activation_style


def group(frames: MadeUp) -> pd.DataFrame:
    return name_groups(frames.runs, CONFIG)


def labels(ax: Axes) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def line(ax: Axes, label: str):
    return next(x for x in ax.lines if x.get_label() == label)


def crosses(ax: Axes) -> list:
    return [x for x in ax.lines if x.get_marker() == "x" and len(x.get_xdata())]


def test_curves_are_means_in_percent_with_t_bands() -> None:
    ax = panels.curves(group(FRAMES), FRAMES.metrics)
    assert labels(ax) == list(ACTS)
    expected = [100 * (1 - 0.9 / (1 + e) - 0.01 - 0.01) for e in range(EPOCHS + 1)]
    assert line(ax, "relu").get_ydata() == pytest.approx(expected)
    assert len(ax.collections) == len(ACTS)
    half = 4.302652729696142 * 1.0 / 3**0.5  # t(0.975, 2) sd / sqrt(n), in percentage points
    corners = ax.collections[0].get_paths()[0].get_extents()
    assert corners.y1 == pytest.approx(expected[-1] + half)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "test accuracy (%)")


def test_a_diverged_run_ends_in_a_cross() -> None:
    ax = panels.curves(group(LOST), LOST.metrics, metric="dead_units")
    assert "nsrelu(1) (2/3 diverged)" in labels(ax)
    assert [list(x.get_xdata()) for x in crosses(ax)] == [[1], [1]]
    assert {to_hex(x.get_color()) for x in crosses(ax)} == {activation_style("nsrelu(1)").color}
    mean = line(ax, "nsrelu(1) (2/3 diverged)").get_ydata()
    assert list(mean) == [5 + e for e in range(EPOCHS + 1)]  # of the one that was completed


def test_a_cross_beyond_the_limits_is_on_the_edge() -> None:
    metrics = LOST.metrics.copy()
    lost = metrics["run_id"].isin(["nsrelu(1)-0.1-0", "nsrelu(1)-0.1-1"]) & (metrics["epoch"] == 1)
    metrics.loc[lost, "train_loss"] = 1e30
    ax = panels.curves(group(LOST), metrics, metric="train_loss")
    assert ax.get_ylim()[1] < 10
    assert [list(x.get_ydata()) for x in crosses(ax)] == [[1.0], [1.0]]
    assert crosses(ax)[0].get_transform() != ax.transData


def test_a_group_that_all_diverged_is_in_the_legend() -> None:
    ax = panels.curves(group(GONE), GONE.metrics)
    assert "nsrelu(1) (3/3 diverged)" in labels(ax)
    assert len(crosses(ax)) == 3


def test_limits_ignore_the_wide_bands_of_two_seeds() -> None:
    two = made_up(seeds=2)
    two.metrics["test_accuracy"] += 0.2 * two.metrics["run_id"].str.endswith("1")
    ax = panels.curves(group(two), two.metrics)
    assert ax.collections[0].get_paths()[0].get_extents().y1 == 100  # and not far beyond 200 %
    assert ax.get_ylim()[1] < 120


def test_a_run_of_two_studies_is_drawn_once() -> None:
    runs, metrics = pd.concat([FRAMES.runs] * 2), pd.concat([FRAMES.metrics] * 2)
    once = panels.curves(group(FRAMES), FRAMES.metrics)
    twice = panels.curves(name_groups(runs, CONFIG), metrics)
    bands = [ax.collections[0].get_paths()[0].vertices for ax in (once, twice)]
    assert bands[0] == pytest.approx(bands[1])


@pytest.mark.parametrize("losses", [(1.0, 0.9), (100.0, 0.1), (20000.0, 0.05)])
def test_a_logarithmic_axis_has_3_to_10_numbers(
    losses: tuple[float, float],
) -> None:
    metrics = FRAMES.metrics.assign(train_loss=np.geomspace(*losses, len(FRAMES.metrics)))
    ax = panels.curves(group(FRAMES), metrics, metric="train_loss")
    low, high = ax.get_ylim()
    assert 3 <= sum(low <= tick <= high for tick in ax.get_yticks()) <= 10


def test_all_runs_diverged() -> None:
    lost = made_up(diverged=[(act, 0.1, seed) for act in ACTS for seed in range(3)])
    assert len(crosses(panels.curves(group(lost), lost.metrics))) == 15


def test_tradeoff_has_means_seeds_and_the_front() -> None:
    ax = panels.tradeoff(group(LOST))
    assert sorted(labels(ax)) == sorted([*ACTS[:-1], "nsrelu(1) (2/3 diverged)", "Pareto front"])
    seeds = [len(c.get_offsets()) for c in ax.collections if isinstance(c, PathCollection)]
    assert seeds == [3, 3, 3, 3, 1]


def test_the_pareto_front_by_hand() -> None:
    points = [(0.0, 95.0), (50.0, 94.0), (50.0, 93.0), (40.0, 90.0), (60.0, 91.0), (60.0, 91.0)]
    assert panels.pareto_front(points) == [(0.0, 95.0), (50.0, 94.0), (60.0, 91.0)]
    assert panels.pareto_front([]) == []


def test_gradients_by_depth_in_the_order_of_the_layers() -> None:
    relu = FRAMES.runs[FRAMES.runs["act"] == "relu"]
    ax = panels.gradient_depth(name_groups(relu, CONFIG), FRAMES.layers)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["fc1", "fc2", "fc10"]
    cells = ax.collections[0].get_array()
    assert cells.shape == (3, EPOCHS + 1)
    assert cells[1, 2] == pytest.approx(1e-3)


def test_diverged_gradients_stop_and_zeros_are_marked() -> None:
    layers = GONE.layers.copy()
    layers.loc[(layers["epoch"] == 1) & (layers["layer"] == "fc1"), "grad_norm"] = 0.0
    runs = GONE.runs[GONE.runs["act"] == "nsrelu(1)"]
    ax = panels.gradient_depth(name_groups(runs, CONFIG), layers)
    cells = ax.collections[0].get_array()
    assert np.ma.filled(cells[:, 2:].astype(float), np.nan).shape == (3, EPOCHS - 1)
    assert np.isnan(np.ma.filled(cells.astype(float), np.nan)[:, 2:]).all()
    assert [p.get_xy() for p in ax.patches] == [(1, 0)]
    assert ax.get_title() == "nsrelu(1) (3/3 diverged)"


def test_the_leak_curve_begins_at_relu() -> None:
    ax = panels.leak_curve(group(LOST), metric="diverged_fraction")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "0.01", "0.1", "1"]
    families = [x for x in ax.lines if len(x.get_xdata()) > 1]
    assert [list(x.get_xdata()) for x in families] == [[0, 2], [0, 1, 2, 3]]
    assert families[1].get_ydata() == pytest.approx([0, 0, 0, 200 / 3])


def test_the_leak_curve_marks_leaks_that_always_diverged() -> None:
    ax = panels.leak_curve(group(GONE))
    assert [list(x.get_xdata()) for x in crosses(ax)] == [[3]]
    low, high = ax.get_xlim()
    assert low < 0 < 3 < high


def test_the_phase_diagram_marks_diverged_cells() -> None:
    plan = specs.plan_phase(specs.group_results(GRID))
    assert [title for title, _ in plan.panels] == ["nsrelu"]
    ax = plan.panels[0][1](ax=Figure().subplots())
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "0.01", "0.1", "1"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0.1", "0.2"]
    cells = np.ma.filled(ax.collections[0].get_array().astype(float), np.nan)
    assert np.argwhere(np.isnan(cells)).tolist() == [[1, 2]]
    assert sorted(p.get_xy() for p in ax.patches) == [(2, 1), (3, 1)]
    texts = [t.get_text() for t in ax.texts]
    assert texts[6] == "100% div."
    assert re.fullmatch(r"\d\d\.\d\n33% div\.", texts[7])
    assert sum("div." in text for text in texts) == 2


def test_phase_diagrams_are_ordered_by_number() -> None:
    runs = pd.concat(
        GRID.runs.assign(width=width, run_id=GRID.runs["run_id"] + f"-{width}")
        for width in (16, 2, 8)
    )
    frames = replace(GRID, runs=runs, config_columns=[*CONFIG, "width"])
    titles = [title for title, _ in specs.plan_phase(specs.group_results(frames)).panels]
    assert titles == ["nsrelu width=2", "nsrelu width=8", "nsrelu width=16"]


def test_a_panel_refuses_runs_that_it_would_mix() -> None:
    with pytest.raises(NothingToDrawError, match="lr and epochs would mix relu with leaky_relu"):
        panels.phase(group(GRID), x="lr", y="epochs")


def test_a_histogram_is_a_density_and_counts_what_is_left_out() -> None:
    values = {"nsrelu(0.1)": [[-1.0, 1], [2, np.nan]], "relu": np.linspace(-2, 2, 1001)}
    ax = panels.histogram(values)
    heights, edges, _ = ax.patches[0].get_data()
    assert labels(ax) == ["relu (50% <= 0)", "nsrelu(0.1) (33% <= 0, 1 not finite)"]
    assert (heights * np.diff(edges)).sum() == pytest.approx(1, abs=0.01)
    assert to_hex(ax.patches[1].get_edgecolor()) == activation_style("nsrelu(0.1)").color
    assert panels.histogram({"relu": [3.0, 3.0]}).get_xlim() == (2, 4)
    with pytest.raises(NothingToDrawError, match="no finite values"):
        panels.histogram({"relu": [np.inf]})


def test_activations_can_be_told_apart_in_grey() -> None:
    acts = [*ACTS, "nsrelu(0.2)", "nsrelu(0.5)", "leaky_relu(0.01)", "relu/bsilu", "gelu"]
    styles = [activation_style(act) for act in acts]
    assert len({(x.marker, x.dash, x.fill == x.color) for x in styles}) == len(acts)
    assert len({x.color for x in styles}) == len(acts)


def test_surrogates_have_colours_of_their_own() -> None:
    acts = ["relu/bsilu(1.67)", "relu/nelu(0.05)", "relu/helu(0.05)", "leaky_relu(0.1)/relu"]
    assert len({activation_style(act).color for act in acts}) == len(acts)
    assert activation_style("relu/bsilu(1.5)").color == activation_style("relu/bsilu(1.67)").color


def test_the_callers_axes_are_used_and_get_no_legend() -> None:
    ax = Figure().subplots()
    assert panels.curves(group(FRAMES), FRAMES.metrics, ax=ax) is ax
    assert not ax.figure.legends


def test_pyplot_and_torch_stay_unloaded_and_colours_stay() -> None:
    code = (
        "import sys, nsrelu_bench.compare as c; print('matplotlib' in sys.modules); "
        "from nsrelu_bench.plot.style import activation_style as a"
        "; print(a('relu/bsilu')); "
        "print(*{'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.splitlines() == ["False", str(activation_style("relu/bsilu")), ""]
