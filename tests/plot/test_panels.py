"""What panels show: lines, points, marks and colours."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.made_up import (
    EPOCHS,
    FRAMES,
    GONE,
    GRID_RUNS,
    LOST_RUNS,
    MADE_UP_ACTS,
    MADE_UP_CONFIG,
    MadeUp,
    made_up,
)
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from nsrelu_bench.compare import Baseline, name_groups
from nsrelu_bench.plot import figure_specs, figures, panels
from nsrelu_bench.plot.grouped_results import group_results
from nsrelu_bench.plot.panel_data import NothingToDrawError, add_unit_fractions
from nsrelu_bench.plot.style import activation_style


def group(frames: MadeUp) -> pd.DataFrame:
    return name_groups(frames.runs, MADE_UP_CONFIG)


def labels(ax: Axes) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def line(ax: Axes, label: str):
    return next(x for x in ax.lines if x.get_label() == label)


def crosses(ax: Axes) -> list:
    return [x for x in ax.lines if x.get_marker() == "x" and len(x.get_xdata())]


def test_curves_are_means_in_percent_with_t_bands() -> None:
    ax = panels.curves(group(FRAMES), FRAMES.metrics)
    assert labels(ax) == list(MADE_UP_ACTS)
    expected = [100 * (1 - 0.9 / (1 + e) - 0.01 - 0.01) for e in range(EPOCHS + 1)]
    assert line(ax, "_relu").get_ydata() == pytest.approx(expected)
    assert len(ax.collections) == len(MADE_UP_ACTS)
    half = 4.302652729696142 * 1.0 / 3**0.5  # t(0.975, 2) sd / sqrt(n), in percentage points
    corners = ax.collections[0].get_paths()[0].get_extents()
    assert corners.y1 == pytest.approx(expected[-1] + half)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "test accuracy (%)")


def test_a_diverged_run_ends_in_a_cross() -> None:
    ax = panels.curves(group(LOST_RUNS), LOST_RUNS.metrics, metric="dead_units")
    assert "nsrelu(1) (2/3 diverged)" in labels(ax)
    assert [list(x.get_xdata()) for x in crosses(ax)] == [[1], [1]]
    assert {to_hex(x.get_color()) for x in crosses(ax)} == {activation_style("nsrelu(1)").color}
    mean = line(ax, "_nsrelu(1)").get_ydata()
    assert list(mean) == [5 + e for e in range(EPOCHS + 1)]  # of the one that was completed


def test_a_cross_beyond_the_limits_is_on_the_edge() -> None:
    metrics = LOST_RUNS.metrics.copy()
    lost = metrics["run_id"].isin(["nsrelu(1)-0.1-0", "nsrelu(1)-0.1-1"]) & (metrics["epoch"] == 1)
    metrics.loc[lost, "train_loss"] = 1e30
    ax = panels.curves(group(LOST_RUNS), metrics, metric="train_loss")
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
    twice = panels.curves(name_groups(runs, MADE_UP_CONFIG), metrics)
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
    lost = made_up(diverged=[(act, 0.1, seed) for act in MADE_UP_ACTS for seed in range(3)])
    assert len(crosses(panels.curves(group(lost), lost.metrics))) == 15


def test_tradeoff_has_means_seeds_and_the_front() -> None:
    ax = panels.tradeoff(group(LOST_RUNS))
    assert sorted(labels(ax)) == sorted(
        [*MADE_UP_ACTS[:-1], "nsrelu(1) (2/3 diverged)", "Pareto front"]
    )
    seeds = [len(c.get_offsets()) for c in ax.collections if isinstance(c, PathCollection)]
    assert seeds == [3, 3, 3, 3, 1]


def test_the_pareto_front_by_hand() -> None:
    points = [(0.0, 95.0), (50.0, 94.0), (50.0, 93.0), (40.0, 90.0), (60.0, 91.0), (60.0, 91.0)]
    assert panels.pareto_front(points) == [(0.0, 95.0), (50.0, 94.0), (60.0, 91.0)]
    assert panels.pareto_front([]) == []


def test_gradients_by_depth_in_the_order_of_the_layers() -> None:
    relu = FRAMES.runs[FRAMES.runs["act"] == "relu"]
    ax = panels.gradient_depth(name_groups(relu, MADE_UP_CONFIG), FRAMES.layers)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["fc1", "fc2", "fc10"]
    cells = ax.collections[0].get_array()
    assert cells.shape == (3, EPOCHS + 1)
    assert cells[1, 2] == pytest.approx(1e-3)


def test_diverged_gradients_stop_and_zeros_are_marked() -> None:
    layers = GONE.layers.copy()
    layers.loc[(layers["epoch"] == 1) & (layers["layer"] == "fc1"), "grad_norm"] = 0.0
    runs = GONE.runs[GONE.runs["act"] == "nsrelu(1)"]
    ax = panels.gradient_depth(name_groups(runs, MADE_UP_CONFIG), layers)
    cells = ax.collections[0].get_array()
    assert np.ma.filled(cells[:, 2:].astype(float), np.nan).shape == (3, EPOCHS - 1)
    assert np.isnan(np.ma.filled(cells.astype(float), np.nan)[:, 2:]).all()
    assert [p.get_xy() for p in ax.patches] == [(1, 0)]
    assert ax.get_title() == "nsrelu(1) (3/3 diverged)"


def test_the_leak_curve_begins_at_relu() -> None:
    ax = panels.leak_curve(group(LOST_RUNS), metric="diverged_fraction")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "0.01", "0.1", "1"]
    families = [x for x in ax.lines if len(x.get_xdata()) > 1]
    assert [list(x.get_xdata()) for x in families] == [[0, 2], [0, 1, 2, 3]]
    assert families[1].get_ydata() == pytest.approx([0, 0, 0, 200 / 3])


def test_the_leak_curve_marks_leaks_that_always_diverged() -> None:
    ax = panels.leak_curve(group(GONE))
    assert [list(x.get_xdata()) for x in crosses(ax)] == [[3]]
    low, high = ax.get_xlim()
    assert low < 0
    assert high > 3


def test_the_phase_diagram_marks_diverged_cells() -> None:
    plan = figure_specs.plan_phase(group_results(GRID_RUNS)[0])
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
        GRID_RUNS.runs.assign(width=width, run_id=GRID_RUNS.runs["run_id"] + f"-{width}")
        for width in (16, 2, 8)
    )
    frames = replace(GRID_RUNS, runs=runs, config_columns=[*MADE_UP_CONFIG, "width"])
    titles = [title for title, _ in figure_specs.plan_phase(group_results(frames)[0]).panels]
    assert titles == ["nsrelu width=2", "nsrelu width=8", "nsrelu width=16"]


def test_a_panel_refuses_runs_that_it_would_mix() -> None:
    with pytest.raises(NothingToDrawError, match="lr and epochs would mix relu with leaky_relu"):
        panels.phase(group(GRID_RUNS), x="lr", y="epochs")


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


def test_activations_differ_in_grey() -> None:
    acts = [*MADE_UP_ACTS, "nsrelu(0.2)", "nsrelu(0.5)", "leaky_relu(0.01)", "relu/bsilu", "gelu"]
    styles = [activation_style(act) for act in acts]
    assert len({(x.marker, x.dash, x.fill == x.color) for x in styles}) == len(acts)
    assert len({x.color for x in styles}) == len(acts)


def test_surrogates_have_colours_of_their_own() -> None:
    acts = ["relu/bsilu(1.67)", "relu/nelu(0.05)", "relu/helu(0.05)", "leaky_relu(0.1)/relu"]
    assert len({activation_style(act).color for act in acts}) == len(acts)
    assert activation_style("relu/bsilu(1.5)").color == activation_style("relu/bsilu(1.67)").color


def test_ones_own_differ_by_their_arguments() -> None:
    own = [activation_style(f"lab.acts:NetRescue(0.1, {wait})") for wait in (1, 30, 100)]
    assert len({style.color for style in own}) == 1
    assert len({(style.dash, style.marker) for style in own}) == 3
    assert len({style.dash for style in own}) > 1


def test_arms_have_the_colour_of_a_setting_and_an_acts_dash() -> None:
    acts = ("relu", "leaky_relu(0.1)", "nsrelu(0.1)", "nsrelu(0.3)", "rrelu(0.1, 0.3)")
    settings = ("batch_norm", "clip_norm=1", "redo=100", "leak_schedule=linear", "dropout=0.5")
    arms = {(a, s): activation_style(f"{a} {s}") for a in acts for s in settings}
    assert len({(x.color, x.dash, x.fill, x.marker) for x in arms.values()}) == len(arms)
    for (act, setting), style in arms.items():
        assert style.dash == activation_style(act).dash
        assert style.color == arms["relu", setting].color
    redo = [activation_style(f"relu redo={every}") for every in (10, 20, 50, 100, 1000)]
    assert len({style.marker for style in redo}) == len(redo)
    for text in ("clip_norm=inf", "clip_norm=1e400", "redo=", "redo=100 clip_norm=1"):
        assert activation_style(f"relu {text}").dash == "-"


def test_the_callers_axes_are_used_and_get_no_legend() -> None:
    ax = Figure().subplots()
    assert panels.curves(group(FRAMES), FRAMES.metrics, ax=ax) is ax
    assert not ax.figure.legends


# Collapsed runs, warnings, every run.


def collapse(frames: MadeUp, *runs: str) -> MadeUp:
    collapsed = frames.runs["run_id"].isin(runs).astype(float)
    return replace(frames, runs=frames.runs.assign(collapsed=collapsed))


def marks(ax: Axes, marker: object) -> list:
    return [x for x in ax.lines if x.get_marker() == marker and len(x.get_xdata())]


def test_collapsed_runs_are_marked_and_counted() -> None:
    groups = group(collapse(FRAMES, "nsrelu(1)-0.1-0", "nsrelu(1)-0.1-2"))
    ax = panels.curves(groups, FRAMES.metrics)
    assert "nsrelu(1) (2/3 collapsed)" in labels(ax)
    assert [list(x.get_xdata()) for x in marks(ax, "1")] == [[EPOCHS]] * 2
    for panel in (panels.tradeoff, panels.leak_curve, panels.profile):
        assert len(marks(panel(groups), "1")) == 2
    assert len(marks(panels.pairs(groups), "1")) == 2
    family = groups.assign(leak=groups["leak"].fillna(0))
    family = family[~family["act"].str.startswith("leaky")]
    assert [t.get_text()[-9:] for t in panels.phase(family).texts][-1] == "67% coll."


def test_a_tick_shows_when_a_gradient_was_lost() -> None:
    lost = FRAMES.runs["run_id"] == "nsrelu(1)-0.1-1"
    runs = FRAMES.runs.assign(gradient_lost_step=np.where(lost, 25.0, np.nan))
    metrics = FRAMES.metrics.assign(step=FRAMES.metrics["epoch"] * 10)
    ax = panels.curves(name_groups(runs, MADE_UP_CONFIG), metrics)
    [tick] = marks(ax, 2)
    assert list(tick.get_xdata()) == [2.5]
    assert to_hex(tick.get_color()) == activation_style("nsrelu(1)").color


def test_bands_on_a_logarithmic_axis_are_intervals_of_logarithms() -> None:
    spread = FRAMES.metrics["run_id"].str[-1].astype(int)  # a factor of ten from seed to seed
    metrics = FRAMES.metrics.assign(train_loss=10.0**spread)
    ax = panels.curves(group(FRAMES), metrics, metric="train_loss")
    assert list(line(ax, "_relu").get_ydata()) == pytest.approx([10.0] * (EPOCHS + 1))
    box = ax.collections[0].get_paths()[0].get_extents()
    half = 4.302652729696142 / 3**0.5  # t(0.975, 2) sd / sqrt(n), in decades
    assert (box.y0, box.y1) == pytest.approx((10 ** (1 - half), 10 ** (1 + half)))


def test_marks_do_not_hide_one_another() -> None:
    metrics = FRAMES.metrics.assign(test_accuracy=0.5)
    ax = panels.curves(group(FRAMES), metrics)
    places = np.concatenate([x.get_xdata() for x in ax.lines if x.get_linestyle() == "None"])
    assert len(places) == len(MADE_UP_ACTS) * EPOCHS
    assert np.diff(np.sort(places)).min() > 0.1
    ax = panels.leak_curve(group(FRAMES))
    ax.figure.draw_without_rendering()
    boxes = [x.get_window_extent() for x in ax.lines if x.get_marker() == "s"]
    assert abs(boxes[0].x0 - boxes[1].x0) > 2


def test_a_metric_over_a_learning_rate() -> None:
    nsrelu = GRID_RUNS.runs[GRID_RUNS.runs["act"].isin(["relu", "nsrelu(0.1)"])]
    groups = name_groups(nsrelu, MADE_UP_CONFIG)
    ax = panels.setting_curve(groups, x="lr")
    lines = [x for x in ax.lines if len(x.get_xdata()) == 2]
    assert list(lines[0].get_ydata()) == pytest.approx([80.0, 79.0])
    assert len(crosses(ax)) == 1  # all runs of nsrelu(0.1) with lr 0.2 diverged
    assert (ax.get_xlabel(), ax.get_xscale()) == ("learning rate", "linear")
    wide = groups.assign(lr=groups["lr"].map({0.1: 0.001, 0.2: 1.0}))
    ax = panels.setting_curve(wide, x="lr")
    ax.figure.draw_without_rendering()
    assert ax.get_xscale() == "log"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.001", "1"]


def test_a_profile_is_the_share_of_runs_above_each_value() -> None:
    relu = FRAMES.runs[FRAMES.runs["act"] == "relu"].assign(test_accuracy=[0.9, 0.7, 0.8])
    ax = panels.profile(name_groups(relu, MADE_UP_CONFIG))
    step = next(x for x in ax.lines if x.get_drawstyle() == "steps-post")
    assert list(step.get_xdata()[1:-1]) == pytest.approx([70, 80, 90])
    assert list(step.get_ydata()) == pytest.approx([100, 200 / 3, 100 / 3, 0, 0])
    lost = relu.assign(state=["diverged", "completed", "completed"])
    step = panels.profile(name_groups(lost, MADE_UP_CONFIG)).lines[1]
    assert list(step.get_ydata()) == pytest.approx([200 / 3, 100 / 3, 0, 0])


def test_pairs_join_the_runs_of_a_seed() -> None:
    runs = LOST_RUNS.runs[LOST_RUNS.runs["act"].isin(["relu", "nsrelu(1)"])]
    ax = panels.pairs(name_groups(runs, MADE_UP_CONFIG))
    joins = [list(x.get_ydata()) for x in ax.lines if len(x.get_xdata()) == 2]
    floor = ax.get_ylim()[0]
    assert joins == [pytest.approx(ends) for ends in ([81, floor], [80, floor], [79, 80])]
    assert len(crosses(ax)) == 2
    assert [t.get_text() for t in ax.get_xticklabels()] == ["nsrelu(1)"]
    with pytest.raises(NothingToDrawError, match=r"a run of gelu with its seed"):
        panels.pairs(name_groups(runs, MADE_UP_CONFIG), baseline="gelu")


def test_pairs_join_two_values_of_a_setting_within_an_activation() -> None:
    runs = FRAMES.runs[FRAMES.runs["act"].isin(["relu", "nsrelu(1)"])]
    other = runs.assign(run_id="o" + runs["run_id"], epochs=9, test_accuracy=0.5)
    groups = name_groups(pd.concat([runs, other]), MADE_UP_CONFIG)
    ax = panels.pairs(groups, baseline=Baseline("epochs", "4"))
    joins = [list(x.get_ydata()) for x in ax.lines if len(x.get_xdata()) == 2]
    assert len(joins) == len(runs)
    assert {end for _, end in joins} == {50}
    assert [t.get_text() for t in ax.get_xticklabels()] == ["relu", "nsrelu(1)"]
    assert ax.get_xlabel() == "epochs=4 (left) and epochs=9 (right)"


def test_counts_of_units_become_shares_of_all_units() -> None:
    metrics = add_unit_fractions(FRAMES.metrics, FRAMES.layers)
    assert metrics["dormant_fraction"].to_numpy() == pytest.approx(metrics["dormant_units"] / 24)
    assert metrics["dead_fraction"] is not None
    assert add_unit_fractions(FRAMES.metrics, pd.DataFrame()) is FRAMES.metrics


def test_a_runaway_activation_does_not_stretch_a_histogram() -> None:
    values = {"relu": np.linspace(-1, 1, 200), "nsrelu(1)": np.linspace(-1e10, 1, 200)}
    ax = panels.histogram(values)
    assert ax.get_xlim() == pytest.approx((-1.02, 1.02), abs=0.01)
    assert [t.get_text() for t in ax.texts] == ["100% beyond"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["$x^2$", "a$b$c", r"\alpha", "_x"])
def test_names_are_taken_literally(name: str) -> None:
    layers = FRAMES.layers.assign(layer=name)
    relu = FRAMES.runs[FRAMES.runs["act"] == "relu"].assign(act=name)
    ax = panels.gradient_depth(name_groups(relu, MADE_UP_CONFIG), layers)
    ax.figure.draw_without_rendering()
    assert not ax.title.get_parse_math()
    assert [t.get_text() for t in ax.get_yticklabels()] == [name]
    spec = figure_specs.plan_layers(group_results(replace(FRAMES, layers=layers))[0])
    assert not figures.figure(spec).axes[0].title.get_parse_math()


def lightness_and_hue(color: str, vision: np.ndarray) -> np.ndarray:
    """CIELAB of a colour as seen by a person with that vision (Machado et al. 2009)."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(vision @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = xyz @ linear / [0.9505, 1, 1.089]
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


VISIONS = {
    "usual": np.eye(3),
    "protan": np.array(
        [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.052]]
    ),
    "deutan": np.array(
        [[0.3673, 0.8606, -0.228], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.969]]
    ),
}


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_of_usual_leaks_and_gates_differ(vision: str) -> None:
    def distance(first: str, second: str) -> float:
        colors = [activation_style(act).color for act in (first, second)]
        one, two = (lightness_and_hue(color, VISIONS[vision]) for color in colors)
        return float(np.linalg.norm(one - two))

    assert distance("nsrelu(0.1)", "nsrelu(0.3)") > 20
    families = ("nsrelu", "leaky_relu", "rescue", "net_rescue", "up", "dead", "down")
    gates = [f"{name}(0.1)" for name in families]
    assert min(distance(*pair) for pair in itertools.combinations(gates, 2)) > 10
    looks = {activation_style(gate).dash for gate in gates}
    assert len(looks) == len(gates)
