"""What the repository says of its studies: configs read, and no number drifted from its data."""

import json
import re
import shlex
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from helpers.command_line import ask

from nsrelu_bench.compare import declared_family
from nsrelu_bench.compare.grouping import format_setting
from nsrelu_bench.compare.statistics import t_half_width
from nsrelu_bench.config import read_settings
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.config.study import read_study
from nsrelu_bench.records import load_runs
from nsrelu_bench.text import format_fixed, format_p

ROOT = Path(__file__).parents[2]
STUDY_FILES = sorted((ROOT / "configs").glob("*.yaml"))
STUDIES = [path.parent.name for path in sorted((ROOT / "findings").glob("*/summary.csv"))]

#: A claim of findings/CLAIMS.md: its number, and the text behind each word.
CLAIMS = {
    int(number): {
        word: " ".join(text.split())
        for word, text in re.findall(r"^- \*\*(\w+):\*\* (.*(?:\n  .*)*)", body, re.M)
    }
    for number, body in re.findall(
        r"^## (\d+)\. (.*?)(?=^<a |\Z)",
        (ROOT / "findings" / "CLAIMS.md").read_text(encoding="utf-8"),
        re.M | re.S,
    )
}
#: Those of examples/ are in tests/repository/test_example_studies.py.
MEASURED_TEXTS = {
    number: claim["Measured"]
    for number, claim in CLAIMS.items()
    if "python -m examples." not in claim["Command"]
}

#: What a verdict rests on: words with their adjusted p, or the test of who failed to train.
VERDICT_WORDS = re.compile(
    r"(?:higher|lower|equivalent within \d+ pp|not shown)(?: \(p = [\d.e-]+\))?"
    r"|McNemar p = [\d.e-]+"
)

#: Numbers that come from a study: a mean or a difference with its interval, or a count of runs.
SHOWN_NUMBER = re.compile(r"[+-]?\d+\.\d ± \d+\.\d|\d+ of \d+")


read_study_once = cache(read_study)


@cache
def runs_of(study: str) -> pd.DataFrame:
    return load_runs(ROOT / "findings" / study)


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDY_FILES, ids=lambda path: path.stem)
def test_every_config_expands_to_runs_and_says_what_it_is_for(path: Path) -> None:
    study = read_study_once(path)
    assert study.name == path.stem
    assert len(study.runs) > 1
    assert path.read_text().startswith("# ")


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_a_studys_summary_holds_exactly_the_runs_of_its_config(study: str) -> None:
    runs = runs_of(study)
    reported = {
        c for c in runs if runs[c].notna().any()
    }  # a summary of an older version lacks some
    settings = [c for c in RunConfig.model_fields if c in reported - {"data_dir"}]
    asked = [run.settings for run in read_study_once(ROOT / "configs" / f"{study}.yaml").runs]
    assert sorted(map(tuple, runs[settings].map(format_setting).to_numpy())) == sorted(
        tuple(format_setting(run[c]) for c in settings) for run in asked
    )
    assert set(runs["state"]) <= {"completed", "diverged"}


@pytest.mark.parametrize("study", STUDIES)
def test_a_family_that_a_config_declares_is_beside_the_summary(study: str) -> None:
    config, folder = ROOT / "configs" / f"{study}.yaml", ROOT / "findings" / study
    declared = {k: v for k, v in read_settings(config).items() if k in ("primary", "secondary")}
    assert declared_family(folder) == declared
    if (folder / "study.yaml").exists():
        assert read_settings(folder / "study.yaml") == read_study_once(config).asked


def test_what_findings_says_of_all_benign_cells_is_in_the_data() -> None:
    parts = [pd.read_csv(ROOT / "findings" / study / "summary.csv") for study in FIRST_STUDIES]
    runs = pd.concat(parts, ignore_index=True).drop_duplicates([*CELL_SETTINGS, "act", "seed"])
    differences = {}
    for cell, part in runs.groupby(CELL_SETTINGS, dropna=False):
        table = part.pivot_table(index="seed", columns="act", values="test_accuracy")
        states = part[part["act"].isin(["relu", NSRELU])]["state"]
        if {"relu", NSRELU} <= set(table) and set(states) == {"completed"}:
            both = 100 * table[["relu", NSRELU]].dropna()
            if both["relu"].mean() >= 90 and both.min().min() > both["relu"].max() / 2:
                differences[cell] = both[NSRELU] - both["relu"]
    pooled = pd.concat(differences, axis=1)
    lower = int((pooled.mean() < 0).sum())
    mean = pooled[pooled.notna().mean(axis=1) > 0.5].mean(axis=1)
    half = float(t_half_width(mean.std(), len(mean)))
    text = " ".join((ROOT / "FINDINGS.md").read_text(encoding="utf-8").split())
    assert f"in {lower} of {len(differences)} cells" in text
    assert f"{-mean.mean():.2f} ± {half:.2f} points" in text


#: Those of the first edition, from which it comes how far NSReLU lies below ReLU in benign cells.
FIRST_STUDIES = [
    *("quickstart", "two_by_two", "leak_curve", "matched_lr", "both_mnist5k", "both_mnist"),
    *("both_mnist_cnn", "cifar10_cnn", "deep_narrow", "plasticity"),
]
CELL_SETTINGS = [
    *("dataset", "model", "width", "depth", "init", "epochs", "tasks", "optimizer", "lr"),
    "train_size",
]


@cache
def compared(command: str) -> list[dict]:
    """Run a command of CLAIMS.md, and return its rows."""
    answer = ask(*shlex.split(command)[1:], "--json", cwd=ROOT)
    return json.loads(answer.out)["rows"]


def words(row: dict) -> list[str]:
    """Return what a row of a comparison shows, each with its p."""
    found = []
    for word in row["verdict"].split(":")[0].split(", "):
        p = row["p_equivalent" if word.startswith("equivalent") else "p_adjusted"]
        found.append(f"{word} (p = {format_p(p)})")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", CLAIMS)
def test_a_verdict_of_findings_is_what_its_command_shows(number: int) -> None:
    expected = []
    for section, group, metric in VERDICTS.get(number, []):
        command = CLAIMS[number]["Command"].split("`")[1]
        wanted = (section, group, "test_accuracy" if metric == "failures" else metric)
        keys = ("section", "group", "metric")
        (row,) = (r for r in compared(command) if tuple(r[key] for key in keys) == wanted)
        failures = [f"McNemar p = {format_p(row['p_failed'])}"]
        expected += failures if metric == "failures" else words(row)
    assert VERDICT_WORDS.findall(CLAIMS[number]["Verdict"]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("number", MEASURED_TEXTS)
def test_what_findings_says_was_measured_is_in_the_data(number: int) -> None:
    assert SHOWN_NUMBER.findall(MEASURED_TEXTS[number]) == measured(number)


@cache
def some_runs_of(study: str, where: str) -> pd.DataFrame:
    runs = runs_of(study)
    for name, value in (condition.split("=") for condition in where.split()):
        runs = runs[runs[name].map(format_setting) == value]
    return runs


def say(study: str, where: str, what: str, act: str) -> str:
    """Derive a number of CLAIMS.md from a study's summary, in percent."""
    runs = some_runs_of(study, where)
    mine = runs[runs["act"] == act].set_index("seed")
    kind, _, percent = what.partition(" ")
    if kind == "lost":
        return lost(act, float(percent))
    if kind == "diverged":
        return f"{(mine['state'] == kind).sum()} of {len(mine)}"
    if kind == "below":
        return f"{(100 * mine['test_accuracy'] < float(percent)).sum()} of {len(mine)}"
    metric = {"dead": "dead_fraction", "zeros": "zero_fraction"}.get(kind, "test_accuracy")
    values, sign = mine[metric], "+" * what.endswith("difference")
    if sign:
        relu = runs[runs["act"] == "relu"].set_index("seed")
        if metric == "test_accuracy":  # of a diverged run: that of chance, with ten classes
            mine, relu = (rows.mask(rows["state"] == "diverged", 0.1) for rows in (mine, relu))
        values = mine[metric] - relu[metric]
    found = 100 * values.dropna().to_numpy()
    half = t_half_width(found.std(ddof=1), len(found))
    return f"{format_fixed(found.mean(), 1, sign)} ± {format_fixed(float(half), 1)}"


def test_what_whole_runs_cost_is_in_their_seconds() -> None:
    runs = pd.read_csv(ROOT / "findings" / "cost" / "seconds.csv")
    assert len(runs) == len(read_study_once(ROOT / "configs" / "cost.yaml").runs)
    seconds = runs.assign(form=runs["act"] + ", " + runs["impl"]).pivot_table(
        index=["model", "seed"], columns="form", values="train_s"
    )
    over = seconds.div(seconds.pop("relu, native"), axis=0)
    readme = (ROOT / "findings" / "cost" / "README.md").read_text()
    reported = {}
    for form, ratios in over.items():
        mlp, cnn = (
            f"{some.median():.2f} ({some.min():.2f} to {some.max():.2f})"
            for some in (ratios[over.index.get_level_values("model") == m] for m in ("mlp", "cnn"))
        )
        assert f"| {form} | {mlp} | {cnn} |" in readme
        reported[str(form)] = [mlp, cnn]
    forms = ["nsrelu(0.1), native", "nsrelu(0.1), detach", "leaky_relu(0.1), native"]
    assert re.findall(r"\d\.\d\d \(.*?\)", MEASURED_TEXTS[22]) == [
        cell for form in [*forms, "relu/bsilu(1.67), native"] for cell in reported[form]
    ]


def lost(act: str, points: float) -> str:
    """Count the runs of plasticity that lost that many points of accuracy, and all."""
    tasks = pd.read_csv(ROOT / "findings" / "plasticity" / "tasks.csv")
    accuracy = tasks[tasks["act"] == act].pivot_table(
        index="run_id", columns="task", values="test_accuracy"
    )
    change = 100 * (accuracy.iloc[:, -5:].mean(axis=1) - accuracy.iloc[:, :5].mean(axis=1))
    return f"{(change < -points).sum()} of {len(change)}"


#: Where the numbers of a claim of CLAIMS.md come from, in order: study, conditions, and which
#: number of which activation. A difference is of accuracy and to ReLU; a leak not named is 0.1.
SOURCES_OF_NUMBERS = """
1 | quickstart | lr=0.01 | dead relu, dead nsrelu, zeros relu, zeros nsrelu, difference nsrelu
2 | two_by_two | lr=0.02 | dead difference nsrelu, dead relu
2 | two_by_two | lr=0.05 | dead difference nsrelu, dead relu
3 | both_mnist5k | model=cnn | dead relu, dead nsrelu, zeros relu, zeros nsrelu, difference nsrelu
3 | both_mnist5k | model=cnn | difference leaky_relu
4 | two_by_two | lr=0.1 | diverged relu, diverged leaky_relu, diverged nsrelu
4 | two_by_two | lr=0.1 | diverged leaky_relu/relu
5 | leak_curve | lr=0.02 depth=2 | diverged nsrelu(0.333)
5 | leak_curve | lr=0.02 depth=4 | diverged nsrelu(0.333)
5 | leak_curve | lr=0.02 depth=8 | diverged nsrelu(0.333), diverged nsrelu(0.2)
5 | leak_curve | lr=0.02 depth=16 | diverged nsrelu(0.2), diverged relu
6 | matched_lr | optimizer=adam lr=0.001 | difference nsrelu, difference leaky_relu, dead relu
6 | matched_lr | optimizer=adam lr=0.001 | dead nsrelu
6 | matched_lr | optimizer=sgd lr=0.03 | difference nsrelu, difference leaky_relu, dead relu
6 | matched_lr | optimizer=sgd lr=0.03 | dead nsrelu
7 | plasticity |  | lost 1 relu, lost 1 leaky_relu, lost 5 relu, lost 5 leaky_relu
7 | plasticity |  | difference leaky_relu
8 | plasticity |  | lost 5 nsrelu, accuracy nsrelu, accuracy relu, dead nsrelu, dead relu
8 | plasticity |  | diverged nsrelu
9 | plasticity |  | lost 5 leaky_relu/relu, difference leaky_relu/relu
10 | deep_narrow | epochs=6 init=he depth=20 | dead relu
10 | deep_narrow | epochs=6 init=he depth=50 | dead relu
10 | deep_narrow | epochs=6 init=rai depth=20 | dead relu
10 | deep_narrow | epochs=6 init=rai depth=50 | dead relu
11 | deep_narrow | epochs=6 init=he depth=5 | difference nsrelu
11 | deep_narrow | epochs=6 init=he depth=20 | difference nsrelu
11 | deep_narrow | epochs=6 init=he depth=50 | difference nsrelu
11 | deep_narrow | epochs=6 init=he depth=5 | difference nsrelu(0.3)
11 | deep_narrow | epochs=6 init=he depth=20 | difference nsrelu(0.3)
11 | deep_narrow | epochs=6 init=he depth=50 | difference nsrelu(0.3)
11 | deep_narrow | epochs=6 init=rai depth=5 | difference nsrelu
11 | deep_narrow | epochs=24 depth=20 | difference nsrelu, difference leaky_relu
12 | tiny_lr1 | model=examples.tiny_nets:pooled_mlp lr=1 | accuracy relu, accuracy nsrelu
12 | tiny_lr1 | model=examples.tiny_nets:pooled_mlp lr=1 | accuracy leaky_relu, difference nsrelu
13 | tiny_lr1 | model=examples.tiny_nets:small_cnn | accuracy relu, diverged relu
13 | tiny_lr1 | model=examples.tiny_nets:small_cnn | diverged leaky_relu, diverged nsrelu
14 | cifar10_cnn | lr=0.01 | difference relu/bsilu(1.67), accuracy relu
14 | cifar10_cnn | lr=0.02 | difference relu/bsilu(1.67), accuracy relu
14 | cifar10_cnn | lr=0.04 | difference relu/bsilu(1.67), accuracy relu
14 | cifar10_cnn | lr=0.02 | difference nsrelu
15 | cifar10_cnn | lr=0.02 | difference relu/helu(0.05), difference relu/nelu(0.05)
17 | sugar_vgg16_tuned | lr=0.001 | accuracy relu/bsilu(1.67), accuracy relu
17 | sugar_vgg16_tuned | lr=0.001 | difference relu/bsilu(1.67)
17 | sugar_vgg16_tuned | lr=0.003 | accuracy relu/bsilu(1.67), accuracy relu
17 | sugar_vgg16_tuned | lr=0.01 | accuracy relu, diverged relu/bsilu(1.67)
17 | sugar_vgg16 |  | accuracy relu/bsilu(1.67), accuracy relu, accuracy leaky_relu
17 | sugar_vgg16 |  | accuracy nsrelu
18 | both_mnist | optimizer=adam lr=0.001 | dead relu, dead nsrelu, zeros relu, zeros nsrelu
18 | both_mnist | optimizer=adam lr=0.001 | difference nsrelu, accuracy relu, difference leaky_relu
19 | both_mnist | optimizer=adam lr=0.01 | dead relu, dead nsrelu, zeros relu, zeros nsrelu
19 | both_mnist | optimizer=adam lr=0.01 | difference nsrelu, accuracy relu, difference leaky_relu
20 | both_mnist_cnn | optimizer=sgd | dead relu, dead nsrelu, zeros relu, zeros nsrelu
20 | both_mnist_cnn | optimizer=sgd | difference nsrelu, accuracy relu
20 | both_mnist_cnn | optimizer=adam lr=0.001 | dead relu, dead nsrelu, zeros relu, zeros nsrelu
20 | both_mnist_cnn | optimizer=adam lr=0.001 | difference nsrelu, accuracy relu
21 | both_mnist_cnn | optimizer=adam lr=0.01 | dead relu, dead nsrelu, zeros relu, zeros nsrelu
21 | both_mnist_cnn | optimizer=adam lr=0.01 | difference nsrelu, accuracy relu, below 50 relu
21 | both_mnist_cnn | optimizer=adam lr=0.01 | below 50 leaky_relu, below 50 nsrelu
21 | both_mnist_cnn | optimizer=adam lr=0.01 | accuracy leaky_relu
"""


def measured(row: int) -> list[str]:
    """Derive the numbers of a claim of CLAIMS.md."""
    found = []
    for line in SOURCES_OF_NUMBERS.strip().splitlines():
        number, study, where, cells = (part.strip() for part in line.split("|"))
        if int(number) == row:
            for what, act in (cell.rsplit(" ", 1) for cell in cells.split(", ")):
                leaky = re.sub(r"(nsrelu|leaky_relu)(?!\()", r"\1(0.1)", act)
                found.append(say(study, where, what, leaky))
    return found


NSRELU, LEAKY, ACCURACY = "nsrelu(0.1)", "leaky_relu(0.1)", "test_accuracy"
DEAD, ZEROS = "dead_fraction", "zero_fraction"

#: What the verdict of a claim of CLAIMS.md rests on, in order: section, group and metric of the
#: row's own command; "failures" is McNemar's test.
VERDICTS: dict[int, list[tuple[str, str, str]]] = {
    1: [("lr 0.01", NSRELU, metric) for metric in (DEAD, ZEROS, ACCURACY)],
    2: [("lr 0.02", NSRELU, DEAD), ("lr 0.05", NSRELU, DEAD)],
    3: [("cnn, adam", NSRELU, metric) for metric in (DEAD, ZEROS, ACCURACY)],
    4: [("lr 0.1", act, ACCURACY) for act in (NSRELU, "leaky_relu(0.1)/relu")],
    5: [
        ("depth 8, lr 0.02", "nsrelu(0.333)", "failures"),
        ("depth 16, lr 0.02", "nsrelu(0.2)", "failures"),
    ],
    6: [
        ("adam", f"{NSRELU} lr=0.001", ACCURACY),
        ("sgd", f"{NSRELU} lr=0.03", ACCURACY),
        ("adam", f"{NSRELU} lr=0.001", DEAD),
        ("sgd", f"{NSRELU} lr=0.03", DEAD),
    ],
    7: [("mnist5k, mlp", LEAKY, ACCURACY)],
    8: [("mnist5k, mlp", NSRELU, metric) for metric in (ACCURACY, DEAD)],
    9: [("mnist5k, mlp", "leaky_relu(0.1)/relu", ACCURACY)],
    11: [
        *(("epochs 6, depth " + d, "nsrelu(0.3)", ACCURACY) for d in ("5, init he", "20, init he")),
        *(
            ("epochs 6, depth " + d, NSRELU, ACCURACY)
            for d in ("5, init he", "20, init he", "50, init he", "5, init rai")
        ),
    ],
    12: [("examples.tiny_nets:pooled_mlp, lr 1", NSRELU, ACCURACY)],
    13: [("examples.tiny_nets:small_cnn, lr 1", NSRELU, "failures")],
    14: [(f"lr {lr}", "relu/bsilu(1.67)", ACCURACY) for lr in ("0.01", "0.02", "0.04")],
    15: [("lr 0.02", f"relu/{act}(0.05)", ACCURACY) for act in ("helu", "nelu")],
    17: [("lr 0.001", "relu/bsilu(1.67)", ACCURACY)],
    18: [("adam, lr 0.001", NSRELU, metric) for metric in (DEAD, ZEROS, ACCURACY)],
    19: [("adam, lr 0.01", NSRELU, ACCURACY)],
    20: [
        (section, NSRELU, metric)
        for metric in (DEAD, ZEROS, ACCURACY)
        for section in ("sgd, lr 0.02", "adam, lr 0.001")
    ],
    21: [("adam, lr 0.01", NSRELU, metric) for metric in (DEAD, ACCURACY)],
}
