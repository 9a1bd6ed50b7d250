"""Format help texts: options by section, whole summaries, examples that can be pasted."""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

#: Sections of options and of commands, in the order of help texts.
OPTION_SECTIONS = (
    *("arguments", "activation", "data", "model", "training", "measuring", "running", "cluster"),
    "options",
)
COMMAND_SECTIONS = ("train", "compare", "examine")


class Command(TyperCommand):
    """A command whose help lists its options by section, and ends with examples."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what follows the name of the command in its usage."""
        pieces = ["[OPTIONS]"]
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "argument":
                name = f"{parameter.metavar}" if parameter.required else f"[{parameter.metavar}]"
                pieces.append(name + "..." * (parameter.nargs == -1))
        return pieces

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options, each section with a title."""
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in OPTION_SECTIONS}
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "argument":
                sections["arguments"].append(
                    (str(parameter.metavar), getattr(parameter, "help", ""))
                )
            elif (record := parameter.get_help_record(ctx)) is not None:
                sections[getattr(parameter, "rich_help_panel", None) or "options"].append(record)
        for name, records in sections.items():
            _write_section(formatter, name, records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the examples, unbroken so that they can be pasted."""
        if self.epilog:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in self.epilog.splitlines()))

    def get_short_help_str(self, limit: int = 0) -> str:  # noqa: ARG002
        """Return the first sentence of the help, whole."""
        return (self.help or "").partition("\n\n")[0].replace("\n", " ")


class Group(TyperGroup):
    """The program, whose help lists the commands by section."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options and the commands."""
        options = [parameter.get_help_record(ctx) for parameter in self.get_params(ctx)]
        _write_section(formatter, "options", [record for record in options if record])
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in COMMAND_SECTIONS}
        width = max(map(len, self.commands))
        for name, command in self.commands.items():
            section = getattr(command, "rich_help_panel", None)
            sections[str(section)].append((name.ljust(width), command.get_short_help_str()))
        for title, commands in sections.items():
            _write_section(formatter, title, commands)


def _write_section(formatter: Any, title: str, records: list[tuple[str, str]]) -> None:
    if records:
        with formatter.section(title.capitalize()):
            formatter.write_dl(records)


def command(
    app: typer.Typer, section: str, *examples: str, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that makes a function a command of the program.

    The help of the program lists it in a section; its own ends with the examples.
    """
    return app.command(name=name, cls=Command, epilog="\n".join(examples), rich_help_panel=section)
