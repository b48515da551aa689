"""What to compute next: who waits for whose prompt, and which tokens fill the next batch. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from models.engines.prefixes import common_prefix

WORTH_WAITING = 8
"""Tokens; a shorter prefix is computed again rather than waited for."""


def is_coming(prompt: list[int], known: int, ahead: Iterable[tuple[list[int], int]]) -> bool:
    """Whether more of a prompt than the ``known`` first tokens is being computed by others, and worth a wait.

    ``ahead``: the prompts of running requests that came earlier, and how many of their tokens are computed.
    (Were later ones among them, a request could be overtaken without end.)
    """
    useful = len(prompt) - 1  # the last token is computed in any case
    return any(
        done < (size := min(common_prefix(other, prompt), useful)) and size - known >= WORTH_WAITING
        for other, done in ahead
        if done < len(other)
    )


@dataclass(frozen=True, slots=True)
class Pending:
    """A running sequence with ``tokens`` still to compute; ``arrival`` orders requests."""

    id: int
    tokens: int
    arrival: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute the next ``size`` tokens of a sequence; ``last``: nothing is left after them."""

    id: int
    size: int
    last: bool


def fill(pending: Sequence[Pending], batch: int, beside: int) -> tuple[Chunk, ...]:
    """The next batch of at most ``batch`` tokens.

    Sequences that already answer (one token each) go first, so that a long prompt never stops them, and if
    there are any, prompts take at most ``beside`` tokens together, so that it does not slow them much.
    What room is left takes prompts in order of arrival.
    """
    answering = [item for item in pending if item.tokens == 1]
    prompts = [item for item in pending if item.tokens > 1]
    chunks = [Chunk(item.id, 1, True) for item in sorted(answering, key=_arrival)[:batch]]
    room = batch - len(chunks)
    if answering:
        room = min(room, beside)
    for item in sorted(prompts, key=_arrival):
        size = min(item.tokens, room)
        if not size:
            break
        chunks.append(Chunk(item.id, size, size == item.tokens))
        room -= size
    return tuple(chunks)


def _arrival(item: Pending) -> int:
    return item.arrival
