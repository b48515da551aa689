"""The databases on which the hub's suite runs: SQLite in a file, PostgreSQL as a server of its own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet_simulator import free_ports


@contextmanager
def postgres() -> Iterator[str]:
    """A fresh PostgreSQL server; yields a URL without the database's name. It refuses to run as root."""
    (folder,) = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
    owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
    data = Path(tempfile.mkdtemp(prefix="outpost-pg-"))
    if owner:
        os.chown(data, owner.pw_uid, owner.pw_gid)
    (port,) = free_ports(1)

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=data, capture_output=True, text=True, timeout=60, **identity)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        run(str(folder / "initdb"), "-D", f"{data}/db", "-U", "hub", "-A", "trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data} -c fsync=off"
        run(str(folder / "pg_ctl"), "-D", f"{data}/db", "-l", f"{data}/log", "-o", options, "-w", "start")
        try:
            yield f"postgresql://hub@127.0.0.1:{port}"
        finally:
            run(str(folder / "pg_ctl"), "-D", f"{data}/db", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(data)
