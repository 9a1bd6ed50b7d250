import importlib
import importlib.metadata
import json
import re
import shutil
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from nsrelu_bench.cli import app as cli
from nsrelu_bench.config.registry import DATASETS
from nsrelu_bench.data.downloads import SOURCES
from nsrelu_bench.tools import doctor
from nsrelu_bench.tools.doctor import Finding

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages that hide the real ones: this one, as in pyproject.toml."""
    site = tmp_path / "site"
    install(site, "nsrelu-bench", "9.9.9", *PROJECT["dependencies"])
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    return site


def install(
    site: Path, name: str, version: str, *requires: str, files: tuple[str, ...] = ()
) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    extras = sorted(set(re.findall(r"extra == '(.*?)'", " ".join(requires))))
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    importlib.invalidate_caches()


def break_module(monkeypatch: pytest.MonkeyPatch, site: Path, name: str, body: str) -> None:
    """Put a package in the place of another: importing it runs `body`."""
    (site / name).mkdir()
    (site / name / "__init__.py").write_text(body)
    monkeypatch.delitem(sys.modules, name, raising=False)


def examine(tmp_path: Path) -> list[Finding]:
    return doctor.examine(tmp_path / "data", tmp_path / "results")


def troubles(findings: list[Finding]) -> dict[str, str]:
    return {f.name: f"{f.state}: {f.trouble}" for f in findings if f.state != "well"}


def named(findings: list[Finding], name: str) -> Finding:
    (finding,) = (finding for finding in findings if finding.name == name)
    return finding


def test_a_good_installation_is_well(tmp_path: Path) -> None:
    findings = examine(tmp_path)
    assert troubles(findings) == {}
    text = doctor.format_findings(findings)
    assert text.endswith("\n\nall is well")
    assert "  nsrelu-bench     9.9.9\n" in text
    assert f"  torch            {importlib.metadata.version('torch')}\n" in text
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "data").exists()


def test_every_dependency_and_data_set_is_examined(tmp_path: Path) -> None:
    findings = examine(tmp_path)
    versions = {f.name for f in findings if f.topic == "version"}
    required = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert versions == {"python", "nsrelu-bench", *required}
    assert {f.name for f in findings if f.topic == "data set"} == set(DATASETS)
    assert named(findings, "mnist5k").found == "embedded, 5,000 images"
    assert named(findings, "digits").found == "embedded, 1,797 images"


def test_a_torchvision_for_another_torch_is_reported(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "raise RuntimeError('operator torchvision::nms does not exist\\nmore')"
    break_module(monkeypatch, installed, "torchvision", body)
    files = ("torchvision/__init__.py",)
    install(installed, "torchvision", "0.25.0", "numpy", "torch (==2.10.0)", files=files)
    install(installed, "torch", "2.11.1+cu128")
    assert troubles(examine(tmp_path)) == {
        "torchvision": "wrong: 0.25.0 does not load (operator torchvision::nms does not exist);"
        " it requires torch==2.10.0 and this is 2.11.1+cu128;"
        " pip install -U torch torchvision, both from the same source"
    }


@pytest.mark.parametrize(
    ("wanted", "has", "message"),
    [
        ("torch==2.10.0", "2.10.0+cpu", ""),
        ("torch (>=2.14.0)", "2.15.0", ""),
        ("torch", "2.15.0", ""),
        ("pillow>=5", "2.15.0", ""),
        ("torch>=2.14.0", "2.13.0", "it requires torch>=2.14.0 and this is 2.13.0; "),
        ("torch==2.14.0", "2.13.0", "it requires torch==2.14.0 and this is 2.13.0; "),
        ("torch==2.14.0", "2.15.0", "it requires torch==2.14.0 and this is 2.15.0; "),
        ("torch==2.14.0", None, "it requires torch==2.14.0 and this is none; "),
    ],
)
def test_torchvision_and_torch_belong_together(
    wanted: str,
    has: str | None,
    message: str,
    installed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(installed, "torchvision", "0.29.0", wanted)
    monkeypatch.setattr(doctor, "_version", lambda _: has)
    assert doctor._mismatch() == message


def test_a_broken_torch_is_reported_with_all_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module("torchvision")  # once loaded, it does not need torch again
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("nsrelu_bench.data")]:
        monkeypatch.delitem(sys.modules, name)
    findings = examine(tmp_path)
    version = importlib.metadata.version("torch")
    assert troubles(findings) == {
        "torch": f"wrong: {version} does not load (import of torch halted; None in sys.modules);"
        " pip install --force-reinstall 'torch>=2.10'"
    }
    assert named(findings, "all").found == "unknown until the packages load"
    assert named(findings, "results").state == "well"


def reinstall(site: Path, *requires: str) -> None:
    """Give this package other requirements."""
    shutil.rmtree(site / "nsrelu_bench-9.9.9.dist-info")
    install(site, "nsrelu-bench", "9.9.10", *requires)


def test_an_old_or_missing_package_is_reported(tmp_path: Path, installed: Path) -> None:
    install(installed, "torch", "2.9.1")
    install(installed, "odd", "one.two")
    reinstall(
        installed,
        *("torch>=2.10", "nothing-here>=1.2", "rich<99,>=14.0", "odd>1"),
        *("windows-only>=1; sys_platform == 'win32'", "filelock>=1; sys_platform != 'win32'"),
    )
    assert troubles(examine(tmp_path)) == {
        "torch": "wrong: 2.9.1 is not >=2.10; pip install 'torch>=2.10'",
        "nothing-here": "wrong: is not installed; pip install 'nothing-here>=1.2'",
        "odd": "wrong: one.two is not >1; pip install 'odd>1'",
    }


def test_an_optional_package_may_be_missing_or_old(tmp_path: Path, installed: Path) -> None:
    reinstall(
        installed,
        "nothing-here>=2; extra == 'distributed'",
        "old-thing>=2 ; extra == 'old'",
        "pytest>=99; extra == 'dev'",
    )
    install(installed, "old-thing", "1.9")
    findings = examine(tmp_path)
    missing = named(findings, "nothing-here")
    assert missing.found == "- (optional; pip install 'nsrelu-bench[distributed]')"
    assert troubles(findings) == {
        "old-thing": "warning: 1.9 is not >=2; pip install 'old-thing>=2'"
    }
    assert doctor.is_well(findings)


def test_a_checkout_that_is_not_installed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert troubles(examine(tmp_path)) == {
        "nsrelu-bench": "wrong: its files are here, but it is not installed;"
        " pip install nsrelu-bench"
    }


def test_without_packaging_no_version_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "packaging", None)
    assert troubles(examine(tmp_path)) == {
        "packaging": "wrong: does not load (import of packaging halted; None in sys.modules),"
        " so no version is checked; pip install packaging"
    }


@pytest.mark.parametrize(
    ("version", "wanted", "satisfied"),
    [
        ("2.9.1", ">=2.10", False),
        ("2.10.0+cu128", ">=2.10", True),
        ("2.10", ">=2.10.0", True),
        ("2.10.0.dev20250101", ">=2.10", True),
        ("3.0rc1", ">=2.10", True),
        ("3.0", ">=2.10,<3", False),
        ("1.0", "", True),
        ("strange", "", True),
    ],
)
def test_a_version_satisfies_a_requirement(version: str, wanted: str, satisfied: bool) -> None:
    assert doctor.satisfies(version, Requirement(f"it{wanted}")) is satisfied


@pytest.mark.parametrize(
    ("name", "files", "modules"),
    [
        ("ruamel-yaml", ("ruamel/yaml/__init__.py", "ruamel/yaml/x.py"), ["ruamel.yaml"]),
        ("pillow", ("PIL/__init__.py", "PIL/sub/__init__.py"), ["PIL"]),
        ("torch", ("torch/__init__.py", "torchgen/__init__.py"), ["torch"]),
        ("typing-extensions", ("typing_extensions.py",), ["typing_extensions"]),
        ("two", ("b/__init__.py", "a/__init__.py", "../../bin/x.py"), ["a", "b"]),
        ("unknown", (), []),
    ],
)
def test_modules_come_from_the_files_of_a_distribution(
    name: str, files: tuple[str, ...], modules: list[str], installed: Path
) -> None:
    install(installed, name, "1", files=files)
    assert doctor.modules_of(name) == modules


def test_every_requirement_has_a_module_that_loads() -> None:
    for requirement in map(Requirement, PROJECT["dependencies"]):
        if requirement.name not in doctor.NOT_IMPORTED:
            (module,) = doctor.modules_of(requirement.name)
            assert not doctor.import_error(module)


def test_a_folder_that_can_not_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = doctor.examine(tmp_path / "file", tmp_path / "file" / "results")
    file = tmp_path / "file"
    assert troubles(findings) == {
        "data": f"wrong: {file}: can't be read (Not a directory); choose another with --data-dir",
        "results": f"wrong: {file}: can't be written (Not a directory);"
        " choose another with --results",
    }


def test_a_folder_that_is_nearly_full_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LITTLE_SPACE", 2**80)
    reported = troubles(examine(tmp_path))
    assert set(reported) == {"results", "temporary"}
    assert reported["results"].startswith(f"warning: {tmp_path}: only ")
    assert reported["results"].endswith(" MiB are free; make room or choose another with --results")


def test_a_missing_temporary_folder_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_usable() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(doctor.tempfile, "gettempdir", none_usable)
    assert doctor._temporary().trouble == (
        "No usable temporary directory found in ['/tmp'];"
        " set TMPDIR to a folder that can be written"
    )


def test_a_temporary_figure_cache_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib as mpl

    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: "/here")
    monkeypatch.setattr(mpl, "get_cachedir", lambda: "/here/matplotlib-x1")
    assert doctor._figure_cache().trouble == (
        "is a temporary folder; set MPLCONFIGDIR to one that can be written"
    )
    monkeypatch.setattr(mpl, "get_cachedir", lambda: "/here/cache/matplotlib")
    assert doctor._figure_cache().state == "well"


def test_an_image_cache_that_is_not_used_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSRELU_CACHE_DIR", str(tmp_path))
    assert doctor._image_cache() == Finding("folder", "image cache", str(tmp_path))
    tmp_path.chmod(0o777)
    assert doctor._image_cache().trouble == (
        f"is not used: {tmp_path}: others can write there; chmod go-w it, or set NSRELU_CACHE_DIR"
    )


def test_data_that_was_downloaded_is_found(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first, second, *_ = SOURCES["mnist"].forms
    for path in (*first.files[:1], *second.files, *SOURCES["cifar10"].forms[0].files):
        (data / path.path).parent.mkdir(parents=True, exist_ok=True)
        (data / path.path).write_bytes(b"0" * 2**20)
    (data / SOURCES["svhn"].forms[0].files[0].path).write_bytes(b"0")
    (data / "cifar-100-python").mkdir()
    findings = examine(tmp_path)
    assert named(findings, "mnist").found == f"{data}, 4 MiB"
    assert named(findings, "cifar10").found == f"{data}, 1 MiB"
    missing = "not in {}; fetched when it is first used"
    assert named(findings, "cifar100").found == missing.format(data)
    part = "{}, without test_32x32.mat; fetched when it is first used"
    assert named(findings, "svhn").found == part.format(data)


def test_an_embedded_data_set_that_does_not_load_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nsrelu_bench import data

    def broken(config: object) -> None:
        raise ValueError("half a file")

    monkeypatch.setattr(data, "load_dataset", broken)
    assert troubles(examine(tmp_path))["digits"] == "wrong: half a file"


@pytest.mark.parametrize(
    ("value", "trouble"),
    [
        ("two", "must be a whole number from 1, got 'two'; unset OMP_NUM_THREADS"),
        ("0", "must be a whole number from 1, got '0'; unset OMP_NUM_THREADS"),
        ("3", "3 threads are more than 2 cores can run; set it to 1"),
        ("2", ""),
    ],
)
def test_an_odd_number_of_threads_is_a_warning(
    value: str, trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "available_cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    finding = named(doctor._threads(), "OMP_NUM_THREADS")
    assert (finding.found, finding.trouble) == (value, trouble)
    assert finding.state == ("warning" if trouble else "well")


def test_cores_that_may_not_be_used_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(doctor, "available_cores", lambda: 2)
    cores = named(doctor._threads(), "cores")
    assert cores.found == "2 of 64 (CPU affinity or a container's quota)"
    assert cores.state == "well"


def test_a_device_that_can_not_compute_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    def warns() -> bool:
        warnings.warn("The NVIDIA driver is too old\nand more", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", warns)
    assert troubles(doctor._torch()) == {"cuda": "warning: The NVIDIA driver is too old"}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GeForce 256")
    ones = torch.ones

    def no_kernel(*size: int, device: str, **options: bool) -> torch.Tensor:
        if device == "cpu":
            return ones(*size, **options)
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(torch, "ones", no_kernel)
    findings = doctor._torch()
    assert named(findings, "cuda:0").found == "GeForce 256"
    assert troubles(findings) == {
        "cuda:0": "wrong: can't compute (no kernel image is available); use another with --device"
    }


@pytest.mark.covers
@pytest.mark.slow
@pytest.mark.parametrize("results", ["results", "file"])
def test_the_command_prints_text_or_json_and_exits_accordingly(
    results: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    for flags in ([], ["--json"]):
        command = ["nsrelu-bench", "doctor", "--results", results, *flags]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == (1 if results == "file" else 0)
    out = capsys.readouterr().out
    text, _, reported = out.partition("{\n")
    last = "all is well" if results == "results" else "wrong: results: file: can't be written"
    assert text.splitlines()[-1].startswith(last)
    content = json.loads("{\n" + reported)
    assert content["well"] is (results == "results")
    assert {"topic", "name", "found", "state", "trouble"} == set(content["findings"][0])
