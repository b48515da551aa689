"""The hub's line, with real processes: enrol, roll out in waves, roll back, drain a trail, verify it."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_upstream import upstream
from fleet_simulator import RunningHub, SimulatedDevice, make_hub

from models.digest import Digest
from sync.errors import EnrolmentRefused
from sync.link import MqttBlobSource
from sync.protocol import AUDIT_SEGMENT, State
from sync.requests import HEADER, sign_request


async def eventually(look: Callable[[], Any], seconds: float = 10) -> Any:
    """The first true value of ``look``, called in a thread."""
    deadline = time.monotonic() + seconds
    while not (found := await asyncio.to_thread(look)):
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.1)
    return found


def rollout(hub: RunningHub, number: int) -> dict[str, Any]:
    found: dict[str, Any] = hub.get(f"rollouts/{number}")
    return found


async def test_from_enrolment_to_a_verified_trail(tmp_path: Path) -> None:
    hub = make_hub(tmp_path)
    good = hub.release("tickets", "1.0.0")
    with hub.serving():
        first, second = (SimulatedDevice(name, tmp_path / name) for name in ("press-01", "press-02"))
        first.enroll(hub, "line-1")
        second.enroll(hub, "line-1")
        async with first, second:
            # One canary first; the second device is told only after the canary has committed.
            number = hub.cli(
                "rollout", "create", "--release", "tickets@1.0.0", "--group", "line-1", "--waves", "10%,100%"
            )["id"]
            await eventually(lambda: rollout(hub, number)["members"])
            canary, other = (
                (first, second) if first.id in rollout(hub, number)["members"] else (second, first)
            )
            await canary.told(good)
            await canary.say(good, State.ACTIVE)
            await asyncio.sleep(1.2)
            assert other.desired is None
            await canary.say(good, State.COMMITTED)
            await other.told(good)
            await other.say(good, State.COMMITTED)
            await eventually(lambda: rollout(hub, number)["state"] == "completed")

            # A rollback halts the next one, and the page says why in the device's words.
            bad = await asyncio.to_thread(hub.release, "tickets", "1.1.0")
            number = hub.cli(
                "rollout", "create", "--release", "tickets@1.1.0", "--group", "line-1", "--waves", "10%,100%"
            )["id"]
            await eventually(lambda: rollout(hub, number)["members"])
            canary = first if first.id in rollout(hub, number)["members"] else second
            await canary.told(bad)
            await canary.say(bad, State.ROLLED_BACK, "probe 2 answered something else")
            halted = await eventually(lambda: (r := rollout(hub, number))["state"] == "halted" and r)
            assert halted["reason"] == f"{canary.id}: probe 2 answered something else"
            hub.cli("rollout", "abort", str(number))
            await canary.told(good)
            page = hub.get(f"devices/{canary.id}")
            assert page["rollbacks"][0]["reason"] == "probe 2 answered something else"
            assert page["presence"] == "online"

            # Small blobs come over MQTT: the same bytes as in the repository.
            wanted = (tmp_path / "tickets-1.0.0.bin").read_bytes()
            async with BlobReader(first) as source:
                assert await source.read(Digest.of(wanted), 0, len(wanted)) == wanted

            # The trail drains against receipts; a repeated segment gives the same receipt again.
            for n in range(3):
                await first.trail.append("intent", f"r{n}", "internal", "user-1", {"n": n}, b"a prompt")
            segment = await first.trail.next_segment()
            assert segment is not None
            await first.push()
            await first.until(lambda: first.receipts)
            assert (await first.trail.report()).acknowledged == 3
            await first.link.publish(AUDIT_SEGMENT, first.id, first.signed("audit-segment", segment))
            await first.until(lambda: len(first.receipts) == 2)
            assert [receipt.size for receipt in first.receipts] == [3, 3]
        await eventually(lambda: {"offline"} == {d["presence"] for d in hub.get("devices")["devices"]})

    exported = hub.cli("audit", "export", "--out", tmp_path / "export")
    verify = ("audit", "verify", *exported["trails"], "--device-keys", exported["device_keys"])
    assert hub.cli(*verify, home=False)["verified"][0]["records"] == 3
    opened = hub.cli(
        "audit",
        "open",
        *exported["trails"],
        *("--device-keys", exported["device_keys"], "--keyring", exported["keyring"]),
        *("--auditor-key", tmp_path / "offline" / "auditor.pem"),
        home=False,
    )
    assert [each["body"] for each in opened["records"]] == ["a prompt"] * 3
    assert b"a prompt" not in b"".join(path.read_bytes() for path in (tmp_path / "tap").iterdir())


class BlobReader:
    """A second, short session of a device, only to read blobs."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device

    async def __aenter__(self) -> MqttBlobSource:
        await self.device.link.__aexit__(None, None, None)
        self.source = MqttBlobSource(self.device.link, self.device.id)
        await self.device.link.__aenter__()
        await asyncio.wait_for(self.device.link.wait_up(), 10)
        return self.source

    async def __aexit__(self, *_: object) -> None:
        return None


async def test_a_device_that_comes_back_under_its_id_begins_a_new_trail(tmp_path: Path) -> None:
    hub = make_hub(tmp_path)
    with hub.serving():
        homes = [SimulatedDevice("press-01", tmp_path / f"home-{number}") for number in (1, 2)]
        for number, home in enumerate(homes, 1):
            await asyncio.to_thread(home.enroll, hub, "line-1")
            assert home.enrolment.epoch == number
            async with home:
                for n in range(number):
                    await home.trail.append("intent", f"r{n}", "internal", "anna", {}, b"in home %d" % number)
                await home.push()
                await home.until(lambda home=home: home.receipts)
                await home.report()
                assert (await home.trail.report()).acknowledged == number
            hub.cli("device", "revoke", "press-01")
        assert hub.get("audit")["evidence"] == []
        assert [(each["epoch"], each["committed"]) for each in hub.get("audit")["audit"]] == [(2, 2)]

    exported = hub.cli("audit", "export", "--out", tmp_path / "export")
    keys = ("--device-keys", exported["device_keys"])
    verified = hub.cli("audit", "verify", *exported["trails"], *keys, home=False)["verified"]
    assert [(each["epoch"], each["records"]) for each in verified] == [(1, 1), (2, 2)]
    auditor = ("--keyring", exported["keyring"], "--auditor-key", tmp_path / "offline" / "auditor.pem")
    opened = hub.cli("audit", "open", *exported["trails"], *keys, *auditor, home=False)["records"]
    assert [each["body"] for each in opened] == ["in home 1", "in home 2", "in home 2"]
    for trail, says in zip(exported["trails"], ("1 records verify", "2 records verify"), strict=True):
        assert says in checked_without_us(tmp_path, trail, exported["device_keys"])


def checked_without_us(folder: Path, trail: str, keys: str) -> str:
    """What the program says that the audit page gives to those who do not trust ours."""
    page = Path(__file__).parents[2] / "docs" / "audit.md"
    program = folder / "check.py"
    program.write_text(page.read_text().split("```python\n")[1].split("```")[0])
    command = [sys.executable, str(program), trail, keys]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_enrolment_is_for_the_first_and_for_its_own_retry(tmp_path: Path) -> None:
    hub = make_hub(tmp_path)
    with hub.serving():
        device = SimulatedDevice("press-01", tmp_path / "press-01")
        token = hub.cli("device", "token", "--group", "line-1")["token"]
        spent = {"token": token}
        original = hub.cli
        hub.cli = lambda *a, **k: spent if a[:2] == ("device", "token") else original(*a, **k)  # type: ignore[method-assign]
        device.enroll(hub, "line-1")
        device.enroll(hub, "line-1")  # the reply got lost: the same key may ask again
        assert device.enrolment.epoch == 1
        with pytest.raises(EnrolmentRefused):
            SimulatedDevice("press-01", tmp_path / "thief").enroll(hub, "line-1")
        with pytest.raises(EnrolmentRefused):
            SimulatedDevice("press-02", tmp_path / "other").enroll(hub, "line-1")
        hub.cli = original  # type: ignore[method-assign]
        with pytest.raises(EnrolmentRefused, match="taken"):
            SimulatedDevice("press-01", tmp_path / "twin").enroll(hub, "line-1")
        # 8444 speaks to no one without a certificate of this hub, and to nobody unsigned.
        with pytest.raises(httpx.TransportError), httpx.Client(verify=False, trust_env=False) as anonymous:
            anonymous.get(f"https://localhost:{hub.devices}/healthz")
        with httpx.Client(verify=device.tls, trust_env=False) as known:
            base = f"https://localhost:{hub.devices}"
            assert known.get(f"{base}/tuf/metadata/timestamp.json").status_code == 200
            answer = known.post(f"{base}/v1/chat/completions", json={"model": "m", "messages": []})
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "device_signature"


async def test_a_heavy_request_of_a_device_reaches_an_upstream_once(tmp_path: Path) -> None:
    hub = make_hub(tmp_path)
    device = SimulatedDevice("press-01", tmp_path / "press-01")
    body = json.dumps({"model": "big", "messages": []}).encode()
    url = f"https://localhost:{hub.devices}/v1/chat/completions"

    def signed(at: float, sent: bytes = body) -> dict[str, str]:
        return {HEADER: sign_request(device.key, device.id, at, sent)}

    async with upstream() as (address, received):
        hub.cli("upstream", "add", "--name", "box", "--url", address, "--model", "big")
        with hub.serving():
            await asyncio.to_thread(device.enroll, hub, "line-1")
            async with httpx.AsyncClient(verify=device.tls, trust_env=False) as client:
                headers = signed(time.time())
                answer = await client.post(url, content=body, headers=headers)
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-outpost-served-by"] == "hub"
                refusals = [
                    await client.post(url, content=body, headers=headers),  # replayed
                    await client.post(url, content=body + b" ", headers=signed(time.time())),
                    await client.post(url, content=body, headers=signed(time.time() - 1000)),
                ]
                assert [each.status_code for each in refusals] == [401] * 3
                restricted = {**signed(time.time()), "x-outpost-data-class": "restricted"}
                assert (await client.post(url, content=body, headers=restricted)).status_code == 403
                hub.cli("device", "revoke", "press-01")
                gone = await client.post(url, content=body, headers=signed(time.time()))
                assert gone.status_code == 401
        assert len(received) == 1 and b"x-outpost-device-signature" not in received[0]


def test_roles_and_errors(tmp_path: Path) -> None:
    hub = make_hub(tmp_path)
    viewer = hub.cli("token", "create", "--role", "viewer")["token"]
    assert "--waves" in hub.cli(
        "rollout", "create", "--release", "x@1.0.0", "--group", "g", "--waves", "50%", expect=2
    )
    assert "no published release" in hub.cli(
        "rollout", "create", "--release", "x@1.0.0", "--group", "g", expect=2
    )
    unsigned = tmp_path / "unsigned"
    unsigned.mkdir()
    assert "not signed" in hub.cli("release", "publish", unsigned, expect=3)
    with hub.serving(), hub.client(viewer) as client:
        assert client.get("/api/v1/devices").status_code == 200
        refused = client.post("/api/v1/rollouts", json={"release": "x@1.0.0", "group": "g"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
        assert client.get("/api/v1/devices", headers={"authorization": "Bearer oph_a_b"}).status_code == 401
        assert client.get("/v1/models").status_code == 403
        with hub.client() as admin:
            wrong = admin.post("/api/v1/rollouts", json={"release": "x", "group": "g", "wave": "1"})
            assert wrong.status_code == 400 and "wave" in wrong.json()["error"]["message"]
            none = admin.post("/v1/chat/completions", json={"model": "m", "messages": []})
            assert none.json()["error"]["code"] == "model_not_found"
            assert 'outpost_devices{presence="online"} 0' in admin.get("/metrics").text
        json.dumps(client.get("/api/v1/audit").json())
