"""Chat templates: messages to the one prompt that a model was trained on.

A template comes with a model file, so it is a stranger's code: it runs in Jinja2's immutable sandbox,
without access to anything but the messages. Pure. Refuses, with ``InvalidTemplate``, whatever does not
compile, whatever a template refuses itself (``raise_exception``), and whatever fails while it runs.

Messages come from strangers too. A turn is closed by a control token, and a message can hold the text of
one; ``prompt`` therefore says where a control token is only text. Which ones the template wrote itself is
found by writing the prompt a second time with the ends of every control token in the messages replaced by
marks, which no template can mistake, drop or make: what still reads as a control token is the template's.

Dialect: that of Hugging Face chat templates (trimmed blocks, loop controls, ``tojson`` without escapes).
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from jinja2 import TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models import tools as calls
from models.errors import InvalidTemplate
from models.tools import Tool

MAX_SOURCE = 1 << 18
"""Characters of the longest template that is compiled."""

_MARKS = range(0xF0000, 0xFFFFE)
"""Code points of a plane for private use: neither white space, nor letters with a case, nor punctuation."""


_PROBE = "4729"
"""A text that survives what templates do to texts."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model reads. Control tokens written out in ``text`` are meant, but not within ``literal``.

    ``literal``: spans of ``text`` in characters, half-open, ascending. Each lies between two control tokens
    of the template (or the ends of the text) and is read jointly, as text alone.

    ``places``: before which characters the pictures and recordings of the messages stand, in their order.
    """

    text: str
    literal: tuple[tuple[int, int], ...] = ()
    places: tuple[int, ...] = ()


class ChatTemplate:
    """A compiled chat template. Raises ``InvalidTemplate`` for a source that does not compile.

    ``control_tokens``: the texts that the model's tokenizer would read as control tokens, besides the two.
    """

    def __init__(
        self, source: str, bos_token: str = "", eos_token: str = "", control_tokens: Iterable[str] = ()
    ) -> None:
        if len(source) > MAX_SOURCE:
            raise InvalidTemplate(f"a chat template of {len(source)} characters; {MAX_SOURCE} are allowed")
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            unknown = meta.find_undeclared_variables(environment.parse(source))
        except (TemplateError, RecursionError) as error:
            raise InvalidTemplate(f"the chat template does not compile: {error}") from error
        self._control = _ControlTokens((bos_token, eos_token, *control_tokens))
        # A template that has another form of a call would teach the model a form that nobody reads.
        self._takes_tools = "tools" in unknown and calls.OPEN in source

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] = ()) -> Prompt:
        """The prompt for messages of strangers: none can write a control token. Raises ``InvalidTemplate``.

        A ``content`` is text or a list of parts: ``text``, and ``image`` or ``audio``, for which the template
        is given a mark to write, and not a part: the engine writes what the model wants around them.

        ``tools`` are told by the template if it tells them in the form of ``models.tools``, else by a text of
        that module's.

        Its text is that of ``render``, and nothing in it is literal unless a control token's text came from
        the messages. Only a template that decides by such a text decides otherwise: it does not see it.
        """
        if any(isinstance(message["content"], list) for message in messages):
            mark = self._mark(messages)
            prompt = self.prompt([_marked(message, mark) for message in messages], tools)
            return _placed(prompt, mark, sum(_media_of(message) for message in messages))
        told: Mapping[str, Any] = {"messages": messages, "tools": [tool.wire() for tool in tools] or None}
        if not self._takes_tools:
            told = {"messages": calls.tell(messages, tools)}
        text = self._render(told)
        ends = self._control.ends
        contents = set("".join(_texts(told)))
        if contents.isdisjoint(ends):
            return Prompt(text)
        taken = contents.union(text, self.source)
        free = [mark for mark in map(chr, _MARKS) if mark not in taken]
        if len(free) < len(ends):
            raise InvalidTemplate("the messages use up the characters for private use")
        pairs = list(zip(ends, free, strict=False))
        to_marks, from_marks = str.maketrans(dict(pairs)), str.maketrans({mark: end for end, mark in pairs})

        def hide(value: str) -> str:
            return value.translate(to_marks)

        marked = self._render(_changed(told, hide))
        if marked.translate(from_marks) != text:
            # The template looks at characters like those ("does it hold a <tag>?"), so they have to stay
            # what they are; only whole control tokens are hidden from it.
            marked = self._render(_changed(told, lambda value: self._control.map(hide, value)))
            text = marked.translate(from_marks)
        return Prompt(text, self._control.literal(text, marked))

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The prompt as text alone, for messages that are trusted. Raises ``InvalidTemplate``.

        ``messages``: ``role`` and ``content``. A control token's text in them is as good as the template's.
        """
        return self._render({"messages": messages, "add_generation_prompt": add_generation_prompt})

    def _mark(self, messages: Sequence[Mapping[str, Any]]) -> str:
        taken = set("".join(_texts(messages))).union(self.source)
        mark = next((mark for mark in map(chr, _MARKS) if mark not in taken), None)
        if mark is None:
            raise InvalidTemplate("the messages use up the characters for private use")
        return mark

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether it writes a content only where that is a list of parts, as some do for models that see."""
        parts = [{"type": "text", "text": _PROBE}]
        return not self._writes(_PROBE) and self._writes(parts)

    def _writes(self, content: Any) -> bool:
        try:
            return _PROBE in self._run({"messages": [{"role": "user", "content": content}]})
        except InvalidTemplate:
            return False

    def _render(self, given: Mapping[str, Any]) -> str:
        values = _changed(given, str)
        if self._takes_parts:
            for message in values["messages"]:
                message["content"] = [{"type": "text", "text": message["content"]}]
        return self._run(values)

    def _run(self, values: Mapping[str, Any]) -> str:
        try:
            return self._template.render({"add_generation_prompt": True, **values, **self._tokens})
        except Exception as error:  # a template is code: it can raise anything
            raise InvalidTemplate(f"the chat template failed: {error}") from error


def _marked(message: Mapping[str, Any], mark: str) -> Mapping[str, Any]:
    """The message with text alone, ``mark`` where a picture or recording stands."""
    content = message["content"]
    if not isinstance(content, list):
        return message
    return {**message, "content": "".join(part.get("text", mark) for part in content)}


def _media_of(message: Mapping[str, Any]) -> int:
    """How many pictures and recordings a message holds."""
    content = message["content"]
    return sum(part["type"] != "text" for part in content) if isinstance(content, list) else 0


def _placed(prompt: Prompt, mark: str, expected: int) -> Prompt:
    """The prompt without the marks, and where they stood."""
    *before, last = prompt.text.split(mark)
    if len(before) != expected:
        raise InvalidTemplate("the chat template does not write each picture or recording just once")
    places = tuple(itertools.accumulate(map(len, before)))

    def moved(at: int) -> int:
        return at - prompt.text.count(mark, 0, at)

    literal = tuple((moved(first), moved(last)) for first, last in prompt.literal)
    return Prompt("".join((*before, last)), literal, places)


class _ControlTokens:
    """The texts of a tokenizer's control tokens, and where they stand."""

    def __init__(self, tokens: Iterable[str]) -> None:
        known = sorted({token for token in tokens if token}, key=lambda token: (-len(token), token))
        self.ends = sorted({end for token in known for end in (token[0], token[-1])})
        any_token = "|".join(map(re.escape, known)) or r"(?!)"
        begins = "".join(sorted({re.escape(token[0]) for token in known})) or "x"
        self._token = re.compile(any_token)
        # At every place, overlapping ones too. The look at one character first keeps it quick.
        self._places = re.compile(f"(?=[{begins}])(?=({any_token}))")

    def map(self, change: Callable[[str], str], text: str) -> str:
        """``text`` with each control token in it changed."""
        return self._token.sub(lambda found: change(found[0]), text)

    def literal(self, text: str, marked: str) -> tuple[tuple[int, int], ...]:
        """Where ``text`` must not be read as control tokens. ``marked`` differs from it by marks alone.

        Law: cut ``text`` at the spans returned; no piece outside them holds a control token that ``marked``
        does not hold there, and no piece inside holds one that it does.
        """
        if self._find(text) == self._find(marked):
            return ()
        spans, start = [], 0
        for first, last in [*(own.span() for own in self._token.finditer(marked)), (len(text), len(text))]:
            if text[start:first] != marked[start:first]:
                spans.append((start, first))
            start = last
        return tuple(spans)

    def _find(self, text: str) -> list[tuple[int, int]]:
        return [found.span(1) for found in self._places.finditer(text)]


_FREE = ("arguments", "parameters")
"""Objects whose keys are the caller's, not the template's."""


def _texts(value: Any, free: bool = False) -> Iterator[str]:
    """All texts in a value that come from a caller."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if free:
                yield key
            yield from _texts(item, free or key in _FREE)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, free)


def _changed(value: Any, change: Callable[[str], str], free: bool = False) -> Any:
    """A copy of ``value`` with each of those texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            change(key) if free else key: _changed(item, change, free or key in _FREE)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_changed(item, change, free) for item in value]
    return value


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
