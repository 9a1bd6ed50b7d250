import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsrelu_bench.errors import UsageError
from nsrelu_bench.plugins import source_digest

FILES = {
    "my_parts/nets.py": "from .layers import width\nimport my_helper\n",
    "my_parts/layers.py": "import torch\n\ndef f():\n    from my_parts.deep import thing\n",
    "my_parts/deep/__init__.py": "",
    "my_parts/deep/thing.py": "",
    "my_parts/unused.py": "",
    "my_helper.py": "raise SystemExit('is never run')\n",
    "my_unused.py": "",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_a_source_is_all_that_the_module_imports(name: str, folder: Path) -> None:
    before = source_digest("my_parts.nets:net")
    (folder / name).write_text(FILES[name] + "# changed\n")
    assert (source_digest("my_parts.nets:net") == before) == ("unused" in name)


def test_a_source_digest_knows_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_digest("my_parts.nets:net")
    assert not {"my_parts", "my_helper"} & set(sys.modules)
    (folder / "elsewhere").mkdir()
    for place in ("my_parts", "my_helper.py"):
        (folder / place).rename(folder / "elsewhere" / place)
    monkeypatch.chdir(folder / "elsewhere")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder)])
    assert source_digest("my_parts.nets:net") == before


@pytest.mark.parametrize("name", ["my_parts.nets:net", "my_helper:net"])
def test_a_name_in_one_module_does_not_matter(name: str, folder: Path) -> None:
    assert source_digest(name) == source_digest(name.replace(":net", ":other"))


def test_a_source_that_does_not_parse_has_a_digest(folder: Path) -> None:
    (folder / "my_helper.py").write_text("def (\n")
    first = source_digest("my_helper:net")
    (folder / "my_helper.py").write_text("def ((\n")
    assert source_digest("my_helper:net") != first


@pytest.mark.parametrize("name", ["builtins:exec", "os:system", "os.path:join", "json:loads"])
def test_a_module_of_python_has_a_digest(name: str) -> None:
    assert len(source_digest(name)) == 64


def test_an_installed_module_is_its_own_file() -> None:
    assert len(source_digest("rich.console:Console")) == 64


def test_a_module_that_is_not_there_is_named(folder: Path) -> None:
    for name in ("my_part.nets", "my_parts_2"):
        with pytest.raises(UsageError, match=f"no module '{name}' in {folder} or among"):
            source_digest(f"{name}:net")
