"""Whether a vocabulary's list of merges is what our encoder does, so that both give the same ids for every text.

tiktoken joins any neighbours whose joint bytes are a token, the lowest id first. Hugging Face and llama.cpp join the
pairs that a list names, the first listed first, and such a list often has one way only of making each token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from herd.console import HerdError

MAX_WORK = 100_000_000  # squared bytes of tokens, a bound on the pairs looked at; Llama 3's have 7.4 million


def read_merges(listed: Any, table: Mapping[str, int]) -> list[tuple[bytes, bytes]]:
    """A file's list of merges, "a b" or ["a", "b"] each, in bytes; `table` gives each character's byte.

    Raises HerdError naming the first one that is something else.
    """
    if not isinstance(listed, list):
        raise HerdError("merges is missing; expected a list")
    merges = []
    for merge in listed:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise HerdError(f"merges: {str(merge)[:80]!r} is not two tokens")
        if not all(character in table for part in pair for character in part):
            raise HerdError(f"merges: {str(merge)[:80]!r} is not byte-level text")
        left, right = (bytes(table[character] for character in part) for part in pair)
        merges.append((left, right))
    return merges


def check_merges(ranks: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]], whole_pieces: bool) -> None:
    """Raise HerdError naming the first merge or token for which the list and our encoder could differ.

    They are the same where merges make tokens in the order of their ids and every token's bytes, alone, come out as
    that token. For take the first step at which they differ: our encoder joins neighbours C and D to a token T that the
    list does not make of them. Nothing has crossed the outer ends of C and D so far, so T's bytes alone have come to C
    and D as well, and there the list stops. `whole_pieces`: a piece of text that is a token as it stands is not taken
    apart (`ignore_merges`); then a token need not come out alone, as long as what comes out is not two tokens.
    """
    table = _joined(ranks, merges)
    if sum(len(text) ** 2 for text in ranks) > MAX_WORK:
        raise HerdError(f"the tokens are too long: their squared lengths sum to over {MAX_WORK:,} bytes")
    for text, token in ranks.items():
        if len(text) > 1 and (count := len(_alone(text, token, ranks, table))) > 1 and (count == 2 or not whole_pieces):
            made = f"come out as {count} tokens by the merges"
            raise HerdError(f"token {token} ({text[:40]!r}): its bytes {made}; herd's encoder would give other ids")


def _joined(ranks: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]]) -> dict[tuple[int, int], int]:
    """Ids of a pair -> id of the token it makes. Raises HerdError where a merge makes none, or is out of order."""
    table: dict[tuple[int, int], int] = {}
    last = -1
    for left, right in merges:
        joined, pair = ranks.get(left + right, -1), (ranks.get(left, -1), ranks.get(right, -1))
        if min(joined, *pair) < 0 or joined < last or pair in table:
            shown = f"{left[:40]!r} {right[:40]!r}"
            raise HerdError(f"merges: {shown} makes no token, or not in the order of ids, or is given twice")
        table[pair] = last = joined
    return table


def _alone(text: bytes, token: int, ranks: Mapping[bytes, int], table: Mapping[tuple[int, int], int]) -> list[int]:
    """What the merges make of a token's bytes."""
    parts = [ranks.get(text[index : index + 1], -1) for index in range(len(text))]
    while len(parts) > 1:
        joined = [table.get(pair, token + 1) for pair in pairwise(parts)]
        lowest = min(joined)
        if lowest > token:
            break
        at = joined.index(lowest)
        parts[at : at + 2] = [lowest]
    return parts
