import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from helpers.tiny_runs import tiny

from nsrelu_bench.records.environment import (
    ENVIRONMENT,
    PACKAGE,
    began_before,
    blas_versions,
    environment,
    environment_columns,
    git_commit,
    instruction_set,
    read_environment,
)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A commit with a package two folders deep, as in src/package."""
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


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse4_1 avx avx2 fma", "AVX2"),
        ("sse4_1 avx avx2 fma avx512f avx512bw avx512dq avx512vl avx512_vnni", "AVX512_CORE_VNNI"),
        (
            "avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16 amx_tile amx_bf16",
            "AVX512_CORE_AMX",
        ),
        ("fp asimd sve", "SVE"),
        ("", ""),
    ],
)
def test_the_best_instruction_set_is_named(flags: str, expected: str) -> None:
    assert instruction_set(flags) == expected


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            "Intel(R) oneAPI Math Kernel Library Version 2024.2-Product\n"
            "Intel(R) MKL-DNN v3.13.3 (Git\nBLAS_INFO=mkl, BUILD",
            "MKL 2024.2, oneDNN 3.13.3",
        ),
        ("BLAS_INFO=open, BUILD", "open"),
        ("", ""),
    ],
)
def test_the_libraries_of_a_build_are_named(build: str, expected: str) -> None:
    assert blas_versions(build) == expected


@pytest.mark.parametrize("name", ["MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"])
def test_variables_that_change_rounding_are_recorded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environment(tiny())["rounding"] == "as usual"
    monkeypatch.setenv(name, "avx2")
    assert environment(tiny())["rounding"] == f"{name}=avx2"


def test_switches_that_change_rounding_are_recorded() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            rounding = environment(tiny())["rounding"]
        assert rounding == "oneDNN off, mkldnn.matmul bf16, cuda.matmul tf32"
    finally:
        torch.set_float32_matmul_precision(before)


def test_precision_of_one_operation_is_recorded() -> None:
    matmul = torch.backends.mkldnn.matmul
    try:
        matmul.fp32_precision = "bf16"  # torch.get_float32_matmul_precision() fails from here on
        assert environment(tiny())["rounding"] == "mkldnn.matmul bf16"
    finally:
        matmul.fp32_precision = "none"


def test_denormals_that_are_0_are_recorded() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor can't")
    try:
        assert environment(tiny())["rounding"] == "denormals are 0"
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(
    "content",
    ["[]", "7", '{"packages": 3, "torch": 1, "processor": ["x"]}', "[" * 20_000, "", "\udcff"],
)
def test_a_damaged_environment_is_empty(tmp_path: Path, content: str) -> None:
    (tmp_path / "env.json").write_text(content, errors="surrogateescape")
    columns = environment_columns(read_environment(tmp_path))
    assert columns == dict.fromkeys(ENVIRONMENT)


@pytest.mark.parametrize("started", [None, 7, "", "soon", "2026-01-02T00:00:00", ["x"], {}])
def test_a_run_that_does_not_say_when_began_long_ago(tmp_path: Path, started: object) -> None:
    (tmp_path / "env.json").write_text(json.dumps({"started": started}))
    assert began_before(tmp_path, datetime(2000, 1, 1, tzinfo=UTC))
    assert began_before(tmp_path / "nowhere", datetime(2000, 1, 1, tzinfo=UTC))
    (tmp_path / "env.json").write_text(json.dumps(environment(tiny())))
    assert not began_before(tmp_path, datetime(2000, 1, 1, tzinfo=UTC))
    assert began_before(tmp_path, datetime.now(UTC))


@pytest.mark.parametrize("damaged", [0, -3, "4", True, 1e300, 4.0, [4]])
def test_a_number_of_classes_is_a_whole_one(damaged: object) -> None:
    assert environment_columns({"classes": 4})["classes"] == 4
    assert "classes" not in environment_columns({"classes": damaged})


def test_every_column_is_recorded() -> None:
    columns = environment_columns(environment(tiny()))
    assert columns.keys() == {*ENVIRONMENT, "classes"}
    assert {name for name, value in columns.items() if not value} <= {
        "source_digest",
        "stacked",
        "instruction_set",  # on a system that does not tell
    }
