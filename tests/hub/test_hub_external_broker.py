"""A broker on another machine: devices are told where it is, and hub and devices meet there."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet_simulator import SimulatedDevice, make_hub

ELSEWHERE = "127.0.0.2"  # loopback too, and not among the hub's hosts


@contextmanager
def broker(folder: Path, home: Path, port: int) -> Iterator[None]:
    """A broker process that has only the three files that are carried to its machine."""
    folder.mkdir()
    for name in ("ca.pem", "broker.pem", "broker.key"):
        (folder / name).write_bytes((home / "tls" / name).read_bytes())
    config = {"host": ELSEWHERE, "port": port, "certificate": "broker.pem", "key": "broker.key"}
    (folder / "broker.json").write_text(json.dumps({**config, "client_ca": "ca.pem"}))
    process = subprocess.Popen(
        [sys.executable, "-m", "cloud_hub.broker", str(folder / "broker.json")], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None and process.stdout.readline()
        yield
    finally:
        process.terminate()
        process.wait(10)


async def test_hub_and_devices_meet_at_a_broker_elsewhere(tmp_path: Path) -> None:
    hub = make_hub(tmp_path, "--broker-host", ELSEWHERE)
    release = hub.release("tickets", "1.0.0")
    with broker(tmp_path / "elsewhere", tmp_path / "home", hub.broker), hub.serving():
        device = SimulatedDevice("press-01", tmp_path / "press-01")
        device.enroll(hub, "line-1")
        assert (device.enrolment.broker_host, device.enrolment.broker_port) == (ELSEWHERE, hub.broker)
        assert not (tmp_path / "home" / "broker.json").exists()  # none was embedded
        async with device:
            hub.cli("rollout", "create", "--release", "tickets@1.0.0", "--group", "line-1")
            await device.told(release)
    log = (tmp_path / "hub.log").read_text()
    assert "Started server process" not in log
