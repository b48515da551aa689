"""Several answers to one call: their events as one stream, and what each of them became.

Owns telling text from tool calls in what an engine writes. Refuses knowing policy, journal or HTTP.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from models.engines.base import Event, Finish, Usage
from models.openai.parts import Choice, Piece
from models.tools import CallDelta, CallReader

T = TypeVar("T")


@asynccontextmanager
async def at_once(items: AsyncGenerator[T, None]) -> AsyncIterator[AsyncIterator[T]]:
    """The same items, of which the first is asked for now: whoever makes them works while the block does.

    Leaving the block closes ``items``.
    """
    first = asyncio.ensure_future(anext(items, None))

    async def all_of_them() -> AsyncGenerator[T, None]:
        item = await first
        while item is not None:
            yield item
            item = await anext(items, None)

    try:
        for _ in range(2):  # a turn of the loop in which they are asked for, and one in which that is sent
            await asyncio.sleep(0)
        async with aclosing(all_of_them()) as them:
            yield them
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await items.aclose()


async def merged(streams: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of all streams as they come, each with its stream's index.

    The first error ends all; closing this generator closes them.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as alone:
            async for event in alone:
                yield 0, event
        return
    waiting = {asyncio.ensure_future(anext(stream, None)): at for at, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                # One that has not had its turn stays, so that an error before it leaves none unheard.
                at, following = waiting.pop(task), task.result()
                if following is not None:
                    waiting[asyncio.ensure_future(anext(streams[at], None))] = at
                    yield at, following
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


class Answering:
    """One choice while the engine writes it. ``call_ids`` begins the ids of its calls, None without tools."""

    def __init__(self, index: int, call_ids: str | None) -> None:
        self._index = index
        self._reader = None if call_ids is None else CallReader(lambda call: f"{call_ids}_{index}_{call}")
        self.finish: Finish | None = None
        self.usage = Usage()
        self.whole = Choice()

    def take(self, event: Event) -> Iterator[Piece]:
        """What is new to the caller."""
        logprobs = event.logprobs
        for found in self._found(event):
            calls = (found,) if isinstance(found, CallDelta) else ()
            piece = Piece(self._index, found if isinstance(found, str) else "", calls, logprobs)
            self.whole.add(piece)
            yield piece
            logprobs = ()
        if event.finish is not None:
            self.finish, self.usage = event.finish, event.usage
            self.whole.reason = "length" if event.finish is Finish.LENGTH else "stop"
            if event.finish is Finish.STOP and self.whole.calls:
                self.whole.reason = "tool_calls"

    def _found(self, event: Event) -> "list[str | CallDelta]":
        if self._reader is None:
            found: list[str | CallDelta] = [event.text] if event.text else []
        else:
            found = [*self._reader.feed(event.text), *(self._reader.end() if event.finish else ())]
        return found or ([""] if event.logprobs else [])


def counted(usages: Sequence[Usage], choices: int) -> Usage:
    """The tokens of a call of which each prompt has so many choices, one after the other.

    A prompt counts once; what its other choices did not compute was not cached before the call.
    """
    prompts = [usages[at : at + choices] for at in range(0, len(usages), choices)]
    return Usage(
        sum(group[0].prompt_tokens for group in prompts),
        sum(usage.completion_tokens for usage in usages),
        sum(min(usage.cached_tokens for usage in group) for group in prompts),
    )


def kept(choices: Sequence[Choice]) -> bytes:
    """What the journal keeps of an answer: its text; with calls or several choices, JSON of them all."""
    if len(choices) == 1 and not choices[0].calls:
        return choices[0].text.encode()
    shown = [
        {
            "text": choice.text,
            "calls": [{"name": call.name, "arguments": call.arguments} for call in choice.calls],
        }
        for choice in choices
    ]
    return json.dumps(shown, ensure_ascii=False).encode()
