"""Teachers that answer in text: a GGUF through the engine that serves it, or an OpenAI-compatible address.

Owns the asking: retries, what has been answered already, and the file in which answers are kept, a line each
as soon as it is there, so that a run that was killed asks nothing twice. Refuses (``TeacherFailed``) an
address that says no, answers that are none, and more prompts without an answer than the recipe allows.
Opens no address but the one that the recipe names: redirects are not followed, no proxy is looked up.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from compile.errors import BadRecipe, TeacherFailed
from compile.recipe.distil import TextTeacher
from compile.steps import Report
from models.engines.base import GenerateRequest, Sampling
from models.errors import EngineError, InvalidTemplate
from models.forecast import memory_needed
from models.prompts import ChatTemplate
from models.workloads import workload_of

if TYPE_CHECKING:
    import httpx

Messages = Sequence[Mapping[str, str]]

ANSWERS = "answers.jsonl"
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may be answered."""
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
"""Seconds."""
_SEQUENCES = 16
"""Answers that a teacher here writes at once."""


class Teacher(Protocol):
    """Whoever answers."""

    def answer(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, str | TeacherFailed]]:
        """Each prompt's number with its answer, or with why there is none, in any order.

        Raises ``TeacherFailed`` when no prompt can be answered.
        """

    def close(self) -> None:
        """Let go of everything."""


def ask(
    teacher: Teacher, prompts: Sequence[Messages], settings: TextTeacher, kept: Path, report: Report
) -> list[str | None]:
    """The answers to ``prompts``, in order; None for the few that ``settings.failures`` lets go without one.

    ``kept`` is the file of answers: those in it are not asked for again. Raises ``TeacherFailed``.
    """
    if settings.system is not None:
        prompts = [({"role": "system", "content": settings.system}, *one) for one in prompts]
    keys = [_key(settings, one) for one in prompts]
    known = _read(kept)
    missing = list({key: at for at, key in enumerate(keys) if key not in known}.values())
    done = len(set(keys)) - len(missing)
    failed: list[TeacherFailed] = []
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.open("a", encoding="utf-8") as stream:
        for number, answer in teacher.answer([prompts[at] for at in missing]) if missing else ():
            at = missing[number]
            if isinstance(answer, TeacherFailed):
                failed.append(answer)
                if len(failed) > settings.failures:
                    raise TeacherFailed(
                        f"{len(failed)} of {len(prompts)} prompts have no answer (teacher.failures allows "
                        f"{settings.failures}); {done} are answered and kept. The last said: {answer}"
                    ) from answer
                continue
            known[keys[at]] = answer
            line = {"key": keys[at], "answer": answer}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            stream.flush()
            done += 1
            report(done / len(set(keys)), f"answer {done} of {len(set(keys))}")
    return [known.get(key) for key in keys]


@contextlib.contextmanager
def open_teacher(
    settings: TextTeacher, file: Path | None, environment: Mapping[str, str], threads: int
) -> Iterator[Teacher]:
    """The teacher that a recipe describes; ``file`` is where its GGUF lies, None for one at a url.

    Raises ``BadRecipe`` where ``environment`` has no key of the name that the recipe gives, and what
    ``LocalTeacher`` raises.
    """
    teacher: LocalTeacher | RemoteTeacher
    if file is not None:
        teacher = LocalTeacher(file, settings, threads)
    else:
        key = environment.get(settings.key_variable or "")
        if settings.key_variable is not None and key is None:
            raise BadRecipe(f"distil.teacher.key_variable: the environment has no {settings.key_variable}")
        teacher = RemoteTeacher(settings, key, time.sleep)
    try:
        yield teacher
    finally:
        teacher.close()


def memory_of(file: Path, settings: TextTeacher) -> int:
    """Peak memory of the teacher in ``file``, by forecast. Raises ``UnsafeFile``."""
    load = workload_of(file, "", settings.context_tokens)  # whatever its precision: memory is bytes
    return round(memory_needed(replace(load, sequences=_SEQUENCES)))


class LocalTeacher:
    """A GGUF, through llama.cpp. Implements ``Teacher``.

    Its own chat template writes the prompt; answers depend on ``settings.seed`` and the number of threads.
    Raises ``EngineError``, ``UnsafeFile``, and ``TeacherFailed`` for a file without a chat template.
    """

    def __init__(self, path: Path, settings: TextTeacher, threads: int) -> None:
        from models.engines.llama_cpp import LlamaEngine, LlamaSettings

        self._settings = settings
        self._engine = LlamaEngine(
            path,
            LlamaSettings(
                threads=threads,
                context_tokens=settings.context_tokens,
                max_sequences=_SEQUENCES,
                batch_tokens=256,
                cache_tokens=_SEQUENCES * settings.context_tokens,
            ),
        )
        facts = self._engine.facts
        if facts.chat_template is None:
            self._engine.close()
            raise TeacherFailed(f"{path.name} has no chat template, so it cannot be asked")
        self._template = ChatTemplate(facts.chat_template, facts.bos, facts.eos, facts.control_tokens)

    def answer(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, str | TeacherFailed]]:
        """As the Protocol says; a prompt that does not fit the context has no answer."""
        for number, messages in enumerate(prompts):
            try:
                prompt = self._template.prompt(messages)
                sampling = Sampling(
                    max_tokens=self._settings.max_tokens,
                    temperature=self._settings.temperature,
                    top_p=self._settings.top_p,
                    # Of the prompt, not of its place: what is asked again after a kill gets the same seed.
                    seed=(self._settings.seed + zlib.crc32(prompt.text.encode())) % 2**31,
                )
                self._engine.submit(GenerateRequest(str(number), prompt.text, sampling, None, prompt.literal))
            except (EngineError, InvalidTemplate) as error:
                yield number, TeacherFailed(f"prompt {number + 1}: {error}")
        texts: dict[str, str] = {}
        while events := self._engine.step():
            for event in events:
                if event.error is not None:
                    yield int(event.id), TeacherFailed(f"prompt {int(event.id) + 1}: {event.error}")
                    continue
                texts[event.id] = texts.get(event.id, "") + event.text
                if event.finish is not None:
                    yield int(event.id), texts.pop(event.id).strip()

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


class RemoteTeacher:
    """An OpenAI-compatible ``/chat/completions``. Implements ``Teacher``.

    ``key`` goes into the header of each request and nowhere else. ``wait`` sleeps for so many seconds.
    ``transport`` stands in for the network, for tests and special routes.
    """

    def __init__(
        self,
        settings: TextTeacher,
        key: str | None,
        wait: Callable[[float], None] = time.sleep,
        transport: "httpx.BaseTransport | None" = None,
    ) -> None:
        import httpx

        if settings.url is None:
            raise TeacherFailed("this teacher has no url")
        self._settings, self._wait = settings, wait
        self._over = threading.Event()
        self._url = f"{settings.url}/chat/completions"
        self._chance = random.Random(settings.seed)  # noqa: S311 - spreads retries, keeps no secret
        self._client = httpx.Client(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(settings.timeout, connect=min(10.0, settings.timeout)),
            limits=httpx.Limits(max_connections=settings.parallel),
            follow_redirects=False,
            trust_env=False,
            transport=transport,
        )

    def answer(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, str | TeacherFailed]]:
        """As the Protocol says; a key that is refused, or a model that is not there, ends it all."""
        self._over.clear()
        with concurrent.futures.ThreadPoolExecutor(self._settings.parallel) as pool:
            waiting = iter(enumerate(prompts))
            running: dict[concurrent.futures.Future[str], int] = {}

            def begin() -> None:
                for number, messages in waiting:
                    running[pool.submit(self._one, messages)] = number
                    return

            try:
                for _ in range(self._settings.parallel):
                    begin()
                while running:
                    done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                    for future in done:
                        number = running.pop(future)
                        try:
                            result: str | TeacherFailed = future.result()
                        except _NoAnswer as error:
                            result = TeacherFailed(f"prompt {number + 1}: {error}")
                        begin()
                        yield number, result
            finally:
                # No new request after an error or a stop by the caller.
                self._over.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _one(self, messages: Messages) -> str:
        """Raises ``_NoAnswer`` for this prompt, ``TeacherFailed`` for all."""
        import httpx

        body = {
            "model": self._settings.model,
            "messages": [dict(one) for one in messages],
            "max_tokens": self._settings.max_tokens,
            "temperature": self._settings.temperature,
            "top_p": self._settings.top_p,
            "seed": self._settings.seed,
        }
        said = ""
        for attempt in range(self._settings.tries):
            if self._over.is_set():
                break
            asked: float | None = None
            try:
                response = self._client.post(self._url, json=body)
            except httpx.TransportError as error:
                said = f"{self._settings.url}: {type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    return _content(response)
                said = f"{self._settings.url} answered {response.status_code}: {_reason(response)}"
                if response.status_code in (400, 413, 422):
                    raise _NoAnswer(said)
                if response.status_code not in _AGAIN:
                    raise TeacherFailed(said)
                asked = _seconds(response.headers.get("retry-after"))
            if attempt + 1 < self._settings.tries:
                pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt) * (0.5 + self._chance.random() / 2)
                self._wait(min(_LONGEST_WAIT, asked) if asked is not None else pause)
        raise _NoAnswer(f"{said} ({self._settings.tries} tries)")


class _NoAnswer(Exception):
    """One prompt has no answer; others may."""


def _content(response: "httpx.Response") -> str:
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise _NoAnswer(f"no chat completion came back: {response.text[:200]!r}") from error
    if not isinstance(content, str):
        raise _NoAnswer("the completion has no text")
    return content.strip()


def _reason(response: "httpx.Response") -> str:
    """What an OpenAI-compatible error says, or how the body begins."""
    try:
        return str(response.json()["error"]["message"])[:300]
    except (ValueError, LookupError, TypeError):
        return response.text[:300]


def _seconds(header: str | None) -> float | None:
    """``retry-after`` in seconds; its other form, a date, is left alone."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None


def _key(settings: TextTeacher, messages: Messages) -> str:
    """Of everything on which an answer depends, so that answers of another teacher are asked for anew."""
    about = settings.model_dump(
        include={"file", "url", "model", "max_tokens", "temperature", "top_p", "seed"}, mode="json"
    )
    text = json.dumps([about, [dict(one) for one in messages]], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _read(kept: Path) -> dict[str, str]:
    """Answers of earlier runs; a line that a kill cut off is taken away."""
    known: dict[str, str] = {}
    if not kept.is_file():
        return known
    data = kept.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    for line in whole.splitlines():
        stored: Any = json.loads(line)
        known[stored["key"]] = stored["answer"]
    if len(whole) != len(data):
        with kept.open("r+b") as stream:
            stream.truncate(len(whole))
    return known
