"""What stands in the figures: lines, points, marks and colours; and what the files are like."""

import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nsrelu_bench import plot
from nsrelu_bench.compare import parse_act
from nsrelu_bench.errors import BenchError, UsageError

CONFIG = ["act", "leak", "impl", "dataset", "model", "epochs", "lr", "seed"]
ACTS = ("relu", "leaky_relu(0.1)", "nsrelu(0.01)", "nsrelu(0.1)", "nsrelu(1)")
EPOCHS = 4


@dataclass(frozen=True)
class MadeUp:
    runs: pd.DataFrame
    metrics: pd.DataFrame
    layers: pd.DataFrame
    config_columns: list[str]


def made_up(acts=ACTS, lrs=(0.1,), seeds=3, epochs=EPOCHS, diverged=()) -> MadeUp:
    """Runs that learn; those whose (act, lr, seed) is in `diverged` stop after epoch 1."""
    runs, metrics, layers = [], [], []
    for act in acts:
        for lr in lrs:
            for seed in range(seeds):
                lost = (act, lr, seed) in diverged
                run_id, leak = f"{act}-{lr}-{seed}", parse_act(act)[1]
                state = {"state": "diverged", "diverged_epoch": 2} if lost else {}
                row = {"study": "s", "run_id": run_id, "state": "completed"} | state
                row |= {"act": act, "leak": leak, "impl": "native", "dataset": "digits"}
                row |= {"model": "mlp", "epochs": epochs, "lr": lr, "seed": seed}
                for epoch in range(2 if lost else epochs + 1):
                    values = made_up_metrics(act, lr, seed, epoch)
                    metrics.append({"run_id": run_id, "epoch": epoch} | values)
                    for depth, layer in enumerate(["fc1", "fc2", "fc10"]):
                        place = {"run_id": run_id, "epoch": epoch, "layer": layer, "units": 8}
                        layers.append(place | {"grad_norm": 10.0 ** -(depth + epoch)})
                if lost:
                    metrics.append({"run_id": run_id, "epoch": 2})
                runs.append(row | ({} if lost else values))
    return MadeUp(pd.DataFrame(runs), pd.DataFrame(metrics), pd.DataFrame(layers), CONFIG)


def made_up_metrics(act: str, lr: float, seed: int, epoch: int) -> dict[str, float]:
    family, leak = parse_act(act)
    return {
        "train_loss": 2.0 / (1 + epoch),
        "test_accuracy": 1 - 0.9 / (1 + epoch) - 0.01 * seed + 0.01 * (leak or 0) - 0.1 * lr,
        "zero_fraction": 0.0 if family == "leaky_relu" else 0.5 + 0.01 * seed,
        "dead_fraction": 0.1,
        "dead_units": 5 + epoch,
        "dormant_units": 7 + epoch,
        "revived_units": seed,
        "surrogate_cosine": 1 - (leak or 0) / 2 if family == "nsrelu" else 1.0,
        "grad_norm": 1.0,
    }


FRAMES = made_up()
LOST = made_up(diverged=[("nsrelu(1)", 0.1, 0), ("nsrelu(1)", 0.1, 1)])
GONE = made_up(diverged=[("nsrelu(1)", 0.1, seed) for seed in range(3)])
GRID = made_up(
    lrs=(0.1, 0.2), diverged=[("nsrelu(1)", 0.2, 0), *(("nsrelu(0.1)", 0.2, s) for s in range(3))]
)


def labels(ax: Axes) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def line(ax: Axes, label: str):
    return next(x for x in ax.lines if x.get_label() == label)


def crosses(ax: Axes) -> list:
    return [x for x in ax.lines if x.get_marker() == "x" and len(x.get_xdata())]


def drawn(kind: str, frames: MadeUp) -> Figure:
    return plot.figure(plot.FIGURES[kind](frames, None))


# Panels.


def test_curves_are_means_in_percent_with_t_bands() -> None:
    ax = plot.curves(FRAMES.runs, FRAMES.metrics, CONFIG)
    assert labels(ax) == list(ACTS)
    expected = [100 * (1 - 0.9 / (1 + e) - 0.01 - 0.01) for e in range(EPOCHS + 1)]
    assert line(ax, "relu").get_ydata() == pytest.approx(expected)
    assert len(ax.collections) == len(ACTS)
    half = 4.302652729696142 * 1.0 / 3**0.5  # t(0.975, 2) sd / sqrt(n), in percentage points
    corners = ax.collections[0].get_paths()[0].get_extents()
    assert corners.y1 == pytest.approx(expected[-1] + half)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "test accuracy (%)")


def test_each_diverged_run_is_drawn_and_ends_in_a_cross() -> None:
    ax = plot.curves(LOST.runs, LOST.metrics, CONFIG, metric="dead_units")
    assert "nsrelu(1) (2/3 diverged)" in labels(ax)
    assert [list(x.get_xdata()) for x in crosses(ax)] == [[1], [1]]
    assert {to_hex(x.get_color()) for x in crosses(ax)} == {plot.appearance("nsrelu(1)").color}
    mean = line(ax, "nsrelu(1) (2/3 diverged)").get_ydata()
    assert list(mean) == [5 + e for e in range(EPOCHS + 1)]  # of the one that was completed


def test_a_cross_beyond_the_limits_stands_on_the_edge() -> None:
    metrics = LOST.metrics.copy()
    lost = metrics["run_id"].isin(["nsrelu(1)-0.1-0", "nsrelu(1)-0.1-1"]) & (metrics["epoch"] == 1)
    metrics.loc[lost, "train_loss"] = 1e30
    ax = plot.curves(LOST.runs, metrics, CONFIG, metric="train_loss")
    assert ax.get_ylim()[1] < 10
    assert [list(x.get_ydata()) for x in crosses(ax)] == [[1.0], [1.0]]
    assert crosses(ax)[0].get_transform() != ax.transData


def test_a_group_that_all_diverged_is_in_the_legend() -> None:
    ax = plot.curves(GONE.runs, GONE.metrics, CONFIG)
    assert "nsrelu(1) (3/3 diverged)" in labels(ax)
    assert len(crosses(ax)) == 3


def test_limits_hold_the_runs_and_not_the_wide_bands_of_two_seeds() -> None:
    two = made_up(seeds=2)
    two.metrics["test_accuracy"] += 0.2 * two.metrics["run_id"].str.endswith("1")
    ax = plot.curves(two.runs, two.metrics, CONFIG)
    assert ax.collections[0].get_paths()[0].get_extents().y1 > 200
    assert ax.get_ylim()[1] < 120


def test_an_exploding_gradient_does_not_flatten_the_others() -> None:
    layers = GONE.layers.copy()
    layers.loc[layers["run_id"].str.startswith("nsrelu(1)"), "grad_norm"] = 1e10
    figure = drawn("gradient_depth", replace(GONE, layers=layers))
    assert {ax.collections[0].norm.vmax for ax in figure.axes[:5]} == {1.0}


def test_a_run_that_stands_in_two_studies_is_drawn_once() -> None:
    runs, metrics = pd.concat([FRAMES.runs] * 2), pd.concat([FRAMES.metrics] * 2)
    once = plot.curves(FRAMES.runs, FRAMES.metrics, CONFIG)
    twice = plot.curves(runs, metrics, CONFIG)
    bands = [ax.collections[0].get_paths()[0].vertices for ax in (once, twice)]
    assert bands[0] == pytest.approx(bands[1])


@pytest.mark.parametrize("losses", [(1.0, 0.9), (100.0, 0.1)])
def test_a_logarithmic_axis_has_numbers_on_it(losses: tuple[float, float]) -> None:
    metrics = FRAMES.metrics.assign(train_loss=np.geomspace(*losses, len(FRAMES.metrics)))
    ax = plot.curves(FRAMES.runs, metrics, CONFIG, metric="train_loss")
    low, high = ax.get_ylim()
    assert sum(low <= tick <= high for tick in ax.get_yticks()) >= 3


def test_all_runs_diverged() -> None:
    lost = made_up(diverged=[(act, 0.1, seed) for act in ACTS for seed in range(3)])
    assert len(crosses(plot.curves(lost.runs, lost.metrics, CONFIG))) == 15


def test_tradeoff_has_means_seeds_and_the_front() -> None:
    ax = plot.tradeoff(LOST.runs, CONFIG)
    assert sorted(labels(ax)) == sorted([*ACTS[:-1], "nsrelu(1) (2/3 diverged)", "Pareto front"])
    seeds = [len(c.get_offsets()) for c in ax.collections if isinstance(c, PathCollection)]
    assert seeds == [3, 3, 3, 3, 1]


def test_the_pareto_front_by_hand() -> None:
    points = [(0.0, 95.0), (50.0, 94.0), (50.0, 93.0), (40.0, 90.0), (60.0, 91.0), (60.0, 91.0)]
    assert plot.pareto_front(points) == [(0.0, 95.0), (50.0, 94.0), (60.0, 91.0)]
    assert plot.pareto_front([]) == []


def test_gradients_by_depth_in_the_order_of_the_layers() -> None:
    relu = FRAMES.runs[FRAMES.runs["act"] == "relu"]
    ax = plot.gradient_depth(relu, FRAMES.layers, CONFIG)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["fc1", "fc2", "fc10"]
    cells = ax.collections[0].get_array()
    assert cells.shape == (3, EPOCHS + 1)
    assert cells[1, 2] == pytest.approx(1e-3)


def test_gradients_of_a_diverged_group_stop_and_zeros_are_marked() -> None:
    layers = GONE.layers.copy()
    layers.loc[(layers["epoch"] == 1) & (layers["layer"] == "fc1"), "grad_norm"] = 0.0
    runs = GONE.runs[GONE.runs["act"] == "nsrelu(1)"]
    ax = plot.gradient_depth(runs, layers, CONFIG)
    cells = ax.collections[0].get_array()
    assert np.ma.filled(cells[:, 2:].astype(float), np.nan).shape == (3, EPOCHS - 1)
    assert np.isnan(np.ma.filled(cells.astype(float), np.nan)[:, 2:]).all()
    assert [p.get_xy() for p in ax.patches] == [(1, 0)]
    assert ax.get_title() == "nsrelu(1) (3/3 diverged)"


def test_the_leak_curve_begins_at_relu() -> None:
    ax = plot.leak_curve(LOST.runs, CONFIG, metric="diverged_fraction")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "0.01", "0.1", "1"]
    families = [x for x in ax.lines if len(x.get_xdata()) > 1]
    assert [list(x.get_xdata()) for x in families] == [[0, 2], [0, 1, 2, 3]]
    assert families[1].get_ydata() == pytest.approx([0, 0, 0, 200 / 3])


def test_the_leak_curve_marks_leaks_that_always_diverged() -> None:
    ax = plot.leak_curve(GONE.runs, CONFIG)
    assert [list(x.get_xdata()) for x in crosses(ax)] == [[3]]
    low, high = ax.get_xlim()
    assert low < 0 < 3 < high


def test_the_phase_diagram_marks_diverged_cells() -> None:
    plan = plot.plan_phase(GRID)
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


def test_a_panel_refuses_runs_that_it_would_mix() -> None:
    with pytest.raises(plot.NothingToDrawError, match="act vary beside lr and epochs"):
        plot.phase(GRID.runs, CONFIG, x="lr", y="epochs")


@pytest.mark.parametrize(
    "kind", ["curves", "tradeoff", "units", "gradient_depth", "cosine", "leak"]
)
def test_one_seed_and_one_epoch_are_enough(kind: str) -> None:
    assert drawn(kind, made_up(seeds=1, epochs=1)).axes


# What is the same everywhere.


def test_an_activation_has_the_same_colour_in_each_figure() -> None:
    color = plot.appearance("nsrelu(0.1)").color
    panels = [
        plot.curves(FRAMES.runs, FRAMES.metrics, CONFIG),
        plot.curves(FRAMES.runs[FRAMES.runs["act"] != "relu"], FRAMES.metrics, CONFIG),
        plot.tradeoff(LOST.runs, CONFIG),
    ]
    assert {to_hex(line(ax, "nsrelu(0.1)").get_color()) for ax in panels[:2]} == {color}
    assert color in {to_hex(x.get_color()) for x in panels[2].lines}
    for kind in ("tradeoff", "leak", "cosine"):
        entries = drawn(kind, FRAMES).legends[0]
        colors = {
            t.get_text(): h
            for t, h in zip(entries.get_texts(), entries.legend_handles, strict=True)
        }
        assert to_hex(colors["nsrelu(0.1)"].get_color()) == color


def test_activations_can_be_told_apart_in_grey() -> None:
    acts = [*ACTS, "nsrelu(0.2)", "nsrelu(0.5)", "leaky_relu(0.01)", "relu/bsilu", "gelu"]
    looks = [plot.appearance(act) for act in acts]
    assert len({(x.marker, x.dash, x.fill == x.color) for x in looks}) == len(acts)
    assert len({x.color for x in looks}) == len(acts)


@pytest.mark.parametrize("frames", [LOST, GRID], ids=["lost", "grid"])
@pytest.mark.parametrize("kind", plot.FIGURES)
def test_legends_cover_no_data_and_nothing_is_cut(kind: str, frames: MadeUp) -> None:
    try:
        figure = drawn(kind, frames)
    except plot.NothingToDrawError:
        assert (kind, frames is GRID) == ("phase", False)
        return
    figure.savefig(io.BytesIO(), format="png")  # outside the style that it was drawn in
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


def test_settings_that_vary_have_a_panel_each_with_the_same_limits() -> None:
    figure = drawn("curves", GRID)
    assert [ax.get_title() for ax in figure.axes] == ["lr=0.1", "lr=0.2"]
    assert len({(*ax.get_xlim(), *ax.get_ylim()) for ax in figure.axes}) == 1
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert "nsrelu(0.1) (3/6 diverged)" in texts
    assert "diverged run" in texts


def test_too_many_panels_or_lines_are_refused() -> None:
    many = made_up(acts=("relu",), lrs=tuple(range(1, 14)), seeds=1, epochs=1)
    with pytest.raises(plot.NothingToDrawError, match="13 panels are more than the 12"):
        drawn("curves", many)
    many = made_up(acts=tuple(f"nsrelu({i / 20})" for i in range(1, 14)), seeds=1, epochs=1)
    with pytest.raises(plot.NothingToDrawError, match="13 lines are more than the 12"):
        drawn("curves", many)


def test_the_callers_axes_are_used_and_get_no_legend() -> None:
    ax = Figure().subplots()
    assert plot.curves(FRAMES.runs, FRAMES.metrics, CONFIG, ax=ax) is ax
    assert not ax.figure.legends


# Files.


def test_files_are_written_whole_and_what_has_no_data_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    bare = replace(FRAMES, metrics=FRAMES.metrics[["run_id", "epoch", "test_accuracy"]])
    paths = plot.draw_all(bare, tmp_path / "figures", tell=told.append)
    names = {"curves", "tradeoff", "gradient_depth", "leak"}
    assert {p.name for p in paths} == {f"{n}.{f}" for n in names for f in ("png", "svg")}
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == sorted(p.name for p in paths)
    assert told[0] == "no figure units: no run has dead_units or dormant_units or revived_units"
    assert [re.match(r"no figure (\w+)", line)[1] for line in told] == ["units", "cosine", "phase"]
    for path in paths:
        if path.suffix == ".svg":
            ET.parse(path)  # noqa: S314
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("fmt", ["svg", "pdf"])
def test_the_same_data_gives_the_same_bytes(fmt: str, tmp_path: Path) -> None:
    shuffled = replace(LOST, runs=LOST.runs.sample(frac=1, random_state=1))
    first, second = (
        plot.draw_all(frames, tmp_path / name, ["tradeoff"], [fmt])[0].read_bytes()
        for name, frames in (("a", LOST), ("b", shuffled))
    )
    assert first == second


def test_styles_have_their_widths(tmp_path: Path) -> None:
    for style, width in (("paper", 3.3 * 300), ("talk", 8 * 120)):
        [path] = plot.draw_all(FRAMES, tmp_path, ["tradeoff"], ["png"], style)
        assert int.from_bytes(path.read_bytes()[16:20]) == round(width)


def test_a_metric_may_be_chosen(tmp_path: Path) -> None:
    assert plot.draw_all(FRAMES, tmp_path, ["curves"], ["svg"], metric="revived_units")
    figure = plot.figure(plot.FIGURES["curves"](FRAMES, "revived_units"))
    assert [ax.get_ylabel() for ax in figure.axes] == ["revived units"]


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
        plot.draw_all(FRAMES, tmp_path, **options)


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match="can't write"):
        plot.draw_all(FRAMES, tmp_path / "file", ["tradeoff"], ["svg"])


def test_neither_pyplot_nor_torch_is_loaded_and_colours_stay_in_another_process() -> None:
    code = (
        "import sys, nsrelu_bench.compare; print('matplotlib' in sys.modules); "
        "from nsrelu_bench.plot import appearance; print(appearance('relu/bsilu')); "
        "print(*{'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.splitlines() == ["False", str(plot.appearance("relu/bsilu")), ""]
