import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers.command_line import ask

from nsrelu_bench.cli import app as cli
from nsrelu_bench.cli.help import COMMAND_SECTIONS
from nsrelu_bench.cli.options import flag_of
from nsrelu_bench.config import SETTINGS, RunConfig

CLICK_PROGRAM: Any = typer.main.get_command(cli.app)
COMMANDS_BY_NAME = CLICK_PROGRAM.commands
OPTIONS_PAGE = (Path(__file__).parents[2] / "docs" / "options.md").read_text(encoding="utf-8")


def test_the_commands_are_listed_whole_and_by_section() -> None:
    text = ask("--help", COLUMNS="80").out
    assert "..." not in text.replace("[ARGS]...", "")
    assert re.findall(r"^(\w+):$", text, re.MULTILINE) == [
        "Options",
        *(section.capitalize() for section in COMMAND_SECTIONS),
    ]
    for name, command in COMMANDS_BY_NAME.items():
        assert f"  {name:9}  {command.get_short_help_str()}\n" in text


@pytest.mark.parametrize("name", COMMANDS_BY_NAME)
def test_every_option_of_a_command_has_a_metavar_and_a_help(name: str) -> None:
    for parameter in COMMANDS_BY_NAME[name].params:
        assert parameter.help, parameter.name
        assert parameter.metavar or parameter.is_flag, parameter.name


@pytest.mark.parametrize("name", COMMANDS_BY_NAME)
def test_help_ends_with_examples_that_can_be_parsed(name: str) -> None:
    text = ask(name, "--help", COLUMNS="80").out
    examples = text.partition("Examples:\n")[2].splitlines()
    assert len(examples) >= 3
    for example in examples:
        program, command, *arguments = shlex.split(example.partition(" > ")[0])
        assert (program, command) == ("nsrelu-bench", name)
        COMMANDS_BY_NAME[name].make_context(name, arguments)


@pytest.mark.parametrize("name", COMMANDS_BY_NAME)
def test_no_line_of_a_help_is_longer_than_a_terminal(name: str) -> None:
    assert max(map(len, ask(name, "--help", COLUMNS="80").out.splitlines())) <= 80


def test_every_setting_has_an_option_that_states_its_default() -> None:
    text = " ".join(ask("train", "--help").out.split())
    for name, setting in SETTINGS.items():
        entry = re.split(rf" {flag_of(name)}(?: / --no\S+)? ", text)[1].partition(" --")[0]
        assert setting.help in entry
        assert f"[default: {setting.default}]" in entry or not setting.default


def test_the_defaults_that_help_states_are_those_of_a_run() -> None:
    for name, value in RunConfig().settings.items():
        said = SETTINGS[name].default
        if isinstance(value, bool):
            assert said == ("yes" if value else "no")
        elif value is None:
            assert said == "all"
        else:
            shown = f"{value:g}" if isinstance(value, float) else str(value).partition("(")[0]
            assert said.split()[0] == shown


@pytest.mark.parametrize("name", COMMANDS_BY_NAME)
def test_every_option_is_documented(name: str) -> None:
    section = re.split(r"^## ", OPTIONS_PAGE, flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(f"{name}\n")]
    documented = set(re.findall(r"`(--[a-z-]+)`", text.replace(" / ", "\n")))
    flags = {flag for p in COMMANDS_BY_NAME[name].params for flag in (*p.opts, *p.secondary_opts)}
    flags = {flag for flag in flags if flag.startswith("--")}
    assert documented == flags, f"docs/options.md, section {name}: {documented ^ flags}"


# Completion.


def complete(shell: str, line: str, cwd: Path = Path()) -> list[str]:
    """Return the words that a shell would offer for the end of a line."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    typer_words = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    variables = words | typer_words | {"_NSRELU_BENCH_COMPLETE": f"complete_{shell}"}
    answer = ask(cwd=cwd, **variables)
    return re.findall(r"[\w./()-]+(?==)|[\w./()-]+", answer.out)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nsrelu-bench swe", {"sweep"}),
        ("nsrelu-bench train --le", {"--leak"}),
        ("nsrelu-bench train --act gel", {"gelu"}),
        ("nsrelu-bench train --model vgg", {"vgg11", "vgg16"}),
        ("nsrelu-bench train --dataset cifar", {"cifar10", "cifar100"}),
        ("nsrelu-bench train --optimizer adamw", {"adamw"}),
        ("nsrelu-bench compare --metric grad_norm,dead_u", {"dead_units"}),
        ("nsrelu-bench plot --kind curves,leak", {"leak"}),
        ("nsrelu-bench list fig", {"figures"}),
    ],
)
def test_a_shell_completes_names(shell: str, line: str, words: set[str]) -> None:
    assert words <= set(complete(shell, line))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nsrelu-bench show rel", {"relu-s0-1234"}),
        ("nsrelu-bench compare ", {"results/leaks", "results/runs"}),
        ("nsrelu-bench plot results/le", {"results/leaks"}),
        ("nsrelu-bench report results/leaks/", {"results/leaks/relu-s0-1234"}),
        ("nsrelu-bench clean results/r", {"results/runs"}),
        ("nsrelu-bench train --config res", {"results/leaks/relu-s0-1234/config.yaml"}),
        ("nsrelu-bench sweep le", {"leaks.yaml"}),
        ("nsrelu-bench data mnist5", {"mnist5k"}),
    ],
)
def test_a_shell_completes_runs_and_files(
    shell: str, line: str, words: set[str], tmp_path: Path
) -> None:
    (tmp_path / "leaks.yaml").touch()
    (tmp_path / "results" / "runs").mkdir(parents=True)
    run = tmp_path / "results" / "leaks" / "relu-s0-1234"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    of_zsh = {"_arguments", "((", "))"}
    assert set(complete(shell, line, cwd=tmp_path)) - of_zsh == words


def test_completing_prints_no_warnings() -> None:
    answer = ask(
        _NSRELU_BENCH_COMPLETE="complete_bash", COMP_WORDS="x l", COMP_CWORD="1", NSRELU_LAEK="1"
    )
    assert answer.err == ""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_completion_can_be_installed_for_bash(tmp_path: Path) -> None:
    binaries = Path(sys.executable).parent
    environment = {"HOME": str(tmp_path), "PATH": f"{binaries}:{os.environ['PATH']}"}
    script = "nsrelu-bench --install-completion; source ~/.bashrc; complete -p nsrelu-bench"
    answer = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert "bash completion installed" in answer.stdout, answer.stderr
    assert "complete -o default -F _nsrelu_bench_completion nsrelu-bench" in answer.stdout
