"""The command line. Each command parses, makes one call of the library and shows what comes back.

Everything heavy (torch, pandas, matplotlib) is imported inside the command that uses it, so that
``--help`` answers at once.
"""

import importlib.metadata
import io
import logging
import os
import signal
import sys
import traceback

import typer
from typer.exceptions import TyperException

from nsrelu_bench.cli.options import VARIABLES, variable_of
from nsrelu_bench.errors import BenchError, unknown

app = typer.Typer(
    name="nsrelu-bench",
    help="Sparsity and gradients in rectifier networks: train, measure, compare.",
    epilog="Options can be set by variables too, --data-dir by NSRELU_DATA_DIR."
    " --traceback, anywhere, shows where an error came from.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _message(error: TyperException) -> str:
    """Say a wrong value as everywhere: the option, what is allowed, the value."""
    option = getattr(getattr(error, "param", None), "opts", None)
    if isinstance(error, typer.BadParameter) and option and error.message:
        message = error.message.replace("Input should be", "must be")
        if message.endswith(", unable to interpret input"):  # of a variable: flags have no value
            given = os.environ.get(variable_of(option[0]), "")
            message = f"{message.partition(',')[0]}, got {given[:80]!r}"
        return f"{option[0]}: {message}"
    return error.format_message()


def _blame(line: str, arguments: list[str]) -> str:
    """Name the variable, not the option, where the value that is wrong came from there."""
    flag, colon, rest = line.partition(":")
    given = any(argument.split("=")[0] == flag for argument in arguments)
    from_variable = flag.startswith("--") and variable_of(flag) in os.environ and not given
    return f"{variable_of(flag)}{colon}{rest}" if from_variable else line


def _tell_unknown_variables() -> None:
    """Say which variables look like settings and are none, as misspelt ones do."""
    for name in sorted(os.environ):
        if name.startswith("NSRELU_") and name not in VARIABLES:
            told = unknown(name, dict.fromkeys(VARIABLES), "variable", brief=True)
            print(f"nsrelu-bench: ignored: {told}", file=sys.stderr)


def _open_standard_streams() -> None:
    """Give streams that are closed a number, so that no file of ours takes it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r")
            setattr(sys, name, null)


TRACEBACK = "--traceback"

#: The signals that end a command in good order; Windows has no SIGHUP.
ENDING = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


def _end(number: int, _: object) -> None:
    """End in good order on a signal, and at once on a second one."""
    for again in ENDING:
        signal.signal(again, lambda number, _: os._exit(128 + number))
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def main() -> None:
    """Run the command line; an error is one line on stderr, and the exit code says its kind."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a ± in ASCII is a ?, not an error
    arguments = [argument for argument in sys.argv[1:] if argument != TRACEBACK] or ["--help"]
    if arguments == ["--version"]:
        print(f"nsrelu-bench {importlib.metadata.version('nsrelu-bench')}")
        return
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does
            signal.signal(number, _end)
    for library in ("matplotlib", "torch.utils.cpp_extension"):
        # They tell that HOME can't be written, or that there is no CUDA.
        logging.getLogger(library).setLevel(logging.ERROR)
    _tell_unknown_variables()
    try:
        code = app(arguments, prog_name="nsrelu-bench", standalone_mode=False)
        sys.stdout.flush()
    except (BenchError, TyperException, OSError) as error:
        if TRACEBACK in sys.argv:
            traceback.print_exc()
        text = _message(error) if isinstance(error, TyperException) else str(error)
        if isinstance(error, BrokenPipeError):
            text = ""  # `| head` has seen enough
        for line in text.splitlines():
            print(f"nsrelu-bench: {_blame(line, arguments)}", file=sys.stderr)
        code = getattr(error, "exit_code", 1)
        if isinstance(error, OSError):  # standard output is full or closed: don't flush it again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code if isinstance(code, int) else 0)
