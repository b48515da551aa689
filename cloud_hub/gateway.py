"""The gateway: OpenAI requests of people and devices, passed on to the upstreams that can answer them.

Owns the passing on, and the receipt that says that the hub served. Refuses: restricted content, storing
or logging any content, and a clean end for a stream that its upstream did not finish.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from cloud_hub.errors import NotFound, NoUpstream
from cloud_hub.routing import Health, Upstream, choose
from models import data_class
from models.data_class import DataClass, classify
from models.openai import sse
from models.openai.errors import ApiError, bad_request

MAX_BODY = 4 << 20
"""Bytes of a request."""
MAX_ANSWER = 32 << 20
"""Bytes of an answer that is not streamed."""
MAX_LINE = 1 << 20
"""Bytes of one line of a streamed answer."""
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
_LAST_EVENTS = ("response.completed", "response.incomplete", "response.failed")
_PASSED_ON = (data_class.HEADER, "x-request-id")


@dataclass(frozen=True, slots=True)
class Answer:
    """An upstream's answer: status, headers, and its bytes as they come."""

    status: int
    headers: dict[str, str]
    body: AsyncIterator[bytes]


class Gateway:
    """Passes requests on. ``clock`` is monotonic; ``read_key`` reads an upstream's API key file."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        upstreams: Callable[[], Awaitable[list[Upstream]]],
        read_key: Callable[[str], Awaitable[str]],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._upstreams = upstreams
        self._read_key = read_key
        self._clock = clock
        self._health: dict[str, Health] = {}

    async def forward(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """The answer of the best upstream; one that cannot be reached is passed over.

        A request that has reached an upstream is not tried elsewhere: it may have cost something.
        Raises ``ApiError``.
        """
        if classify(headers.get(data_class.HEADER), DataClass.PUBLIC) is DataClass.RESTRICTED:
            raise ApiError(
                403,
                "restricted content stays where it is; the hub does not take it",
                code="data_class_restricted",
            )
        request = _read(body)
        try:
            candidates = choose(request["model"], await self._upstreams(), self._health, self._clock())
        except NotFound as error:
            raise ApiError(404, str(error), param="model", code="model_not_found") from error
        except NoUpstream as error:
            raise ApiError(503, str(error), code="no_upstream", retry_after=1) from error
        for upstream in candidates:
            answer = await self._try(upstream, path, request, headers)
            if answer is not None:
                return answer
        raise ApiError(503, "no upstream for this model can be reached", code="no_upstream", retry_after=1)

    async def models(self) -> list[str]:
        """The names for which a request finds an upstream."""
        found = await self._upstreams()
        return sorted({name for each in found for name in (each.model, *each.accepts) if name != "*"})

    async def _try(
        self, upstream: Upstream, path: str, request: dict[str, Any], headers: Mapping[str, str]
    ) -> Answer | None:
        sent = {"content-type": "application/json"}
        sent |= {name: headers[name] for name in _PASSED_ON if name in headers and headers[name].isascii()}
        if upstream.key_file is not None:
            sent["authorization"] = f"Bearer {await self._read_key(upstream.key_file)}"
        body = json.dumps({**request, "model": upstream.model}, ensure_ascii=False).encode()
        outgoing = self._client.build_request("POST", upstream.url + path, content=body, headers=sent)
        self._count(upstream, 1)
        try:
            response = await self._client.send(outgoing, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            self._count(upstream, -1)
            self._health[upstream.name] = self._of(upstream).after_failure(self._clock())
            return None
        except httpx.TransportError as error:
            self._count(upstream, -1)
            self._health[upstream.name] = self._of(upstream).after_failure(self._clock())
            raise ApiError(502, f"upstream {upstream.name} broke off", code="upstream_failed") from error
        except BaseException:
            self._count(upstream, -1)
            raise
        self._health[upstream.name] = self._of(upstream).after_answer()
        kind = response.headers.get("content-type", "application/json")
        passed = {"content-type": kind, "x-outpost-served-by": "hub", "x-outpost-upstream": upstream.name}
        for name in ("retry-after", "x-request-id"):
            if name in response.headers:
                passed[name] = response.headers[name]
        if kind.startswith("text/event-stream"):
            return Answer(response.status_code, passed, self._stream(upstream, response))
        return Answer(response.status_code, passed, await self._whole(upstream, response))

    async def _stream(self, upstream: Upstream, response: httpx.Response) -> AsyncIterator[bytes]:
        why = "broke off"
        line = b""
        try:
            async for block in response.aiter_bytes():
                *whole, line = (line + block).split(b"\n")
                if whole:
                    yield b"".join(_receipted_line(each) + b"\n" for each in whole)
                if len(line) > MAX_LINE:
                    why = "sends a line without end"
                    raise httpx.ReadError(why)
            if line:
                yield _receipted_line(line)
        except httpx.RequestError:
            broken = ApiError(502, f"upstream {upstream.name} {why}", code="upstream_failed")
            yield b"\n\n" + sse.event(broken.body())
        finally:
            await response.aclose()
            self._count(upstream, -1)

    async def _whole(self, upstream: Upstream, response: httpx.Response) -> AsyncIterator[bytes]:
        received = bytearray()
        try:
            async for block in response.aiter_bytes():
                received += block
                if len(received) > MAX_ANSWER:
                    raise ApiError(
                        502, f"upstream {upstream.name} answers without end", code="upstream_failed"
                    )
        except httpx.RequestError as error:
            raise ApiError(502, f"upstream {upstream.name} broke off", code="upstream_failed") from error
        finally:
            await response.aclose()
            self._count(upstream, -1)
        return _once(_receipted(bytes(received)) if response.status_code == 200 else bytes(received))

    def _of(self, upstream: Upstream) -> Health:
        return self._health.get(upstream.name, Health())

    def _count(self, upstream: Upstream, change: int) -> None:
        health = self._of(upstream)
        self._health[upstream.name] = Health(health.in_flight + change, health.failures, health.rest_until)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _receipted(data: bytes, chunk: bool = False) -> bytes:
    """An answer, with the hub's receipt in ``outpost`` and in it, as ``upstream``, the one that came.

    Of a stream's chunks those get it that end a choice or bring one; of a response's events, the response in
    the last. What is no JSON object stays as it is.
    """
    try:
        answer = json.loads(data)
        ends = not chunk or any(choice.get("finish_reason") for choice in answer.get("choices") or ())
        if not isinstance(answer, dict):
            return data
        if answer.get("type") in _LAST_EVENTS and isinstance(answer.get("response"), dict):
            answer = {**answer, "response": _with_receipt(answer["response"])}
        elif ends or "outpost" in answer:
            answer = _with_receipt(answer)
        else:
            return data
        # Escaped: half of a surrogate pair in an upstream's text cannot be written in any other way.
        return json.dumps(answer, separators=(",", ":")).encode()
    except (ValueError, RecursionError, AttributeError, TypeError):
        return data


def _with_receipt(answer: dict[str, Any]) -> dict[str, Any]:
    receipt: dict[str, Any] = {"served_by": "hub"}
    if isinstance(answer.get("outpost"), dict):
        receipt["upstream"] = answer["outpost"]
    return {**answer, "outpost": receipt}


def _receipted_line(line: bytes) -> bytes:
    field, colon, value = line.partition(b":")
    if field != b"data" or not value.lstrip().startswith(b"{"):
        return line
    ended = _receipted(value, chunk=True)
    return line if ended is value else field + colon + b" " + ended


def _read(body: bytes) -> dict[str, Any]:
    """Only what routing needs is checked here; the upstream judges the rest."""
    try:
        request = json.loads(body)
        json.dumps(request, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise bad_request("the body is not JSON, or holds what is no text", code="invalid_json") from error
    if not isinstance(request, dict) or not isinstance(request.get("model"), str):
        raise bad_request("name a model", param="model", code="missing_required_parameter")
    return request
