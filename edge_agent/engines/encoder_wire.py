"""An encoder's calls and answers as what a frame of ``edge_agent.engines.wire`` carries. Pure.

Laws: ``call_from_wire(call_to_wire(x)) == x``, and so for answers, also across a frame.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from edge_agent.engines.encoder_calls import EncoderAnswer, EncoderCall

_CALL, _ANSWER = TypeAdapter(EncoderCall), TypeAdapter(EncoderAnswer)


def call_to_wire(call: EncoderCall) -> dict[str, Any]:
    """An encoder's inputs."""
    return asdict(call)


def call_from_wire(value: Mapping[str, Any]) -> EncoderCall:
    """The inverse of ``call_to_wire``. Raises ``ValueError``."""
    return _CALL.validate_python(value)


def answer_to_wire(answer: EncoderAnswer) -> dict[str, Any]:
    """An encoder's answers."""
    return asdict(answer)


def answer_from_wire(value: Mapping[str, Any]) -> EncoderAnswer:
    """The inverse of ``answer_to_wire``. Raises ``ValueError``."""
    return _ANSWER.validate_python(value)
