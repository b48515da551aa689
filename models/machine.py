"""What this machine is, and how much memory a process had, as Linux says it.

Owns the reading of ``/proc`` and of control groups; which profile the words mean is decided in
``models.profiles``. Refuses to guess: what the system does not say is None.
"""

import os
import platform
from pathlib import Path

from models.profiles import Machine, cpu_flags, cpu_profile, gpu_profile

_ORIN_SM = 87


def this_machine() -> Machine:
    """A Jetson by its board, else the processor: the engines of other machines run there."""
    board = _text(Path("/proc/device-tree/model")).rstrip("\0")
    profile = gpu_profile(_ORIN_SM, board) if "Jetson" in board else None
    if profile is None:
        profile = cpu_profile(platform.machine(), cpu_flags(_text(Path("/proc/cpuinfo"))))
    return Machine(
        profile=profile,
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory_limit(),
    )


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes that this process may hold: the machine's, or fewer where a control group (v2) has fewer.

    A group is bound by those above it as well. A container sees its own as the root of the tree.
    """
    bounds = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    tree = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):
            own = tree / line.removeprefix("0::/")
            groups = [own, *(above for above in own.parents if above.is_relative_to(tree))]
            said = [_text(group / "memory.max").strip() for group in groups]
            bounds += [int(one) for one in said if one.isdigit()]  # else "max", or no such file
    return min(bounds)


def peak_memory(pid: int) -> int | None:
    """Bytes: the most that a process has had in memory; None for one that has ended."""
    for line in _text(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def free_memory() -> int:
    """Bytes that the kernel says are available without swapping."""
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
