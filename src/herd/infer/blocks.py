"""Which blocks of the key-value cache hold what: counts only, no tensors.

A block holds `BLOCK` tokens of one sequence. Full blocks of prompts are published: a sequence that begins with the same
tokens takes them by reference. A published block that nobody uses any more stays until its place is needed, the one
unused for longest first. Memory is promised at admission: a sequence gets in when all blocks that it may ever need are
there, and takes them as it grows, so nothing is ever swapped out or computed twice (spec 6.8).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BLOCK = 32

Link = tuple[int, tuple[int, ...]]  # serial of the block before (-1: none), and the tokens of this one


def blocks_for(tokens: int) -> int:
    """How many blocks hold so many tokens."""
    return -(-tokens // BLOCK)


class Blocks:
    """The blocks 0 .. count-1. Raises ValueError for fewer than one."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError("a cache of no blocks")
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._users = [0] * count
        self._serial = [-1] * count  # of what a block holds, where that is published
        self._next_serial = 0
        self._published: dict[Link, int] = {}
        self._link: dict[int, Link] = {}  # the inverse
        self._idle: OrderedDict[int, None] = OrderedDict()  # published and unused, longest unused first
        self.promised = 0

    @property
    def used(self) -> int:
        """Blocks that a sequence holds."""
        return self.count - len(self._free) - len(self._idle)

    @property
    def room(self) -> int:
        """Blocks that nobody holds or was promised."""
        return len(self._free) + len(self._idle) - self.promised

    def known(self, tokens: Sequence[int]) -> list[int]:
        """Published blocks that hold the beginning of `tokens`, all but its last token at most."""
        found: list[int] = []
        serial = -1
        for start in range(0, len(tokens) - BLOCK, BLOCK):
            block = self._published.get((serial, tuple(tokens[start : start + BLOCK])))
            if block is None:
                break
            found.append(block)
            serial = self._serial[block]
        return found

    def admit(self, tokens: Sequence[int], most: int) -> Table | None:
        """A table for a sequence that begins with `tokens` and never holds more than `most`; None where no room is."""
        shared = self.known(tokens)
        promise = blocks_for(most) - len(shared)
        woken = sum(1 for block in shared if not self._users[block])
        if promise + woken > self.room:
            return None
        for block in shared:
            self._idle.pop(block, None)
            self._users[block] += 1
        self.promised += promise
        return Table(self, shared, promise)

    def forget_idle(self) -> None:
        """Free the blocks that stay only because somebody may ask for what they hold."""
        while self._idle:
            block, _ = self._idle.popitem()
            self._forget(block)
            self._free.append(block)
        if not self.used:
            self._free.sort(reverse=True)  # as at the beginning: neighbours stand together

    def _take(self) -> int:
        """A block for a promise. One is there: promises never exceed what is free or idle."""
        self.promised -= 1
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        self._users[block] = 1
        return block

    def _forget(self, block: int) -> None:
        del self._published[self._link.pop(block)]
        self._serial[block] = -1

    def _publish(self, block: int, before: int | None, tokens: tuple[int, ...]) -> None:
        """Say what a full block holds; where that is published already, or what is before is not, it stays private."""
        serial = -1 if before is None else self._serial[before]
        link = (serial, tokens)
        if (before is not None and serial < 0) or link in self._published or block in self._link:
            return
        self._published[link], self._link[block] = block, link
        self._serial[block], self._next_serial = self._next_serial, self._next_serial + 1

    def _release(self, blocks: Sequence[int]) -> None:
        """Let go of blocks, the last first, so that beginnings stay longest."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                if block in self._link:
                    self._idle[block] = None
                else:
                    self._free.append(block)


class Table:
    """The blocks of one sequence, in order. `shared` of them were taken by reference."""

    def __init__(self, pool: Blocks, blocks: list[int], promise: int) -> None:
        self._pool, self.blocks, self._promise = pool, blocks, promise
        self.shared = len(blocks)
        self._published = len(blocks)

    def grow(self, tokens: int) -> None:
        """Hold blocks for so many tokens. Raises ValueError beyond what was promised."""
        while len(self.blocks) < blocks_for(tokens):
            if not self._promise:
                raise ValueError(f"{tokens} tokens: more than was promised")
            self._promise -= 1
            self.blocks.append(self._pool._take())

    def publish(self, tokens: Sequence[int]) -> None:
        """Offer to others the full blocks of the sequence's first `tokens`, whose keys and values are computed."""
        while (self._published + 1) * BLOCK <= len(tokens):
            at = self._published
            before = self.blocks[at - 1] if at else None
            self._pool._publish(self.blocks[at], before, tuple(tokens[at * BLOCK : (at + 1) * BLOCK]))
            self._published += 1

    def close(self) -> None:
        """Give everything back; more than once does no harm."""
        self._pool._release(self.blocks)
        self._pool.promised -= self._promise
        self.blocks, self._promise = [], 0
