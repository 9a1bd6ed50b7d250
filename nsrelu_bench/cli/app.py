"""The command line. Each command parses, calls the library once and shows the result.

Everything heavy (torch, pandas, matplotlib) is imported inside the command that uses it, so that
``--help`` answers at once.
"""

import errno
import functools
import io
import logging
import os
import signal
import sys
import traceback
from typing import Annotated

import typer
from typer.exceptions import TyperException

from nsrelu_bench.cli import help as help_texts
from nsrelu_bench.cli.options import VARIABLES, variable_of
from nsrelu_bench.errors import BenchError, error_reason, unknown
from nsrelu_bench.text import printable

PROGRAM = "nsrelu-bench"

app = typer.Typer(
    name=PROGRAM,
    cls=help_texts.Group,
    help="Sparsity and gradients in rectifier networks: train, measure, compare.",
    epilog="NAME --help lists the options of a command. Environment variables set options too:"
    " NSRELU_DATA_DIR sets --data-dir.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
command = functools.partial(help_texts.command, app)

TRACEBACK = "--traceback"

#: Set by the shell that asks for completions.
COMPLETING = "_NSRELU_BENCH_COMPLETE"

#: Errors that standard output has when it is full or closed.
OUTPUT_ERRORS = (errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF, errno.EDQUOT)

#: The signals that end a command after it has cleaned up; Windows has no SIGHUP.
EXIT_SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


def _show_version(wanted: bool) -> None:
    if wanted:
        from nsrelu_bench import __version__

        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    show_traceback: Annotated[
        bool, typer.Option(TRACEBACK, help="Show where an error came from; allowed anywhere.")
    ] = False,
) -> None:
    """Define the options of the program itself; `main` handles --traceback."""


def main() -> None:
    """Run the command line; an error is one line on stderr, with an exit code for its kind."""
    _reopen_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a ± in ASCII is a ?, not an error
    arguments = [argument for argument in sys.argv[1:] if argument != TRACEBACK] or ["--help"]
    for number in EXIT_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does
            signal.signal(number, _exit_on_signal)
    for library in ("matplotlib", "torch.utils.cpp_extension"):
        # They warn that HOME can't be written, or that there is no CUDA.
        logging.getLogger(library).setLevel(logging.ERROR)
    if COMPLETING not in os.environ:
        _warn_of_unknown_variables()
    try:
        _check_folder()
        code = app(arguments, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except (BenchError, TyperException, OSError) as error:
        if TRACEBACK in sys.argv:
            traceback.print_exc()
        for line in _error_text(error).splitlines():
            print(printable(f"{PROGRAM}: {_name_variable(line, arguments)}"), file=sys.stderr)
        code = getattr(error, "exit_code", 1)
        if isinstance(error, OSError):  # standard output is full or closed: don't flush it again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code if isinstance(code, int) else 0)


def _reopen_closed_streams() -> None:
    """Open closed standard streams on os.devnull, so that no other file gets their descriptors."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r")
            setattr(sys, name, null)


def _exit_on_signal(number: int, _: object) -> None:
    """Raise an exception, so that the command cleans up; a second signal exits at once."""
    for again in EXIT_SIGNALS:
        signal.signal(again, lambda number, _: os._exit(128 + number))
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _warn_of_unknown_variables() -> None:
    """Warn of unknown variables that begin with NSRELU_, such as misspelt ones."""
    for name in sorted(os.environ):
        if name.startswith("NSRELU_") and name not in VARIABLES:
            problem = unknown(name, dict.fromkeys(VARIABLES), "variable", brief=True)
            print(f"{PROGRAM}: ignored: {problem}", file=sys.stderr)


def _check_folder() -> None:
    """Raise BenchError where the current folder is gone: every relative path would fail."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        raise BenchError(
            f"the current folder can't be used ({error_reason(error)}); change to another"
        ) from error


def _error_text(error: Exception) -> str:
    """Return what to print about an error, one line per mistake."""
    if isinstance(error, TyperException):
        return _usage_text(error)
    if isinstance(error, BrokenPipeError):
        return ""  # `| head` has seen enough
    if isinstance(error, OSError):
        file = error.filename
        if file is None and error.errno in OUTPUT_ERRORS:
            file = "standard output"
        return f"{os.fsdecode(file)}: {error_reason(error)}" if file else error_reason(error)
    return str(error)


def _usage_text(error: TyperException) -> str:
    """Describe a wrong value as everywhere: the option, what is allowed, the value."""
    option = getattr(getattr(error, "param", None), "opts", None)
    if not (isinstance(error, typer.BadParameter) and option and error.message):
        return error.format_message()
    message = error.message.replace("Input should be", "must be")
    if message.endswith(", unable to interpret input"):  # of a variable: flags have no value
        given = os.environ.get(variable_of(option[0]), "")
        message = f"{message.partition(',')[0]}, got {given[:80]!r}"
    return f"{option[0]}: {message}"


def _name_variable(line: str, arguments: list[str]) -> str:
    """Name the environment variable instead of the option where the wrong value came from it."""
    flag, colon, rest = line.partition(":")
    given = any(argument.split("=")[0] == flag for argument in arguments)
    from_variable = flag.startswith("--") and variable_of(flag) in os.environ and not given
    return f"{variable_of(flag)}{colon}{rest}" if from_variable else line
