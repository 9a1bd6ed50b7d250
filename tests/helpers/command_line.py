"""The command line, as a process of its own or, in milliseconds, in this process."""

import functools
import io
import os
import signal
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import typer.main

from nsrelu_bench.cli import app as cli
from nsrelu_bench.sweep.executors import local

#: The commands are built once, not once per call.
get_command = functools.cache(typer.main.get_command)

CLI = [sys.executable, "-m", "nsrelu_bench"]


def nsrelu(
    *arguments: str, cwd: Path, code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    answer = subprocess.run(
        [*CLI, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == code, answer.stderr
    assert "Traceback" not in answer.stderr
    return answer


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


def ask(*arguments: str, cwd: Path = Path(), **environment: str) -> Answer:
    """Run the command line as if it were a process of its own, and train without workers."""
    out, err = io.StringIO(), io.StringIO()
    before = {number: signal.getsignal(number) for number in cli.EXIT_SIGNALS}
    try:
        with (
            patch.object(sys, "argv", ["nsrelu-bench", *arguments]),
            patch.dict(os.environ, environment),
            patch.object(typer.main, "get_command", get_command),
            patch.object(local, "ProcessPool", lambda _: local.InProcess()),
            chdir(cwd),
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            cli.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert isinstance(end.value.code, int)
    return Answer(end.value.code, out.getvalue(), err.getvalue())
