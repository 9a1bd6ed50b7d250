"""The shape of the package: imports go one way and through the doors; light parts stay light."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE_FOLDER = ROOT / "nsrelu_bench"

#: A room may import from those before it, and from the files on the ground floor.
ROOMS = (
    *("config", "data", "activations", "models", "measures", "training", "records", "sweep"),
    *("compare", "plot", "tools", "cli"),
)
GROUND = ("errors", "files", "machine", "plugins", "text")

#: Rooms whose modules are used one by one: each is a door of its own.
OPEN = (
    *("tools", "sweep.executors", "sweep.dry_run", "sweep.progress"),
    *("sweep.mlflow", "sweep.tensorboard"),
)

#: What importing a room must not load, and none before it: one process imports them in this order.
LIGHT = {
    "tools.doctor": ("torch", "numpy", "pandas", "matplotlib", "pydantic", "scipy"),
    "cli": ("torch", "numpy", "pandas", "matplotlib", "scipy"),
    "config": ("torch", "numpy", "pandas", "matplotlib"),
    "records": ("torch", "pandas", "matplotlib"),
    "sweep": ("torch", "pandas", "matplotlib"),
    "compare": ("torch", "matplotlib"),
    "plot": ("torch", "matplotlib.pyplot"),
}


def imports() -> Iterator[tuple[str, str]]:
    """Every import of the package from itself: the module that imports, and what it imports."""
    for path in sorted(PACKAGE_FOLDER.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE_FOLDER).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nsrelu_bench."):
                there, here = str(node.module).partition(".")[2], module.removesuffix(".__init__")
                inside = there == here.partition(".")[0]  # takes modules from its own room
                yield from (
                    (here, f"{there}.{part.name}" if inside else there) for part in node.names
                )


INSIDE = sorted({(here, there) for here, there in imports() if here.split(".")[0] in ROOMS})


def test_every_room_is_known() -> None:
    there = {path.name for path in PACKAGE_FOLDER.iterdir() if (path / "__init__.py").exists()}
    assert there <= set(ROOMS)


def test_imports_go_one_way() -> None:
    order = {name: number for number, name in enumerate(ROOMS)} | dict.fromkeys(GROUND, -1)
    assert INSIDE
    assert not [
        f"{here} imports {there}"
        for here, there in INSIDE
        if order[there.split(".")[0]] > order[here.split(".")[0]]
    ]


#: A comparison shows itself in a notebook as its table.
ALLOWED_CIRCLE = ("compare.comparison", "compare.tables")


def test_no_modules_import_each_other_in_a_circle() -> None:
    needs: dict[str, set[str]] = {}
    for here, there in imports():
        if (here, there) != ALLOWED_CIRCLE:
            needs.setdefault(here, set()).add(there)
    TopologicalSorter(needs).prepare()  # a CycleError names the circle


def test_nothing_reaches_round_a_door() -> None:
    assert not [
        f"{here} imports {there}"
        for here, there in INSIDE
        if here.split(".")[0] != there.split(".")[0]
        if "." in there and not there.startswith(OPEN)
    ]


@pytest.mark.slow
def test_a_light_room_loads_nothing_heavy() -> None:
    code = "".join(
        f"import nsrelu_bench.{room}; print('{room}', *{set(heavy)!r} & set(sys.modules))\n"
        for room, heavy in LIGHT.items()
    )
    command = [sys.executable, "-c", "import sys\n" + code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(LIGHT)


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_files_and_functions_fit_in_a_head() -> None:
    files = list(PACKAGE_FOLDER.rglob("*.py"))
    assert not [path for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 450]
    lines = {
        f"{path.name}: {node.name}": 1 + int(node.end_lineno or 0) - node.lineno
        for path in files
        for node in functions(path)
    }
    assert not {name: count for name, count in lines.items() if count > 60}


def test_names_of_tests_are_short() -> None:
    tests = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    names = [name for text in tests for name in re.findall(r"^def (test_\w+)", text, re.M)]
    assert names
    assert not [name for name in names if len(name) > 60]


def constants(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Every constant at the top of a module: its name, its value as written, and the file."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = (target.id for target in targets if isinstance(target, ast.Name))
                yield from ((n, ast.unparse(node.value), path) for n in names if n.isupper())


def test_constants_of_one_name_have_one_value() -> None:
    places: dict[str, dict[str, list[str]]] = {}
    for folder in ("nsrelu_bench", "tests", "benchmarks", "examples"):
        for name, value, path in constants(ROOT / folder):
            places.setdefault(name, {}).setdefault(value, []).append(str(path.relative_to(ROOT)))
    assert not [list(values.values()) for values in places.values() if len(values) > 1]
