import random

import numpy as np
import pytest

from herd.data.dedup import LineCounter, Signatures, band_rows, exact_duplicates, near_duplicates, text_digest
from herd.data.words import tokens

WORDS = [f"word{n}" for n in range(5_000)]


def essay(seed: int, length: int = 400) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def nearly(text: str, changes: int) -> str:
    words = text.split()
    for n in range(changes):
        words[(n * 131 + 7) % len(words)] = f"changed{n}"
    return " ".join(words)


def keepers(texts: list[str], ids: list[str], threshold: float = 0.8) -> dict[str, str]:
    signatures = Signatures()
    for text in texts:
        signatures.add(tokens(text))
    lengths = np.array([len(text) for text in texts])
    found = near_duplicates(signatures.array(), lengths, ids, threshold)
    return {ids[i]: ids[k] for i, k in enumerate(found.keeper.tolist())}


def test_near_duplicates_are_found_and_others_left() -> None:
    texts = [essay(n) for n in range(300)] + [nearly(essay(n), 4) + " and a longer end" for n in range(50)]
    kept = keepers(texts, [f"{n:03d}" for n in range(len(texts))])
    assert all(kept[f"{n:03d}"] == f"{300 + n:03d}" for n in range(50))  # the longer one stays
    assert all(kept[f"{n:03d}"] == f"{n:03d}" for n in range(50, 350))


def test_what_is_kept_does_not_depend_on_the_order_of_the_input() -> None:
    texts = [essay(n % 40, 300) if n % 3 else nearly(essay(n % 40, 300), n % 7) for n in range(200)]
    ids = [f"{random.Random(n).random():.12f}" for n in range(200)]
    expected = keepers(texts, ids)
    for seed in range(3):
        order = random.Random(seed).sample(range(200), 200)
        assert keepers([texts[i] for i in order], [ids[i] for i in order]) == expected


def test_score_is_the_similarity_that_decided() -> None:
    text = essay(1)
    signatures = Signatures()
    for each in (text, nearly(text, 3), essay(2)):
        signatures.add(tokens(each))
    found = near_duplicates(signatures.array(), np.array([10, 9, 8]), ["a", "b", "c"], 0.8)
    assert found.keeper.tolist() == [0, 0, 2]
    assert 0.8 <= found.score[1] < 1
    assert found.score[2] == 0


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95])
def test_banding_misses_no_more_than_one_pair_in_a_hundred_at_the_threshold(threshold: float) -> None:
    rows = band_rows(threshold)
    assert (1 - threshold**rows) ** (126 // rows) <= 0.01


def test_no_documents_and_empty_documents() -> None:
    assert keepers([], []) == {}
    assert len(keepers(["", "x", "one two"], ["a", "b", "c"])) == 3


def test_equal_texts_keep_the_smallest_id_and_ignore_white_space() -> None:
    digests = [text_digest(text) for text in ("a  b\n", "c", "a b", " a b ")]
    assert exact_duplicates(digests, ["3", "2", "1", "4"]).tolist() == [2, 1, 2, 2]


def cleaned(documents: list[str], repeats: int, verbatim: list[tuple[int, int]] | None = None) -> list[str]:
    counter = LineCounter()
    for text in documents:
        counter.add(tokens(text), verbatim or [])
    counter.close(repeats)
    return [counter.clean(text, tokens(text), verbatim or [])[0] for text in documents]


def test_a_line_in_more_documents_than_the_limit_goes_and_one_in_as_many_stays() -> None:
    documents = [f"Page {n} of this Manual!\nunique {WORDS[n]} {'x' * n}" for n in range(7)]
    assert all("Manual" not in text for text in cleaned(documents, 6))
    assert all("Manual" in text for text in cleaned(documents[:6], 6))


def test_repeats_inside_one_document_do_not_count() -> None:
    assert cleaned(["same line\n" * 20], 6) == ["same line\n" * 20]


def test_verbatim_indented_and_short_lines_are_left_alone() -> None:
    documents = [
        f"import numpy as np\n    return value\n}}\n1. \n--quiet\nThe same line of the menu\nown {'abcdefghij'[n]}"
        for n in range(10)
    ]
    for text in cleaned(documents, 6, verbatim=[(0, 1)]):
        assert text.startswith("import numpy as np\n    return value\n}\n1. \n--quiet\nown ")
