from pathlib import Path

import pytest

from nsrelu_bench.config.reading import read_setting
from nsrelu_bench.config.study import make_study, read_study
from nsrelu_bench.errors import UsageError

GRID_STUDY = """
epochs: 2
grid:
  act: [relu, nsrelu(0.1), nsrelu(0.3)]
  lr: [0.1, 0.2]
seeds: 2
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def chosen(path: Path, **overrides: object) -> list[tuple[str, float, int]]:
    return [(run.act, run.lr, run.seed) for run in read_study(path, overrides).runs]


def test_a_study_is_the_product_of_its_grid_and_seeds() -> None:
    grid = {"act": ["relu", "nsrelu"], "leak": [0.1, 0.2]}
    study = make_study({"grid": grid, "seeds": 3, "lr": 0.1}, "mine")
    assert study.name == "mine"
    assert [run.act for run in study.runs] == (
        ["relu"] * 3 + ["nsrelu(0.1)"] * 3 + ["nsrelu(0.2)"] * 3
    )
    assert [run.seed for run in study.runs] == [0, 1, 2] * 3
    assert {run.lr for run in study.runs} == {0.1}


def test_too_many_runs_are_refused_before_expansion() -> None:
    grid = {name: list(range(1, 1001)) for name in ("epochs", "width", "batch_size")}
    with pytest.raises(UsageError, match="makes 1000000000 runs, at most 100000 are allowed"):
        make_study({"grid": grid}, "huge")


def test_all_mistakes_of_a_study_are_reported_with_places(tmp_path: Path) -> None:
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


def test_overrides_replace_settings_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "lr: 0.1\ngrid: {act: [relu, nsrelu], width: [4, 8]}\nseeds: 2\n")
    study = read_study(path, dict(map(read_setting, ["lr=1e-3", "width=16", "seeds=1"])))
    assert [(run.act, run.lr, run.width) for run in study.runs] == [
        ("relu", 0.001, 16),
        ("nsrelu(0.1)", 0.001, 16),
    ]


def test_exclude_leaves_out_what_has_all_its_values(tmp_path: Path) -> None:
    path = write(
        tmp_path, GRID_STUDY + "exclude: [{act: [relu, nsrelu(0.1)], lr: 0.2}, {leak: 0.3}]"
    )
    assert {run[:2] for run in chosen(path)} == {("relu", 0.1), ("nsrelu(0.1)", 0.1)}


def test_include_adds_a_grid_with_the_seeds_of_the_study(tmp_path: Path) -> None:
    path = write(
        tmp_path, GRID_STUDY + "include: [{act: selu, lr: [0.3, 0.4]}, {act: gelu, seed: 9}]"
    )
    assert [run for run in chosen(path) if run[0] in ("selu", "gelu")] == [
        ("selu", 0.3, 0),
        ("selu", 0.3, 1),
        ("selu", 0.4, 0),
        ("selu", 0.4, 1),
        ("gelu", 0.02, 9),
    ]
    assert len(chosen(path)) == 12 + 5


def test_included_runs_are_not_excluded_and_not_doubled(tmp_path: Path) -> None:
    path = write(
        tmp_path, GRID_STUDY + "exclude: [{lr: 0.2}]\ninclude: [{act: relu, lr: [0.1, 0.2]}]"
    )
    acts = ("relu", "nsrelu(0.1)", "nsrelu(0.3)")
    grid = [(act, 0.1, seed) for act in acts for seed in (0, 1)]
    assert chosen(path) == [*grid, ("relu", 0.2, 0), ("relu", 0.2, 1)]


def test_an_override_wins_over_grid_and_include(tmp_path: Path) -> None:
    path = write(tmp_path, GRID_STUDY + "exclude: [{lr: 0.2}]\ninclude: [{act: elu, lr: 0.3}]")
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
def test_a_mistake_in_exclude_or_include_names_its_place(
    text: str, line: str, tmp_path: Path
) -> None:
    path = write(tmp_path, GRID_STUDY + text)
    with pytest.raises(UsageError) as error:
        read_study(path)
    assert str(error.value).startswith(f"{path}: {line}")
    assert "\n" not in str(error.value)


def test_an_included_grid_counts_towards_the_limit(tmp_path: Path) -> None:
    numbers = list(range(1, 1001))
    path = write(tmp_path, GRID_STUDY + f"include: [{{width: {numbers}, batch_size: {numbers}}}]")
    with pytest.raises(UsageError, match="makes 2000012 runs, at most 100000 are allowed"):
        read_study(path)


def test_a_study_keeps_what_was_asked(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, GRID_STUDY), {"seeds": 1, "lr": 0.5})
    again = make_study(study.asked, "another name")
    assert (again.name, again.runs) == (study.name, study.runs)


def test_a_device_is_kept_as_what_auto_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsrelu_bench.config.study.resolve_device", lambda _: "cuda")
    monkeypatch.setattr("nsrelu_bench.config.run.resolve_device", lambda name: name)
    settings = {"device": "auto", "grid": {"device": ["auto", "cpu"]}}
    kept = make_study({"include": [{"device": "auto"}], "device": "auto"}, "s").asked
    assert kept == {"name": "s", "include": [{"device": "cuda"}], "device": "cuda"}
    with pytest.raises(UsageError, match="device: is also given outside the grid"):
        make_study(settings, "s")


def test_different_runs_with_one_id_are_refused() -> None:
    settings = {"width": 8, "depth": 2, "epochs": 2, "dataset": "digits", "act": "relu"}
    with pytest.raises(UsageError) as error:
        make_study(settings | {"grid": {"lr": [0.019619, 0.058631]}}, "clash")
    assert str(error.value) == (
        "grid: lr 0.019619 and lr 0.058631 have the same run id, digits-mlp-relu-s0-265f0195;"
        " change the last digit of one"
    )


def test_runs_that_differ_only_in_the_data_folder_are_one() -> None:
    assert len(make_study({"grid": {"data_dir": ["a", "b"]}}, "s").runs) == 1


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("leaks.yaml", "leaks"),
        ("2024.yaml", "2024"),
        ("my study.yaml", "my-study"),
        ("résumé.yaml", "r-sum"),
        ("...yaml", "study"),
        (".yaml", "yaml"),
        (f"{'x' * 100}.yaml", "x" * 64),
    ],
)
def test_a_study_without_a_name_gets_that_of_its_file(file: str, name: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("seeds: 1")
    assert read_study(tmp_path / file).name == name


def test_a_question_is_kept_and_changes_no_run(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, "question: 42\nprimary: test_accuracy"))
    assert study.asked["question"] == "42"
    assert study.runs == make_study({}, "s").runs


@pytest.mark.parametrize("question", [["a"], "x" * 501, " "])
def test_a_wrong_question_is_one_line(question: object) -> None:
    with pytest.raises(
        UsageError, match=r"^question: must be a text of at most 500 characters, got .*$"
    ):
        make_study({"question": question}, "s")
