"""Describe a setting once, in its field, for options, editors and docs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

Section = Literal["activation", "data", "model", "training", "measuring", "running"]


METAVARS = {bool: "", int: "N", float: "X", str: "NAME"}


@dataclass(frozen=True)
class Setting:
    """One setting of a run, as people see it.

    Attributes:
        name: Its key in files; its option is the same with hyphens.
        kind: The type of its values.
        section: What it belongs to.
        help: What it is, in one line.
        default: Its default in words; empty without one.
        metavar: Placeholder for a value in help texts.
        names: Values that can be named; if `closed`, there are no others.
    """

    name: str
    kind: type[bool] | type[int] | type[float] | type[str]
    section: Section
    help: str
    default: str
    metavar: str
    names: tuple[str, ...] = ()
    closed: bool = False


def setting(
    section: Section,
    description: str,
    default: Any = PydanticUndefined,
    *,
    usual: str | None = None,
    names: Iterable[str] = (),
    metavar: str | None = None,
    **constraints: Any,
) -> Any:
    """Return the field of a `Setting`; `constraints` are further arguments of `pydantic.Field`.

    `usual` is the default in words, where it is not a plain value. `names` are values that can be
    named, where others are allowed too.
    """
    shown: dict[str, Any] = {
        "section": section,
        "usual": usual,
        "names": [*names],
        "metavar": metavar,
    }
    return Field(default, description=description, json_schema_extra=shown, **constraints)


def describe_setting(name: str, field: FieldInfo) -> Setting:
    """Return what a field made by `setting` says."""
    shown: Any = field.json_schema_extra
    parts = tuple(_flatten(field.annotation))
    texts = tuple(part for part in parts if isinstance(part, str))
    kind = str if texts else next(kind for kind in (bool, int, float, str) if kind in parts)
    metavar = "[" + "|".join(texts) + "]" if texts else METAVARS[kind]
    usual, default = shown["usual"], field.default
    if usual is None and isinstance(default, bool):
        usual = "yes" if default else "no"
    elif usual is None:
        usual = f"{default:g}" if isinstance(default, float) else str(default)
        usual = "" if default is None or default is PydanticUndefined else usual
    return Setting(
        name=name,
        kind=kind,
        section=shown["section"],
        help=str(field.description),
        default=usual,
        metavar=shown["metavar"] or metavar,
        names=texts or tuple(shown["names"]),
        closed=bool(texts),
    )


def _flatten(annotation: Any) -> Iterable[Any]:
    """Yield the types and literal values that an annotation is composed of."""
    if get_origin(annotation) is None:
        yield annotation
    for part in get_args(annotation):
        yield from _flatten(part)
