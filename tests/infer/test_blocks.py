"""Blocks of the cache: none is lost, none is shared by mistake, promises are kept."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from herd.infer.blocks import BLOCK, Blocks, Table, blocks_for

PROMPTS = [
    [kind] * size + [tail] * rest for kind in (0, 1) for size in (5, 40, 70) for tail in (2, 3) for rest in (1, 60)
]


class Pool(RuleBasedStateMachine):
    """Sequences come, grow, publish and go; `content` is what a real cache would hold in each block."""

    @initialize(count=st.integers(1, 12))
    def begin(self, count: int) -> None:
        self.pool, self.live, self.content = Blocks(count), [], {}

    @rule(prompt=st.sampled_from(PROMPTS), more=st.integers(0, 80))
    def admit(self, prompt: list[int], more: int) -> None:
        most, room = len(prompt) + more, self.pool.room
        shared = self.pool.known(prompt)
        assert [self.content[block] for block in shared] == [
            tuple(prompt[: (at + 1) * BLOCK]) for at in range(len(shared))
        ]
        table = self.pool.admit(prompt, most)
        if table is None:
            assert blocks_for(most) - len(shared) > room - len(shared)
        else:
            assert len(table.blocks) * BLOCK < len(prompt)  # at least the last token is computed
            self.live.append((table, prompt, most))

    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        if self.live:
            table, prompt, most = data.draw(st.sampled_from(self.live))
            tokens = data.draw(st.integers(1, most))
            before = len(table.blocks)
            table.grow(tokens)
            assert len(table.blocks) == max(before, blocks_for(tokens))
            for at in range(before, len(table.blocks)):
                assert all(table.blocks[at] not in other.blocks for other, _, _ in self.live if other is not table)
                self.content[table.blocks[at]] = tuple(prompt[: (at + 1) * BLOCK])
            table.publish(prompt[: min(tokens, len(prompt))])

    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        if self.live:
            entry = data.draw(st.sampled_from(self.live))
            entry[0].close()
            entry[0].close()
            self.live.remove(entry)

    @rule()
    def forget(self) -> None:
        self.pool.forget_idle()

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "pool"):
            return
        held = {block for table, _, _ in self.live for block in table.blocks}
        assert self.pool.used == len(held)
        assert self.pool.promised == sum(blocks_for(most) - len(table.blocks) for table, _, most in self.live)
        assert self.pool.room >= 0

    def teardown(self) -> None:
        for table, _, _ in getattr(self, "live", []):
            table.close()
        if hasattr(self, "pool"):
            self.pool.forget_idle()
            assert self.pool.used == self.pool.promised == 0 and self.pool.room == self.pool.count


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = Pool.TestCase


def filled(pool: Blocks, prompt: list[int], most: int) -> Table:
    table = pool.admit(prompt, most)
    assert table is not None
    table.grow(len(prompt))
    table.publish(prompt)
    return table


def test_a_prompt_is_shared_while_it_is_used_and_after() -> None:
    pool, prompt = Blocks(6), list(range(100))
    first = filled(pool, prompt, 120)
    second = filled(pool, [*prompt[:70], 7, 7, 7], 80)
    assert second.blocks[:2] == first.blocks[:2] and second.blocks[2] not in first.blocks
    assert pool.used == 5
    first.close()
    second.close()
    assert pool.used == 0 and len(pool.known(prompt)) == 3


def test_the_longest_unused_gives_way() -> None:
    pool = Blocks(4)
    for number in range(4):
        filled(pool, [number] * 33, 33).close()
    assert [len(pool.known([number] * 33)) for number in range(4)] == [0, 1, 1, 1]


def test_nothing_beyond_a_promise() -> None:
    pool = Blocks(3)
    table = pool.admit([1] * 10, 40)
    assert table is not None and pool.room == 1
    assert pool.admit([2] * 10, 40) is None
    with pytest.raises(ValueError, match="65 tokens: more than was promised"):
        table.grow(65)
    with pytest.raises(ValueError, match="no blocks"):
        Blocks(0)
