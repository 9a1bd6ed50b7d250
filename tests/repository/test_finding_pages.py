"""The pages of the findings: what their text and tables say is what their commands print."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command_line import ask
from torch import nn

from nsrelu_bench.compare.statistics import t_half_width
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.data import load_dataset
from nsrelu_bench.models import build_model
from nsrelu_bench.records import load_runs, summary
from nsrelu_bench.text import format_fixed

ROOT = Path(__file__).parents[2]
FINDING_PAGES = [ROOT / "FINDINGS.md", *sorted((ROOT / "findings").glob("*/README.md"))]

#: A table and the command that printed it.
SHOWN_TABLES = [
    (page, command)
    for page in FINDING_PAGES
    for command in re.findall(r"^    nsrelu-bench (compare .*--format md)$", page.read_text(), re.M)
]

#: Numbers with a decimal point that are no results: of settings, versions and machines, and the
#: difference pooled over cells, which test_studies.py derives.
OTHER_NUMBERS = {
    *("3.041", "12.16", "2.333", "9.33", "0.9", "0.7", "0.1", "0.05", "0.03", "0.02", "0.01"),
    *("0.005", "0.003", "0.001", "0.0003", "0.0001", "2.11", "2.15", "0.17", "0.16"),
}

#: A verdict in the text and the adjusted p that it rests on, as in *lower* (p = 0.002 and 0.031).
VERDICT_IN_TEXT = re.compile(r"\*(higher|lower|not shown)\*(?: to differ)? \(p = ([^)]*)\)")


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def prose(page: Path) -> str:
    """Return the text of a page without its tables, commands, code and links, on one line."""
    blocks = [
        b for b in text_of(page).split("\n\n") if not b.startswith(("    ", "|", "**m", "!["))
    ]
    text = re.sub(r"`.*?`|\]\(.*?\)|arXiv\s+\S+", "", "\n\n".join(blocks), flags=re.S)
    return " ".join(text.split())


@cache
def rows(page: Path) -> list[list[str]]:
    """Return the rows of the tables of a page, cell by cell."""
    lines = (line for line in text_of(page).splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(scope="module")
def _read_once() -> Iterator[None]:
    """Read the summary of a study once, not for every command of its page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "_read_summary", cache(summary._read_summary))
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_read_once")
@pytest.mark.parametrize(("page", "command"), SHOWN_TABLES, ids=lambda value: str(value)[-60:])
def test_a_table_in_a_studys_readme_is_what_its_command_prints(page: Path, command: str) -> None:
    answer = ask(*shlex.split(command), cwd=ROOT)
    assert answer.code == 0
    blocks = [b for b in answer.out.split("\n\n") if b.startswith(("|", "**"))]
    assert len(blocks) > 1
    text = text_of(page)
    for block in blocks:
        assert block.strip() in text


@pytest.mark.parametrize("page", FINDING_PAGES[1:], ids=lambda page: page.parent.name)
def test_a_study_has_a_page_of_the_usual_form(page: Path) -> None:
    parts = re.findall(r"^\*\*([A-Z][a-z ]*)\.?\*\*", text_of(page), re.M)
    assert [part for part in parts if part != "Setting"] == [
        *("Verdict", "What was asked", "Command", "What it shows", "What it does not show")
    ]


@pytest.mark.parametrize(
    "command", [command for page, command in SHOWN_TABLES if page.name == "README.md"]
)
def test_a_command_of_a_page_can_be_pasted_into_a_shell(command: str) -> None:
    assert not set("()<>;&|") & set(shlex.shlex(command, punctuation_chars=True))


@pytest.mark.parametrize(
    "page", [*FINDING_PAGES, ROOT / "docs" / "report.md"], ids=lambda page: page.parent.name
)
def test_a_number_in_the_text_is_in_a_table(page: Path) -> None:
    """Numbers of a page that sums up others are in the tables of those that it links to."""
    links = re.findall(r"\]\((\S*findings/\w+/README\.md)\)", text_of(page))
    tables = [row for each in (page, *(page.parent / link for link in links)) for row in rows(each)]
    known = set(re.findall(r"\d+\.\d+", " ".join(cell for row in tables for cell in row)))
    assert not set(re.findall(r"\d+\.\d+", prose(page))) - known - OTHER_NUMBERS


@pytest.mark.parametrize("page", FINDING_PAGES, ids=lambda page: page.parent.name)
def test_a_verdict_in_the_text_is_in_a_table_with_its_p(page: Path) -> None:
    shown = [pair for row in rows(page) for pair in pairwise(row)]
    for word, ps in VERDICT_IN_TEXT.findall(prose(page)):
        for p in re.findall(r"\d[\d.e-]*", ps):
            assert any(p == cell and word in verdict for cell, verdict in shown), (word, p)


@pytest.mark.parametrize(
    ("study", "baseline"),
    [
        ("tasks", "relu"),
        ("tasks_cures", "rescue(0.1)"),
        ("tasks_mnist", "relu"),
        ("backward_slope", "leaky_relu(0.1)"),
        ("net_rescue_tasks", "relu"),
    ],
)
def test_the_table_of_the_last_ten_tasks_is_in_the_data(study: str, baseline: str) -> None:
    tasks = pd.read_csv(ROOT / "findings" / study / "tasks.csv")
    readme = text_of(ROOT / "findings" / study / "README.md")
    settings = list(tasks.columns[: tasks.columns.get_loc("seed")])
    tasks["arm"] = tasks[settings].apply(arm_name, axis=1)
    by_seed = tasks.columns.drop([*settings, "arm", "task", "seed"])
    first = tasks[tasks["task"] == 1].set_index(["arm", "seed"])[by_seed]
    last = tasks[tasks["task"] > tasks["task"].max() - 10].groupby(["arm", "seed"])[by_seed].mean()
    accuracy = 100 * last.pivot_table(index="seed", columns="arm", values="test_accuracy")
    for arm, above in accuracy.gt(accuracy[baseline], axis=0).sum().items():
        then, now = first.loc[arm].mean(), last.loc[arm].mean()
        change = 100 * (now - then)["test_accuracy"]
        cells = [
            f"{100 * then['test_accuracy']:.1f} → {100 * now['test_accuracy']:.1f}",
            f"{change:+.1f}",
            "-" if arm == baseline else f"{above} of {len(accuracy)}",
            f"{100 * then['dead_fraction']:.1f} → {100 * now['dead_fraction']:.1f}",
            *(
                f"{then[c]:.0f} → {now[c]:.0f}"
                for c in by_seed
                if c in ("weight_norm", "effective_rank")
            ),
        ]
        assert f"| {arm} | {' | '.join(cells)} |" in readme


def test_relu_loses_five_points_over_a_hundred_tasks() -> None:
    tasks = pd.read_csv(ROOT / "findings" / "tasks" / "tasks.csv")
    relu = tasks.query("act == 'relu' and redo == 0 and weight_decay == 0")
    accuracy = relu.pivot_table(index="seed", columns="task", values="test_accuracy")
    assert (accuracy.loc[:, 91:].mean(axis=1) - accuracy[1] < -0.05).all()


def arm_name(settings: pd.Series) -> str:
    """Return the activation with the settings that are not off, as `compare --arm` names it."""
    act, *others = settings.items()
    given = [(k, v) for k, v in others if v]
    return " ".join([act[1], *(k if v is True else f"{k}={v:g}" for k, v in given)])


def outputs_at_the_start(depth: int, seed: int) -> list[torch.Tensor]:
    """Return the outputs of all ReLUs of an untrained MLP for 64 digits, with their gradients."""
    data = load_dataset(RunConfig())
    torch.manual_seed(seed)
    network = build_model(RunConfig(act="relu", depth=depth), (1, 28, 28), 10)
    outputs, values = [], data.inputs(data.train.images[:64])
    for module in network:
        values = module(values)
        if isinstance(module, nn.ReLU):
            values.retain_grad()
            outputs.append(values)
    nn.functional.cross_entropy(values, data.train.labels[:64]).backward()
    return outputs


@pytest.mark.parametrize("depth", [3, 20, 30, 50])
def test_what_is_off_for_a_batch_is_as_told(depth: int) -> None:
    """How many units, and how much of the push upwards there the gradient of the batch asks for."""
    off, asked = [], []
    for seed in range(3):
        outputs = outputs_at_the_start(depth, seed)
        off.append([(output == 0).all(0).float().mean().item() for output in outputs])
        grads = [output.grad[:, (output == 0).all(0)] for output in outputs]
        upward = sum(grad.clamp(max=0).sum() for grad in grads)
        asked.append(float(sum(grad.sum(0).clamp(max=0).sum() for grad in grads) / upward))
    by_site = np.mean(off, axis=0)
    rescue, repair = (
        text_of(ROOT / "findings" / study / "README.md") for study in ("deep_rescue", "deep_repair")
    )
    assert f"| {depth} | {100 * by_site.mean():.0f} % | {100 * by_site[-1]:.0f} % |" in rescue
    (told,) = re.findall(rf"^\| {depth} \| (\d+) % \|$", repair, re.M)
    assert 100 * np.mean(asked) == pytest.approx(int(told), abs=0.6)


@pytest.mark.parametrize(
    ("study", "conditions"),
    [
        ("both_mnist5k", {"model": "cnn"}),
        ("both_mnist_cnn", {"optimizer": "adam", "lr": 0.01}),
        ("tiny_lr1", {"lr": 1.0}),
    ],
)
def test_the_table_of_the_spread_is_in_the_data(study: str, conditions: dict[str, object]) -> None:
    runs = load_runs(ROOT / "findings" / study)
    for name, value in conditions.items():
        runs = runs[runs[name] == value]
    for (model, act), arm in runs.groupby(["model", "act"]):
        found = 100 * arm["test_accuracy"].dropna()
        numbers = [format_fixed(x, 1) for x in (found.min(), found.median(), found.max())]
        if study == "tiny_lr1":
            cells = [model.partition(":")[2], act, *(numbers if len(found) else "---")]
            cells += [f"{len(found)} of {len(arm)}"]
        else:
            cells = [act, *numbers, f"{(found < 50).sum()} of {len(arm)}"]
        assert cells in rows(ROOT / "findings" / study / "README.md")


def test_how_much_rounding_does_is_in_the_notes_below_the_table() -> None:
    page = text_of(ROOT / "findings" / "rounding" / "README.md")
    (note,) = re.findall(r"^    (test accuracy: .*\n    .*)$", page, re.M)
    printed = ask("compare", "findings/rounding", cwd=ROOT).out
    assert " ".join(note.split()) in " ".join(printed.split())


def test_what_changes_over_thirty_tasks_is_in_the_data() -> None:
    tasks = pd.read_csv(ROOT / "findings" / "plasticity" / "tasks.csv")
    for act, arm in tasks.groupby("act"):
        accuracy = 100 * arm.pivot_table(index="seed", columns="task", values="test_accuracy")
        change = accuracy.iloc[:, -5:].mean(axis=1) - accuracy.iloc[:, :5].mean(axis=1)
        half = float(t_half_width(change.std(), len(change)))
        lost = [f"{(change < -points).sum()} of {len(change)}" for points in (1, 5)]
        cells = [act, f"{change.mean():.1f} ± {half:.1f}", *lost]
        assert cells in rows(ROOT / "findings" / "plasticity" / "README.md")
    broken = tasks[(tasks["act"] == "nsrelu(0.1)") & (tasks["test_accuracy"] < 0.5)]
    first = broken.groupby("seed")["task"].min()
    assert (len(first), first.min(), first.max()) == (10, 8, 11)
