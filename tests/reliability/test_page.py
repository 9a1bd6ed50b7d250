"""Every test that docs/reliability.md names exists."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCUMENT = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")


def named() -> list[tuple[str, str]]:
    """The file and the part of a test's name, of every test that a row names."""
    cells = [re.split(r"(?<!\\)\|", line)[-2] for line in DOCUMENT.splitlines() if line[:2] == "| "]
    pairs = [pair for cell in cells for pair in re.findall(r"(\w+): (\w+(?:, \w+)*)", cell)]
    return [(file, name) for file, names in pairs for name in names.split(", ")]


@pytest.mark.parametrize(("file", "name"), sorted({*named()}))
def test_every_named_test_exists(file: str, name: str) -> None:
    (path,) = TESTS.rglob(f"test_{file}.py")
    source = path.read_text(encoding="utf-8")
    assert re.search(rf"^def test_\w*{name}", source, re.MULTILINE)


def test_most_cases_name_a_test() -> None:
    assert len(named()) > 60
