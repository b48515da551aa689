"""``outpost-edge`` joins a hub: what a device keeps of it, and what a person reads when it does not work."""

import json
import subprocess
import sys
from pathlib import Path

from fleet_simulator import RunningHub, make_hub

EDGE = Path(sys.executable).parent / "outpost-edge"


def edge(*arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """A verb of the device, as a person types it."""
    done = subprocess.run([str(EDGE), *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done


def token(hub: RunningHub, path: Path) -> Path:
    hub.cli("device", "token", "--group", "line-1", "--out", path)
    return path


def test_a_device_keeps_the_epoch_that_the_hub_gave_it(tmp_path: Path) -> None:
    hub = make_hub(tmp_path)
    with hub.serving():
        for epoch in (1, 2):
            home = tmp_path / f"home-{epoch}"
            joining = ("--hub", hub.url, "--token-file", token(hub, tmp_path / "token"), "--home", home)
            edge("enroll", *joining, "--device", "press-01")
            assert json.loads(edge("status", "--home", home, "--json").stdout)["audit"] == {
                "epoch": epoch,
                "size": 0,
                "acknowledged": 0,
            }
            hub.cli("device", "revoke", "press-01")
    # A home of an earlier version does not say: its trail is the first of its id.
    file = tmp_path / "home-2" / "device.json"
    told = json.loads(file.read_bytes())
    del told["epoch"]
    file.write_text(json.dumps(told))
    assert json.loads(edge("status", "--home", file.parent, "--json").stdout)["audit"]["epoch"] == 1
