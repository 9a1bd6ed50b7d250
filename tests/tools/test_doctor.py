import importlib
import importlib.metadata
import json
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from nsrelu_bench.cli import app as cli
from nsrelu_bench.config.registry import DATASETS
from nsrelu_bench.tools import doctor
from nsrelu_bench.tools.doctor import Finding

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages in which this one stands, with what pyproject.toml asks for.

    What a test puts there hides what is really installed.
    """
    site = tmp_path / "site"
    install(site, "nsrelu-bench", "9.9.9", *PROJECT["dependencies"])
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    return site


def install(site: Path, name: str, version: str, *requires: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
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


def test_every_dependency_and_data_set_is_looked_at(tmp_path: Path) -> None:
    findings = examine(tmp_path)
    versions = {f.name for f in findings if f.topic == "version"}
    required = {doctor.split_requirement(text)[0] for text in PROJECT["dependencies"]}
    assert versions == {"python", "nsrelu-bench", *required}
    assert {f.name for f in findings if f.topic == "data set"} == set(DATASETS)
    assert named(findings, "mnist5k").found == "embedded, 5,000 images"
    assert named(findings, "digits").found == "embedded, 1,797 images"


def test_a_torchvision_that_is_not_for_this_torch_is_told_with_the_way_out(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "raise RuntimeError('operator torchvision::nms does not exist\\nmore')"
    break_module(monkeypatch, installed, "torchvision", body)
    install(installed, "torchvision", "0.25.0", "numpy", "torch (==2.10.0)")
    install(installed, "torch", "2.11.1+cu128")
    assert troubles(examine(tmp_path)) == {
        "torchvision": "wrong: 0.25.0 does not load (operator torchvision::nms does not exist);"
        " it goes with torch 2.10.0 and this is 2.11.1+cu128;"
        " pip install -U torch torchvision, both from one place"
    }


@pytest.mark.parametrize(
    ("wanted", "has", "told"),
    [
        ("torch==2.10.0", "2.10.0+cpu", ""),
        ("torch (>=2.14.0)", "2.15.0", ""),
        ("torch", "2.15.0", ""),
        ("pillow>=5", "2.15.0", ""),
        ("torch>=2.14.0", "2.13.0", "it goes with torch 2.14.0 and this is 2.13.0; "),
        ("torch==2.14.0", "2.13.0", "it goes with torch 2.14.0 and this is 2.13.0; "),
        ("torch==2.14.0", "2.15.0", "it goes with torch 2.14.0 and this is 2.15.0; "),
    ],
)
def test_torch_and_torchvision_fit_or_they_do_not(
    wanted: str, has: str, told: str, tmp_path: Path, installed: Path
) -> None:
    install(installed, "torchvision", "0.29.0", wanted)
    install(installed, "torch", has)
    assert doctor._mismatch() == told


def test_a_torchvision_without_torch_is_told(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version

    def no_torch(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", no_torch)
    break_module(monkeypatch, installed, "torchvision", "import nothing_here")
    install(installed, "torchvision", "0.25.0", "torch==2.10.0")
    told = troubles(examine(tmp_path))
    assert told["torch"] == "wrong: is not installed; pip install 'torch>=2.10'"
    assert told["torchvision"].endswith(
        "(No module named 'nothing_here'); it goes with torch 2.10.0 and this is none;"
        " pip install -U torch torchvision, both from one place"
    )


def test_a_broken_torch_is_told_and_the_rest_still_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("nsrelu_bench.data")]:
        monkeypatch.delitem(sys.modules, name)
    findings = examine(tmp_path)
    version = importlib.metadata.version("torch")
    told = troubles(findings)
    assert told.pop("torch") == (
        f"wrong: {version} does not load (import of torch halted; None in sys.modules);"
        " pip install --force-reinstall 'torch>=2.10'"
    )
    assert told == {}
    assert named(findings, "all").found == "unknown until the packages load"
    assert named(findings, "results").state == "well"


def test_a_package_that_is_too_old_or_missing_is_told(tmp_path: Path, installed: Path) -> None:
    install(installed, "torch", "2.9.1")
    install(
        installed, "nsrelu-bench", "9.9.10", "torch>=2.10", "nothing-here>=1.2", "rich<99,>=14.0"
    )
    (installed / "nsrelu_bench-9.9.9.dist-info" / "METADATA").unlink()
    (installed / "nsrelu_bench-9.9.9.dist-info").rmdir()
    importlib.invalidate_caches()
    assert troubles(examine(tmp_path)) == {
        "torch": "wrong: 2.9.1 is older than 2.10, the least that works; pip install 'torch>=2.10'",
        "nothing-here": "wrong: is not installed; pip install 'nothing-here>=1.2'",
    }


def test_what_is_optional_may_be_missing_and_is_only_warned_of_when_old(
    tmp_path: Path, installed: Path
) -> None:
    (installed / "nsrelu_bench-9.9.9.dist-info" / "METADATA").write_text(
        "Name: nsrelu-bench\nVersion: 1\n"
        'Requires-Dist: nothing-here>=2; extra == "distributed"\n'
        "Requires-Dist: old-thing>=2 ; extra == 'old'\n"
        "Requires-Dist: pytest>=99; extra == 'dev'\n"
    )
    install(installed, "old-thing", "1.9")
    findings = examine(tmp_path)
    missing = named(findings, "nothing-here")
    assert missing.found == "- (optional; pip install 'nsrelu-bench[distributed]')"
    assert troubles(findings) == {
        "old-thing": "warning: 1.9 is older than 2, the least that works;"
        " pip install 'old-thing>=2'"
    }
    assert doctor.is_well(findings)


def test_a_checkout_that_is_not_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert troubles(examine(tmp_path)) == {
        "nsrelu-bench": "wrong: its files are here, but it is not installed;"
        " pip install nsrelu-bench"
    }


@pytest.mark.parametrize(
    ("version", "bound", "older"),
    [
        ("2.9.1", "2.10", True),
        ("2.10.0+cu128", "2.10", False),
        ("2.10", "2.10.0", False),
        ("2.10", "2.10.1", True),
        ("3.0rc1", "2.10", False),
        ("14", "14.0.1", True),
        ("1.0", "0", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, bound: str, older: bool) -> None:
    assert doctor.is_older(version, bound) is older


@pytest.mark.parametrize(
    ("requirement", "parts"),
    [
        ("torch>=2.10", ("torch", {">=": "2.10"}, "")),
        ("ruamel.yaml", ("ruamel.yaml", {}, "")),
        (
            "a-b (!=8.3.*,>=5.3.0) ; extra == 'x'",
            ("a-b", {"!=": "8.3.*", ">=": "5.3.0"}, "extra == 'x'"),
        ),
        ("ray[tune]>=2.54,<3", ("ray", {">=": "2.54", "<": "3"}, "")),
    ],
)
def test_a_requirement_is_split(requirement: str, parts: tuple[str, dict[str, str], str]) -> None:
    assert doctor.split_requirement(requirement) == parts


def test_a_folder_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = doctor.examine(tmp_path / "file", tmp_path / "file" / "results")
    file = tmp_path / "file"
    assert troubles(findings) == {
        "data": f"wrong: {file}: can't be read (Not a directory); choose another by --data-dir",
        "results": f"wrong: {file}: can't be written (Not a directory);"
        " choose another by --results",
    }


def test_a_folder_that_is_nearly_full_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LITTLE_SPACE", 2**80)
    told = troubles(examine(tmp_path))
    assert set(told) == {"results", "temporary"}
    assert told["results"].startswith(f"warning: {tmp_path}: only ")
    assert told["results"].endswith(" MiB are free; make room or choose another by --results")


def test_a_temporary_folder_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_usable() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(doctor.tempfile, "gettempdir", none_usable)
    assert doctor._temporary().trouble == (
        "No usable temporary directory found in ['/tmp'];"
        " set TMPDIR to a folder that can be written"
    )


def test_a_cache_that_does_not_last_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib as mpl

    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: "/here")
    monkeypatch.setattr(mpl, "get_cachedir", lambda: "/here/matplotlib-x1")
    assert doctor._figure_cache().trouble == (
        "has no lasting folder; set MPLCONFIGDIR to one that can be written"
    )
    monkeypatch.setattr(mpl, "get_cachedir", lambda: "/here/cache/matplotlib")
    assert doctor._figure_cache().state == "well"


def test_data_that_lies_there_is_found(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"0" * 3 * 2**20)
    (tmp_path / "data" / "cifar-10-python.tar.gz").write_bytes(b"0" * 2**20)
    (tmp_path / "data" / "cifar-100-python").mkdir()
    findings = examine(tmp_path)
    data = tmp_path / "data"
    assert named(findings, "mnist").found == f"{data}, 3 MiB"
    assert named(findings, "cifar10").found == f"{data}, 1 MiB"
    assert named(findings, "cifar100").found == f"not in {data}; fetched when it is first used"
    assert named(findings, "svhn").found == f"not in {data}; fetched when it is first used"


def test_an_embedded_data_set_that_does_not_load_is_told(
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
        ("3", "3 threads on 2 cores get in each other's way; set it to 1"),
        ("2", ""),
    ],
)
def test_odd_numbers_of_threads_are_warned_of(
    value: str, trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    finding = named(doctor._threads(), "OMP_NUM_THREADS")
    assert (finding.found, finding.trouble) == (value, trouble)
    assert finding.state == ("warning" if trouble else "well")


def test_cores_that_this_process_may_not_use_are_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert troubles(doctor._threads()) == {
        "cores": "warning: this process may use 2 of 64; give a sweep --workers 2"
    }


def test_devices_are_told_and_one_that_can_not_compute_is_wrong(
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
        "cuda:0": "wrong: can't compute (no kernel image is available); use another by --device"
    }


@pytest.mark.parametrize("results", ["results", "file"])
def test_the_command_prints_text_or_json_and_its_exit_code_says_whether_all_is_well(
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
    text, _, told = out.partition("{\n")
    last = "all is well" if results == "results" else "wrong: results: file: can't be written"
    assert text.splitlines()[-1].startswith(last)
    content = json.loads("{\n" + told)
    assert content["well"] is (results == "results")
    assert {"topic", "name", "found", "state", "trouble"} == set(content["findings"][0])
