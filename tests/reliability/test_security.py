"""Files, names and archives that somebody else wrote do no harm.

docs/reliability.md lists all cases, and the tests that hold the others.
"""

import ast
import io
import os
import pickle
import re
import shutil
import tarfile
import tomllib
from pathlib import Path

import pytest
import torch
from helpers.command_line import ask
from helpers.tiny_runs import make, tiny

from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.data import downloads as published
from nsrelu_bench.data import load_dataset
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.plot import report
from nsrelu_bench.records import checkpoint
from nsrelu_bench.sweep.execution import execute_run

ROOT = Path(__file__).parents[2]
PACKAGE_FOLDER = ROOT / "nsrelu_bench"
PACKAGE_FILES = sorted(PACKAGE_FOLDER.rglob("*.py"))


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


# What the package may call, by file: everything else that runs what it reads is found here.
ALLOWED = {
    ("tools/check_cases.py", "pickle.loads"),  # of what it pickled a moment ago
    ("data/formats.py", "pickle.loads"),  # CIFAR, after its md5
    ("__init__.py", "importlib.import_module"),  # the package's own modules
    ("plugins.py", "importlib.import_module"),  # what the user names
    ("tools/doctor.py", "importlib.import_module"),  # the dependencies
    ("plot/matplotlib_import.py", "importlib.import_module"),  # matplotlib's styles
    ("sweep/executors/ray_connection.py", "importlib.import_module"),  # Ray
}
RUNS_WHAT_IT_READS = re.compile(
    r"(pickle|marshal|shelve|dill|joblib)\.\w*(load|loads|open|Unpickler)|importlib\.import_module"
    r"|(builtins\.)?(eval|exec|compile|__import__)|os\.(system|popen)|(pd|pandas)\.read_pickle"
    r"|(np|numpy)\.load|(torch)\.load|\w*\.(extractall|unpack_archive)|yaml\.(load|unsafe_load)"
)


def file_name(path: Path) -> str:
    return path.relative_to(PACKAGE_FOLDER).as_posix()


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), node) for node in found]


def keyword(call: ast.Call, name: str) -> object:
    values = [word.value for word in call.keywords if word.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def is_harmless(path: Path, name: str, call: ast.Call) -> bool:
    if name == "torch.load":
        return keyword(call, "weights_only") is True
    if name == "np.load":
        return keyword(call, "allow_pickle") is False
    if name == "YAML":
        return keyword(call, "typ") == "safe"
    if name.startswith("subprocess."):
        return keyword(call, "shell") is None
    if RUNS_WHAT_IT_READS.fullmatch(name) and name != "yaml.load":
        return (file_name(path), name) in ALLOWED
    return True


def test_nothing_runs_what_it_reads() -> None:
    assert not [
        f"{file_name(path)}:{call.lineno} calls {name}"
        for path in PACKAGE_FILES
        for name, call in calls(path)
        if not is_harmless(path, name, call)
    ]


def test_every_allowed_call_exists() -> None:
    there = {(file_name(path), name) for path in PACKAGE_FILES for name, _ in calls(path)}
    assert there >= ALLOWED


def test_a_checkpoint_with_code_is_not_loaded(tmp_path: Path) -> None:
    """Its hash does not stop whoever can write it; weights_only does."""
    packed = checkpoint.pack({"epoch": 1}, {"state": torch.zeros(2)})
    about, _ = checkpoint.unpack(packed)
    assert about == {"epoch": 1}
    buffer = io.BytesIO()
    torch.save({"state": Bomb(tmp_path / "pwned")}, buffer)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        checkpoint.load_state(buffer.getvalue())
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "unpacked"])
def test_only_the_published_cifar_is_unpickled(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocked(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(published, "_download", blocked)
    bomb = pickle.dumps(Bomb(tmp_path / "pwned"))
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    if packed:
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
            for name in names:
                entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                entry.size = len(bomb)
                archive.addfile(entry, io.BytesIO(bomb))
    else:
        (tmp_path / "cifar-10-batches-py").mkdir()
        for name in names:
            (tmp_path / "cifar-10-batches-py" / name).write_bytes(bomb)
    with pytest.raises(BenchError, match="cifar10") as error:
        load_dataset(RunConfig(dataset="cifar10", data_dir=str(tmp_path)))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "pwned").exists()


def test_a_plugin_is_imported_only_for_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that somebody sends may name any module: reading them imports none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sent.py").write_text("from pathlib import Path\nPath('pwned').mkdir()\n")
    folder = make(Path("results/study"), act="relu")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("model: mlp", "model: sent:make"))
    for arguments in (["compare"], ["list", "models"], ["plot", "--kind", "leak"]):
        ask(*arguments)
    assert RunConfig(model="sent:make").model == "sent:make"
    assert not Path("pwned").exists()


@pytest.mark.parametrize("name", ["os:system", "subprocess:run", "builtins:exec"])
def test_a_model_that_is_not_a_model_is_one_line(name: str, tmp_path: Path) -> None:
    *_, event = execute_run(RunConfig(model=name, dataset="digits"), tmp_path / "run")
    assert event.status.state == "failed"
    assert str(event.status.error).startswith("model: ")
    assert "\n" not in str(event.status.error)


INJECTED = "<script>alert(1)</script>"


def test_a_report_escapes_every_name(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study's folder, an error and a path could be anybody's."""
    monkeypatch.setattr(report, "ORDER", ("tradeoff",))
    place = tmp_path / f"{INJECTED}&quot;'\"".replace("/", "\u2215")
    shutil.copytree(study, place)
    broken = place / tiny(act="relu").run_id
    (broken / "status.json").write_text(
        f'{{"state": "failed", "error": "ValueError: {INJECTED} <img src=x onerror=alert(2)>"}}'
    )
    (broken / "env.json").write_text(
        f'{{"command": ["nsrelu-bench", "{INJECTED}"], "platform": "{INJECTED}", "{INJECTED}": 1}}'
    )
    broken.rename(place / f"{broken.name}<b>")
    page = report.write_report(
        place, out=tmp_path / "page.html", baseline="nsrelu(0.1)"
    ).read_text()
    assert INJECTED not in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;img src=x onerror=alert(2)&gt;" in page
    assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:|//|javascript:)""", page)


@pytest.mark.parametrize(
    "name", ["../escape", "/escape", "a/../../escape", "..", "a\\b", "a\0b", "CON/x"]
)
def test_the_name_of_a_study_can_not_leave_the_results(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nsrelu_bench.config.study import make_study

    with pytest.raises(UsageError, match="name: must be letters, digits"):
        make_study({"name": name}, "runs")


@pytest.mark.parametrize("name", ["folder:../../x", "folder:/etc", "folder:a b;rm -rf", "folder:é"])
def test_a_run_id_is_one_plain_name(name: str) -> None:
    run_id = RunConfig(dataset=name).run_id
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,140}", run_id)
    assert ".." not in run_id.split("-")[0]


BOUNDS = {
    "torch": (2, 10),  # below, torch.load runs code even with weights_only
    "ray": (2, 54),  # below, its dashboard runs the code of any page that the browser shows
    "jinja2": (3, 1, 5),  # below, a template's format() leaves the sandbox
}


def test_lower_bounds_exclude_known_vulnerabilities() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [line for part in extras.values() for line in part]
    bounds = {}
    for line in wanted:
        name, _, bound = re.split(r"[;\s]", line)[0].partition(">=")
        bounds[re.sub(r"\[.*", "", name).lower()] = bound
    run_time = {re.split(r"[>=<;\[ ]", line)[0].lower() for line in project["dependencies"]}
    assert all(bounds[name] for name in run_time)
    for name, least in BOUNDS.items():
        if name != "ray" or name in bounds:
            assert tuple(map(int, bounds[name].split(",")[0].split("."))) >= least, name
