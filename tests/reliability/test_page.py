"""Every test that docs/reliability.md names exists."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
DOCUMENT = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")


def named() -> list[tuple[str, str]]:
    """The file and the part of a test's name, of every test that a row names."""
    cells = [re.split(r"(?<!\\)\|", line)[-2] for line in DOCUMENT.splitlines() if line[:2] == "| "]
    pairs = [pair for cell in cells for pair in re.findall(r"(\w+): (\w+(?:, \w+)*)", cell)]
    return [(file, name) for file, names in pairs for name in names.split(", ")]


def test_every_named_test_exists() -> None:
    assert len(named()) > 60
    missing = {*named()}
    for path in TESTS.rglob("test_*.py"):
        tests = re.findall(r"^def test_(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        file = path.stem.removeprefix("test_")
        missing -= {(f, name) for f, name in missing if f == file and any(name in t for t in tests)}
    assert not missing
