"""MinHash against exact Jaccard similarities; components and pairs against plain Python."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.data import minhash
from herd.data.words import tokens

WORDS = [f"word{n}" for n in range(5_000)]


def essay(seed: int, length: int = 400) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def nearly(text: str, changes: int) -> str:
    words = text.split()
    for n in range(changes):
        words[(n * 131 + 7) % len(words)] = f"changed{n}"
    return " ".join(words)


def exact(a: str, b: str) -> float:
    sets = [set(zip(*(words[i:] for i in range(5)), strict=False)) for words in (a.split(), b.split())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def signatures(texts: list[str]) -> np.ndarray:
    found = minhash.Signatures()
    for text in texts:
        found.add(tokens(text))
    return found.array()


def test_estimates_are_unbiased_and_within_their_standard_error() -> None:
    texts = [text for n in range(200) for text in (essay(n), nearly(essay(n), n % 20))]
    left, right = np.arange(0, 400, 2), np.arange(1, 400, 2)
    truth = np.array([exact(texts[a], texts[b]) for a, b in zip(left, right, strict=True)])
    errors = minhash.similarities(minhash.shortened(signatures(texts)), left, right) - truth
    assert abs(errors.mean()) < 0.01
    assert (np.abs(errors) <= 3 * np.sqrt(truth * (1 - truth) / minhash.PERMUTATIONS) + 1e-9).mean() > 0.98


def test_jaccard_of_shingles_is_exact() -> None:
    texts = [essay(n % 7, 60) if n % 2 else nearly(essay(n % 7, 60), n % 5) for n in range(30)]
    sets = [minhash.shingles(tokens(text)) for text in texts]
    pairs = np.array(list(itertools.combinations(range(30), 2)))
    found = minhash.jaccard(sets, pairs[:, 0], pairs[:, 1])
    assert found == pytest.approx([exact(texts[a], texts[b]) for a, b in pairs])


def test_shingles_of_many_texts_are_those_of_each() -> None:
    texts = [essay(n, n) for n in range(12)] + ["", "...", "one two three four", "Größe über alles und noch mehr"]
    flat, lengths = minhash.shingles_of_all(texts)
    for text, found in zip(texts, np.split(flat, np.cumsum(lengths)[:-1]), strict=True):
        assert np.array_equal(found, minhash.shingles(tokens(text)))


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95])
def test_banding_misses_no_more_than_one_pair_in_a_hundred_at_the_threshold(threshold: float) -> None:
    rows = minhash.band_rows(threshold)
    assert (1 - threshold**rows) ** (minhash.PERMUTATIONS // rows) <= 0.01


def test_documents_of_other_languages_share_no_key() -> None:
    found = signatures([essay(1), essay(1)])
    same = minhash.band_keys(found, 0.8, np.array([7, 7], np.uint64))
    apart = minhash.band_keys(found, 0.8, np.array([7, 8], np.uint64))
    assert (same[:, 0] == same[:, 1]).all() and not (apart[:, 0] == apart[:, 1]).any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_candidates_join_exactly_the_documents_of_equal_keys(keys: list[int]) -> None:
    ranks = np.random.default_rng(len(keys)).permutation(len(keys))
    left, right = minhash.candidates(np.array(keys, np.uint64), ranks)
    joined = minhash.components(len(keys), left, right)
    for a, b in itertools.combinations(range(len(keys)), 2):
        assert (joined[a] == joined[b]) == (keys[a] == keys[b])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=60))
def test_components_are_those_of_a_walk(count: int, pairs: list[tuple[int, int]]) -> None:
    pairs = [(a % count, b % count) for a, b in pairs]
    neighbours: dict[int, set[int]] = {n: {n} for n in range(count)}
    for a, b in pairs:
        neighbours[a].add(b)
        neighbours[b].add(a)
    expected = []
    for node in range(count):
        seen, waiting = {node}, [node]
        while waiting:
            new = neighbours[waiting.pop()] - seen
            seen |= new
            waiting += new
        expected.append(min(seen))
    ends = np.array(pairs, np.int64).reshape(-1, 2)
    assert minhash.components(count, ends[:, 0], ends[:, 1]).tolist() == expected
