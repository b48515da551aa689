"""The KV cells of a context: which tokens they hold, and what waits beside them in plain memory.

Carries out on the context what ``models.engines.prefixes`` decides, and owns what is moved between cells and
memory, and when. Refuses knowing requests (``models.engines.llama_cpp.lane``).
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence

from models.engines import schedule
from models.engines.base import Load
from models.engines.llama_cpp.context import Context
from models.engines.llama_cpp.media import before_media
from models.engines.llama_cpp.parked import Parked, ParkedPrefixes
from models.engines.llama_cpp.settings import SPARE_IDS, LlamaSettings
from models.engines.prefixes import Drop, PrefixTree, Start

_NO_TOKEN = -1
SavedPrefix = tuple[list[int], bytearray]
"""Tokens, and the state of their cells."""


class Cells:
    """Those of ``context``. What leaves them is parked under ``owner``. ``shares`` as in ``PrefixTree``.

    Everything that changes cells raises ``EngineError`` when llama.cpp fails; they are in doubt then, until
    ``forget``.
    """

    def __init__(
        self,
        context: Context,
        settings: LlamaSettings,
        parked: ParkedPrefixes,
        owner: Hashable,
        shares: bool,
    ) -> None:
        self.context = context
        self._settings, self._parked, self._owner, self._shares = settings, parked, owner, shares
        self.tree = self._new_tree()
        self._reach = 0  # about how many cells were in use at once since there were none

    @property
    def load(self) -> Load:
        """By the books of the tree, so that what is never given back shows."""
        tree = self.tree
        return Load(tree.running, 0, tree.cells, tree.used, tree.promised())

    # Requests

    def known(self, tokens: list[int], promised: int) -> int:
        """How many of the first ``tokens`` need not be computed; what was parked of them has come back.

        ``promised``: as whoever asks will ``start``.
        """
        if not self._settings.kv_unified:
            for id in self.tree.kept():
                if self.tree.spare < SPARE_IDS:
                    self._put_away(id)
        self._recall(tokens, promised)
        return self.tree.longest(tokens)

    def start(self, prompt: list[int], promised: int) -> Start | None:
        """Where a request may run: see ``PrefixTree.start``. Nothing has happened to cells yet."""
        return self.tree.start(prompt, promised)

    def enter(self, start: Start) -> None:
        """Give a request that was started its prefix; what nobody runs makes room."""
        self.context.carry_out(start.changes)
        if self._settings.kv_unified:
            self._park(self._settings.kept_tokens)

    def promise(self, id: int, promised: int) -> bool:
        """See ``PrefixTree.promise``."""
        return self.tree.promise(id, promised)

    def make_room(self, size: int) -> None:
        """For ``size`` more tokens of running requests, in place of kept ones."""
        self.context.carry_out(self.tree.make_room(size))
        self._reach = max(self._reach, self.tree.used + size)

    def advance(self, id: int, tokens: list[int]) -> None:
        """A running id has computed its next tokens."""
        self.context.carry_out(self.tree.advance(id, tokens))

    def finish(self, id: int) -> None:
        """A request has ended; its cells are kept for a later prompt."""
        self.context.carry_out(self.tree.finish(id))

    def close_ranks(self, running: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Have requests run under consecutive ids: cells apart are computed together only then.

        Gives each id that was moved, and where to.
        """
        if self._settings.kv_unified:
            return
        ids = sorted(running, reverse=True)
        for id in self.tree.kept():
            if ids and id < ids[0]:
                self._put_away(id)
        for id in ids:
            to, changes = self.tree.move(id)
            if to == id:
                return
            self.context.carry_out(changes)
            yield id, to

    # Parking

    def settle(self) -> None:
        """Nothing runs: have the cells filled from the first one on again, if that pays."""
        if self._settings.kv_unified and self._reach > self.tree.used + self._settings.kept_tokens:
            self.park_all()
            self.forget()

    def park_all(self) -> None:
        """Leave no prefix in cells that nobody runs."""
        self._park(0)

    def forget(self) -> None:
        """Empty all cells, whatever is in them."""
        self.context.clear()
        self.tree = self._new_tree()
        self._reach = 0

    def _new_tree(self) -> PrefixTree:
        sizes = self._settings
        return PrefixTree(sizes.ids, sizes.max_sequences, sizes.cache_tokens, self._shares)

    def _park(self, most: int) -> None:
        """Move kept prefixes out of the cells, the one used longest ago first, until ``most`` cells keep."""
        for id in self.tree.kept():
            if self.tree.kept_cells() <= most:
                break
            self._put_away(id)

    def _put_away(self, id: int) -> None:
        """Move what an id keeps out of the cells."""
        tokens, shared = self.tree.tokens(id), self.tree.shared_of(id)
        if (
            not self._parked.covers(self._owner, tokens, shared)
            and self._parked.takes(self.context.state_bytes(id))
            and (state := self.context.read_state(id))
        ):
            self._parked.put(self._owner, Parked(tokens, state, shared))
        self.context.carry_out(self.tree.give_up(id))

    def _recall(self, tokens: list[int], promised: int) -> None:
        """Bring back what is parked of a prompt, if that is more than the cells have of it."""
        one, size = self._parked.longest(self._owner, tokens[:-1])
        if one is None or size - self.tree.longest(tokens[:-1]) < schedule.WORTH_WAITING:
            return
        start = self.tree.start([_NO_TOKEN], max(promised, len(one.tokens)))
        if start is None:
            return
        self.context.carry_out((*start.changes, *self.tree.make_room(len(one.tokens))))
        if self.context.write_state(start.id, one.state, len(one.tokens)):
            self.context.carry_out([Drop(start.id, size), *self.tree.advance(start.id, one.tokens[:size])])
            shared = size if size < len(one.tokens) else one.shared
        else:
            self.context.carry_out([Drop(start.id)])
            self._parked.drop(self._owner, one.tokens)
            shared = 0
        self.context.carry_out(self.tree.finish(start.id, shared))

    # Warm start

    def save(self, most_bytes: int) -> list[SavedPrefix]:
        """The prefixes that more than one request has used, the latest used first, while they fit.

        They end before the first picture: what stands for it means nothing beside another projector. Nothing
        runs.
        """
        self.park_all()
        self.forget()
        parked = self._parked.of(self._owner)
        beginnings = [before_media(one.tokens[: one.shared]) for one in parked]
        saved: list[SavedPrefix] = []
        for one, tokens in zip(parked, beginnings, strict=True):
            goes_on = any(other[: len(tokens)] == tokens for other in beginnings if len(other) > len(tokens))
            if not tokens or goes_on or any(tokens == other for other, _ in saved):
                continue
            if not self.context.write_state(0, one.state, len(one.tokens)):
                self.forget()
                continue
            self.context.carry_out([Drop(0, len(tokens))])
            most_bytes -= self.context.state_bytes(0)
            state = self.context.read_state(0) if most_bytes >= 0 else None
            self.context.carry_out([Drop(0)])
            if not state:
                break
            saved.append((tokens, state))
        return saved

    def restore(self, saved: Sequence[SavedPrefix]) -> None:
        """Park saved prefixes, the first one last: they come into cells when a prompt begins with them."""
        if self._shares:
            for tokens, state in reversed(saved):
                if not self._parked.covers(self._owner, tokens, len(tokens)):
                    self._parked.put(self._owner, Parked(tokens, state, len(tokens)))
