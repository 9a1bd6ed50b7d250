"""What this process may use of the machine."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MIB = 2**20


def available_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process can keep busy, at least 1.

    That is the smallest of the machine's cores, the process' CPU affinity (`taskset`, cpusets) and
    the quotas of its control groups (containers, batch systems). A part of a core counts as
    one.

    Args:
        root: Where /proc and /sys are mounted.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quota, in cores, of each control group of this process."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for line in groups.splitlines():
        _, _, group_line = line.partition(":")
        controllers, _, group = group_line.partition(":")
        if not controllers:
            for folder in _folders((mounts, mounts / "unified"), group):
                yield from _quota(folder / "cpu.max")
        elif "cpu" in controllers.split(","):
            for folder in _folders((mounts / controllers, mounts / "cpu"), group):
                yield from _quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")


def _folders(mounts: tuple[Path, ...], group: str) -> Iterator[Path]:
    """Yield the folders of a control group and of those above it.

    A container may see its own group as the root of the mount, so the root counts as well.
    """
    parts = [part for part in group.split("/") if part not in ("", ".", "..")]
    for mount in mounts:
        yield from (mount.joinpath(*parts[:length]) for length in range(len(parts) + 1))


def _quota(*files: Path) -> Iterator[float]:
    """Yield the quota over the period that the files hold; nothing if there is no limit."""
    with suppress(OSError, ValueError):
        quota, period = " ".join(file.read_text(encoding="utf-8") for file in files).split()
        if quota not in ("max", "-1") and int(period) > 0:
            yield int(quota) / int(period)
