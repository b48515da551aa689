"""What this machine is, and how much memory a process had, as Linux says it.

Owns the reading of ``/proc``; which profile the words mean is decided in ``models.profiles``. Refuses to
guess: what the system does not say is None.
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
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


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
