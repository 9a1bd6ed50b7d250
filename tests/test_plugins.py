import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.tiny_runs import tiny

from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.plugins import _imports, load_plugin, source_digest
from nsrelu_bench.sweep import execute_run

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


def test_this_package_beside_a_source_is_no_part_of_it(folder: Path) -> None:
    """As in a checkout, where each change of it would make all done runs obsolete."""
    package = folder / "nsrelu_bench"
    package.mkdir()
    (package / "__init__.py").touch()
    (folder / "my_helper.py").write_text("from nsrelu_bench import nsrelu\n")
    before = source_digest("my_parts.nets:net")
    (package / "__init__.py").write_text("# changed\n")
    assert source_digest("my_parts.nets:net") == before


def test_a_source_is_parsed_once(folder: Path) -> None:
    first = source_digest("my_parts.nets:net")
    parsed = _imports.cache_info().misses
    assert source_digest("my_parts.nets:net") == first
    assert _imports.cache_info().misses == parsed
    (folder / "my_helper.py").write_text("import my_unused\n")
    assert source_digest("my_parts.nets:net") != first
    assert _imports.cache_info().misses == parsed + 2  # the changed file, and the one it imports


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


@pytest.mark.slow
def test_an_installed_module_is_its_own_file() -> None:
    assert len(source_digest("rich.console:Console")) == 64


def test_a_module_that_is_not_there_is_named(folder: Path) -> None:
    for name in ("my_part.nets", "my_parts_2"):
        with pytest.raises(UsageError, match=f"no module '{name}' in {folder} or among"):
            source_digest(f"{name}:net")


@pytest.fixture
def own_net(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module with a model and a helper; its path."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (folder / "own_size.py").write_text("SIZE = 4\n")
    path = folder / "own_net.py"
    path.write_text("import own_size\n\ndef net(*_):\n    return own_size.SIZE\n")
    yield path
    for name in ("own_net", "own_size"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["own_net.py", "own_size.py"])
@pytest.mark.parametrize("by_user", [False, True])
def test_a_source_changed_since_its_import_is_refused(
    own_net: Path, name: str, by_user: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(own_net.parent))
    if by_user and name == "own_net.py":
        importlib.import_module("own_net")
    else:
        load_plugin("model", "own_net:net")
    changed = own_net.with_name(name)
    changed.write_text(changed.read_text() + "SIZE = 12\n")
    importlib.invalidate_caches()
    for _ in range(2):
        with pytest.raises(BenchError) as caught:
            load_plugin("model", "own_net:net")
        assert str(caught.value) == (
            "model: the source of own_net was changed since it was imported: start Python again,"
            " or reload it"
        )
    for module in ("own_size", "own_net"):
        importlib.reload(sys.modules[module])
    assert load_plugin("model", "own_net:net")() == (12 if name == "own_size.py" else 4)


def test_a_run_records_the_source_that_it_runs(own_net: Path, tmp_path: Path) -> None:
    own_net.write_text(MODEL)
    first, second = (tiny(model="own_net:net", seed=seed, width=128, depth=3) for seed in (0, 1))
    ended = list(execute_run(first, tmp_path / "first"))[-1]
    assert ended.status.state == "completed"
    own_net.write_text(MODEL.replace("16", "24"))
    ended = list(execute_run(second, tmp_path / "second"))[-1]
    assert ended.status.state == "failed"
    assert str(ended.status.error).startswith("model: the source of own_net was changed")
    assert not (tmp_path / "second" / "env.json").exists()


MODEL = """
from torch import nn
def net(activation, shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), activation(), nn.Linear(16, classes))
"""
