import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from herd.data.words import ngrams, tokens


@given(st.text(alphabet="ab c,.\nZé1_", max_size=60))
def test_words_are_equal_exactly_where_their_hashes_are(text: str) -> None:
    parts = tokens(text)
    starts, ends = parts.word_edges
    words = [bytes(parts.data[a:b]).lower() for a, b in zip(starts, ends, strict=True)]
    assert [[a == b for b in words] for a in words] == [[bool(a == b) for b in parts.words] for a in parts.words]


@given(st.text(alphabet="ab c1.\nZ", max_size=60))
def test_lines_with_equal_letters_have_equal_hashes(text: str) -> None:
    lines = ["".join(c for c in line if c.isalpha()).lower() for line in text.split("\n")]
    hashes, letters = tokens(text).line_letters
    assert letters.tolist() == [len(line) for line in lines]
    assert [[a == b for b in lines] for a in lines] == [[bool(a == b) for b in hashes] for a in hashes]


def test_hashes_do_not_depend_on_where_a_word_stands_in_a_long_text() -> None:
    text = "alpha " + "filler " * 40_000 + "alpha " + "x" * 200_000 + " alpha"
    words = tokens(text).words
    assert words[0] == words[40_001] == words[-1]
    assert len(np.unique(words)) == 3


def test_ngrams_of_too_few_words_are_none() -> None:
    assert len(ngrams(tokens("one two").words, 3)) == 0
