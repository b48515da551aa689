"""The demo's site: one hub with its broker, two devices, an upstream, and the offline machine with the keys.

Everything goes through the commands and routes that its users have; nothing reaches into a process.
"""

from __future__ import annotations

import html
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
from processes import Processes, free_port, run, run_json, wait_until
from taps import holds
from traffic import Load, client

from models.manifest import Manifest

DEVICES = ("edge-a", "edge-b")
GROUP = "line-1"
HEAVY_TOKENS = 400
"""Prompt and answer together from which a device asks the hub."""

PROBATION_REQUESTS = 10
"""Answers after which the demo's devices commit a release; a real fleet would watch longer."""


@dataclass
class Fleet:
    """Ports, folders and tokens of the site. ``base`` and ``adapter`` are the names of the releases."""

    work: Path
    processes: Processes
    base: str
    adapter: str
    system: str
    figures: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.offline = self.work / "offline"
        self.hub_home = self.work / "hub"
        self.taps = self.work / "taps"
        self.taps.mkdir(parents=True)
        self.people, self.devices, self.broker = free_port(), free_port(), free_port()
        self.upstream, self.recorder = free_port(), free_port()
        self.ports = {device: free_port() for device in DEVICES}
        self.rollouts: dict[str, int] = {}

    @property
    def model(self) -> str:
        """How clients call the base with the adapter."""
        return f"{self.base}:{self.adapter}"

    # Offline machine and hub

    def make_keys_and_hub(self) -> None:
        """Three release keys of which two must sign, made apart; then the hub, from what was carried over."""
        run("outpost-hub", "keys", "init", "--offline", self.offline, "--threshold", "2")
        made = run_json(
            *("outpost-hub", "init", "--home", self.hub_home, "--root", self.offline / "hub" / "root.json"),
            *("--host", "localhost", "--people-port", str(self.people)),
            *("--device-port", str(self.devices), "--broker-port", str(self.broker)),
        )
        self.admin = str(made["token"])
        self.ca = self.hub_home / "tls" / "ca.pem"

    def sign(self, folder: Path) -> None:
        """Sign a release with two of the offline keys."""
        keys = sorted(self.offline.glob("targets-*.pem"))[:2]
        run(
            *("outpost-hub", "release", "sign", folder, "--targets", self.offline / "targets.json"),
            *(part for key in keys for part in ("--key", key)),
        )

    def publish(self, folder: Path, expect: int = 0) -> str:
        """Put a signed release into the hub's repository; returns what the command said."""
        return run(
            *("outpost-hub", "release", "publish", folder, "--home", self.hub_home),
            *("--targets", self.offline / "targets.json"),
            expect=expect,
        )

    def roll_out(self, release: Manifest, waves: str = "100%") -> None:
        """Tell the group to run a release."""
        made = run_json(
            *("outpost-hub", "rollout", "create", "--home", self.hub_home, "--group", GROUP),
            *("--release", str(release.digest), "--waves", waves),
            *("--probation-requests", str(PROBATION_REQUESTS)),
        )
        self.rollouts[release.digest] = int(made["id"])

    def abort(self, release: Manifest) -> None:
        """Withdraw a rollout."""
        run("outpost-hub", "rollout", "abort", str(self.rollouts[release.digest]), "--home", self.hub_home)

    def start_hub(self) -> None:
        """Start the hub, which starts its broker; everything received after TLS is recorded."""
        self.processes.start("hub", "outpost-hub", "serve", "--home", self.hub_home, "--tap", self.taps)
        wait_until("the hub answers", self._hub_answers, 60)

    def stop_hub(self) -> None:
        """Hub and broker become unreachable."""
        self.processes.stop("hub")

    def start_upstream(self, base: Path, adapter: Path) -> None:
        """A third agent with the Q8_0 base stands in for a bigger machine; a recorder sits before it."""
        self.processes.start(
            "upstream",
            *("outpost-edge", "serve", "--model", f"{self.base}={base}"),
            *("--adapter", f"{self.adapter}={adapter}"),
            *("--port", str(self.upstream), "--threads", "1"),
        )
        recorder = Path(__file__).parent / "processes.py"
        self.processes.start(
            "recorder",
            "python",
            recorder,
            str(self.recorder),
            str(self.upstream),
            self.taps / "upstream.bytes",
        )
        run(
            *("outpost-hub", "upstream", "add", "--home", self.hub_home, "--name", "bigger"),
            *("--url", f"http://127.0.0.1:{self.recorder}", "--model", self.model),
        )

    # Devices

    def enroll(self, device: str) -> None:
        """A one-time token, carried to the device; the device makes its key and joins."""
        token = self.work / f"{device}.token"
        run("outpost-hub", "device", "token", "--home", self.hub_home, "--group", GROUP, "--out", token)
        run(
            *("outpost-edge", "enroll", "--hub", f"https://localhost:{self.people}"),
            *("--token-file", token, "--home", self.work / device, "--device", device),
        )

    def start_agent(self, device: str) -> None:
        """Run a device; one thread for its engine, so that two devices fit two cores."""
        self.processes.start(
            device,
            *("outpost-edge", "serve", "--home", self.work / device, "--port", str(self.ports[device])),
            *("--threads", "1", "--heavy-tokens", str(HEAVY_TOKENS)),
        )

    def restart_agent(self, device: str) -> None:
        """Stop a device as its service manager would, and start it again."""
        self.processes.stop(device)
        self.start_agent(device)

    def ready(self, device: str) -> bool:
        """Whether a device says that a model answers."""
        self.processes.alive(device)
        try:
            return httpx.get(f"http://127.0.0.1:{self.ports[device]}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def client(self, device: str) -> openai.OpenAI:
        """An openai client for a device."""
        return client(f"http://127.0.0.1:{self.ports[device]}/v1")

    def gateway(self) -> openai.OpenAI:
        """An openai client for the hub's gateway, as a person with a token has it."""
        token = run_json(
            "outpost-hub", "token", "create", "--home", self.hub_home, "--role", "app", "--name", "shift desk"
        )["token"]
        return client(f"https://localhost:{self.people}/v1", token, httpx.Client(verify=self._tls()))

    def load(self, tickets: list[str]) -> Load:
        """One busy client per device."""
        return Load({device: self.client(device) for device in DEVICES}, self.model, self.system, tickets)

    def audit(self, device: str) -> dict[str, int]:
        """How far a device's trail has come, asked at the device."""
        status = run_json("outpost-edge", "status", "--home", self.work / device)
        return {name: int(value) for name, value in status["audit"].items()}

    def drained(self, device: str) -> bool:
        """Whether receipts cover every record of a device."""
        audit = self.audit(device)
        return audit["size"] > 0 and audit["acknowledged"] == audit["size"]

    # What the hub knows

    def device(self, device: str) -> dict[str, Any]:
        """A device as the hub's API shows it."""
        found = self._api("/api/v1/devices")["devices"]
        return next((each for each in found if each["id"] == device), {})

    def runs(self, device: str, release: Manifest) -> bool:
        """Whether a device reports that a release serves."""
        self.processes.alive(device)
        return any(each["release"] == release.digest for each in self.device(device).get("running", []))

    def committed(self, device: str, release: Manifest) -> bool:
        """Whether a release has passed its probation on a device."""
        return any(
            each["release"] == release.digest and each["state"] == "committed"
            for each in self.device(device).get("running", [])
        )

    def rolled_back(self, device: str, release: Manifest) -> str | None:
        """Why a device gave a release up, or None while it has not."""
        for each in self.device(device).get("rollbacks", []):
            if each["release"] == release.digest:
                return str(each["reason"])
        return None

    def link_facts(self, device: str) -> dict[str, Any]:
        """What a device says about its link."""
        return dict(self.device(device)["facts"]["link"])

    def carried(self, device: str, release: Manifest) -> set[str]:
        """How the files of a release came to a device."""
        carried = self.device(device)["facts"]["carried"]
        return {carried[file.sha256] for file in release.files}

    def base_processes(self, device: str) -> list[tuple[str, int, int]]:
        """Release, process and loads of each engine of a device: any reload changes one of them."""
        engines = self.device(device)["facts"]["engines"]
        return sorted((engine["release"], engine["pid"], engine["loads"]) for engine in engines)

    def console(self) -> str:
        """The fleet page's HTML, as a logged-in person gets it."""
        with httpx.Client(
            verify=self._tls(), base_url=f"https://localhost:{self.people}", follow_redirects=True
        ) as browser:
            origin = {"origin": f"https://localhost:{self.people}"}
            browser.post("/console/login", data={"token": self.admin}, headers=origin)
            page = browser.get("/console")
            page.raise_for_status()
            return html.unescape(page.text)

    # What was received, and what can be proved

    def received(self, text: str) -> set[str]:
        """The recordings in which a text occurs, in the clear or under base64."""
        return {tap.stem for tap in self.taps.iterdir() if holds(tap, text.encode())}

    def tapped_bytes(self) -> int:
        """How much was recorded."""
        return sum(tap.stat().st_size for tap in self.taps.iterdir())

    def refuses_strangers(self, port: int) -> bool:
        """Whether a listener ends a connection that shows no client certificate."""
        try:
            with (
                socket.create_connection(("localhost", port), timeout=10) as plain,
                self._tls().wrap_socket(plain, server_hostname="localhost") as stranger,
            ):
                # In TLS 1.3 a missing certificate is refused after the client's side of the handshake.
                stranger.sendall(b"GET /tuf/metadata/timestamp.json HTTP/1.1\r\nhost: localhost\r\n\r\n")
                return stranger.recv(1) == b""
        except (ssl.SSLError, ConnectionError):
            return True

    def export_audit(self) -> tuple[list[Path], Path]:
        """The trails of both devices as files, and the devices' public keys."""
        folder = self.work / "audit"
        made = run_json("outpost-hub", "audit", "export", "--home", self.hub_home, "--out", folder)
        return sorted(Path(trail) for trail in made["trails"]), Path(made["device_keys"])

    def open_audit(self, file: Path, key: Path, expect: int | None = 0) -> str:
        """What someone with a private key reads in an exported trail."""
        return run(
            *("outpost-hub", "audit", "open", file, "--device-keys", file.with_name("device-keys.json")),
            *("--keyring", file.with_name("keyring.jsonl"), "--auditor-key", key),
            expect=expect,
        )

    def hub_keys(self) -> list[Path]:
        """Every private key that the hub holds."""
        return [
            path
            for path in sorted(self.hub_home.rglob("*"))
            if path.is_file() and path.suffix in (".pem", ".key") and b"PRIVATE" in path.read_bytes()
        ]

    def hub_database_holds(self, text: str) -> bool:
        """Whether a text stands in the hub's database, in the clear or under base64."""
        return any(holds(path, text.encode()) for path in self.hub_home.glob("hub.db*"))

    def _api(self, path: str) -> Any:
        answer = self._browser().get(path)
        answer.raise_for_status()
        return answer.json()

    def _browser(self) -> httpx.Client:
        if not hasattr(self, "_http"):
            self._http = httpx.Client(
                verify=self._tls(),
                base_url=f"https://localhost:{self.people}",
                headers={"authorization": f"Bearer {self.admin}"},
            )
        return self._http

    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    def _hub_answers(self) -> bool:
        self.processes.alive("hub")
        try:
            return self._browser().get("/healthz").status_code == 200
        except httpx.TransportError:
            return False
