import io
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsrelu_bench import models
from nsrelu_bench.activations.modules import build
from nsrelu_bench.config import activation_spec as labels
from nsrelu_bench.config.activation_spec import FUNCTIONS, GATES
from nsrelu_bench.config.registry import DATASETS, LATER_MEASURES, MEASURES, MODELS
from nsrelu_bench.config.run import RunConfig, override, read_run, run_config
from nsrelu_bench.config.study import make_study, read_study
from nsrelu_bench.config.yaml import parse_yaml, read_setting, read_yaml, write_yaml
from nsrelu_bench.errors import UsageError, unknown

ACTIVATIONS = labels.ACTIVATION_NAMES
LATER = LATER_MEASURES
FIRST = tuple(name for name in MEASURES if name not in LATER)


def message(**settings: object) -> str:
    with pytest.raises(UsageError) as error:
        run_config(settings, lambda key: f"--{key}")
    return str(error.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_the_two_ways_to_give_a_leak_are_the_same_run() -> None:
    assert RunConfig(act="nsrelu", leak=0.2) == RunConfig(act="nsrelu( 0.20 )")
    assert RunConfig(act="nsrelu", leak=0.2).run_id == RunConfig(act="nsrelu(0.2)").run_id
    assert RunConfig(act="relu", backward="leaky_relu", leak=0.2).act == "nsrelu(0.2)"


@pytest.mark.parametrize(
    ("unused", "of"),
    [
        ({"leak": 0.3}, {"act": "relu"}),
        ({"impl": "detach"}, {"act": "relu"}),
        ({"momentum": 0.5}, {"optimizer": "adam"}),
        ({"data_dir": "elsewhere"}, {}),
    ],
)
def test_what_a_run_does_not_use_is_no_part_of_its_identity(
    unused: dict[str, object], of: dict[str, object]
) -> None:
    assert RunConfig(**of, **unused).run_id == RunConfig(**of).run_id


@pytest.mark.parametrize("name", sorted(set(RunConfig.model_fields) - {"data_dir"}))
def test_every_setting_that_decides_the_numbers_is_part_of_the_run_id(name: str) -> None:
    other = {
        "act": "relu",
        "impl": "detach",
        "dataset": "digits",
        "train_size": 100,
        "model": "cnn",
        "batch_norm": True,
        "dropout": 0.1,
        "init": "xavier",
        "optimizer": "adam",
        "lr": 0.3,
        "momentum": 0.5,
        "measures": "none",
        "weight_decay": 0.1,
        "schedule": "cosine",
        "device": "cuda",
        "augment": "flip",
        "precision": "bf16",
        "compile": True,
        "stack": True,
        "gate": "rescue",
        "local": True,
    }
    value = other.get(name, 7)
    assert RunConfig(**{name: value}).run_id != RunConfig().run_id


def test_a_run_id_can_be_read_and_is_stable_in_another_process() -> None:
    run_id = RunConfig(act="nsrelu(0.1)", seed=3).run_id
    assert run_id.startswith("mnist5k-mlp-nsrelu-0.1-s3-")
    code = "from nsrelu_bench.config import RunConfig; print(RunConfig(seed=3).run_id)"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "17"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == run_id


def test_local_is_cleared_where_both_passes_are_the_same() -> None:
    assert RunConfig(act="relu", local=True, batch_norm=True) == RunConfig(
        act="relu", batch_norm=True
    )
    assert RunConfig(local=True).local
    assert "local" not in RunConfig(local=True).act


def test_a_gate_is_part_of_the_label_and_clears_the_implementation() -> None:
    gated = RunConfig(act="nsrelu(0.1)", gate="rescue")
    assert gated == RunConfig(act="rescue(0.1)", impl="detach")
    assert gated.run_id.startswith("mnist5k-mlp-rescue-0.1-s0-")
    assert override(gated.settings, {"gate": "up"})["act"] == "relu/leaky_relu(0.1)"
    assert "gate" not in override({"gate": "up"}, {"act": "relu"})


def test_defaults_follow_the_model_and_the_optimizer() -> None:
    assert (RunConfig().width, RunConfig(model="cnn").width) == (128, 16)
    assert (RunConfig().lr, RunConfig(optimizer="adam").lr) == (0.02, 0.001)
    assert (RunConfig().momentum, RunConfig(optimizer="adamw").momentum) == (0.9, None)


NOT_GATED = (
    "needs a forward of relu with another backward that has a slope below 0, such as nsrelu(0.1)"
)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"act": "gelo"},
            f"--act: {unknown('gelo', ACTIVATIONS, 'activation')}",
        ),
        ({"leak": -1}, "--leak: must be from 0 to 1, got -1"),
        ({"leak": float("nan")}, "--leak: must be from 0 to 1, got nan"),
        ({"epochs": 0}, "--epochs: must be greater than or equal to 1, got 0"),
        ({"epochs": 1.5}, "--epochs: must be a valid integer, got 1.5"),
        ({"epochs": True}, "--epochs: must be a valid integer, got True"),
        ({"lr": float("inf")}, "--lr: must be a finite number, got inf"),
        ({"lr": "fast"}, "--lr: must be a valid number, got 'fast'"),
        ({"seed": 2**64}, f"--seed: must be less than {2**63}, got {2**64}"),
        (
            {"model": "mpl"},
            f"--model: {unknown('mpl', MODELS, 'model')}",
        ),
        ({"epoch": 3}, "--epoch: unknown setting 'epoch'; did you mean 'epochs'?"),
        ({"optimizer": "sgdx"}, "--optimizer: must be 'sgd', 'adam' or 'adamw', got 'sgdx'"),
        ({"gate": "upp"}, f"--gate: {unknown('upp', GATES, 'gate')}"),
        ({"backward": "gelo"}, f"--backward: {unknown('gelo', FUNCTIONS, 'backward')}"),
        ({"act": "relu/gelo"}, f"--act: {unknown('gelo', FUNCTIONS, 'backward')}"),
        ({"act": "rescue", "gate": "up"}, "--gate: 'up' contradicts activation 'rescue'"),
        ({"gate": "up", "act": "relu"}, f"--gate: 'up' {NOT_GATED}, got relu"),
        ({"gate": "up", "leak": 0}, f"--gate: 'up' {NOT_GATED}, got nsrelu(0)"),
        (
            {"local": True, "act": "leaky_relu/relu"},
            "--local: needs a forward of relu, got act: leaky_relu(0.1)/relu",
        ),
        (
            {"local": True, "batch_norm": True},
            "--local: works without batch norm only, got batch_norm: true",
        ),
        (
            {"local": True, "model": "resnet18"},
            "--local: resnet18 has activations of sums, and does not offer it",
        ),
    ],
)
def test_a_mistake_is_one_line_naming_setting_and_choices(
    settings: dict[str, object], line: str
) -> None:
    assert message(**settings) == line


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("all", "all"),
        ("none", "none"),
        ("dead_units, zero_fraction", "zero_fraction,dead_units"),
        ("-effective_rank", "-effective_rank"),
        ("all,-effective_rank", "-effective_rank"),
        (",".join(FIRST[:-1]), "-effective_rank"),
        (",".join(FIRST), "all"),
        (",".join(MEASURES), "all"),
        (",".join(f"-{name}" for name in FIRST), "none"),
        (",".join(f"-{name}" for name in MEASURES), "none"),
        (",".join(FIRST[:9]), ",".join(FIRST[:9])),
        (",".join(FIRST[:10]), ",".join(f"-{name}" for name in FIRST[10:])),
        (",".join(f"-{name}" for name in FIRST[9:]), ",".join(FIRST[:9])),
        ("-pre_rms", "-pre_rms"),
        ("pre_rms", "pre_rms"),
        (",".join((*FIRST, "pre_rms")), ",".join(f"-{n}" for n in LATER if n != "pre_rms")),
        (",".join((*FIRST[:9], *LATER)), ",".join((*FIRST[:9], *LATER))),
    ],
)
def test_measures_are_chosen_by_name_or_left_out(text: str, canonical: str) -> None:
    assert RunConfig(measures=text).measures == canonical
    assert RunConfig(measures=canonical).measured == RunConfig(measures=text).measured


@given(st.sets(st.sampled_from(list(MEASURES)), min_size=1), st.booleans())
def test_every_choice_of_measures_has_one_text(names: set[str], minus: bool) -> None:
    text = RunConfig(measures=",".join(f"-{name}" if minus else name for name in names)).measures
    again = RunConfig(measures=text)
    assert again.measures == text
    if names & set(LATER):
        assert set(again.measured) == (set(MEASURES) - names if minus else names)


@pytest.mark.parametrize("text", ["", "dead_units,-effective_rank", "none,dead_units", "all,none"])
def test_a_choice_of_measures_that_makes_no_sense_is_told(text: str) -> None:
    assert message(measures=text) == (
        f"--measures: must be all, none, names, or names with a minus, got {text!r}"
    )


def test_an_unknown_measure_is_told() -> None:
    assert message(measures="dead_unit") == (
        "--measures: unknown measure 'dead_unit'; did you mean 'dead_units'? choose from: "
        + ", ".join(MEASURES)
    )


def test_all_mistakes_are_told_at_once() -> None:
    assert message(epochs=0, batch_size=0, dropout=1.0).count("\n") == 2


def test_a_study_is_the_product_of_its_grid_and_seeds_without_doubles() -> None:
    grid = {"act": ["relu", "nsrelu"], "leak": [0.1, 0.2]}
    study = make_study({"grid": grid, "seeds": 3, "lr": 0.1}, "mine")
    assert study.name == "mine"
    assert [run.act for run in study.runs] == (
        ["relu"] * 3 + ["nsrelu(0.1)"] * 3 + ["nsrelu(0.2)"] * 3
    )
    assert [run.seed for run in study.runs] == [0, 1, 2] * 3
    assert {run.lr for run in study.runs} == {0.1}


def test_a_study_of_too_many_runs_is_refused_before_it_is_expanded() -> None:
    grid = {name: list(range(1, 1001)) for name in ("epochs", "width", "batch_size")}
    with pytest.raises(UsageError, match="makes 1000000000 runs, at most 100000 are allowed"):
        make_study({"grid": grid}, "huge")


def test_all_mistakes_of_a_study_file_are_told_with_their_places(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "name: ../up\nseeds: 0\nepocs: 3\nlr: 0.1\ngrid:\n  act: [relu, gelo]\n  leak: [0.1, 2]\n"
        "  lr: [1]\n  width: 3\n",
    )
    with pytest.raises(UsageError) as error:
        read_study(path)
    lines = str(error.value).splitlines()
    assert [line.removeprefix(f"{path}: ").split(":")[0] for line in lines] == [
        *("name", "seeds", "epocs", "grid.act[1]", "grid.leak[1]", "grid.lr", "grid.width"),
    ]
    assert lines[2].endswith("unknown setting 'epocs'; did you mean 'epochs'?")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\na: 2\n", "line 2: found duplicate key"),
        ("a: !!python/object:os.system x\n", "line 1: could not determine a constructor"),
        ("- relu\n", "must be a mapping of settings"),
        ("", "must be a mapping of settings"),
        ("a: [1\n", "line 2: expected ','"),
        ("1: 2\n", "must be a mapping of settings"),
    ],
)
def test_a_file_that_is_no_settings_is_told_with_its_line(
    tmp_path: Path, text: str, told: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}:")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_file_of_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Is a directory"):
        read_yaml(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_yaml(tmp_path / "binary")
    (tmp_path / "large").write_bytes(b"#" * 2_000_000)
    with pytest.raises(UsageError, match="larger than"):
        read_yaml(tmp_path / "large")


def test_numbers_in_a_file_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = write(tmp_path, "lr: 1e-3\nbatch_norm: true\nwidth: 010\n")
    study = read_study(path)
    assert (study.runs[0].lr, study.runs[0].batch_norm, study.runs[0].width) == (0.001, True, 10)


@given(
    leak=st.floats(0, 1),
    lr=st.floats(1e-9, 1e3),
    seed=st.integers(0, 2**63 - 1),
    optimizer=st.sampled_from(["sgd", "adam"]),
    train_size=st.none() | st.integers(1, 1000),
)
def test_a_configuration_written_as_yaml_reads_back_the_same(**settings: object) -> None:
    run = RunConfig(act="nsrelu", **settings)
    stream = io.StringIO()
    write_yaml(run.settings, stream)
    assert RunConfig(**parse_yaml(stream.getvalue())) == run


def test_a_written_run_can_be_read_and_overridden(tmp_path: Path) -> None:
    with (tmp_path / "config.yaml").open("w") as stream:
        write_yaml(RunConfig(act="nsrelu(0.1)", lr=0.3).settings, stream)
    settings = read_run(tmp_path / "config.yaml")
    assert run_config(override(settings, {"leak": 0.2})).act == "nsrelu(0.2)"
    assert run_config(override(settings, {"act": "relu"})).act == "relu"
    assert run_config(override(settings, {"optimizer": "adam"})).lr == 0.3


def test_a_stronger_activation_is_not_touched_by_the_weaker_sources_leak() -> None:
    weaker = {"act": "nsrelu", "leak": 0.2}
    assert run_config(override(weaker, {"act": "nsrelu(0.3)"})).act == "nsrelu(0.3)"
    assert run_config(override(weaker, {"leak": 0.3})).act == "nsrelu(0.3)"
    assert run_config(override(weaker, {"act": "relu"})).act == "relu"


def test_a_study_can_be_changed_from_outside(tmp_path: Path) -> None:
    path = write(tmp_path, "lr: 0.1\ngrid: {act: [relu, nsrelu], width: [4, 8]}\nseeds: 2\n")
    study = read_study(path, dict(map(read_setting, ["lr=1e-3", "width=16", "seeds=1"])))
    assert [(run.act, run.lr, run.width) for run in study.runs] == [
        ("relu", 0.001, 16),
        ("nsrelu(0.1)", 0.001, 16),
    ]
    for text in ("lr", "=3", "lr=[1", "a b=3"):
        with pytest.raises(UsageError, match="--set: must be a setting and its value"):
            read_setting(text)


def test_minus_zero_is_zero() -> None:
    assert RunConfig(weight_decay=-0.0).run_id == RunConfig().run_id


def test_all_that_can_be_named_has_its_code() -> None:
    from nsrelu_bench import activations
    from nsrelu_bench.data import loading as data

    assert list(MODELS) == list(models.MODELS)
    assert list(DATASETS) == list(data.LOADERS)
    assert set(RunConfig.model_fields["impl"].annotation.__args__) == set(activations.IMPLS)
    assert set(RunConfig.model_fields["init"].annotation.__args__) == set(models.INITS)
    for name in labels.ACTIVATION_NAMES:
        build(name)


def test_configurations_need_no_torch() -> None:
    code = (
        "import sys; import nsrelu_bench.config, nsrelu_bench.records, nsrelu_bench.sweep;"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


GRID = """
epochs: 2
grid:
  act: [relu, nsrelu(0.1), nsrelu(0.3)]
  lr: [0.1, 0.2]
seeds: 2
"""


def chosen(path: Path, **overrides: object) -> list[tuple[str, float, int]]:
    return [(run.act, run.lr, run.seed) for run in read_study(path, overrides).runs]


def test_exclude_leaves_out_what_has_all_its_values(tmp_path: Path) -> None:
    path = write(tmp_path, GRID + "exclude: [{act: [relu, nsrelu(0.1)], lr: 0.2}, {leak: 0.3}]")
    assert {run[:2] for run in chosen(path)} == {("relu", 0.1), ("nsrelu(0.1)", 0.1)}


def test_include_adds_a_grid_of_its_own_with_the_seeds_of_the_study(tmp_path: Path) -> None:
    path = write(tmp_path, GRID + "include: [{act: selu, lr: [0.3, 0.4]}, {act: gelu, seed: 9}]")
    assert [run for run in chosen(path) if run[0] in ("selu", "gelu")] == [
        ("selu", 0.3, 0),
        ("selu", 0.3, 1),
        ("selu", 0.4, 0),
        ("selu", 0.4, 1),
        ("gelu", 0.02, 9),
    ]
    assert len(chosen(path)) == 12 + 5


def test_what_is_included_is_not_excluded_and_makes_no_run_twice(tmp_path: Path) -> None:
    path = write(tmp_path, GRID + "exclude: [{lr: 0.2}]\ninclude: [{act: relu, lr: [0.1, 0.2]}]")
    acts = ("relu", "nsrelu(0.1)", "nsrelu(0.3)")
    grid = [(act, 0.1, seed) for act in acts for seed in (0, 1)]
    assert chosen(path) == [*grid, ("relu", 0.2, 0), ("relu", 0.2, 1)]


def test_an_override_goes_before_grid_and_include(tmp_path: Path) -> None:
    path = write(tmp_path, GRID + "exclude: [{lr: 0.2}]\ninclude: [{act: elu, lr: 0.3}]")
    assert {run[1] for run in chosen(path, lr=0.5)} == {0.5}
    assert len(chosen(path, lr=0.5, seeds=1)) == 4


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("exclude: {lr: 0.2}", "exclude: must be a list of mappings from settings to values, got"),
        ("exclude: [{lr: 0.7}]", "exclude[0]: leaves out no run of the grid"),
        ("exclude: [{}]", "exclude[0]: must name a setting and its values, got {}"),
        ("include: [{lr: []}]", "include[0]: must name a setting and its values, got {'lr': []}"),
        ("include: [{lr: [-1]}]", "include[0].lr: must be greater than or equal to 0, got -1"),
        ("exclude: [{act: gelo}]", "exclude[0].act: unknown activation 'gelo'; did you mean"),
        ("include: [{epoch: 1}]", "include[0].epoch: unknown setting 'epoch'; did you mean"),
    ],
)
def test_a_mistake_in_exclude_or_include_is_told_with_its_place(
    text: str, line: str, tmp_path: Path
) -> None:
    path = write(tmp_path, GRID + text)
    with pytest.raises(UsageError) as error:
        read_study(path)
    assert str(error.value).startswith(f"{path}: {line}")
    assert "\n" not in str(error.value)


def test_an_included_grid_counts_when_a_study_is_too_large(tmp_path: Path) -> None:
    numbers = list(range(1, 1001))
    path = write(tmp_path, GRID + f"include: [{{width: {numbers}, batch_size: {numbers}}}]")
    with pytest.raises(UsageError, match="makes 2000012 runs, at most 100000 are allowed"):
        read_study(path)


def test_a_study_keeps_what_was_asked(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, GRID), {"seeds": 1, "lr": 0.5})
    again = make_study(study.asked, "another name")
    assert (again.name, again.runs) == (study.name, study.runs)


def test_automatic_is_the_device_that_there_is() -> None:
    import torch

    there = "cuda" if torch.cuda.is_available() else "cpu"
    assert RunConfig(device="auto").device == there
    assert RunConfig(device="auto") == RunConfig(device=there)


def test_augmentations_have_one_order_and_a_deep_model_one_depth() -> None:
    assert RunConfig(augment="cutout + crop").augment == "crop+cutout"
    assert "--augment: unknown augmentation 'flop'" in message(augment="flop")
    assert RunConfig(model="resnet18", depth=18).depth == 18
    told = "--depth: resnet18 has 18 layers, got 5"
    assert message(model="resnet18", depth=5) == told


@pytest.mark.parametrize(
    ("setting", "value"), [("width", 64), ("depth", 2), ("batch_norm", True), ("dropout", 0.1)]
)
def test_settings_that_ones_own_model_can_not_get_are_refused(setting: str, value: object) -> None:
    told = f"--{setting}: their_nets.small:net takes none, got {value}"
    assert message(model="their_nets.small:net", **{setting: value}) == told


def test_a_value_that_grows_out_of_anchors_is_told_in_some_words(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
    )
    for key in ("name", "seeds", "grid", "exclude"):
        path = write(tmp_path, f"{bomb}{key}: *a9\n")
        with pytest.raises(UsageError) as error:
            read_study(path)
        assert all(len(line) < 1000 for line in str(error.value).splitlines())
        assert f"{path}: {key}: must " in str(error.value)
