"""What to compute next: who waits for whose prompt, and which tokens fill the next batch. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from models.engines.prefixes import common_prefix

WORTH_WAITING = 8
"""Tokens; a shorter prefix is computed again rather than waited for."""
_MUCH_SHORTER = 4
"""Times; a prompt so much shorter than the one that is being read is read beside it."""


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
    Prompts take what room is left in order of arrival, but much shorter ones than the first share half of it
    with that one: they need not wait until it is read.
    """
    answering = sorted((item for item in pending if item.tokens == 1), key=_arrival)[:batch]
    prompts = sorted((item for item in pending if item.tokens > 1), key=_arrival)
    room = batch - len(answering)
    if answering:
        room = min(room, beside)
    sizes = dict.fromkeys((item.id for item in answering), 1)
    short = [item for item in prompts if _MUCH_SHORTER * item.tokens <= prompts[0].tokens]
    for queue, most in ((sorted(short, key=lambda item: item.tokens), room // 2), (prompts, room)):
        for item in queue:
            size = min(item.tokens - sizes.get(item.id, 0), most, room)
            if size > 0:
                sizes[item.id] = sizes.get(item.id, 0) + size
                most -= size
                room -= size
    return tuple(
        Chunk(item.id, sizes[item.id], sizes[item.id] == item.tokens)
        for item in (*answering, *prompts)
        if item.id in sizes
    )


def batches(chunks: Sequence[Chunk], mixed: bool) -> list[tuple[Chunk, ...]]:
    """What is computed together: all of a step if ``mixed``, else answers apart from prompts.

    Attention on a CPU goes by tiles of 64 tokens: beside the answers of several sequences, a tile of a prompt
    passes over the cells of all of them. A GPU would read the weights twice instead.
    """
    answers = tuple(chunk for chunk in chunks if chunk.last and chunk.size == 1)
    prompts = tuple(chunk for chunk in chunks if not (chunk.last and chunk.size == 1))
    return [batch for batch in ([tuple(chunks)] if mixed else [answers, prompts]) if batch]


def _arrival(item: Pending) -> int:
    return item.arrival
