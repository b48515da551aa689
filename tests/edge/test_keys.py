"""API keys and TLS: who is let in, how often, and from where."""

import asyncio
import datetime
import ipaddress
import json
import re
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from edge_app import catalog_of, edge_app, served
from http_server import running
from hypothesis import given
from hypothesis import strategies as st
from onnx_releases import EMBED, write_onnx_release
from scripted_engine import ScriptedEngine

from edge_agent.cli import main
from edge_agent.errors import WrongUse
from edge_agent.keys import PREFIX, Bucket, Keys, create_key, revoke_key

CHAT = {"model": "smol", "messages": [{"role": "user", "content": "hello"}]}


ONE = {"name": "a", "sha256": "0" * 64}
SAME_NAME = json.dumps({"keys": [ONE, ONE | {"sha256": "1" * 64}]})


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@given(st.integers(1, 50), st.lists(st.floats(0, 30), min_size=1, max_size=200))
def test_a_key_calls_no_more_often_than_its_limit(limit: int, pauses: list[float]) -> None:
    bucket, now, let_in = Bucket(limit, limit, 0.0), 0.0, []
    for pause in pauses:
        now += pause
        wait = bucket.take(now)
        if not wait:
            let_in.append(now)
            continue
        later = Bucket(limit, bucket.left, bucket.at)
        assert later.take(now + wait + 1e-6) == 0.0  # who comes back when told to is let in
    for first in range(len(let_in)):
        for last in range(first, len(let_in)):
            allowed = limit * (1 + (let_in[last] - let_in[first]) / 60)
            assert last - first + 1 <= allowed + 1e-6


async def test_only_who_has_a_key_is_let_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = create_key(path, "line-3", None, None)
    engine = ScriptedEngine("all is well")
    app = edge_app(catalog_of(served(engine)), keys=Keys(path, lambda: 0.0))
    async with running(app) as url, httpx.AsyncClient(base_url=url) as client:
        for headers in ({}, bearer("sk-outpost-guess"), {"authorization": secret}, bearer(secret + "x")):
            refused = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert refused.headers["x-request-id"]
            assert refused.headers["www-authenticate"] == "Bearer"
        assert not engine.requests
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/healthz")).status_code == 200
        answered = await client.post("/v1/chat/completions", json=CHAT, headers=bearer(secret))
        assert answered.json()["choices"][0]["message"]["content"] == "all is well"

        other = create_key(path, "line-4", None, None)  # keys come and go under a running server
        revoke_key(path, "line-3")
        assert (await client.get("/v1/models", headers=bearer(other))).status_code == 200
        assert (await client.get("/v1/models", headers=bearer(secret))).status_code == 401
        path.write_text("{broken")
        assert (await client.get("/v1/models", headers=bearer(other))).status_code == 200


async def test_a_key_has_limits_of_its_own(tmp_path: Path) -> None:
    path, now = tmp_path / "keys.json", 0.0
    busy, quick = create_key(path, "busy", 2, None), create_key(path, "quick", None, 1)
    gate = asyncio.Semaphore(0)
    engine = ScriptedEngine("one two", gate=gate)
    app = edge_app(catalog_of(served(engine)), keys=Keys(path, lambda: now))
    async with running(app) as url, httpx.AsyncClient(base_url=url) as client:
        left = [(await client.get("/v1/models", headers=bearer(busy))).headers for _ in range(2)]
        assert [one["x-ratelimit-remaining-requests"] for one in left] == ["1", "0"]
        refused = await client.get("/v1/models", headers=bearer(busy))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        now = 31.0
        assert (await client.get("/v1/models", headers=bearer(busy))).status_code == 200

        running_call = asyncio.create_task(
            client.post("/v1/chat/completions", json=CHAT, headers=bearer(quick))
        )
        while not engine.requests:  # noqa: ASYNC110 - until the call is inside
            await asyncio.sleep(0.01)
        assert (await client.get("/v1/models", headers=bearer(quick))).status_code == 429
        gate.release()
        gate.release()
        assert (await running_call).status_code == 200
        assert (await client.get("/v1/models", headers=bearer(quick))).status_code == 200


async def test_a_key_that_is_edited_keeps_what_it_uses(tmp_path: Path) -> None:
    path, now = tmp_path / "keys.json", 0.0
    secret = create_key(path, "scada", 10, 2)
    gate = asyncio.Semaphore(0)
    engine = ScriptedEngine("one", gate=gate)
    app = edge_app(catalog_of(served(engine)), keys=Keys(path, lambda: now))
    async with running(app) as url, httpx.AsyncClient(base_url=url, headers=bearer(secret)) as client:
        running_call = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        while not engine.requests:  # noqa: ASYNC110 - until the call is inside
            await asyncio.sleep(0.01)
        kept = json.loads(path.read_text())
        kept["keys"][0] |= {"at_once": 1, "requests_per_minute": 60}
        path.write_text(json.dumps(kept))
        assert (await client.get("/v1/models")).status_code == 429  # the call that began before counts
        gate.release()
        assert (await running_call).status_code == 200
        left = (await client.get("/v1/models")).headers
        assert left["x-ratelimit-limit-requests"] == "60"
        assert left["x-ratelimit-remaining-requests"] == "8"  # of the ten that there were, two are used
        kept["keys"][0] |= {"requests_per_minute": None}
        path.write_text(json.dumps(kept))
        assert "x-ratelimit-limit-requests" not in (await client.get("/healthz")).headers
        assert (await client.get("/v1/models")).status_code == 200


def test_a_file_of_keys_holds_no_key_and_is_the_owners(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    run = CliRunner()
    made = run.invoke(main, ["key", "create", "--keys", str(path), "--name", "scada", "--json"])
    secret = json.loads(made.stdout)["key"]
    assert secret.startswith(PREFIX)
    assert secret.removeprefix(PREFIX) not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    again = run.invoke(main, ["key", "create", "--keys", str(path), "--name", "scada"])
    assert again.exit_code == 2
    assert "revoke it" in again.stderr
    assert "scada" in run.invoke(main, ["key", "list", "--keys", str(path)]).stdout
    assert run.invoke(main, ["key", "revoke", "--keys", str(path), "scada"]).exit_code == 0
    assert run.invoke(main, ["key", "revoke", "--keys", str(path), "scada"]).exit_code == 2
    assert run.invoke(main, ["key", "list"]).exit_code == 2
    with pytest.raises(WrongUse, match="holds no API key"):
        Keys(path, lambda: 0.0)


@pytest.mark.parametrize(
    "text", ["", "[]", SAME_NAME, '{"keys": [{"name": "a", "sha256": "no"}]}', '{"keys": [], "kyes": []}']
)
def test_what_is_no_file_of_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(WrongUse, match=r"keys\.json"):
        create_key(path, "a", None, None)
    assert path.read_text() == text


def certificate(folder: Path, *names: x509.GeneralName) -> tuple[Path, Path]:
    """A self-signed certificate for ``names``, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "edge")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "edge.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "edge.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return folder / "edge.crt", folder / "edge.key"


def serve(*flags: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edge_agent.cli", "serve", "--port", "0", "--threads", "1"]
    return subprocess.Popen([*command, *map(str, flags)], stderr=subprocess.PIPE, text=True)


@pytest.mark.model
def test_other_machines_are_served_over_tls_and_with_a_key(tmp_path: Path) -> None:
    write_onnx_release(tmp_path / "minilm", EMBED)
    cert, key = certificate(
        tmp_path, x509.DNSName("press-7.local"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    )
    secret = create_key(tmp_path / "keys.json", "scada", None, None)
    tls = ("--tls-cert", cert, "--tls-key", key)
    model = ("--model", f"minilm={tmp_path}/minilm", "--host", "0.0.0.0")
    for flags in ((), tls, ("--keys", tmp_path / "keys.json")):
        refused = serve(*model, *flags)
        assert refused.wait(30) == 2
        assert refused.stderr is not None
        assert "--tls-cert, --tls-key and --keys" in refused.stderr.read()
    process = serve(*model, *tls, "--keys", tmp_path / "keys.json")
    try:
        assert process.stderr is not None
        port = next(
            found[1] for line in process.stderr if (found := re.search(r"https://0.0.0.0:(\d+)/v1", line))
        )
        trusting = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusting) as client:
            named = {"host": f"press-7.local:{port}"}
            assert client.get("/v1/models", headers=bearer(secret) | named).status_code == 200
            assert client.get("/v1/models", headers=named).status_code == 401
            rebound = client.get("/v1/models", headers=bearer(secret) | {"host": "evil.example"})
            assert rebound.json()["error"]["code"] == "host_not_allowed"
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://127.0.0.1:{port}/healthz")
    finally:
        process.terminate()
        assert process.wait(20) == 0
