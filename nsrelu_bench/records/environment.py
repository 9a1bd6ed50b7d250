"""Record what a run's numbers depend on besides its configuration: env.json."""

import functools
import importlib.metadata
import json
import operator
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nsrelu_bench.config import RunConfig
from nsrelu_bench.files import read_bytes
from nsrelu_bench.records.input_digests import input_digests, shorten
from nsrelu_bench.records.schema import ENVIRONMENT_FILE
from nsrelu_bench.text import printable

PACKAGE = Path(__file__).resolve().parents[1]

#: Digests of a run's data, and of the source of each plug-in.
INPUTS = ("data_digest", "source_digest")

#: Columns of summary.csv that record what a run's numbers depend on besides its configuration.
ENVIRONMENT = (
    *("torch", "cpu_capability", "processor", "instruction_set", "blas", "rounding", "stacked"),
    *INPUTS,
)

#: The entries of env.json that must be equal for a resumed run to give the same bits.
DECISIVE = (
    *("packages", "git_commit", "device", "processor", "cpu_capability", "instruction_set"),
    *("blas", "rounding", "threads", *INPUTS),
)


def environment(config: RunConfig) -> dict[str, Any]:
    """Return the content of env.json: what a run's numbers or time may depend on.

    Raises:
        BenchError: The data set can't be loaded, or a plug-in can't be found.
    """
    import torch

    from nsrelu_bench.data import count_classes

    packages = ("nsrelu-bench", "torch", "numpy", "pandas")
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "device": config.device,
        "processor": _processor(config.device),
        "threads": config.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_set": instruction_set(_cpu_flags()),
        "blas": blas_versions(torch.__config__.show()),
        "rounding": _rounding(),
        "cpu_count": os.cpu_count(),
        "git_commit": git_commit(),
        **input_digests(config, imported=True),
        "classes": count_classes(config),
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(),
    }


def read_environment(folder: Path) -> dict[str, Any]:
    """Return the content of a run's env.json; empty where it is missing or damaged.

    Raises:
        OSError: It exists and can't be read.
    """
    try:
        content = json.loads(read_bytes(folder / ENVIRONMENT_FILE))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def began_before(folder: Path, time: datetime | None) -> bool:
    """Return whether a run began before a time, if there is one.

    A run of an older version, which did not record when, did.

    Raises:
        OSError: Its env.json can't be read.
    """
    if time is None:
        return True
    try:
        return datetime.fromisoformat(read_environment(folder)["started"]) < time
    except (KeyError, TypeError, ValueError):
        return True


def environment_columns(content: Mapping[str, Any]) -> dict[str, str | int | None]:
    """Return the columns `ENVIRONMENT` of an env.json; None for those that it has no text for.

    Also the number of `classes`, if it has one: runs of older versions did not record it.
    """
    packages = content.get("packages")
    found = {**content, **(packages if isinstance(packages, dict) else {})}
    texts = {name: found.get(name) for name in ENVIRONMENT}
    columns: dict[str, str | int | None] = {
        name: shorten(printable(text)) if isinstance(text, str) else None
        for name, text in texts.items()
    }
    classes = content.get("classes")
    if type(classes) is int and 0 < classes < 2**53:
        columns["classes"] = classes
    return columns


def instruction_set(flags: str) -> str:
    """Return the best instruction set of a processor with these features; "" if unknown.

    It is named as in oneDNN. MKL and oneDNN choose their code, and so their rounding, by it.
    """
    have = set(flags.split())
    return next((name for name, needed in INSTRUCTION_SETS.items() if needed <= have), "")


def blas_versions(build: str) -> str:
    """Find the libraries that multiply matrices in PyTorch's description of its build."""
    found = re.findall(r"BLAS_INFO=(\w+)", build)
    names = [name.upper() if name == "mkl" else name for name in found[:1]]
    if "MKL" in names and (version := re.search(r"Kernel Library Version ([\d.]+)", build)):
        names[0] += f" {version[1]}"
    if version := re.search(r"(?:MKL-DNN|oneDNN) v([\d.]+)", build):
        names.append(f"oneDNN {version[1]}")
    return ", ".join(names)


def _rounding() -> str:
    """Return settings outside the configuration that change how sums are rounded."""
    import torch

    settings = [f"{name}={os.environ[name][:40]}" for name in ROUNDING if os.environ.get(name)]
    if not getattr(torch.backends.mkldnn, "enabled", True):
        settings.append("oneDNN off")
    for name, usual in PRECISIONS.items():
        part = operator.attrgetter(name)(torch.backends)
        if (precision := getattr(part, "fp32_precision", usual[0])) not in usual:
            settings.append(f"{name} {precision}")
    if sys.float_info.min * float("0.5") == 0:
        settings.append("denormals are 0")
    return ", ".join(settings) or "as usual"


@functools.cache
def _processor(device: str) -> str:
    """Return the model of the processor that computes."""
    import torch

    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = re.findall(r"^model name\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return models[0] if models else platform.processor() or platform.machine()


def _cpu_flags() -> str:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return found[1] if found else ""


@functools.cache
def _cpu_info() -> str:
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return ""


@functools.cache
def git_commit(package: Path = PACKAGE) -> str | None:
    """Return the commit of the checkout that has this package, with "-dirty" if it was changed.

    None without git, and for an installed package: another checkout around it, for example around
    a virtual environment, does not track its files.
    """
    git = ["git", "-C", str(package)]
    tracked = [*git, "ls-files", "--error-unmatch", "__init__.py"]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    # Inside a git hook, these variables refer to the hook's repository.
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    options: dict[str, Any] = {"env": variables, "capture_output": True, "text": True}
    try:
        subprocess.run(tracked, check=True, **options)  # noqa: S603
        return str(subprocess.run(describe, check=True, **options).stdout.strip())  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None


_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}

#: The features that each instruction set needs, the best first. Source: oneDNN's developer guide,
#: "CPU Dispatcher Control".
INSTRUCTION_SETS: dict[str, set[str]] = {
    "AVX512_CORE_AMX_FP16": {*_AVX512, "avx512_fp16", "amx_tile", "amx_fp16"},
    "AVX512_CORE_AMX": {*_AVX512, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16"},
    "AVX512_CORE_FP16": {*_AVX512, "avx512_vnni", "avx512_bf16", "avx512_fp16"},
    "AVX512_CORE_BF16": {*_AVX512, "avx512_vnni", "avx512_bf16"},
    "AVX512_CORE_VNNI": {*_AVX512, "avx512_vnni"},
    "AVX512_CORE": _AVX512,
    "AVX2_VNNI": {"avx2", "fma", "avx_vnni"},
    "AVX2": {"avx2", "fma"},
    "AVX": {"avx"},
    "SSE41": {"sse4_1"},
    "SVE2": {"asimd", "sve", "sve2"},
    "SVE": {"asimd", "sve"},
    "ASIMD": {"asimd"},
}

#: Operations whose single precision can be lowered (torch.set_float32_matmul_precision and
#: torch.backends), with their usual precisions.
PRECISIONS = {
    **dict.fromkeys(("mkldnn.matmul", "mkldnn.conv", "cuda.matmul"), ("none", "ieee")),
    "cudnn.conv": ("tf32",),
}

#: Variables that make MKL, oneDNN, PyTorch and CUDA use other instructions.
ROUNDING = (
    *("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA"),
    *("DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
    *("OPENBLAS_CORETYPE", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    "GLIBC_TUNABLES",
)
