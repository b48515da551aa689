"""Which KV cells hold which tokens, and who may have how many: a radix tree over token ids. Pure.

A *sequence id* stands for the cells of one sequence of tokens; ids whose tokens begin alike share the cells
of that beginning. An id either *runs* a request, which has been promised all the cells that it may need, or
only *keeps* a prefix for later requests. Every method decides, changes the tree, and returns what has to be
done to the real cells, in order.

Laws. No two nodes hold the same tokens at the same place, so the cells in use are the tokens of the tree.
What running requests hold and have still been promised never exceeds the cells there are, so room for them
can always be made by giving up kept prefixes, those used longest ago first and their ends before their
beginnings. A kept id is the only one to hold the end of its sequence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from models.errors import EngineError

_BLOCK = 64
"""Tokens that are compared at once."""

GIVE_UP_AT_ONCE = 64
"""Cells of a kept prefix that are given up together, so that not every token has to ask for one."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The empty sequence id ``target`` is to have the first ``last`` tokens of ``source``."""

    source: int
    target: int
    last: int


@dataclass(frozen=True, slots=True)
class Share:
    """``target`` holds the same tokens as ``source`` at positions ``first`` to ``last`` - 1: the cells of one
    are enough.
    """

    source: int
    target: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Sequence id ``id`` lets go of its cells at positions ``first`` to ``last`` - 1; -1: to its end."""

    id: int
    first: int = 0
    last: int = -1


Change = Copy | Share | Drop


@dataclass(frozen=True, slots=True)
class Start:
    """A request runs in sequence id ``id``; ``reuse`` tokens of its prompt are there once ``changes`` are."""

    id: int
    reuse: int
    changes: tuple[Change, ...]


@dataclass(eq=False, slots=True)
class _Node:
    """A run of tokens from position ``start`` on. ``ids`` hold it; the path's first ``shared`` tokens are
    those of ``PrefixTree.shared``; 0: none end here.
    """

    key: int
    start: int
    tokens: list[int]
    parent: "_Node | None"
    children: dict[int, "_Node"] = field(default_factory=dict)
    ids: set[int] = field(default_factory=set)
    shared: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def path(self) -> Iterator["_Node"]:
        """This node and those above it, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


@dataclass(slots=True)
class _Held:
    """What an id holds: the path to ``node``. ``promised`` tokens in all while it runs; 0: kept."""

    node: _Node
    promised: int
    used: int


def common_prefix(a: Sequence[int], b: Sequence[int], offset: int = 0) -> int:
    """How many tokens ``a`` shares with ``b[offset:]`` from the start."""
    size = min(len(a), len(b) - offset)
    done = 0
    while done < size:
        step = min(_BLOCK, size - done)
        if a[done : done + step] != b[offset + done : offset + done + step]:
            while a[done] == b[offset + done]:
                done += 1
            return done
        done += step
    return size


class PrefixTree:
    """``cells`` KV cells under ``ids`` sequence ids, of which ``running`` may run requests.

    ``ids`` is at least ``running`` + 1. With ``shares`` false every sequence has cells of its own and keeps
    nothing, for models whose state cannot be cut at a prefix. Sequences are lists of token ids.

    ``used`` cells hold tokens; ``running`` counts the requests that were started and are not finished.
    """

    def __init__(self, ids: int, running: int, cells: int, shares: bool = True) -> None:
        self.cells = cells
        self.used = 0
        self._limit, self._shares = running, shares
        self._root = _Node(0, 0, [], None)
        self._held: dict[int, _Held] = {}
        self._free = list(range(ids))  # a heap: cells that are apart are read together if ids are consecutive
        self.running = 0
        self._clock = 0

    # Questions

    @property
    def spare(self) -> int:
        """How many ids neither run nor keep."""
        return len(self._free)

    @property
    def held(self) -> tuple[int, ...]:
        """The ids that run or keep."""
        return tuple(self._held)

    def longest(self, tokens: list[int]) -> int:
        """How many of the first tokens are in cells."""
        node, inside = self._find(tokens)
        return node.start + inside

    def length(self, id: int) -> int:
        """How many tokens an id holds."""
        return self._held[id].node.end

    def tokens(self, id: int) -> list[int]:
        """The tokens that an id holds."""
        parts = [node.tokens for node in self._held[id].node.path()]
        return [token for part in reversed(parts) for token in part]

    def promised(self) -> int:
        """Cells that running requests hold together or may still ask for."""
        ahead = sum(held.promised - held.node.end for held in self._held.values() if held.promised)
        return ahead + sum(len(node.tokens) for node in self._in_use())

    def shared(self) -> list[tuple[int, int]]:
        """Ids, and how many of their first tokens requests share that then differ; the latest used first.

        Of beginnings that are beginnings of others only the longest; all of them are kept or running.
        """
        found: list[tuple[int, list[int]]] = []
        for id in sorted(self._held, key=lambda id: -self._held[id].used):
            length = self.shared_of(id)
            tokens = self.tokens(id)[:length]
            if length and not any(tokens == other[:length] for _, other in found):
                found = [(i, other) for i, other in found if tokens[: len(other)] != other]
                found.append((id, tokens))
        return [(id, len(tokens)) for id, tokens in found]

    def kept(self) -> list[int]:
        """The ids that only keep, the one used longest ago first."""
        kept = [id for id, held in self._held.items() if not held.promised]
        return sorted(kept, key=lambda id: self._held[id].used)

    def kept_cells(self) -> int:
        """Cells that no running request holds."""
        return self.used - sum(len(node.tokens) for node in self._in_use())

    def shared_of(self, id: int) -> int:
        """How many of the first tokens of an id requests share."""
        return max((node.shared for node in self._held[id].node.path()), default=0)

    # Decisions

    def start(self, prompt: list[int], promised: int) -> Start | None:
        """Begin a request that will hold at most ``promised`` tokens; ``None``: there is no room yet.

        At least the last token of the prompt is left to compute: its logits are needed.
        """
        if self.running == self._limit:
            return None
        node, inside = self._find(prompt[:-1])
        reuse = node.start + inside
        held_by_others = sum(
            min(part.end, reuse) - part.start
            for part in node.path()
            if not any(self._held[id].promised for id in part.ids)
        )
        if self.promised() + held_by_others + promised - reuse > self.cells:
            return None
        changes: list[Change] = []
        self._clock += 1
        self.running += 1
        heir = next((id for id in node.ids if inside == len(node.tokens) and self._keeps_all(id, node)), None)
        if heir is not None:
            self._held[heir] = _Held(node, promised, self._clock)
            return Start(heir, reuse, ())
        if not self._free:
            # At least two ids keep: either one of them does not hold ``node``, or the other one holds it too.
            spare = [id for id, held in self._held.items() if not held.promised]
            changes += self._release(min(spare, key=lambda id: (id in node.ids, self._held[id].used)))
            node, inside = self._find(prompt[:-1])  # nodes may have been joined
            reuse = node.start + inside
        if reuse:
            goes_on = inside < len(node.tokens) or bool(node.children)
            node = self._split(node, inside)
            if goes_on:  # elsewhere; else this is only the next turn of one conversation
                node.shared = node.end
        else:
            node = self._root
        id = heappop(self._free)
        self._held[id] = _Held(node, promised, self._clock)
        if reuse:
            changes.append(Copy(next(iter(node.ids)), id, reuse))
        for part in node.path():
            part.ids.add(id)
        return Start(id, reuse, tuple(changes))

    def promise(self, id: int, promised: int) -> bool:
        """Promise a running id ``promised`` tokens in all, not fewer than before, if there is room."""
        held = self._held[id]
        if self.promised() + promised - held.promised > self.cells:
            return False
        held.promised = promised
        return True

    def advance(self, id: int, tokens: list[int]) -> list[Change]:
        """A running id has computed its next tokens. What others hold of them already is shared."""
        held, changes = self._held[id], list[Change]()
        while tokens:
            node = held.node
            key = tokens[0] if self._shares else -1 - id
            if node.parent and not node.children and node.ids == {id}:
                node.tokens += tokens
                self.used += len(tokens)
                break
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = _Node(key, node.end, list(tokens), node, ids={id})
                self.used += len(tokens)
                held.node = child
                break
            size = common_prefix(child.tokens, tokens)
            child = self._split(child, size)
            source = next(iter(child.ids))
            changes.append(Share(source, id, child.start, child.end))
            child.ids.add(id)
            held.node = child
            tokens = tokens[size:]
            self._join(node)
            changes += self._tidy(held.node)
        return changes

    def finish(self, id: int, shared: int = 0) -> list[Change]:
        """A request has ended; what it computed is kept, unless others hold it anyway.

        ``shared``: it is known that requests share so many of its first tokens.
        """
        held = self._held[id]
        for node in held.node.path():
            if node.start < shared:
                node.shared = max(node.shared, min(shared, node.end))
                break
        held.promised = 0
        self.running -= 1
        self._clock += 1
        held.used = self._clock
        if self._shares and held.node.ids == {id}:
            return []
        return self._release(id)

    def move(self, id: int) -> tuple[int, list[Change]]:
        """Give an id's tokens to the lowest free id, if that is lower; the id that has them then."""
        if not self._shares or not self._free or self._free[0] > id:
            return id, []
        to = heappop(self._free)
        held = self._held[to] = self._held.pop(id)
        for node in held.node.path():
            node.ids.remove(id)
            node.ids.add(to)
        heappush(self._free, id)
        return to, [Copy(id, to, held.node.end), Drop(id)] if held.node.end else []

    def give_up(self, id: int) -> list[Change]:
        """Forget what a kept id holds alone."""
        return self._release(id)

    def make_room(self, cells: int) -> list[Change]:
        """Give up kept prefixes until ``cells`` are free.

        Raises ``EngineError`` when there are not enough: more is asked than was promised.
        """
        changes: list[Change] = []
        while (missing := cells - (self.cells - self.used)) > 0:
            kept = [id for id, held in self._held.items() if not held.promised]
            if not kept:
                raise EngineError(f"{cells} cells are asked for, and {self.cells - self.used} can be had")
            id = min(kept, key=lambda id: self._held[id].used)
            node = self._held[id].node
            size = max(missing, GIVE_UP_AT_ONCE)
            if size >= len(node.tokens):
                changes += self._release(id)
            else:
                del node.tokens[-size:]
                node.shared = min(node.shared, node.end)
                self.used -= size
                changes.append(Drop(id, node.end))
        return changes

    # The tree

    def _in_use(self) -> set[_Node]:
        """The nodes that running requests hold."""
        return {node for held in self._held.values() if held.promised for node in held.node.path()}

    def _find(self, tokens: list[int]) -> tuple[_Node, int]:
        """The node in which the longest known prefix of ``tokens`` ends, and how much of that node it is."""
        node, inside = self._root, 0
        while self._shares and inside == len(node.tokens) and node.end < len(tokens):
            child = node.children.get(tokens[node.end])
            if child is None:
                break
            node = child
            inside = common_prefix(node.tokens, tokens, node.start)
        return node, inside

    def _split(self, node: _Node, size: int) -> _Node:
        """Cut a node after ``size`` of its tokens; return the first part."""
        if size == len(node.tokens) or node.parent is None:
            return node
        head = _Node(node.key, node.start, node.tokens[:size], node.parent, ids=set(node.ids))
        head.shared = min(node.shared, head.end)
        node.parent.children[node.key] = head
        node.parent, node.start, node.tokens = head, head.end, node.tokens[size:]
        node.key = node.tokens[0]
        node.shared = node.shared if node.shared > head.end else 0
        head.children[node.key] = node
        return head

    def _tidy(self, node: _Node) -> list[Change]:
        """Let go of an id that keeps only what others hold, now that one more holds ``node``."""
        redundant = [id for id in node.ids if len(node.ids) > 1 and self._keeps_all(id, node)]
        return [change for id in redundant for change in self._release(id)]

    def _keeps_all(self, id: int, node: _Node) -> bool:
        """Whether an id only keeps, and what it keeps ends with ``node``."""
        held = self._held[id]
        return not held.promised and held.node is node

    def _release(self, id: int) -> list[Change]:
        """Take an id out of the tree, and with it what nobody else holds."""
        node = self._held.pop(id).node
        for part in list(node.path()):
            part.ids.discard(id)
            if not part.ids and part.parent:
                del part.parent.children[part.key]
                self.used -= len(part.tokens)
                node = part.parent
        self._join(node)
        heappush(self._free, id)
        return [Drop(id)]

    def _join(self, node: _Node) -> None:
        """Join a node with its only child, if no id ends between them."""
        if node.parent is None or len(node.children) != 1:
            return
        (child,) = node.children.values()
        if child.ids != node.ids:
            return
        node.tokens += child.tokens
        node.shared = max(node.shared, child.shared)
        node.children = child.children
        for grandchild in node.children.values():
            grandchild.parent = node
        for id in node.ids:
            if self._held[id].node is child:
                self._held[id].node = node
