"""New tokens on a frozen base: what must not change does not, and what is learned is what encoding then does."""

import json
import os
import pathlib
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from herd.console import HerdError
from herd.model import extend
from herd.model.extend import extend_tokenizer
from herd.model.formats.merge_order import check_merges
from herd.model.formats.tokenizer_files import merges
from herd.model.tokenizer import Tokenizer, split_text, train_tokenizer

LIBRARY = pathlib.Path(os.__file__).parent
ENGLISH = [(LIBRARY / f"{name}.py").read_text(encoding="utf-8") for name in ("argparse", "tarfile", "typing", "ast")]
SYLLABLES = ("ки", "пре", "ся", "да", "で", "ます", "する", "ö", "ß", "ver", "der", "éa", "a", "你好", "สวัส", "👍🏽")
NEW = 300


def foreign(seed, words=200, syllables=SYLLABLES):
    draw = random.Random(seed)
    known = ["".join(draw.choices(syllables, k=draw.randint(1, 6))) for _ in range(words)]
    return [" ".join(random.Random(seed + n).choices(known, k=150)) for n in range(10)]


@pytest.fixture(scope="module")
def base():
    return train_tokenizer(ENGLISH, 1000)


@pytest.fixture(scope="module")
def extended(base):
    return extend_tokenizer(base, foreign(0), base.vocab_size + NEW)


def test_ids_of_the_base_stay_and_specials_move_behind(base, extended):
    assert base.ranks.items() <= extended.ranks.items()
    assert extended.vocab_size == base.vocab_size + NEW == len(extended.ranks) + len(extended.special)
    assert list(extended.special) == list(base.special)
    assert list(extended.special.values()) == list(range(len(extended.ranks), extended.vocab_size))
    assert not any(token.isascii() for token in extended.ranks.keys() - base.ranks.keys())


def test_the_new_languages_take_fewer_tokens(base, extended):
    before, after = (sum(len(one.encode(text)) for text in foreign(0)) for one in (base, extended))
    assert after < 0.3 * before


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(max_codepoint=127)) | st.text(st.sampled_from("abdervst ,.\n'sT0")))
def test_ascii_text_keeps_its_ids(base, extended, text):
    assert extended.encode(text) == base.encode(text)


@settings(max_examples=300, deadline=None)
@given(st.text() | st.lists(st.sampled_from([*SYLLABLES, " ", "\n", "x"])).map("".join))
def test_any_text_survives_and_never_takes_more_tokens(base, extended, text):
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert extended.decode(extended.encode(text)) == expected
    assert len(extended.encode(text)) <= len(base.encode(text))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_texts_to_keep_are_kept(base, seed):
    """Texts made of some of the syllables that are learned from, so that much of what could be learned is refused."""
    keep = [*foreign(seed, 50, SYLLABLES[:5])[:2], "naïve – “quoted” café"]
    for ascii in (False, True):
        found = extend_tokenizer(base, foreign(seed) + [ENGLISH[0][:9000]] * 40, base.vocab_size + 30, keep, ascii)
        assert [found.encode(text) for text in keep] == [base.encode(text) for text in keep]
        assert any(token.isascii() for token in found.ranks.keys() - base.ranks.keys()) is ascii


def learned_slowly(base, texts, count):
    """The rule without bookkeeping: encode everything with the vocabulary so far, count, take the most frequent."""
    pieces = Counter(piece for text in texts for piece in split_text(text, base.pattern))
    for _ in range(count):
        counts = Counter()
        for piece, weight in pieces.items():
            for a, b in pairwise(base.encode(piece)):
                joint = base.token_bytes(a) + base.token_bytes(b)
                counts[joint] += 0 if joint.isascii() else weight
        best = min(counts, key=lambda joint: (-counts[joint], joint))
        base = Tokenizer(base.ranks | {best: len(base.ranks)}, list(base.special), base.pattern)
    return base


@pytest.mark.parametrize("seed", range(3))
def test_what_is_learned_from_is_what_encoding_makes(base, seed):
    texts = [*foreign(seed, 30)[:3], "ааааа ааа ааааааа " * 9]
    slowly = learned_slowly(base, texts, 60)
    assert extend_tokenizer(base, texts, base.vocab_size + 60).ranks == slowly.ranks


def test_every_new_token_is_made_by_its_merges(extended):
    """Of Llama 3's, 678 come only from a piece that is the token as it stands; ours all come inside words, too."""
    check_merges(extended.ranks, merges(extended.ranks), whole_pieces=False)


def test_order_of_texts_and_hash_seeds_change_nothing(base, extended, tmp_path):
    again = extend_tokenizer(base, reversed(foreign(0)), base.vocab_size + NEW)
    assert list(again.ranks.items()) == list(extended.ranks.items())
    base.save(tmp_path / "base")
    (tmp_path / "texts.json").write_text(json.dumps(foreign(0)))
    program = (
        "import json, pathlib, sys; from herd.model.extend import extend_tokenizer, Tokenizer\n"
        "folder = pathlib.Path(sys.argv[1]); base = Tokenizer.load(folder / 'base')\n"
        f"texts = json.loads((folder / 'texts.json').read_text())\n"
        f"extend_tokenizer(base, texts, base.vocab_size + {NEW}).save(folder / 'found')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "RAYON_NUM_THREADS": "4"}
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, env=environment, timeout=60)
    assert Tokenizer.load(tmp_path / "found").ranks == extended.ranks


def test_autotokenizer_gives_the_extended_ids(extended, tmp_path):
    extended.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*foreign(0), *foreign(5), ENGLISH[0]]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == extended.encode(text)


def test_specials_in_front_stay_there(base):
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ranks = {token: rank + len(names) for token, rank in base.ranks.items()}
    front = Tokenizer(ranks, {name: place for place, name in enumerate(names)}, "smollm")
    found = extend_tokenizer(front, foreign(0), front.vocab_size + 20)
    assert found.special == front.special and front.ranks.items() <= found.ranks.items()
    assert found.vocab_size == front.vocab_size + 20 and found.chat_format == "chatml"


def test_long_pieces_are_learned_from_in_parts(base):
    text = "щука" * 20_000
    assert len(split_text(text, "llama3")) == 4  # cut by the guard alone
    found = extend_tokenizer(base, [text], base.vocab_size + 8)
    assert len(found.encode(text)) < len(base.encode(text)) / 10


def test_errors_name_what_was_expected(base, monkeypatch):
    with pytest.raises(HerdError, match="vocab_size 1000 has no room for a new token; expected at least 1001"):
        extend_tokenizer(base, foreign(0), base.vocab_size)
    with pytest.raises(
        HerdError, match=r"the texts give only \d+ new tokens; set vocab_size to at most 10\d\d, or add"
    ):
        extend_tokenizer(base, ["щука щука"], 1500)
    with pytest.raises(HerdError, match="the texts give only 0 new tokens"):
        extend_tokenizer(base, ["plain words only"], 1500)
    monkeypatch.setattr(extend, "MAX_TOKENS", 1000)
    with pytest.raises(HerdError, match="the texts' pieces have over 1,000 tokens; give less text"):
        extend_tokenizer(base, foreign(0), 1500)
