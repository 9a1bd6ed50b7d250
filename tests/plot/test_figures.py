"""Figures of several panels, their legends, and what the files are like."""

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from helpers.made_up import (
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
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nsrelu_bench.compare import name_groups
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.plot import figure_specs, figures, panels
from nsrelu_bench.plot.grouped_results import group_results
from nsrelu_bench.plot.panel_data import NothingToDrawError
from nsrelu_bench.plot.style import activation_style


def line(ax: Axes, label: str):
    return next(x for x in ax.lines if x.get_label() == label)


def plan(kind: str, frames: MadeUp, metric: str | None = None) -> figure_specs.FigureSpec:
    return figure_specs.PLANS[kind](group_results(frames)[0], [metric] if metric else [])


def drawn(kind: str, frames: MadeUp) -> Figure:
    return figures.figure(plan(kind, frames))


def test_an_exploding_gradient_does_not_flatten_the_others() -> None:
    layers = GONE.layers.copy()
    layers.loc[layers["run_id"].str.startswith("nsrelu(1)"), "grad_norm"] = 1e10
    figure = drawn("gradient_depth", replace(GONE, layers=layers))
    assert {ax.collections[0].norm.vmax for ax in figure.axes[:5]} == {1.0}


# What is the same everywhere.


@pytest.mark.covers
@pytest.mark.slow
def test_an_activation_has_the_same_colour_in_each_figure() -> None:
    color = activation_style("nsrelu(0.1)").color
    fewer = FRAMES.runs[FRAMES.runs["act"] != "relu"]
    drawings = [
        panels.curves(name_groups(FRAMES.runs, MADE_UP_CONFIG), FRAMES.metrics),
        panels.curves(name_groups(fewer, MADE_UP_CONFIG), FRAMES.metrics),
        panels.tradeoff(name_groups(LOST_RUNS.runs, MADE_UP_CONFIG)),
    ]
    assert {to_hex(line(ax, "_nsrelu(0.1)").get_color()) for ax in drawings[:2]} == {color}
    assert color in {to_hex(x.get_color()) for x in drawings[2].lines}
    for kind in ("tradeoff", "leak", "cosine"):
        entries = drawn(kind, FRAMES).legends[0]
        colors = {
            t.get_text(): h
            for t, h in zip(entries.get_texts(), entries.legend_handles, strict=True)
        }
        assert to_hex(colors["nsrelu(0.1)"].get_color()) == color


@pytest.mark.slow
@pytest.mark.parametrize("frames", [LOST_RUNS, GRID_RUNS], ids=["lost", "grid"])
@pytest.mark.parametrize("kind", figure_specs.PLANS)
def test_legends_cover_nothing_and_nothing_is_cut(kind: str, frames: MadeUp) -> None:
    try:
        figure = drawn(kind, frames)
    except NothingToDrawError:
        assert kind in ("phase", "line")
        assert frames is LOST_RUNS
        return
    figure.draw_without_rendering()  # outside the style that it was drawn in
    renderer = figure.canvas.get_renderer()
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert not any(box.overlaps(ax.get_window_extent(renderer)) for ax in figure.axes)
        assert not any(
            box.overlaps(ax.xaxis.label.get_window_extent(renderer)) for ax in figure.axes
        )
    tight, size = figure.get_tightbbox(renderer), figure.get_size_inches()
    assert tight.x0 >= -0.03
    assert tight.y0 >= -0.03
    assert tight.x1 <= size[0] + 0.03
    assert tight.y1 <= size[1] + 0.03


def test_long_titles_are_not_cut_and_do_not_meet() -> None:
    spec = plan("tradeoff", FRAMES)
    (_, panel), *_ = spec.panels
    title = "optimizer=sgd lr=0.02 momentum=0.9"
    figure = figures.figure(replace(spec, panels=[(title, panel)] * 3))
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    boxes = [ax.title.get_window_extent(renderer) for ax in figure.axes]
    assert {ax.get_title().replace("\n", " ") for ax in figure.axes} == {title}
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert boxes[-1].x1 <= figure.bbox.x1


def test_settings_have_panels_with_the_same_limits() -> None:
    figure = drawn("curves", GRID_RUNS)
    assert [ax.get_title() for ax in figure.axes] == ["lr=0.1", "lr=0.2"]
    assert len({(*ax.get_xlim(), *ax.get_ylim()) for ax in figure.axes}) == 1
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert "nsrelu(0.1) (3/6 diverged)" in texts
    assert "diverged run" in texts


def test_a_setting_with_one_leak_has_no_leak_panel() -> None:
    few = GRID_RUNS.runs[
        (GRID_RUNS.runs["lr"] == 0.1) | GRID_RUNS.runs["act"].isin(["relu", "nsrelu(0.1)"])
    ]
    figure = drawn("leak", replace(GRID_RUNS, runs=few))
    assert {ax.get_title() for ax in figure.axes} == {"lr=0.1"}


def test_too_many_panels_or_lines_are_refused() -> None:
    many = made_up(acts=("relu",), lrs=tuple(range(1, 14)), seeds=1, epochs=1)
    with pytest.raises(NothingToDrawError, match="13 panels are more than the 12"):
        drawn("curves", many)
    many = made_up(acts=tuple(f"nsrelu({i / 20})" for i in range(1, 14)), seeds=1, epochs=1)
    with pytest.raises(NothingToDrawError, match="13 lines are more than the 12"):
        drawn("curves", many)


# Files.


@pytest.mark.covers
@pytest.mark.slow
def test_files_are_written_and_missing_figures_explained(tmp_path: Path) -> None:
    reported: list[str] = []
    few = made_up(["relu", "nsrelu(0.1)", "nsrelu(1)"], seeds=2, epochs=1)
    bare = replace(few, metrics=few.metrics[["run_id", "epoch", "test_accuracy"]])
    paths = figures.draw_all(bare, tmp_path / "figures", tell=reported.append)
    missing = ["units", "cosine", "phase", "line"]
    names = set(figure_specs.PLANS) - set(missing)
    assert {p.name for p in paths} == {f"{n}.{f}" for n in names for f in ("png", "svg")}
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == sorted(p.name for p in paths)
    units = "dead_fraction or revived_fraction or submerged_fraction or dormant_fraction"
    assert reported[0] == f"no figure units: no run has {units}"
    assert [re.match(r"no figure (\w+)", line)[1] for line in reported] == missing
    for path in paths:
        if path.suffix == ".svg":
            ET.parse(path)  # noqa: S314
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("fmt", ["svg", pytest.param("pdf", marks=pytest.mark.slow)])
def test_the_same_data_gives_the_same_bytes(fmt: str, tmp_path: Path) -> None:
    shuffled = replace(LOST_RUNS, runs=LOST_RUNS.runs.sample(frac=1, random_state=1))
    first, second = (
        figures.draw_all(frames, tmp_path / name, ["tradeoff"], [fmt])[0].read_bytes()
        for name, frames in (("a", LOST_RUNS), ("b", shuffled))
    )
    assert first == second


@pytest.mark.slow
def test_styles_have_their_widths(tmp_path: Path) -> None:
    for style, width in (("paper", 3.3 * 300), ("talk", 8 * 120)):
        [path] = figures.draw_all(FRAMES, tmp_path, ["tradeoff"], ["png"], style)
        assert int.from_bytes(path.read_bytes()[16:20]) == round(width)


def test_a_metric_may_be_chosen(tmp_path: Path) -> None:
    assert figures.draw_all(FRAMES, tmp_path, ["curves"], ["svg"], metric="revived_units")
    figure = figures.figure(plan("curves", FRAMES, "revived_units"))
    assert [ax.get_ylabel() for ax in figure.axes] == ["revived units (count)"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["curve"]}, "unknown figure 'curve'; did you mean 'curves'?"),
        ({"formats": ["gif"]}, "unknown format 'gif'"),
        ({"style": "poster"}, "unknown style 'poster'"),
    ],
)
def test_unknown_names_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        figures.draw_all(FRAMES, tmp_path, **options)


def test_an_unwritable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match="can't be written"):
        figures.draw_all(FRAMES, tmp_path / "file", ["tradeoff"], ["svg"])


def test_the_histogram_has_a_panel_per_layer() -> None:
    spec = plan("histogram", made_up(seeds=2))
    assert [title for title, _ in spec.panels] == ["fc1", "fc2"]
    axes = spec.panels[0][1]()
    assert len(axes.patches) == len(MADE_UP_ACTS)
    bare = replace(made_up(), quantiles=pd.DataFrame())
    with pytest.raises(NothingToDrawError, match=r"no run has quantiles.csv"):
        plan("histogram", bare)


# Titles, feet, choices.


def texts(figure: Figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for text in figure.texts]


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("lr", "'lr' is a setting, not a metric; "),
        ("weight_norm", "no run has weight_norm: runs made before"),
    ],
)
def test_only_what_was_measured_can_be_drawn(metric: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        figures.draw_all(FRAMES, tmp_path, ["curves"], ["svg"], metric=metric, arms=["lr"])


@pytest.mark.slow
def test_a_figure_names_its_metric_and_its_seeds() -> None:
    assert texts(drawn("tradeoff", FRAMES)) == [
        "Large marks: mean, 95 % interval, 3 seeds. Dots: single runs.",
        "Test accuracy against zeros after activation",
    ]
    foot, title = texts(drawn("curves", LOST_RUNS))
    assert title.startswith("Test accuracy, train loss, zeros after activation and dead units")
    assert "mean (geometric where the axis is logarithmic), 95 % interval, 3 seeds, comp" in foot
    few = replace(FRAMES, runs=FRAMES.runs.iloc[1:])
    assert "2 to 3 seeds" in texts(drawn("profile", few))[0]
    assert "mean over 1 seed." in texts(drawn("leak", made_up(seeds=1)))[0]


def test_limits_are_shared_unless_a_panel_would_be_flat() -> None:
    assert "limits of their own" not in texts(drawn("curves", GRID_RUNS))[0]
    wide = GRID_RUNS.metrics["run_id"].str.contains("-0.2-")
    metrics = GRID_RUNS.metrics.assign(dead_units=GRID_RUNS.metrics["dead_units"].where(~wide, 1e5))
    metrics.loc[wide & (metrics["epoch"] == 1), "dead_units"] = 0
    figure = figures.figure(plan("curves", replace(GRID_RUNS, metrics=metrics), "dead_units"))
    assert "limits of their own" in texts(figure)[0]
    assert len({ax.get_ylim() for ax in figure.axes}) == 2


def test_by_draws_a_figure_for_each_value(tmp_path: Path) -> None:
    paths = figures.draw_all(GRID_RUNS, tmp_path, ["tradeoff"], ["svg"], by=["lr"])
    assert [p.name for p in paths] == ["tradeoff-lr-0.1.svg", "tradeoff-lr-0.2.svg"]
    results = group_results(GRID_RUNS, by=["lr"])
    assert [(r.section, len(r.groups), list(r.varying)) for r in results] == [
        ("lr 0.1", 15, []),
        ("lr 0.2", 15, []),
    ]


def test_names_of_files_stay_apart() -> None:
    values = ["folder:a b", "folder:a/b"]
    runs = pd.concat(
        [FRAMES.runs.assign(dataset=v, run_id=FRAMES.runs["run_id"] + v) for v in values]
    )
    sections = group_results(replace(FRAMES, runs=runs), by=["dataset"])
    assert figures._suffixes(sections) == ["-folder-a-b-1", "-folder-a-b-2"]


def test_where_chooses_runs_and_keeps_the_baseline() -> None:
    [results] = group_results(FRAMES, where=["act=nsrelu(0.1)"])
    assert set(results.groups["act"]) == {"relu", "nsrelu(0.1)"}
    [results] = group_results(FRAMES, where=["act=nsrelu"], baseline="leaky_relu")
    assert "relu" not in set(results.groups["act"])
    assert str(results.baseline) == "leaky_relu(0.1)"


def test_forty_activations_can_be_narrowed_down(tmp_path: Path) -> None:
    many = made_up(acts=("relu", *(f"nsrelu({i / 40})" for i in range(1, 40))), seeds=1, epochs=1)
    reported: list[str] = []
    assert not figures.draw_all(many, tmp_path, ["curves"], ["svg"], tell=reported.append)
    assert reported == [
        "no figure curves: 40 lines are more than the 12 that can be read; "
        "choose fewer runs with --where, such as --where act=relu,nsrelu"
    ]
    few = ["act=nsrelu(0.1),nsrelu(0.2)"]
    assert figures.draw_all(many, tmp_path, ["curves"], ["svg"], where=few)


def test_a_line_goes_over_any_numeric_setting() -> None:
    width = GRID_RUNS.runs["seed"].map({0: 8, 1: 16, 2: 16})
    frames = replace(
        GRID_RUNS,
        runs=GRID_RUNS.runs.assign(width=width),
        config_columns=[*MADE_UP_CONFIG, "width"],
    )
    [results] = group_results(frames, x="width")
    spec = figure_specs.plan_line(results, ["test_accuracy", "dead_fraction"])
    assert [title for title, _ in spec.panels] == ["lr=0.1"] * 2 + ["lr=0.2"] * 2
    assert spec.title == "Test accuracy and dead units over the width"
    [results] = group_results(frames, x="epochs")
    message = "epochs is not a setting that varies over numbers; those that do: lr, width"
    with pytest.raises(NothingToDrawError, match=message):
        figure_specs.plan_line(results)
    with pytest.raises(UsageError, match="unknown setting 'rate'"):
        group_results(frames, x="rate")


def test_several_metrics_are_drawn_side_by_side() -> None:
    [results] = group_results(FRAMES)
    wanted = ["dead_fraction", "grad_norm"]
    for kind in ("curves", "tradeoff", "leak", "layers", "profile", "pairs"):
        assert len(figure_specs.PLANS[kind](results, wanted).panels) in (2, 6)
    with pytest.raises(NothingToDrawError, match="gradient_depth shows one metric at a time, not"):
        figure_specs.plan_gradient_depth(results, wanted)


def test_of_many_layers_some_are_drawn() -> None:
    parts = [FRAMES.layers.assign(layer=f"{k}") for k in range(20)]
    spec = plan("layers", replace(FRAMES, layers=pd.concat(parts)))
    assert [title for title, _ in spec.panels][::11] == ["0", "19"]
    assert spec.foot.endswith(" 12 of 20 layers.")


@pytest.mark.slow
def test_a_column_has_panels_two_by_two() -> None:
    spec = plan("curves", FRAMES)
    for style, columns in (("column", 2), ("phone", 1), ("paper", 2)):
        places = [ax.get_position() for ax in figures.figure(spec, style).axes]
        assert len(places) == len(spec.panels) == 4
        assert len({round(place.y0, 2) for place in places}) == 4 // columns
