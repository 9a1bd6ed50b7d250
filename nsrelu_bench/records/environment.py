"""What a run's numbers depend on besides its configuration."""

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from nsrelu_bench.config import RunConfig

PACKAGE = Path(__file__).resolve().parents[1]


#: The columns of summary.csv that say what a run's numbers depend on besides its configuration;
#: `compare` warns where they are mixed.
ENVIRONMENT = ("torch", "cpu_capability")


def environment(config: RunConfig) -> dict[str, Any]:
    """Return the content of env.json: what a run's numbers or time may depend on."""
    import torch

    packages = ("nsrelu-bench", "torch", "numpy", "pandas")
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "device": config.device,
        "processor": _processor(config.device),
        "threads": config.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "git_commit": git_commit(),
        "command": sys.argv,
    }


def environment_columns(content: Any) -> dict[str, str | None]:
    """Return the columns `ENVIRONMENT` from the content of an env.json; None where it has none."""
    values = content if isinstance(content, dict) else {}
    packages = values.get("packages")
    found = values | (packages if isinstance(packages, dict) else {})
    texts = {name: found.get(name) for name in ENVIRONMENT}
    return {name: value if isinstance(value, str) else None for name, value in texts.items()}


@functools.cache
def _processor(device: str) -> str:
    """Return the model of the processor that computes."""
    import torch

    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = []
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        models = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return models[0] if models else platform.processor() or platform.machine()


@functools.cache
def git_commit(package: Path = PACKAGE) -> str | None:
    """Return the commit of the checkout that holds the package, with "-dirty" if it was changed.

    None without git, and where the package is installed: a checkout of something else around it,
    for example around a virtual environment, does not track its files.
    """
    git = ["git", "-C", str(package)]
    tracked = [*git, "ls-files", "--error-unmatch", "__init__.py"]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    # Inside a hook, these variables name the repository that the hook is of.
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    options: dict[str, Any] = {"env": variables, "capture_output": True, "text": True}
    try:
        subprocess.run(tracked, check=True, **options)  # noqa: S603
        return str(subprocess.run(describe, check=True, **options).stdout.strip())  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
