"""The sdist, and the wheel that is built from it, installed in an environment of its own."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: The command, with one figure in its report.
SHORT_REPORT = """
from nsrelu_bench.cli import main
from nsrelu_bench.plot import report
report.ORDER = ("curves",)
main()
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and from its files the wheel."""
    if "CI" not in os.environ:
        pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "hatchling", "build", "-d", folder, "-t")
    run(*build, "sdist", cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    run(*build, "wheel", cwd=folder / sdist.name.removesuffix(".tar.gz"))
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = ROOT / "nsrelu_bench"
    assert names == {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_the_wheel_runs_where_nothing_else_of_the_project_is(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "env"
    venv.create(environment)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
    paths = {sysconfig.get_path("purelib"), *(path for path in sys.path if "site-packages" in path)}
    # Its requirements are those of this environment, whose own .pth files do not count there.
    (site / "requirements.pth").write_text("\n".join(sorted(paths)) + "\n")
    python, command = (environment / "bin" / name for name in ("python", "nsrelu-bench"))
    install = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*install, "--no-deps", "--no-index", wheel, cwd=tmp_path)
    where = run(python, "-c", "import nsrelu_bench; print(nsrelu_bench.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(site)
    assert str(python) in command.read_text(encoding="utf-8")
    train = ("train", "--dataset", "digits", "--epochs", "1", "--results", "out")
    run(command, *train, "--workers", "2", cwd=tmp_path)
    (study,) = (tmp_path / "out").iterdir()
    run(command, "compare", study, cwd=tmp_path)
    run(python, "-c", SHORT_REPORT, "report", study, cwd=tmp_path)
    assert "<svg" in (study / "report.html").read_text(encoding="utf-8")
