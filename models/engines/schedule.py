"""What to compute next: where a new sequence goes, and which tokens fill the next batch.

Pure decisions over plain values. A *slot* is one sequence id of a context; the *cache* is the pool of
KV cells that all slots of a context share. A slot keeps its cells after its request has ended, so that
a later prompt with the same beginning need not be computed again; they are the first to be given up.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SlotView:
    """A slot as the decision sees it.

    ``tokens`` are those whose KV is in the cache, at positions 0, 1, ...; ``reserved`` is the number of
    cells promised to the running request (0 when idle); ``used`` orders slots by last use.
    """

    index: int
    tokens: Sequence[int]
    reserved: int
    used: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Put the sequence into slot ``target``; its first ``reuse`` tokens come from slot ``source``.

    After that copy the slots in ``evict`` give up their cells.
    """

    target: int
    source: int
    reuse: int
    evict: tuple[int, ...] = ()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share from the start."""
    size = min(len(a), len(b))
    for index in range(size):
        if a[index] != b[index]:
            return index
    return size


def place(slots: Sequence[SlotView], prompt: Sequence[int], reserve: int, cache: int) -> Placement | None:
    """Where a prompt that will need ``reserve`` of the ``cache`` cells goes; ``None``: not yet.

    The cells of running requests are counted as if nothing were shared, so that what is promised is
    always there. At least the last token of the prompt is left to compute: its logits are needed.
    """
    idle = [slot for slot in slots if not slot.reserved]
    promised = sum(slot.reserved for slot in slots)
    if not idle or promised + reserve > cache:
        return None
    # Among equals the one that was not used for longest: it may be the one to be overwritten.
    source = max(slots, key=lambda slot: (common_prefix(slot.tokens, prompt), not slot.reserved, -slot.used))
    reuse = min(common_prefix(source.tokens, prompt), len(prompt) - 1)
    target = min(idle, key=lambda slot: (bool(slot.tokens), slot.used))
    # A text that is mostly reused is continued in place, and so is any when no slot is empty: what else
    # stood in the source is lost, but no other slot's text is.
    if not source.reserved and (2 * reuse >= len(source.tokens) or target.tokens):
        target = source
    kept = [slot for slot in idle if slot is not target]
    free = cache - promised - reserve - sum(len(slot.tokens) for slot in kept)
    evict = []
    for slot in sorted(kept, key=lambda slot: (slot is source, slot.used)):
        if free >= 0:
            break
        evict.append(slot.index)
        free += len(slot.tokens)
    return Placement(target.index, source.index, reuse, tuple(evict))


@dataclass(frozen=True, slots=True)
class Pending:
    """A running sequence with ``tokens`` still to compute; ``arrival`` orders requests."""

    slot: int
    tokens: int
    arrival: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute the next ``size`` tokens of a slot; ``last``: nothing is left after them."""

    slot: int
    size: int
    last: bool


def fill(pending: Sequence[Pending], batch: int) -> tuple[Chunk, ...]:
    """The next batch of at most ``batch`` tokens.

    Sequences that already answer (one token each) go first, so that a long prompt never stops them;
    what room is left takes prompts in order of arrival.
    """
    chunks = []
    for item in sorted(pending, key=lambda item: (item.tokens > 1, item.arrival)):
        size = min(item.tokens, batch)
        if not size:
            break
        chunks.append(Chunk(item.slot, size, size == item.tokens))
        batch -= size
    return tuple(chunks)
