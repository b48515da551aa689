"""The only module that can send content off this device.

It takes a ``Decision``, which only the policy can make, and sends exactly the bytes which that decision
names. Whatever goes wrong on the way comes out as a ``HubError``; nothing is retried here, so nothing
leaves twice.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_agent.errors import HubBroke, HubLacksModel, HubRefused, HubUnreachable, PolicyViolation
from edge_agent.policy import Decision, RunAt
from models import data_class
from models.digest import Digest
from models.engines.base import Usage
from models.openai import sse
from models.openai.parts import Chunk, InvalidChunk, Piece, Reason, read_chunk
from sync.requests import HEADER, sign_request

MAX_LINE = 1 << 20
"""Bytes of one line of a streamed answer; a hub that sends more is cut off."""

MAX_ERROR = 1 << 16
"""Bytes read of an answer that is an error."""


PATIENCE = httpx.Timeout(60.0, connect=5.0, pool=5.0)
"""Seconds of silence before an answer counts as lost, and to wait for a connection at all."""


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """A part of an answer: pieces of its choices; in the last one how they ended, and the hub's receipt."""

    pieces: tuple[Piece, ...] = ()
    reasons: tuple[Reason, ...] = ()
    usage: Usage = field(default=Usage())
    receipt: Mapping[str, Any] | None = None


class Egress:
    """Sends chat completions to the hub's device listener at ``url`` (without ``/v1``).

    ``client`` carries the device's TLS context; ``now`` gives seconds since the epoch.
    """

    def __init__(
        self,
        url: str,
        device: str,
        key: Ed25519PrivateKey,
        client: httpx.AsyncClient,
        now: Callable[[], float],
    ) -> None:
        self._url = url.rstrip("/") + "/v1/chat/completions"
        self._device = device
        self._key = key
        self._client = client
        self._now = now

    async def send(self, decision: Decision, body: bytes, request_id: str) -> AsyncGenerator[HubAnswer, None]:
        """The hub's answer to ``body``, a streaming chat request, part by part; the last one has the reasons.

        Raises ``PolicyViolation`` before anything is sent, ``HubUnreachable`` when no answer began,
        ``HubLacksModel`` when nothing there serves the model, ``HubRefused`` for another answer that is
        an error of the caller, ``HubBroke`` for one cut short.
        """
        if not isinstance(decision, Decision) or decision.run_at is not RunAt.HUB:
            raise PolicyViolation("this request may not leave the device")
        if decision.body != Digest.of(body):
            raise PolicyViolation("the decision covers another body")
        headers = {
            "content-type": "application/json",
            "x-request-id": request_id,
            data_class.HEADER: str(decision.data_class),
            HEADER: sign_request(self._key, self._device, self._now(), body),
        }
        began = False
        try:
            async with self._client.stream(
                "POST", self._url, content=body, headers=headers, timeout=PATIENCE
            ) as response:
                await _check(response)
                async for answer in _answers(_lines(response)):
                    began = True
                    yield answer
        except httpx.TransportError as error:
            reason = f"the hub cannot be reached: {type(error).__name__}"
            raise (HubBroke if began else HubUnreachable)(reason) from error


async def _check(response: httpx.Response) -> None:
    if response.status_code == 200:
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise HubBroke(f"the hub answered {kind!r:.60} and no stream")
        return
    if response.status_code >= 500:
        raise HubUnreachable(f"the hub has no answer now ({response.status_code})")
    body = b""
    async for block in response.aiter_bytes():
        body += block
        if len(body) > MAX_ERROR:
            break
    try:
        error = json.loads(body)["error"]
        stated = {name: error[name] for name in ("message", "type", "param", "code")}
    except (ValueError, KeyError, TypeError) as cause:
        raise HubBroke(f"the hub answered {response.status_code} without saying why") from cause
    raise (HubLacksModel if response.status_code == 404 else HubRefused)(response.status_code, stated)


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    buffer = b""
    async for block in response.aiter_bytes():
        *whole, buffer = (buffer + block).split(b"\n")
        if len(buffer) > MAX_LINE:
            raise HubBroke("the hub's answer has an endless line")
        for line in whole:
            yield line.rstrip(b"\r").decode("utf-8", "replace")


async def _answers(lines: AsyncIterator[str]) -> AsyncIterator[HubAnswer]:
    decoder = sse.Decoder()
    reasons: dict[int, Reason] = {}
    last = HubAnswer()
    async for line in lines:
        data = decoder.feed(line)
        if data is None:
            continue
        if data == sse.LAST:
            if not reasons or set(reasons) != set(range(len(reasons))):
                raise HubBroke("the hub's answer ended without a finish reason")
            yield replace(last, reasons=tuple(reasons[index] for index in range(len(reasons))))
            return
        chunk = _read_chunk(data)
        reasons.update(chunk.reasons)
        last = HubAnswer(usage=chunk.usage or last.usage, receipt=chunk.receipt or last.receipt)
        if chunk.pieces:
            yield HubAnswer(chunk.pieces)
    raise HubBroke("the hub's answer stopped half-way")


def _read_chunk(data: str) -> Chunk:
    try:
        chunk = json.loads(data)
        if isinstance(chunk, dict) and (error := chunk.get("error")):
            raise HubBroke(f"the hub's answer failed: {_message(error):.300}")
        return read_chunk(chunk)
    except (ValueError, RecursionError, InvalidChunk) as error:
        raise HubBroke(f"the hub's answer is no chat completion: {error!r:.200}") from error


def _message(error: Any) -> str:
    return str(error.get("message")) if isinstance(error, dict) else str(error)
