"""A text engine that follows a script: the real interface, no weights.

Tokens are words. It honours ``max_tokens``, ``stop``, ``logprobs``, a grammar (by answering ``JSON_ANSWER``)
and a context length, and can be told to crash, to hang, or to be released word by word.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable

from models.engines.base import Event, Finish, GenerateRequest, TokenLogprob, Usage
from models.errors import AnswerTooLong, ContextLengthExceeded, EngineError

JSON_ANSWER = '{"severity": "stop"}'


class ScriptedEngine:
    """Answers ``answer``, or what it makes of a request; raises ``fail_with`` after ``fail_after`` words.

    Waits for ``gate`` before each word.
    """

    def __init__(
        self,
        answer: str | Callable[[GenerateRequest], str] = "one two three four five six",
        *,
        context_tokens: int = 200,
        fail_after: int | None = None,
        fail_with: EngineError | None = None,
        gate: asyncio.Semaphore | None = None,
    ) -> None:
        self.answer = answer
        self.context_tokens = context_tokens
        self.fail_after = fail_after
        self.fail_with = fail_with or EngineError("the engine has crashed")
        self.gate = gate
        self.requests: list[GenerateRequest] = []
        self.cancelled: list[str] = []

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """See ``edge_agent.catalog.TextEngine``."""
        self.requests.append(request)
        prompt_tokens = len(request.prompt if isinstance(request.prompt, tuple) else request.prompt.split())
        room = self.context_tokens - prompt_tokens
        limit = room if request.sampling.max_tokens is None else request.sampling.max_tokens
        if room < 1 or limit > room:
            raise (AnswerTooLong if room >= 1 else ContextLengthExceeded)(
                f"the context has {self.context_tokens} tokens"
            )
        answer, stopped = self._cut(request)
        words = re.findall(r"\S+\s*", answer)
        done = False
        try:
            yield Event(request.id)  # the prompt is being read
            for index, word in enumerate(words[:limit]):
                await (asyncio.sleep(0) if self.gate is None else self.gate.acquire())  # others run meanwhile
                if index == self.fail_after:
                    raise self.fail_with
                yield Event(request.id, word, logprobs=_logprobs(word, request.sampling.logprobs))
            if self.fail_after is not None and self.fail_after >= len(words):
                raise self.fail_with
            finish = Finish.LENGTH if len(words) > limit and not stopped else Finish.STOP
            done = True
            yield Event(request.id, finish=finish, usage=Usage(prompt_tokens, min(len(words), limit)))
        finally:
            if not done:
                self.cancelled.append(request.id)

    def _cut(self, request: GenerateRequest) -> tuple[str, bool]:
        if callable(self.answer):
            answer = self.answer(request)
        else:
            answer = JSON_ANSWER if request.sampling.grammar else self.answer
        places = [answer.find(stop) for stop in request.sampling.stop if stop in answer]
        return (answer[: min(places)], True) if places else (answer, False)


def _logprobs(word: str, most: int | None) -> tuple[TokenLogprob, ...]:
    """The word is always the likeliest."""
    if most is None:
        return ()
    likeliest = ((word.encode(), -0.5), (b"other", -1.5))
    return (TokenLogprob(word.encode(), -0.5, likeliest[:most]),)
