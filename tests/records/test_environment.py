import subprocess
from pathlib import Path

import pytest

from nsrelu_bench.records.environment import PACKAGE, git_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A commit in which a package lies two folders deep, as in src/package."""
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return package


@pytest.mark.skipif(not (PACKAGE.parent / ".git").exists(), reason="not a checkout")
def test_the_commit_of_this_checkout_is_found() -> None:
    commit = git_commit()
    assert commit is not None
    assert commit.removesuffix("-dirty") == git(PACKAGE, "rev-parse", "HEAD")


def test_a_commit_is_found_above_the_package(checkout: Path) -> None:
    assert git_commit(checkout) == git(checkout, "rev-parse", "HEAD")


def test_a_changed_checkout_is_marked(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "__init__.py").write_text("changed = True\n")
    assert git_commit(checkout) == f"{commit}-dirty"


def test_a_tag_does_not_replace_the_commit(checkout: Path) -> None:
    git(checkout, "tag", "-a", "-m", "t", "v1")
    assert git_commit(checkout) == git(checkout, "rev-parse", "HEAD")


def test_another_project_around_the_package_has_no_commit(checkout: Path) -> None:
    installed = checkout / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert git_commit(installed) is None


def test_a_hook_of_another_repository_is_ignored(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert git_commit(checkout) is not None
