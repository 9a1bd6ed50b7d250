from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nsrelu_bench.config.activation_spec import ACTIVATION_NAMES, FUNCTION_PARAMETERS, GATES
from nsrelu_bench.config.reading import override, run_config
from nsrelu_bench.config.registry import (
    LATER_MEASURES,
    MODEL_SIZES,
    OPTIMIZERS,
    PLUGIN_FORM,
    SITE_MEASURES,
)
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.errors import UsageError, unknown

LATER = LATER_MEASURES
FIRST = tuple(name for name in SITE_MEASURES if name not in LATER)


def message(**settings: object) -> str:
    with pytest.raises(UsageError) as error:
        run_config(settings, lambda key: f"--{key}")
    return str(error.value)


def test_both_ways_to_give_a_leak_are_the_same_run() -> None:
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
def test_a_setting_without_effect_is_not_part_of_the_run_id(
    unused: dict[str, object], of: dict[str, object]
) -> None:
    assert RunConfig(**of, **unused).run_id == RunConfig(**of).run_id


@pytest.mark.parametrize("name", sorted(set(RunConfig.model_fields) - {"data_dir"}))
def test_every_setting_that_has_an_effect_is_in_the_run_id(name: str) -> None:
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
        "layer_norm": True,
        "leak_schedule": "linear",
    }
    value = other.get(name, 7)
    assert RunConfig(**{name: value}).run_id != RunConfig().run_id


def test_a_run_id_is_readable() -> None:
    run_id = RunConfig(act="nsrelu(0.1)", seed=3).run_id
    assert run_id.startswith("mnist5k-mlp-nsrelu-0.1-s3-")


@pytest.mark.parametrize("act", ["relu", "relu/bsilu", "leaky_relu/relu", "nsrelu(0)", "prelu"])
def test_a_leaks_schedule_is_cleared_where_there_is_no_leak(act: str) -> None:
    assert RunConfig(act=act, leak_schedule="linear") == RunConfig(act=act)


def test_local_is_cleared_where_both_passes_are_the_same() -> None:
    assert RunConfig(act="relu", local=True, batch_norm=True) == RunConfig(
        act="relu", batch_norm=True
    )
    assert RunConfig(local=True).local
    assert "local" not in RunConfig(local=True).act


def test_a_gate_is_in_the_label_and_clears_the_implementation() -> None:
    gated = RunConfig(act="nsrelu(0.1)", gate="rescue")
    assert gated == RunConfig(act="rescue(0.1)", impl="detach")
    assert gated.run_id.startswith("mnist5k-mlp-rescue-0.1-s0-")
    assert override(gated.settings, {"gate": "up"})["act"] == "relu/leaky_relu(0.1)"
    assert "gate" not in override({"gate": "up"}, {"act": "relu"})


def test_defaults_follow_the_model_and_the_optimizer() -> None:
    assert (RunConfig().width, RunConfig(model="cnn").width) == (128, 16)
    assert (RunConfig().lr, RunConfig(optimizer="adam").lr) == (0.02, 0.001)
    assert (RunConfig().momentum, RunConfig(optimizer="adamw").momentum) == (0.9, None)


def no_part(name: str, known: Iterable[str], kind: str) -> str:
    return str(unknown(name, [*known, PLUGIN_FORM], kind))


NO_BACKWARD = no_part("gelo", FUNCTION_PARAMETERS, "backward")
NEEDS_SLOPE = (
    "needs a forward of relu with another backward that has a slope below 0, such as nsrelu(0.1)"
)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"act": "gelo"}, f"--act: {no_part('gelo', ACTIVATION_NAMES, 'activation')}"),
        ({"leak": -1}, "--leak: must be from 0 to 1, got -1"),
        ({"leak": float("nan")}, "--leak: must be from 0 to 1, got nan"),
        ({"epochs": 0}, "--epochs: must be greater than or equal to 1, got 0"),
        ({"epochs": 1.5}, "--epochs: must be a valid integer, got 1.5"),
        ({"epochs": True}, "--epochs: must be a valid integer, got True"),
        ({"lr": float("inf")}, "--lr: must be a finite number, got inf"),
        ({"lr": "fast"}, "--lr: must be a valid number, got 'fast'"),
        ({"seed": 2**64}, f"--seed: must be less than {2**63}, got {2**64}"),
        ({"model": "mpl"}, f"--model: {no_part('mpl', MODEL_SIZES, 'model')}"),
        ({"epoch": 3}, "--epoch: unknown setting 'epoch'; did you mean 'epochs'?"),
        ({"optimizer": "sgdx"}, f"--optimizer: {no_part('sgdx', OPTIMIZERS, 'optimizer')}"),
        ({"gate": "upp"}, f"--gate: {unknown('upp', GATES, 'gate')}"),
        ({"backward": "gelo"}, f"--backward: {NO_BACKWARD}"),
        ({"act": "relu/gelo"}, f"--act: {NO_BACKWARD}"),
        ({"act": "rescue", "gate": "up"}, "--gate: 'up' contradicts activation 'rescue'"),
        ({"gate": "up", "act": "relu"}, f"--gate: 'up' {NEEDS_SLOPE}, got relu"),
        ({"gate": "up", "leak": 0}, f"--gate: 'up' {NEEDS_SLOPE}, got nsrelu(0)"),
        (
            {"local": True, "act": "leaky_relu/relu"},
            "--local: needs a forward of relu, got act: leaky_relu(0.1)/relu",
        ),
        (
            {"local": True, "batch_norm": True},
            "--local: works without batch norm only, got batch_norm: true",
        ),
        ({"stack": True, "redo": 9}, "--stack: works without redo only, got redo: 9"),
        (
            {"stack": True, "leak_schedule": "linear"},
            "--stack: works with a constant leak only, got leak_schedule: linear",
        ),
        (
            {"layer_norm": True, "batch_norm": True},
            "--layer_norm: works without batch norm only, got batch_norm: true",
        ),
        ({"layer_norm": True, "model": "resnet18"}, "--layer_norm: resnet18 does not offer it"),
        (
            {"redo": 9, "layer_norm": True},
            "--redo: works without layer norm only, got layer_norm: true",
        ),
        (
            {"redo": 9, "model": "resnet18"},
            "--redo: needs a model whose layers follow one another, got model: resnet18",
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
        (",".join(SITE_MEASURES), "all"),
        (",".join(f"-{name}" for name in FIRST), "none"),
        (",".join(f"-{name}" for name in SITE_MEASURES), "none"),
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


@settings(deadline=None)
@given(st.sets(st.sampled_from(list(SITE_MEASURES)), min_size=1), st.booleans())
def test_every_choice_of_measures_has_one_text(names: set[str], minus: bool) -> None:
    text = RunConfig(measures=",".join(f"-{name}" if minus else name for name in names)).measures
    again = RunConfig(measures=text)
    assert again.measures == text
    if names & set(LATER):
        assert set(again.measured) == (set(SITE_MEASURES) - names if minus else names)


@pytest.mark.parametrize("text", ["", "dead_units,-effective_rank", "none,dead_units", "all,none"])
def test_a_wrong_choice_of_measures_is_one_line(text: str) -> None:
    assert message(measures=text) == (
        f"--measures: must be all, none, names, or names with a minus, got {text!r}"
    )


def test_an_unknown_measure_is_one_line() -> None:
    assert message(measures="dead_unit") == (
        "--measures: unknown measure 'dead_unit'; did you mean 'dead_units'? choose from: "
        + ", ".join([*SITE_MEASURES, PLUGIN_FORM])
    )


def test_all_mistakes_are_reported_at_once() -> None:
    assert message(epochs=0, batch_size=0, dropout=1.0).count("\n") == 2


def test_minus_zero_is_zero() -> None:
    assert RunConfig(weight_decay=-0.0).run_id == RunConfig().run_id


def test_auto_is_a_device_that_is_there() -> None:
    there = "cuda" if torch.cuda.is_available() else "cpu"
    assert RunConfig(device="auto").device == there
    assert RunConfig(device="auto") == RunConfig(device=there)


def test_augmentations_have_one_order_and_a_deep_model_one_depth() -> None:
    assert RunConfig(augment="cutout + crop").augment == "crop+cutout"
    assert "--augment: unknown augmentation 'flop'" in message(augment="flop")
    assert RunConfig(model="resnet18", depth=18).depth == 18
    reported = "--depth: resnet18 has 18 layers, got 5"
    assert message(model="resnet18", depth=5) == reported


@pytest.mark.parametrize(
    ("setting", "value"), [("width", 64), ("depth", 2), ("batch_norm", True), ("dropout", 0.1)]
)
def test_settings_that_a_users_model_does_not_take_are_refused(setting: str, value: object) -> None:
    reported = f"--{setting}: their_nets.small:net takes none, got {value}"
    assert message(model="their_nets.small:net", **{setting: value}) == reported


def test_values_of_numpy_and_paths_are_plain_values() -> None:
    mine = RunConfig(
        seed=np.int64(3), lr=np.float64(0.1), batch_norm=np.bool_(True), data_dir=Path("d")
    )
    plain = RunConfig(seed=3, lr=0.1, batch_norm=True, data_dir="d")
    assert mine == plain
    assert {type(value) for value in mine.settings.values()} == {
        type(value) for value in plain.settings.values()
    }
    assert message(epochs=np.float64(1.5)) == "--epochs: must be a valid integer, got 1.5"
    assert message(seed=np.array([1, 2])).startswith("--seed: must be a valid integer, got array(")


@pytest.mark.parametrize("path", ["p/", "./p", ".//p/.", "p"])
def test_a_folder_of_images_has_one_spelling(path: str) -> None:
    assert RunConfig(dataset=f"folder:{path}").dataset == "folder:p"
    assert RunConfig(dataset=f"folder:{path}").run_id.endswith("-s0-5bc11233")


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    run = RunConfig(dataset="folder:~/photos", data_dir="~/data")
    assert (run.dataset, run.data_dir) == ("folder:/home/me/photos", "/home/me/data")


@pytest.mark.parametrize("name", ["lr", "weight_decay", "momentum", "dropout", "leak"])
def test_a_number_that_would_act_as_0_is_refused(name: str) -> None:
    assert message(**{name: 1e-42}) == f"--{name}: must be 0 or at least 1.2e-38, got 1e-42"
    assert run_config({name: 0.0, "stack": False})
    assert run_config({name: 1.2e-38})
