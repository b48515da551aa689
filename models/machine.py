"""What this machine is, how much memory it has and may give, and how much a process had, as Linux says it.

Owns the reading of ``/proc`` and of control groups; which profile the words mean is decided in
``models.profiles``. Refuses to guess: what the system does not say is None.
"""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.profiles import Machine, cpu_flags, cpu_profile, gpu_profile

_ORIN_SM = 87
_CACHED = ("active_file", "inactive_file", "slab_reclaimable")
"""What a control group gives back when it is asked."""


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
    """Bytes that this process may hold: the machine's, or fewer where a control group has fewer."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(group.limit for group in _groups(root))])


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take without swapping, of the machine and of its control groups.

    Files that are cached count as free, as the kernel counts them, unless a process has mapped them: those
    are weights in use.
    """
    machine = _amounts(root / "proc/meminfo")
    mapped = _mapped_files(machine.get("Mapped", 0), machine.get("Shmem", 0))
    free = (machine.get("MemAvailable", 0) - mapped) * 1024
    return max(0, min([free, *(group.free for group in _groups(root))]))


def peak_memory(pid: int) -> int | None:
    """Bytes: the most that a process has had in memory; None for one that has ended."""
    peak = _amounts(Path(f"/proc/{pid}/status")).get("VmHWM")
    return None if peak is None else peak * 1024


@dataclass(frozen=True)
class _Group:
    """A control group that bounds this process, and what it may still give, in bytes."""

    limit: int
    free: int


def _groups(root: Path) -> Iterator[_Group]:
    """Every group with a limit, of version 2 or 1: a process is bound by its own and by those above it.

    A container sees its own as the root of the tree, whatever path the kernel says.
    """
    tree = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, limit, used, prefix, mapped = tree, "memory.max", "memory.current", "", "file_mapped"
        elif "memory" in controllers.split(","):
            top, limit, used = tree / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            prefix, mapped = "total_", "mapped_file"
        else:
            continue
        own = top / path.removeprefix("/")
        for group in (own, *(above for above in own.parents if above.is_relative_to(top))):
            most = _text(group / limit).strip()
            if most.isdigit():  # else "max", or no such file
                held = _amounts(group / "memory.stat")
                cached = sum(held.get(prefix + name, 0) for name in _CACHED)
                in_use = _mapped_files(held.get(prefix + mapped, 0), held.get(prefix + "shmem", 0))
                taken = int(_text(group / used).strip() or 0)
                yield _Group(int(most), int(most) - taken + max(0, cached - in_use))


def _mapped_files(mapped: int, shared: int) -> int:
    """What is mapped of files: memory that processes share counts as mapped, and is no cache."""
    return max(0, mapped - shared)


def _amounts(path: Path) -> dict[str, int]:
    """The lines ``NAME NUMBER`` and ``NAME: NUMBER UNIT`` of a file."""
    words = (line.split() for line in _text(path).splitlines())
    return {one[0].rstrip(":"): int(one[1]) for one in words if len(one) > 1 and one[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
