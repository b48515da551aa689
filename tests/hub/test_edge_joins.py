"""``outpost-edge`` joins a hub: what a device keeps of it, and what a person reads when it does not work."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet_simulator import RunningHub, make_hub
from onnx_releases import EMBED, write_onnx_release

from compile.devices import read_figures
from models.forecast import Workload, forecast
from models.machine import this_machine
from models.profiles import profile

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


@contextmanager
def member(home: Path) -> Iterator[None]:
    """The device at ``home``, serving."""
    command = [str(EDGE), "serve", "--home", str(home), "--port", "0"]
    with (home.parent / "edge.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(15)


def eventually(look: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return found


def test_what_a_device_measures_corrects_the_next_forecast(tmp_path: Path) -> None:
    hub, home, machine = make_hub(tmp_path), tmp_path / "press-01", this_machine()
    write_onnx_release(tmp_path / "minilm-1", EMBED)
    write_onnx_release(tmp_path / "minilm-2", EMBED, seed=1, version="2.0.0", profiles=("sm_80",))
    release = hub.publish_folder(tmp_path / "minilm-1")
    with hub.serving():
        joining = ("--hub", hub.url, "--token-file", token(hub, tmp_path / "token"), "--home", home)
        edge("enroll", *joining, "--device", "press-01")
        with member(home):
            ordered = hub.cli("rollout", "create", "--release", "minilm@1.0.0", "--group", "line-1")
            assert ordered["unfit"] == {}
            (told,) = eventually(lambda: hub.get("devices/press-01")["figures"])
            assert (told["release"], told["profile"]) == (release, machine.profile)
            assert hub.get("figures")["figures"] == [told]
            assert f"{told['items_per_second']:.1f} inputs/s" in told["measured"]

            # What was not made for it is refused there, and the operator is told before.
            hub.publish_folder(tmp_path / "minilm-2")
            ordered = hub.cli("rollout", "create", "--release", "minilm@2.0.0", "--group", "line-1")
            why = ordered["unfit"]["press-01"]
            assert why.startswith("minilm 2.0.0 is made for sm_80; this device is")
            refused = eventually(lambda: hub.get("devices/press-01")["rollbacks"])
            assert refused[0]["reason"] == f"UnfitRelease: {why}"
    shown = edge("status", "--home", home).stdout
    assert f"machine  {machine.profile}, {machine.cores} cores" in shown and "inputs/s" in shown

    file = tmp_path / "figures.json"
    file.write_text(json.dumps(hub.cli("release", "figures", "--release", "minilm@1.0.0")))
    load = Workload("onnx", "fp32", told["parameters"], told["weight_bytes"])
    assert machine.profile is not None
    expected = forecast(profile(machine.profile), load, told["threads"], read_figures(file))
    assert expected.items is not None and expected.items.value == pytest.approx(told["items_per_second"])
    assert expected.memory.value == pytest.approx(told["peak_ram_bytes"])
    assert expected.speed_basis == "measured on 1 device"
