from pathlib import Path

import pytest

from nsrelu_bench import machine
from nsrelu_bench.machine import available_cores

#: The files of a machine, and the cores that a process on it may use of 8.
MACHINES: dict[str, tuple[dict[str, str], int]] = {
    "no control groups": ({}, 8),
    "v2, no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
    "v2, seen from inside": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
        2,
    ),
    "v2, a group below a limited one": (
        {
            "proc/self/cgroup": "0::/slurm/job_1/step_0\n",
            "sys/fs/cgroup/slurm/job_1/step_0/cpu.max": "max 100000\n",
            "sys/fs/cgroup/slurm/job_1/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/slurm/cpu.max": "500000 100000\n",
        },
        3,
    ),
    "v2 beside v1": (
        {
            "proc/self/cgroup": "1:cpu:/\n0::/a\n",
            "sys/fs/cgroup/unified/a/cpu.max": "100000 100000",
        },
        1,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        8,
    ),
    "v1, seen from inside": (
        {
            "proc/self/cgroup": "5:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "another controller": (
        {
            "proc/self/cgroup": "4:cpuset:/\n",
            "sys/fs/cgroup/cpuset/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpuset/cpu.cfs_period_us": "100000\n",
        },
        8,
    ),
    "part of a core": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"},
        2,
    ),
    "less than a core": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "5000 100000\n"},
        1,
    ),
    "more than there are": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"},
        8,
    ),
    "damaged": (
        {"proc/self/cgroup": "0::/\nx\n\n", "sys/fs/cgroup/cpu.max": "many\n"},
        8,
    ),
    "period 0": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 0\n"}, 8),
}


@pytest.mark.parametrize("name", MACHINES)
def test_quotas_of_control_groups_limit_the_cores(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    files, cores = MACHINES[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert available_cores(tmp_path) == cores


def test_cpu_affinity_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert available_cores(tmp_path) == 3
    monkeypatch.delattr(machine.os, "sched_getaffinity")  # macOS, Windows
    assert available_cores(tmp_path) == 64
    monkeypatch.setattr(machine.os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1


def test_this_machine_has_a_core() -> None:
    assert available_cores() >= 1
