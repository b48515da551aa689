"""``outpost-edge`` joins a hub: what a device keeps of it, and what a person reads when it does not work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
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


def test_what_cannot_be_is_said_in_a_line(tmp_path: Path) -> None:
    hub = make_hub(tmp_path)
    good = ("--hub", hub.url, "--token-file", token(hub, tmp_path / "token"))
    wrong = edge("enroll", *good, "--home", tmp_path / "home", "--device", "Edge_A", expect=2)
    assert "--device 'Edge_A': a device id is 1 to 63 of a-z 0-9 -" in wrong.stderr
    for verb in ("serve", "status"):
        words = edge(verb, "--home", tmp_path / "nowhere", *(["--port", "0"] * (verb == "serve")), expect=2)
        assert f"--home {tmp_path}/nowhere" in words.stderr
    with hub.serving():
        edge("enroll", *good, "--home", tmp_path / "home", "--device", "press-01")
        again = edge("enroll", *good, "--home", tmp_path / "home", "--device", "press-01", expect=2)
        assert "belongs to press-01" in again.stderr
        spent = edge("enroll", *good, "--home", tmp_path / "other", "--device", "press-02", expect=3)
    assert spent.stderr == (
        "outpost-edge: the hub refuses (401): the enrolment token is unknown, used or expired\n"
    )


@pytest.mark.parametrize("cli", ["edge_agent.cli", "cloud_hub.cli"])
def test_the_log_does_not_name_every_key_that_did_not_sign(cli: str) -> None:
    program = (
        f"import logging, click.testing, {cli} as cli;"
        "click.testing.CliRunner().invoke(cli.main, ['serve', '--home', 'nowhere']);"
        "print(logging.getLogger('tuf.api._payload').isEnabledFor(logging.INFO), logging.root.level)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "20"]


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
