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


def test_hashes_stay_what_they_were() -> None:
    parts = tokens("One TWO_3 été\n12 of 1,000\n\nlast")
    assert parts.words.tolist() == [
        5326822472646701115,
        10462348762567539398,
        8732486524834840859,
        871591578865462012,
        13241414844497118092,
        14672375458755048441,
        7950673496807770857,
        13222180351871572724,
    ]
    assert parts.line_letters[0].tolist() == [4471458951599788781, 13241414844497118092, 0, 13222180351871572724]
    assert parts.line_letters[1].tolist() == [11, 2, 0, 4]
