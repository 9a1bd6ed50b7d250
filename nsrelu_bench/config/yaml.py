"""YAML 1.2 files that hold one mapping of settings.

ruamel.yaml is imported where it is used, so that ``--help`` need not wait for it.
"""

import copy
import functools
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsrelu_bench.config.run import SETTINGS
from nsrelu_bench.errors import UsageError, error_reason
from nsrelu_bench.files import find_broken_link, read_bytes
from nsrelu_bench.text import NOT_TINY, underflows

if TYPE_CHECKING:
    from ruamel.yaml import YAML

MAX_FILE_BYTES = 1_000_000

#: Keys whose values are text, even where they look like a number, a date or a missing value.
TEXTS = (
    *(name for name, setting in SETTINGS.items() if setting.kind is str),
    *("name", "question", "primary", "secondary"),
)

#: Kinds of values that YAML recognises by how they are written.
PLAIN_KINDS = ("int", "float", "bool", "null", "timestamp")


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a run or a study from a YAML file; doubled keys and tags are mistakes.

    Raises:
        UsageError: There is no such file, or it can't be read as a mapping.
    """
    try:
        content = read_bytes(path, MAX_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: {find_broken_link(path) or error_reason(error)}") from None
    return parse_settings(content, str(path))


def parse_settings(content: bytes, source: str) -> dict[str, Any]:
    """Parse the content of a YAML 1.2 file that holds one mapping; `source` names the file.

    Raises:
        UsageError: It can't be read as a mapping.
    """
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return parse_yaml(content.decode())
    except UnicodeDecodeError:
        raise UsageError(f"{source}: is not UTF-8 text") from None
    except MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        problem = str(error.problem).partition(" with value")[0]  # they may fill the screen
        raise UsageError(f"{source}:{line} {problem}") from None
    except RecursionError:
        raise UsageError(f"{source}: nesting is too deep") from None
    except (YAMLError, ValueError) as error:
        raise UsageError(f"{source}: {error_reason(error)}") from None


def _make_yaml() -> "YAML":
    """Return YAML as 1.2 has it where ruamel.yaml has not: 1_0 is a word, NEL no line break."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import SafeConstructor
    from ruamel.yaml.nodes import ScalarNode
    from ruamel.yaml.representer import SafeRepresenter
    from ruamel.yaml.resolver import VersionedResolver

    class Resolver(VersionedResolver):
        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            if kind is ScalarNode and implicit[0] and "_" in value:
                return self.DEFAULT_SCALAR_TAG
            return super().resolve(kind, value, implicit)

    class Constructor(SafeConstructor):
        def construct_document(self, node: Any) -> Any:
            _check_nodes(node, set())
            return super().construct_document(node)

    class Representer(SafeRepresenter):
        def represent_str(self, data: str) -> Any:
            # Between single quotes the C1 control NEL is written as a line break, read as a space.
            style = '"' if "\x85" in data else None
            return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Representer.add_representer(str, Representer.represent_str)
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = Resolver
    yaml.Constructor = Constructor
    yaml.Representer = Representer
    return yaml


def parse_yaml(text: str) -> dict[str, Any]:
    """Parse YAML text that holds one mapping with names as keys.

    Raises:
        ValueError: It is something else, or has a number too small to be told from 0.
        YAMLError: It is not YAML.
    """
    return _parse_lines(text) or _parse_document(text)


def _parse_lines(text: str) -> dict[str, Any] | None:
    """Parse settings one a line, as `format_yaml` writes them; None where a line needs others.

    A line that begins with a name and is a mapping by itself means the same beside such lines. Runs
    of a study have most lines in common, and each is parsed once.
    """
    settings: dict[str, Any] = {}
    lines = text.splitlines(keepends=True)
    for line in lines:
        if not _LINE.fullmatch(line) or (parsed := _parse_line(line)) is None:
            return None
        settings |= parsed
    return settings if len(settings) == len(lines) else None


#: A setting with a plain value, written on a line of its own.
_LINE = re.compile(r"[a-z_]+: [A-Za-z0-9_./+(-][A-Za-z0-9_./+() ,-]*\n")


@functools.lru_cache(maxsize=10_000)
def _parse_line(line: str) -> dict[str, Any] | None:
    from ruamel.yaml.error import YAMLError

    try:
        return _parse_document(line)
    except (YAMLError, ValueError):
        return None


def _parse_document(text: str) -> dict[str, Any]:
    if re.search(r"^%YAML +1\.[01]", text, re.MULTILINE):
        raise ValueError("must be YAML 1.2, in which `no` is a word and 010 is 10")
    content = _make_yaml().load(text)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError("must be a mapping of settings")
    return content


def _check_nodes(node: Any, seen: set[int]) -> None:
    """Make the plain values of `TEXTS` text, and refuse numbers too small to be told from 0."""
    if id(node) in seen:
        return  # an alias
    seen.add(id(node))
    if isinstance(node.value, str):
        if str(node.tag).endswith(":float") and underflows(node.value):
            line = node.start_mark.line + 1
            raise UsageError(f"line {line}: {NOT_TINY}, got {node.value}")
        return
    for index, child in enumerate(node.value):
        if isinstance(child, tuple):
            key, value = child
            if key.value in TEXTS:
                value = _as_text(value)
                node.value[index] = (key, value)
            _check_nodes(value, seen)
        else:
            _check_nodes(child, seen)


def _as_text(node: Any) -> Any:
    """Return a copy of a value, or of a list of them, that is text where it is written plainly."""
    if isinstance(node.value, str):
        prefix, _, kind = str(node.tag).rpartition(":")
        if node.style is None and node.value and kind in PLAIN_KINDS:
            node = copy.copy(node)
            node.tag = f"{prefix}:str"
    elif node.id == "sequence":
        node = copy.copy(node)
        node.value = [_as_text(child) if child.id == "scalar" else child for child in node.value]
    return node


def format_yaml(settings: Mapping[str, Any]) -> str:
    """Write settings as YAML, one per line, in their order."""
    yaml, stream = _make_yaml(), io.StringIO()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(dict(settings), stream)
    return stream.getvalue()
