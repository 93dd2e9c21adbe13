"""New merges on top of a frozen vocabulary, for languages it serves badly (paper 3.2: 100K of tiktoken's and 28K new).

Ids of the base never change. tiktoken joins any neighbours whose joint bytes are a token, the lowest rank first; new
tokens rank behind all of the base, so text is first what the base makes of it, and then joined further. That is
what is simulated here: what is counted is the joint bytes of neighbours, whichever two tokens they are, so that the
pieces learned from stand at every moment as the vocabulary so far would encode them.

A text changes if and only if a new token is the joint of two neighbours in it. Two rules keep English as it is: no new
token is of ASCII characters alone, so text in ASCII cannot change at all; and none is the joint of two neighbours in
the texts `keep`, so they cannot either. Of Llama 3's new tokens 2,624 of 27,744 are ASCII: `ascii` lets them in, and
then only `keep` protects. `keep` should be of one language: what it quotes of others is not learned either. (Pages that
were half translated, kept whole, took Arabic from 3.5 down to 2.4 characters a token.)
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise

from herd.console import HerdError, progress
from herd.model.tokenizer import Tokenizer, special_tokens, split_text

MAX_TOKENS = 20_000_000  # of all distinct pieces, at about 130 bytes each
PART_TOKENS = 64  # longer pieces are learned from in parts: the time stays linear in the text
MAX_TOKEN_BYTES = 128  # the longest of cl100k
MIN_COUNT = 2


def extend_tokenizer(
    base: Tokenizer, texts: Iterable[str], vocab_size: int, keep: Iterable[str] = (), ascii: bool = False
) -> Tokenizer:
    """Learn tokens from texts until the vocabulary, specials included, has `vocab_size`; ids of `base` stay.

    New tokens follow the base's last, and special tokens that did so before follow the new ones, as many as belong to
    the new size. Texts of `keep` get the ids that they had, and so does every text in ASCII unless `ascii` lets such
    tokens in. The same texts in any order give the same tokens: the most frequent joint next, of equals the first
    in the order of bytes. One thread; memory grows with the distinct pieces of the texts, not with the texts.
    Raises HerdError where there is no room for a token, or the texts have too few joints or too many pieces.
    """
    first = max(base.ranks.values()) + 1
    behind = _specials_behind(base, vocab_size, first)
    wanted = vocab_size - first - len(behind)
    if wanted < 1:
        least = first + len(behind) + 1
        raise HerdError(f"tokenizer: vocab_size {vocab_size} has no room for a new token; expected at least {least}")
    taken = {*_joints(base, keep), *base.ranks}

    def learnable(joint: bytes) -> bool:
        return (ascii or not joint.isascii()) and len(joint) <= MAX_TOKEN_BYTES and joint not in taken

    counting = _Counting(base, _count_pieces(base, texts), learnable)
    learned: dict[bytes, int] = {}
    with progress("tokenizer: learning new tokens", wanted) as bar:
        while len(learned) < wanted and (joint := counting.most_frequent()) is not None:
            learned[joint] = first + len(learned)
            taken.add(joint)
            counting.join(joint, learned[joint])
            bar.update(len(learned))
    if len(learned) < wanted:
        raise HerdError(
            f"tokenizer: the texts give only {len(learned)} new tokens; "
            f"set vocab_size to at most {first + len(learned) + len(behind)}, or add text"
        )
    staying = {name: token for name, token in base.special.items() if token < first}
    moved = {name: first + wanted + index for index, name in enumerate(behind)}
    return Tokenizer(base.ranks | learned, staying | moved, base.pattern)


def _specials_behind(base: Tokenizer, vocab_size: int, first: int) -> tuple[str, ...]:
    """Names of the special tokens that follow the ranks; Llama 3's own grow in number with the vocabulary."""
    if tuple(base.special) == special_tokens(base.vocab_size):
        return special_tokens(vocab_size)
    return tuple(name for name, token in base.special.items() if token >= first)


def _joints(base: Tokenizer, texts: Iterable[str]) -> set[bytes]:
    """Joint bytes of all neighbours in the texts as `base` encodes them."""
    words = (base.encode(piece) for piece in _count_pieces(base, texts))
    pairs = {pair for word in words for pair in pairwise(word)}
    return {base.token_bytes(a) + base.token_bytes(b) for a, b in pairs}


def _count_pieces(base: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    with progress("tokenizer: splitting texts") as bar:
        for number, text in enumerate(texts, 1):
            counts.update(split_text(text, base.pattern))
            bar.update(number, "texts")
    return counts


class _Counting:
    """Distinct pieces as token ids, and for each joint of neighbours that may be learned: how often and in which.

    `pieces` are texts with how often each occurs. What is neither a joint nor near one is not kept.
    """

    def __init__(self, base: Tokenizer, pieces: Counter[str], learnable: Callable[[bytes], bool]) -> None:
        self._bytes = {token: text for text, token in base.ranks.items()}
        self._learnable = learnable
        self._words: list[list[int]] = []
        self._weights: list[int] = []
        self._counts: defaultdict[bytes, int] = defaultdict(int)
        self._places: defaultdict[bytes, array[int]] = defaultdict(lambda: array("i"))
        tokens = 0
        for piece, weight in pieces.items():
            ids = base.encode(piece)
            for start in range(0, len(ids), PART_TOKENS):
                word = ids[start : start + PART_TOKENS]
                joints = self._joints(word)
                if not joints:
                    continue
                if (tokens := tokens + len(word)) > MAX_TOKENS:
                    raise HerdError(f"tokenizer: the texts' pieces have over {MAX_TOKENS:,} tokens; give less text")
                for joint in joints:
                    self._counts[joint] += weight
                for joint in set(joints):
                    self._places[joint].append(len(self._words))
                self._words.append(word)
                self._weights.append(weight)
        self._heap = [(-count, joint) for joint, count in self._counts.items()]
        heapq.heapify(self._heap)

    def most_frequent(self) -> bytes | None:
        """The joint that occurs most often now, of equals the first in byte order; None where none occurs twice."""
        while self._heap:
            negative, joint = heapq.heappop(self._heap)
            count = self._counts.get(joint, 0)
            if count == -negative:
                return joint if count >= MIN_COUNT else None
            if count < -negative and count > 0:  # it was counted down; where it went up there is a newer entry
                heapq.heappush(self._heap, (-count, joint))
        return None

    def join(self, joint: bytes, token: int) -> None:
        """Make `joint` a token: replace it wherever it occurs, from left to right as encoding does."""
        spell = self._bytes
        spell[token] = joint
        grown: set[bytes] = set()
        for place in set(self._places.pop(joint)):
            before, weight = self._words[place], self._weights[place]
            after, index = [], 0
            while index < len(before):
                if index + 1 < len(before) and spell[before[index]] + spell[before[index + 1]] == joint:
                    after.append(token)
                    index += 2
                else:
                    after.append(before[index])
                    index += 1
            if len(after) == len(before):
                continue  # the joint that was here went into another token
            gone, come = self._joints(before), self._joints(after)
            for other in gone:
                self._counts[other] -= weight
            for other in come:
                self._counts[other] += weight
            for other in set(come).difference(gone):
                self._places[other].append(place)
            grown.update(come)
            self._words[place] = after
        self._counts.pop(joint, None)
        for other in grown:
            heapq.heappush(self._heap, (-self._counts[other], other))

    def _joints(self, word: list[int]) -> list[bytes]:
        """Joint bytes of neighbours, those that may be learned; one that occurs twice is there twice."""
        joints = (self._bytes[a] + self._bytes[b] for a, b in pairwise(word))
        return [joint for joint in joints if self._learnable(joint)]
