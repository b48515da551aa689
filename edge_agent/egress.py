"""The only module that can send content off this device.

It takes a ``Decision``, which only the policy can make, and sends exactly the bytes which that decision
names. Whatever goes wrong on the way comes out as a ``HubError``; nothing is retried here, so nothing
leaves twice.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_agent.errors import HubBroke, HubLacksModel, HubRefused, HubUnreachable, PolicyViolation
from edge_agent.policy import Decision, RunAt
from models import data_class
from models.digest import Digest
from models.engines.base import Finish, Usage
from models.openai import sse
from sync.requests import HEADER, sign_request

MAX_LINE = 1 << 20
"""Bytes of one line of a streamed answer; a hub that sends more is cut off."""

MAX_ERROR = 1 << 16
"""Bytes read of an answer that is an error."""


PATIENCE = httpx.Timeout(60.0, connect=5.0, pool=5.0)
"""Seconds of silence before an answer counts as lost, and to wait for a connection at all."""


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """A piece of an answer: text, and in the last piece how it ended and the hub's own receipt."""

    text: str = ""
    finish: Finish | None = None
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
        """The hub's answer to ``body``, a streaming chat request, piece by piece; the last one has a finish.

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
    last = HubAnswer()
    async for line in lines:
        data = decoder.feed(line)
        if data is None:
            continue
        if data == sse.LAST:
            if last.finish is None:
                raise HubBroke("the hub's answer ended without a finish reason")
            yield last
            return
        text, last = _read_chunk(data, last)
        if text:
            yield HubAnswer(text)
    raise HubBroke("the hub's answer stopped half-way")


def _read_chunk(data: str, last: HubAnswer) -> tuple[str, HubAnswer]:
    """The text of one chunk, and what the last piece will say as far as it is known."""
    try:
        chunk = json.loads(data)
        if error := chunk.get("error"):
            raise HubBroke(f"the hub's answer failed: {error['message']!s:.300}")
        text, finish = "", last.finish
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            finish = Finish(choice["finish_reason"]) if choice.get("finish_reason") else finish
        usage, counted = last.usage, chunk.get("usage")
        if counted:
            details = counted.get("prompt_tokens_details") or {}
            usage = Usage(
                int(counted["prompt_tokens"]),
                int(counted["completion_tokens"]),
                int(details.get("cached_tokens") or 0),
            )
        return text, HubAnswer("", finish, usage, chunk.get("outpost") or last.receipt)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubBroke(f"the hub's answer is no chat completion: {error!r:.200}") from error
