"""What is free where a control group bounds memory: from the kernel's files, as they lie in a container."""

from functools import partial
from pathlib import Path

import pytest
from onnx_releases import EMBED, write_onnx_release

from edge_agent.engines.encoder_process import EncoderProcess
from edge_agent.engines.files import of_release
from edge_agent.engines.residence import Residence
from edge_agent.engines.settings import EngineSettings
from edge_agent.errors import NoRoom
from models.machine import free_memory, memory_limit

MB = 10**6


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def machine(root: Path, *groups: str) -> None:
    """A machine with 8,000,000 KiB to give; of its files 600,000 KiB are mapped. ``groups``: where we are."""
    write(root / "proc/meminfo", "MemAvailable: 8000000 kB", "Shmem: 100000 kB", "Mapped: 700000 kB")
    write(root / "proc/self/cgroup", *groups)


def of_version_2(group: Path, limit: str, used: int, **stat: int) -> None:
    write(group / "memory.max", limit)
    write(group / "memory.current", str(used))
    write(group / "memory.stat", *(f"{name} {size}" for name, size in stat.items()))


def test_of_a_machine_without_limits_free_is_what_nobody_uses(tmp_path: Path) -> None:
    machine(tmp_path, "0::/")
    assert free_memory(tmp_path) == (8_000_000 - 600_000) * 1024


def test_the_tightest_control_group_decides(tmp_path: Path) -> None:
    machine(tmp_path, "0::/pods/one")
    tree = tmp_path / "sys/fs/cgroup"
    of_version_2(tree / "pods/one", "max", 900 * MB)
    free = free_memory(tmp_path)
    of_version_2(tree / "pods", str(1000 * MB), 400 * MB)
    assert free_memory(tmp_path) == 600 * MB < free
    of_version_2(tree / "pods/one", str(500 * MB), 400 * MB)
    assert free_memory(tmp_path) == 100 * MB
    assert memory_limit(tmp_path) == 500 * MB


def test_cached_files_are_free_and_mapped_ones_are_not(tmp_path: Path) -> None:
    machine(tmp_path, "0::/")
    of_version_2(
        tmp_path / "sys/fs/cgroup",
        str(1000 * MB),
        900 * MB,
        anon=300 * MB,
        active_file=250 * MB,
        inactive_file=300 * MB,
        slab_reclaimable=20 * MB,
        file_mapped=230 * MB,
        shmem=30 * MB,
    )
    assert free_memory(tmp_path) == (100 + 250 + 300 + 20 - 200) * MB


def test_version_1_is_read_as_well(tmp_path: Path) -> None:
    machine(tmp_path, "9:name=systemd:/", "4:cpu,memory:/docker/0f3a", "0::/")  # a path of the host's
    group = tmp_path / "sys/fs/cgroup/memory"
    write(group / "memory.limit_in_bytes", str(1000 * MB))
    write(group / "memory.usage_in_bytes", str(700 * MB))
    own, all_below = f"inactive_file {MB}", f"total_inactive_file {300 * MB}"
    write(group / "memory.stat", own, all_below, "total_mapped_file 0")
    assert free_memory(tmp_path) == 600 * MB
    assert memory_limit(tmp_path) == 1000 * MB
    write(group / "memory.limit_in_bytes", "9223372036854771712")  # its word for none
    assert free_memory(tmp_path) == (8_000_000 - 600_000) * 1024


def test_a_group_over_its_limit_has_nothing_to_give(tmp_path: Path) -> None:
    machine(tmp_path, "0::/")
    of_version_2(tmp_path / "sys/fs/cgroup", str(100 * MB), 120 * MB)
    assert free_memory(tmp_path) == 0


async def test_a_model_is_refused_with_the_containers_numbers(tmp_path: Path) -> None:
    machine(tmp_path / "root", "0::/")
    of_version_2(tmp_path / "root/sys/fs/cgroup", str(64 * MB), 24 * MB)
    residence = Residence(None, None, partial(free_memory, tmp_path / "root"))
    files = of_release(tmp_path, write_onnx_release(tmp_path, EMBED))
    with pytest.raises(NoRoom, match=r"model\.onnx needs about \d+ MB of 40 MB.*container"):
        await EncoderProcess.start(files, EngineSettings(threads=1), residence)
