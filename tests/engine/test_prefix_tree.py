"""Laws of the tree of prefixes, against a model of real cells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from models.engines.prefixes import Change, Copy, Drop, PrefixTree, Share, common_prefix
from models.errors import EngineError

few = st.lists(st.integers(0, 2), max_size=12)
beginnings = st.builds(lambda size, rest: [0] * size + rest, st.integers(0, 9), few)
"""Of one another, often."""


@given(few, few, st.integers(0, 12))
def test_a_common_prefix_is_what_the_definition_says(a: list[int], b: list[int], offset: int) -> None:
    rest = b[offset:]
    size = common_prefix(a, b, min(offset, len(b)))
    assert a[:size] == rest[:size] and (size == min(len(a), len(rest)) or a[size] != rest[size])


def test_a_common_prefix_is_found_past_the_first_block() -> None:
    a = list(range(300))
    assert common_prefix(a, [7, *a[:200], -1, *a], 1) == 200
    assert common_prefix(a, a) == 300


class Cells(RuleBasedStateMachine):
    """Requests come, compute, end; cells are numbered, and hold what was computed there."""

    def __init__(self) -> None:
        super().__init__()
        self.size_it(2, 2, 40)
        self.cells: dict[int, list[int]] = {}  # by id: the cell at each position
        self.content: dict[int, tuple[int, ...]] = {}  # by cell: the whole sequence up to its token
        self.running: dict[int, tuple[list[int], int]] = {}  # by id: what to compute, how many are done
        self.fresh = 0

    @initialize(limit=st.integers(1, 3), kept=st.integers(1, 3), cells=st.sampled_from((24, 40, 1000)))
    def size_it(self, limit: int, kept: int, cells: int) -> None:
        self.limit, self.most = limit, cells
        self.tree = PrefixTree(limit + kept, limit, cells)

    def carry_out(self, changes: "list[Change] | tuple[Change, ...]") -> None:
        for change in changes:
            if isinstance(change, Copy):
                assert not self.cells.get(change.target)
                self.cells[change.target] = self.cells[change.source][: change.last]
                assert len(self.cells[change.target]) == change.last > 0
            elif isinstance(change, Share):
                cells = self.cells[change.source][change.first : change.last]
                assert len(cells) == change.last - change.first
                mine = self.cells[change.target][change.first : change.last]
                assert [self.content[cell] for cell in cells] == [self.content[cell] for cell in mine]
                self.cells[change.target][change.first : change.last] = cells
            else:
                last = None if change.last == -1 else change.last
                del self.cells.setdefault(change.id, [])[change.first : last]

    def in_use(self) -> set[int]:
        return {cell for held in self.cells.values() for cell in held}

    @rule(prompt=beginnings.filter(bool), answer=few.filter(bool))
    def begin(self, prompt: list[int], answer: list[int]) -> None:
        self.start(prompt, answer)

    def start(self, prompt: list[int], answer: list[int]) -> int | None:
        known = [tuple(self.tree.tokens(id)) for id in self.tree.held]
        expected = max((common_prefix(list(one), prompt[:-1]) for one in known), default=0)
        assert self.tree.longest(prompt[:-1]) == expected
        size = len(prompt) + len(answer)
        start = self.tree.start(prompt, size)
        if start is None:
            assert len(self.running) == self.limit or self.tree.promised() + size > self.most
            return None
        self.carry_out(start.changes)
        assert start.reuse == expected < len(prompt)
        there = [self.content[cell] for cell in self.cells.get(start.id, [])]
        assert there == [tuple(prompt[: size + 1]) for size in range(start.reuse)]
        assert start.id not in self.running
        self.running[start.id] = ([*prompt, *answer], start.reuse)
        return start.id

    @rule(prompt=beginnings.filter(bool), times=st.integers(1, 2))
    def answer(self, prompt: list[int], times: int) -> None:
        """Requests one after the other, with the same prompt."""
        for _ in range(times):
            id = self.start(prompt, [1])
            if id is not None:
                self.go_on(id, len(prompt))
                self.stop(id)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 6))
    def compute(self, data: st.DataObject, count: int) -> None:
        self.go_on(data.draw(st.sampled_from(sorted(self.running))), count)

    def go_on(self, id: int, count: int) -> None:
        tokens, done = self.running[id]
        new = tokens[done : done + count]
        self.carry_out(self.tree.make_room(len(new)))
        assert len(self.in_use()) + len(new) <= self.most
        for position in range(done, done + len(new)):
            self.fresh += 1
            self.cells.setdefault(id, []).append(self.fresh)
            self.content[self.fresh] = tuple(tokens[: position + 1])
        self.carry_out(self.tree.advance(id, new))
        self.running[id] = (tokens, done + len(new))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), more=few)
    def ask_for_more(self, data: st.DataObject, more: list[int]) -> None:
        id = data.draw(st.sampled_from(sorted(self.running)))
        tokens, done = self.running[id]
        fits = self.tree.promised() + len(more) <= self.most
        assert self.tree.promise(id, len(tokens) + len(more)) == fits
        if fits:
            self.running[id] = ([*tokens, *more], done)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.stop(data.draw(st.sampled_from(sorted(self.running))))

    def stop(self, id: int) -> None:
        tokens, done = self.running.pop(id)
        self.carry_out(self.tree.finish(id))
        assert self.tree.longest(tokens[:done]) == done, "what was computed is kept"

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.running)))
        free = set(range(max(self.tree.held) + 1)) - set(self.tree.held)
        to, changes = self.tree.move(id)
        assert to == min({id} | free)
        self.carry_out(changes)
        self.running[to] = self.running.pop(id)

    @rule()
    def give_up_the_oldest(self) -> None:
        for id in self.tree.kept()[:1]:
            self.carry_out(self.tree.give_up(id))
            assert id not in self.tree.held

    @invariant()
    def every_id_holds_what_the_tree_says(self) -> None:
        held = {id: self.tree.tokens(id) for id in self.tree.held}
        assert {id: cells for id, cells in self.cells.items() if cells} == {
            id: self.cells[id] for id, tokens in held.items() if tokens
        }
        for id, tokens in held.items():
            seen = [self.content[cell] for cell in self.cells.get(id, [])]
            assert seen == [tuple(tokens[: size + 1]) for size in range(len(tokens))]
        for id, (tokens, done) in self.running.items():
            assert held[id] == tokens[:done]

    @invariant()
    def cells_in_use_are_counted_and_promises_can_be_kept(self) -> None:
        assert self.tree.used == len(self.in_use()) <= self.most
        running = {cell for id in self.running for cell in self.cells.get(id, [])}
        ahead = sum(len(tokens) - done for tokens, done in self.running.values())
        assert self.tree.promised() == len(running) + ahead <= self.most
        assert self.tree.kept_cells() == len(self.in_use() - running)

    @invariant()
    def a_kept_id_alone_holds_the_end_of_its_tokens(self) -> None:
        kept = [tuple(self.tree.tokens(id)) for id in self.tree.held if id not in self.running]
        all_held = [tuple(self.tree.tokens(id)) for id in self.tree.held]
        for one in kept:
            assert sum(other[: len(one)] == one for other in all_held) == 1

    @invariant()
    def no_beginning_is_cut_where_nobody_ends_or_turns_off(self) -> None:
        """Else what is given up from its end would be given up piece by piece, or too much of it at once."""
        nodes = [self.tree._root]
        for node in nodes:
            nodes += node.children.values()
            assert all(child.ids != node.ids for child in node.children.values())

    @invariant()
    def shared_beginnings_are_held_and_none_begins_another(self) -> None:
        shared = [tuple(self.tree.tokens(id)[:size]) for id, size in self.tree.shared()]
        assert all(0 < size <= self.tree.length(id) for id, size in self.tree.shared())
        assert not any(a == b[: len(a)] for i, a in enumerate(shared) for j, b in enumerate(shared) if i != j)


TestCells = Cells.TestCase


def grow(tree: PrefixTree, prompt: list[int], answer: int = 1) -> int:
    """Run a request as far as its prompt."""
    start = tree.start(prompt, len(prompt) + answer)
    assert start is not None
    tree.make_room(len(prompt) - start.reuse)
    tree.advance(start.id, prompt[start.reuse :])
    return start.id


def test_the_prefix_used_longest_ago_goes_first_and_from_its_end() -> None:
    tree = PrefixTree(ids=8, running=2, cells=600)
    system = list(range(100))
    for user in (1000, 2000, 3000):
        tree.finish(grow(tree, [*system, *range(user, user + 100)]))
    assert tree.used == 400
    tree.make_room(230)
    assert tree.longest([*system, *range(1000, 1100)]) == 136, "64 cells at once, from the end"
    tree.finish(grow(tree, [*system, *range(1000, 1100)]))
    tree.make_room(400)
    assert tree.longest([*system, *range(2000, 2100)]) == 100
    assert tree.longest([*system, *range(1000, 1100)]) == 200
    assert [length for _, length in tree.shared()] == [100], "whoever only goes on shares nothing"


def test_the_id_that_is_given_up_is_never_the_one_that_is_copied_from() -> None:
    tree = PrefixTree(ids=4, running=2, cells=1000)
    long = [9] + [1] * 20
    for prompt in (long, long, *([9] + [other] * 5 for other in (2, 3, 4))):
        tree.finish(grow(tree, prompt))
    prompt = [9] + [1] * 10 + [7]
    assert (known := tree.longest(prompt[:-1])) == 11
    lengths = {id: tree.length(id) for id in tree.held}
    start = tree.start(prompt, 20)
    assert start is not None and start.reuse == known
    (copy,) = (change for change in start.changes if isinstance(change, Copy))
    assert lengths[copy.source] >= copy.last == known
    assert Drop(copy.source) not in start.changes


def test_what_runs_is_never_given_up() -> None:
    tree = PrefixTree(ids=4, running=2, cells=100)
    grow(tree, list(range(60)), answer=10)
    assert tree.start(list(range(200, 231)), 31) is None
    assert tree.start(list(range(80)), 90) is not None, "60 of its cells are there already"
    with pytest.raises(EngineError, match="41 cells"):
        tree.make_room(41)


def test_a_model_whose_state_cannot_be_cut_shares_nothing() -> None:
    tree = PrefixTree(ids=3, running=2, cells=40, shares=False)
    first, second = grow(tree, [1, 2, 3]), grow(tree, [1, 2, 3])
    assert tree.used == 6 and tree.longest([1, 2, 3]) == 0
    tree.advance(first, [4])
    tree.finish(first)
    assert tree.used == 3 and tree.tokens(second) == [1, 2, 3]
