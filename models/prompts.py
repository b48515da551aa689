"""Chat templates: messages to the one prompt text that a model was trained on.

A template comes with a model file, so it is a stranger's code: it runs in Jinja2's immutable sandbox,
without access to anything but the messages. Pure. Refuses, with ``InvalidTemplate``, whatever does not
compile, whatever a template refuses itself (``raise_exception``), and whatever fails while it runs.

Dialect: that of Hugging Face chat templates (trimmed blocks, loop controls, ``tojson`` without escapes).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.errors import InvalidTemplate

MAX_SOURCE = 1 << 18
"""Characters of the longest template that is compiled."""


class ChatTemplate:
    """A compiled chat template. Raises ``InvalidTemplate`` for a source that does not compile."""

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        if len(source) > MAX_SOURCE:
            raise InvalidTemplate(f"a chat template of {len(source)} characters; {MAX_SOURCE} are allowed")
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = _environment().from_string(source)
        except (TemplateError, RecursionError) as error:
            raise InvalidTemplate(f"the chat template does not compile: {error}") from error

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The prompt for ``messages`` (``role`` and ``content``). Raises ``InvalidTemplate``."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
        except Exception as error:  # a template is code: it can raise anything
            raise InvalidTemplate(f"the chat template failed: {error}") from error


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
