"""Mutation testing: change one place of a module at a time, and see whether its tests notice.

    python scripts/mutate.py metrics --sample 200 --seed 1

Each mutant lives in the memory of a forked child, whose parent has imported what is slow to import;
no file is written. A mutant of a function meets the tests that call the function, the fastest
first, another one all tests. docs/mutation.md says what came out.
"""

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import pickle
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nsrelu_bench"

MODULES = ("activations", "metrics", "compare")

# In one process, the mutant's; pytest warns of plugins that were imported before it.
OPTIONS = ["-x", "-q", "-n0", "-p", "no:cacheprovider"]
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]

#: Imported before the forks; nothing of the package, whose modules import each other.
HEAVY = ("hypothesis", "matplotlib", "pandas", "pydantic", "scipy.stats", "torch")

CPU_S = 120  # of a child: a mutant that takes longer hangs, and that is noticed
WALL_S = 1200  # the same for one that waits

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """A module changed in one place; `function` are the lines of the outermost function there."""

    line: int
    change: str
    code: CodeType
    function: range | None

    def __str__(self) -> str:
        """Say where it is changed and how."""
        return f"line {self.line}: {self.change}"


def mutants(path: Path) -> list[Mutant]:
    """Make every mutant of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        _mutant(tree, parent, field, index, node, new, path)
        for parent, field, index, node in list(places(tree))
        for new in changes(node, parent)
    ]


def _mutant(
    tree: ast.Module,
    parent: ast.AST,
    field: str,
    index: int | None,
    old: ast.AST,
    new: ast.AST,
    path: Path,
) -> Mutant:
    change = f"{ast.unparse(old)} -> {ast.unparse(new)}".replace("\n", " ")
    _put(parent, field, index, new)
    ast.copy_location(new, old)
    code = compile(ast.fix_missing_locations(tree), str(path), "exec")
    _put(parent, field, index, old)
    line = int(getattr(old, "lineno", getattr(parent, "lineno", 0)))
    return Mutant(line, change, code, _function(tree, line))


def _function(tree: ast.Module, line: int) -> range | None:
    """The lines of the outermost function that a line is in."""
    for node in ast.walk(tree):  # from the outside inwards
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or 0):
            return range(node.lineno, (node.end_lineno or 0) + 1)
    return None


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Give every node below one that runs: its parent, its field there, its index, and itself."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params", "ctx"):
            continue
        children = value if isinstance(value, list) else [value]
        for index, child in enumerate(children):
            if not isinstance(child, ast.AST) or is_docstring(child) or is_of_types(child):
                continue
            yield node, field, index if isinstance(value, list) else None, child
            yield from places(child)


def is_docstring(node: ast.AST) -> bool:
    """Whether this is a statement that is a text."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_of_types(node: ast.AST) -> bool:
    """Whether this is for type checkers alone, as a Literal."""
    kind = node.value if isinstance(node, ast.Subscript) else None
    guard = node.test if isinstance(node, ast.If) else None
    names = [part.id for part in (kind, guard) if isinstance(part, ast.Name)]
    return names in (["Literal"], ["Callable"], ["TYPE_CHECKING"])


def changes(node: ast.AST, parent: ast.AST) -> Iterator[ast.AST]:
    """Give what a node can be changed into."""
    match node:
        case ast.Compare(left, ops, comparators):
            for index, operator in enumerate(ops):
                for other in COMPARISONS[type(operator)]:
                    changed = [*ops[:index], other(), *ops[index + 1 :]]
                    yield ast.Compare(left, changed, comparators)
        case ast.BinOp(left, operator, right) if type(operator) in ARITHMETIC:
            yield ast.BinOp(left, ARITHMETIC[type(operator)](), right)
        case ast.AugAssign(target, operator, value) if type(operator) in ARITHMETIC:
            yield ast.AugAssign(target, ARITHMETIC[type(operator)](), value)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.If(test, body, orelse):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.While(test, body, orelse):
            yield ast.While(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.comprehension(target, iterable, ifs, is_async) if ifs:
            negated = [ast.UnaryOp(ast.Not(), ifs[0]), *ifs[1:]]
            yield ast.comprehension(target, iterable, negated, is_async)
        case ast.Return(ast.Constant(None) | None):
            pass
        case ast.Return():
            yield ast.Return(ast.Constant(None))
        case ast.Expr(ast.Call()):
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(str(value)) if not isinstance(parent, ast.FormattedValue):
            yield ast.Constant(f"XX{value}")


class _Loader(importlib.abc.Loader, importlib.abc.MetaPathFinder):
    """Gives the mutant in place of the module."""

    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        self.name, self.path, self.code = name, path, code

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(self.code, vars(module))  # noqa: S102


class _Record:
    """Notes which tests run which lines, and how long each takes."""

    def __init__(self, path: Path) -> None:
        import coverage

        self.coverage = coverage.Coverage(data_file=None, config_file=False, include=[str(path)])
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        began = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.process_time() - began


class _Choose:
    """Runs tests that are known in a given order; before them those that only the mutant has."""

    def __init__(self, order: list[str], known: list[str]) -> None:
        self.places = dict.fromkeys(known) | {name: place for place, name in enumerate(order)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        places = [(self.places.get(item.nodeid, -1), item) for item in items]
        chosen = [(place, item) for place, item in places if place is not None]
        items[:] = [item for _, item in sorted(chosen, key=lambda pair: pair[0])]


def record(module: str) -> tuple[dict[int, list[str]], list[str]]:
    """Run the tests without a mutant; return those that run each line, and all, by their time."""
    path = PACKAGE / f"{module}.py"
    with tempfile.NamedTemporaryFile() as file:

        def run() -> int:
            plugin = _Record(path)
            with plugin.coverage.collect():
                status = int(pytest.main([*OPTIONS, f"tests/test_{module}.py"], [plugin]))
            by_line = plugin.coverage.get_data().contexts_by_lineno(str(path))
            Path(file.name).write_bytes(pickle.dumps((by_line, plugin.seconds)))
            return status

        if os.waitpid(fork(run), 0)[1]:
            raise SystemExit(f"the tests of {module} fail without a mutant")
        by_line, seconds = pickle.loads(Path(file.name).read_bytes())  # noqa: S301
    order = sorted(seconds, key=seconds.__getitem__)
    return by_line, order


def fork(run: Callable[[], int]) -> int:
    """Run a function in a child, whose exit status it gives; return the process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 3
    try:
        status = run()
    finally:
        os._exit(status)


def start(module: str, mutant: Mutant, order: list[str], known: list[str]) -> int:
    """Fork a child that runs the tests against a mutant; return its process id."""

    def run() -> int:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        loader = _Loader(f"nsrelu_bench.{module}", PACKAGE / f"{module}.py", mutant.code)
        sys.meta_path.insert(0, loader)
        return int(pytest.main([*OPTIONS, f"tests/test_{module}.py"], [_Choose(order, known)]))

    return fork(run)


def survivors(
    module: str,
    tried: Iterable[Mutant],
    orders: Callable[[Mutant], list[str]],
    known: list[str],
    jobs: int,
) -> list[Mutant]:
    """Return the mutants that the tests did not notice, of all that are known those in `orders`."""
    waiting = list(tried)
    running: dict[int, tuple[Mutant, float]] = {}
    unnoticed = []
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running[start(module, mutant, orders(mutant), known)] = mutant, time.monotonic()
        for process, (mutant, began) in list(running.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del running[process]
                code = os.waitstatus_to_exitcode(status)
                if code in (0, 5):  # all tests passed, or there is none
                    unnoticed.append(mutant)
                elif code > 2:  # not tests that fail, nor a module that can't be imported
                    raise SystemExit(f"pytest ended with {code} on {mutant.change}")
                noticed = "not noticed" if code in (0, 5) else "noticed"
                print(f"{len(waiting)} left; {noticed}: {mutant}", flush=True)
            elif time.monotonic() - began > WALL_S:
                os.kill(process, 9)
        time.sleep(0.05)
    return unnoticed


def main() -> None:
    """Try a sample of the mutants of a module, and say what part of them was caught."""
    parser = argparse.ArgumentParser(description="Mutation testing of one module.")
    parser.add_argument("module", choices=MODULES)
    parser.add_argument("--sample", type=int, help="mutants to try, at random; all without it")
    parser.add_argument("--seed", type=int, default=0, help="decides the sample")
    parser.add_argument("--lines", help="only mutants in these lines, with commas")
    parser.add_argument("--jobs", type=int, default=2, help="children at once")
    given = parser.parse_args()

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.mkdtemp(prefix="mutate-")
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for name in HEAVY:
        importlib.import_module(name)
    from scipy.stats import binomtest

    by_line, every = record(given.module)

    def orders(mutant: Mutant) -> list[str]:
        if mutant.function is None:
            return every
        calling = set().union(*(by_line.get(line, ()) for line in mutant.function))
        return [test for test in every if test in calling]

    chosen = mutants(PACKAGE / f"{given.module}.py")
    total = len(chosen)
    if given.lines:
        lines = {int(line) for line in given.lines.split(",")}
        chosen = [mutant for mutant in chosen if mutant.line in lines]
    if given.sample is not None and given.sample < len(chosen):
        chosen = random.Random(given.seed).sample(chosen, given.sample)  # noqa: S311
    print(f"{len(chosen)} of {total} mutants", flush=True)
    left = survivors(given.module, chosen, orders, every, given.jobs)
    # Tests share what fixtures and caches have called for another: these meet all of them.
    left = survivors(given.module, left, lambda _: every, every, given.jobs)
    text = (PACKAGE / f"{given.module}.py").read_text(encoding="utf-8").splitlines()
    print()
    for mutant in sorted(left, key=lambda mutant: mutant.line):
        print(f"{mutant}\n    {text[mutant.line - 1]}")
    caught = binomtest(len(chosen) - len(left), len(chosen))
    low, high = caught.proportion_ci(method="wilson")
    print(
        f"{given.module}: {caught.k} of {caught.n} caught, {caught.statistic:.1%}"
        f" (95 % interval {low:.1%} to {high:.1%})"
    )


if __name__ == "__main__":
    main()
