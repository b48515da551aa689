"""What may be asked of a context, the same for every engine that writes text. Pure."""

from collections.abc import Sequence

from models.errors import AnswerTooLong, ContextLengthExceeded, EngineError, UnsupportedRequest


def longest_answer(prompt: int, asked: int | None, context: int) -> int:
    """How many tokens an answer may have: as many as were ``asked`` for, ``None`` for all that fit.

    ``prompt`` and ``context`` in tokens. Raises ``ContextLengthExceeded``, of it ``AnswerTooLong`` when the
    prompt alone would fit; ``UnsupportedRequest`` for an empty prompt.
    """
    if not prompt:
        raise UnsupportedRequest("the prompt is empty")
    room = context - prompt
    most = room if asked is None else asked
    if most > room or room < 1:
        raise (AnswerTooLong if room >= 1 else ContextLengthExceeded)(
            f"the context has {context} tokens; the prompt takes {prompt}"
            + (f" and the answer may take {asked}" if asked else "")
        )
    return most


def check_scored(tokens: Sequence[int], first: int, context: int, vocabulary: int) -> None:
    """Whether ``tokens`` can be scored from position ``first`` on.

    Raises ``ContextLengthExceeded``, ``EngineError``.
    """
    if len(tokens) > context:
        raise ContextLengthExceeded(f"{len(tokens)} tokens to score; the context has {context}")
    if not 0 <= first < len(tokens):
        raise EngineError(f"cannot score from position {first} of {len(tokens)} tokens")
    if any(not 0 <= token < vocabulary for token in tokens):
        raise EngineError("a token to score is outside the vocabulary")
