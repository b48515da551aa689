"""Functions that a model may call: how they are told, how a call is written, held to its schema, and read.

A call is the text ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` in the answer, the form that
Hermes and Qwen models are trained on (https://github.com/NousResearch/Hermes-Function-Calling). Pure.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from models.errors import UnsupportedRequest
from models.grammar import Rules
from models.grammar_text import literal

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALLS = 16
"""Calls in one answer."""

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([\w.-]+)"\s*,\s*"arguments"\s*:\s*(?=\{)', re.ASCII)
_MAX_HEAD = 1_000
"""Characters in which a call must have named its function, or it is none."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function. ``parameters``: JSON Schema of the object that it takes."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def wire(self) -> dict[str, Any]:
        """As OpenAI's API and chat templates write it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What may be called. ``named``: the one that must be; ``parallel``: several in one answer."""

    tools: tuple[Tool, ...]
    choice: Literal["none", "auto", "required"] = "auto"
    named: str | None = None
    parallel: bool = True

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that an answer may call."""
        if self.choice == "none":
            return ()
        return tuple(tool for tool in self.tools if self.named in (None, tool.name))


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A new piece of one call. ``name`` comes with the first piece, ``arguments`` are to be joined."""

    index: int
    name: str | None = None
    arguments: str = ""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """What holds an answer to its form: see ``models.engines.base.Sampling``."""

    grammar: str
    trigger: str | None = None


def hold(schema: Mapping[str, Any] | None, toolbox: Toolbox | None) -> Held:
    """The grammar of an answer that meets ``schema``, calls tools, or may do either; one of them is given.

    Raises ``UnsupportedRequest``; about a tool, its message begins with ``tools[i]``.
    """
    rules = Rules()
    ways = []
    if schema is not None and not (toolbox and toolbox.choice == "required"):
        ways.append(rules.schema(schema))
    if toolbox and (tools := toolbox.callable):
        call = rules.define("call", " | ".join(_call(rules, tool, toolbox) for tool in tools))
        more = f' ("\\n"? {call}){{0,{MAX_CALLS - 1}}}' if toolbox.parallel else ""
        ways.append(rules.define("calls", call + more))
    rules.define("root", " | ".join(ways))
    free = toolbox is not None and toolbox.choice == "auto" and schema is None
    return Held(rules.text(), OPEN if free else None)


def _call(rules: Rules, tool: Tool, toolbox: Toolbox) -> str:
    try:
        arguments = rules.schema(tool.parameters)
    except UnsupportedRequest as error:
        raise UnsupportedRequest(f"tools[{toolbox.tools.index(tool)}]: {error}") from error
    name = literal(tool.name)
    return rules.define(
        f"call-{toolbox.tools.index(tool)}",
        rf'"{OPEN}" "\n"? "{{" "\"name\":" " "? {name} "," " "? "\"arguments\":" " "? {arguments} '
        rf'"}}" "\n"? "{CLOSE}"',
    )


def write_call(name: str, arguments: str) -> str:
    """A call as text; ``arguments`` is JSON. Law: ``CallReader`` reads back the same."""
    return f'{OPEN}\n{{"name": {_json(name)}, "arguments": {arguments}}}\n{CLOSE}'


def tell(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """A conversation for a template that knows no tools: they are told in the system message, calls and
    answers are plain text.
    """
    told: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], message["content"]
        functions = [call["function"] for call in message.get("tool_calls", ())]
        calls = [write_call(one["name"], _json(one["arguments"])) for one in functions]
        if role != "tool":
            speaker = {"name": message["name"]} if "name" in message else {}
            written = "\n".join([content, *calls] if content else calls)
            told.append({"role": role, "content": written, **speaker})
            continue
        answer = f"<tool_response>\n{content}\n</tool_response>"
        if told and told[-1].get("answers"):
            told[-1]["content"] += "\n" + answer
        else:
            told.append({"role": "user", "content": answer, "answers": True})
    if tools:
        text = _system_text(tools)
        if told and told[0]["role"] == "system":
            told[0]["content"] += "\n\n" + text
        else:
            told.insert(0, {"role": "system", "content": text})
    return [{key: value for key, value in message.items() if key != "answers"} for message in told]


def _system_text(tools: Sequence[Tool]) -> str:
    listed = "\n".join(_json(tool.wire()) for tool in tools)
    example = write_call("NAME", "{ARGUMENTS}")
    return (
        f"You can call functions. These are their signatures, one a line:\n<tools>\n{listed}\n</tools>\n"
        f"To call one, answer with its name and its arguments as a JSON object in this form:\n{example}"
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class CallReader:
    """Splits an answer that arrives in pieces into text and calls.

    Total: what does not begin as a call is text; a call that breaks off has the arguments that came, and
    before it has a name it is nothing. So is half a mark at the end of an answer of calls: a limit cut it.
    White space around calls is dropped. Law: however the answer is cut into pieces, the joined text and the
    joined calls are the same. ``new_id`` makes the id of the call with a given index.
    """

    def __init__(self, new_id: Callable[[int], str]) -> None:
        self._new_id = new_id
        self._buffer = ""
        self._state: Callable[[bool], _Found | None] = self._text
        self._object = _ObjectEnd()
        self._after_call = False
        self._only_calls = True
        self.calls = 0

    def feed(self, text: str) -> Iterator[str | CallDelta]:
        """What is certain now."""
        self._buffer += text
        return self._run(ended=False)

    def end(self) -> Iterator[str | CallDelta]:
        """The rest: nothing more will come."""
        return self._run(ended=True)

    def _run(self, ended: bool) -> "_Found":
        while (found := self._state(ended)) is not None:
            yield from found

    # A state takes what it can from the buffer, sets the next state, and returns what it found, or None
    # when it needs more. It decides by the beginning of the buffer alone, never by where pieces end.

    def _text(self, ended: bool) -> "_Found | None":
        if self._after_call:
            self._buffer = self._buffer.lstrip()
        start = self._buffer.find(OPEN)
        if start >= 0:
            self._state = self._head
            shown = self._take(len(self._buffer[:start].rstrip()))
        else:
            shown = self._take(len(self._buffer) if ended else _certain(self._buffer))
            if ended and self._is_cut_mark(shown.strip()):
                shown = ""
        if shown:
            self._after_call, self._only_calls = False, False
            return iter([shown])
        return iter([]) if start >= 0 else None

    def _is_cut_mark(self, rest: str) -> bool:
        """Whether the last of an answer is no text but the first half of a mark, or nothing."""
        if self._after_call or not rest:
            return self.calls > 0 and OPEN.startswith(rest)
        return self._only_calls and len(rest) > 1 and OPEN.startswith(rest)

    def _head(self, ended: bool) -> "_Found | None":
        """At the mark that opens a call, perhaps with white space before it."""
        after = self._buffer.index(OPEN) + len(OPEN)
        close = self._buffer.find(CLOSE, after)
        most = after + _MAX_HEAD if close < 0 else min(close, after + _MAX_HEAD)
        head = _HEAD.match(self._buffer, after, most)
        if head:
            self._take(head.end())
            self._state, self._object = self._arguments, _ObjectEnd()
            index, self.calls = self.calls, self.calls + 1
            return iter([CallDelta(index, head[1], "", self._new_id(index))])
        if close < 0 and len(self._buffer) < most:
            if ended and self._buffer[after:].lstrip()[:1] in ("", "{"):
                self._take(len(self._buffer))  # a call that was cut before it had a name
            if not (ended and self._buffer):
                return None
        self._state, self._after_call, self._only_calls = self._text, False, False
        return iter([self._take(after)])

    def _arguments(self, ended: bool) -> "_Found | None":
        if not self._buffer:
            return None
        end = self._object.find(self._buffer)
        if end is not None:
            self._state = self._tail
        return iter([CallDelta(self.calls - 1, arguments=self._take(end or len(self._buffer)))])

    def _tail(self, ended: bool) -> "_Found | None":
        rest = self._buffer.lstrip().removeprefix("}").lstrip()
        if len(rest) < len(CLOSE) and CLOSE.startswith(rest):
            if not ended:
                return None
            rest = ""
        self._buffer = rest.removeprefix(CLOSE)
        self._state, self._after_call = self._text, True
        return iter([])

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken


_Found = Iterator[str | CallDelta]


def _certain(text: str) -> int:
    """How much of ``text`` no mark that is still to come can make part of a call."""
    mark = text.rfind(OPEN[0])
    return len((text[:mark] if mark >= 0 and OPEN.startswith(text[mark:]) else text).rstrip())


class _ObjectEnd:
    """Finds the end of a JSON object that arrives in pieces, by its braces outside of strings."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, text: str) -> int | None:
        """How many characters of ``text`` belong to the object, if it ends there."""
        for at, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{}":
                self._depth += 1 if character == "{" else -1
                if not self._depth:
                    return at + 1
        return None
