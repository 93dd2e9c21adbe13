"""Text survives; specials cannot be forged; Hugging Face's tokenizer gives our ids; damage is named."""

import json
import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from herd.console import HerdError
from herd.model import tokenizer as tokenizer_module
from herd.model.tokenizer import Tokenizer, special_tokens, train_tokenizer

LIBRARY = pathlib.Path(os.__file__).parent
MODULES = ("argparse", "tarfile", "typing", "ast", "dis", "ssl", "uuid", "datetime", "statistics", "socket")
TEXTS = [(LIBRARY / f"{name}.py").read_text(encoding="utf-8") for name in MODULES]
WORLD = "नमस्ते दुनिया · สวัสดี · 你好，世界 · Здравствуй · 👩‍👩‍👧 · don't I'LL 12345 1½\r\n\n\t  x  \n \u3000…\x00"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*TEXTS[:5], WORLD], 1024)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("<|>begin_oftx'sd 12\n\r\t\u00a0é你"))
def test_any_text_survives(tokenizer, text):
    ids = tokenizer.encode(text, bos=True, eos=True)
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert tokenizer.decode(ids[1:-1]) == text
    assert max(ids[1:-1], default=0) < min(tokenizer.special.values())


@settings(max_examples=100, deadline=None)
@given(st.binary())
def test_any_bytes_read_as_text_survive(tokenizer, data):
    text = data.decode("utf-8", "replace")
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


def test_a_lone_surrogate_becomes_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.encode_documents(["a\ud800b"], threads=2)[0].tolist() == tokenizer.encode("a\ud800b")
    train_tokenizer(["a\ud800b " * 50 + TEXTS[0]], 300)


def test_specials_are_not_encoded_from_text(tokenizer):
    for name, token in tokenizer.special.items():
        ids = tokenizer.encode(f"before{name}after")
        assert token not in ids and tokenizer.decode(ids) == f"before{name}after"
        assert tokenizer.token_bytes(token) == name.encode()
    assert tokenizer.stop_ids == {tokenizer.special[f"<|{name}|>"] for name in ("end_of_text", "eom_id", "eot_id")}


def test_vocabulary_size_holds_the_specials(tokenizer):
    assert tokenizer.vocab_size == 1024 and tokenizer.pad_id == 1024 - 16 + 4
    full = special_tokens(128_256)
    assert len(set(full)) == 256 and full[:16] == special_tokens(1024) and full[9] == "<|eot_id|>"
    with pytest.raises(HerdError, match="token id 1024 is outside the vocabulary of 1024"):
        tokenizer.decode([5, 1024])


@pytest.mark.parametrize("threads", [1, 3])
def test_documents_encode_as_one_by_one(tokenizer, threads):
    texts = [*TEXTS, "", WORLD, "a" * 60_000]
    many = tokenizer.encode_documents(texts, threads)
    assert all(ids.dtype == np.int32 for ids in many)
    assert [ids.tolist() for ids in many] == [tokenizer.encode(text) for text in texts]


def released_pieces(text):
    """The released code's guard, character by character."""
    start, run, space = 0, 0, text[0].isspace()
    for i, character in enumerate(text):
        if character.isspace() != space:
            run, space = 1, not space
        elif (run := run + 1) > 25_000:
            yield text[start:i]
            start, run = i, 1
    yield text[start:]


def test_long_runs_are_cut_where_the_released_code_cuts():
    draw = random.Random(0)
    for _ in range(30):
        parts = (draw.choice("x \n") * draw.choice((1, 24_999, 25_000, 25_001, 50_001)) for _ in range(5))
        text = "".join(parts)
        assert list(tokenizer_module._pieces(text)) == list(released_pieces(text))
    assert [len(piece) for piece in tokenizer_module._pieces("ab " * 300_000)] == [400_000, 400_000, 100_000]


def test_autotokenizer_gives_our_ids(tokenizer, folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')  # as in an export, where it must not mislead
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in [*TEXTS, WORLD]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert theirs(text)["input_ids"] == tokenizer.encode(text, bos=True)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )
    assert theirs.convert_tokens_to_ids(list(tokenizer.special)) == list(tokenizer.special.values())


def test_autotokenizer_joins_in_our_order(tokenizer, folder):
    """Made-up words meet pairs of tokens that training never saw side by side."""
    theirs, draw = AutoTokenizer.from_pretrained(folder), random.Random(0)
    words = ["".join(draw.choices("aeinorst_=", k=draw.randint(1, 40))) for _ in range(3000)]
    found = theirs(words, add_special_tokens=False)["input_ids"]
    assert found == [tokenizer.encode(word) for word in words]


def test_training_is_deterministic(tokenizer):
    again = train_tokenizer(iter([WORLD, *reversed(TEXTS[:5])]), 1024)
    assert list(again.ranks.items()) == list(tokenizer.ranks.items())


def test_training_does_not_depend_on_threads(tokenizer, tmp_path):
    """In processes of their own: hash seeds and thread counts are fixed when a process starts."""
    (tmp_path / "texts.json").write_text(json.dumps([*TEXTS[:5], WORLD]))
    program = (
        "import json, pathlib, sys; from herd.model.tokenizer import train_tokenizer\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "train_tokenizer(json.loads((folder / 'texts.json').read_text()), 1024).save(folder / sys.argv[2])"
    )
    for threads in ("1", "4"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", program, tmp_path, threads], check=True, env=environment, timeout=60)
        assert Tokenizer.load(tmp_path / threads).ranks == tokenizer.ranks


def test_too_little_text_and_too_small_a_vocabulary_are_errors():
    with pytest.raises(HerdError, match=r"gives only \d+ merges; set vocab_size to at most \d+"):
        train_tokenizer(["short"], 1024)
    with pytest.raises(HerdError, match="vocab_size 271 is below 272"):
        train_tokenizer(TEXTS, 271)


def test_loading_gives_the_same_tokenizer(tokenizer, folder):
    again = Tokenizer.load(folder)
    assert (again.ranks, again.special) == (tokenizer.ranks, tokenizer.special)
    assert again.encode(WORLD) == tokenizer.encode(WORLD)


@pytest.mark.parametrize(
    ("file", "damage", "named"),
    [
        ("tokenizer.model", lambda data: data[:-20], r"tokenizer\.model: (line|\d+ tokens)"),
        ("tokenizer.model", lambda data: b"".join(data.splitlines(True)[:-1]), r"1007 tokens.*promises 1008"),
        ("tokenizer.model", lambda data: data.replace(b" 300\n", b" 3000\n"), r"line 301 is damaged .*300 is due"),
        ("tokenizer.model", lambda data: data.replace(b"\n", b"\n!", 1), r"line 2 is damaged"),
        ("tokenizer.model", None, r"tokenizer\.model: missing"),
        ("herd_tokenizer.json", lambda data: data[:-30], r"herd_tokenizer\.json: damaged"),
        ("herd_tokenizer.json", lambda data: data.replace(b"eot_id", b"eom_id"), "not a list of distinct"),
        ("herd_tokenizer.json", lambda data: data.replace(b'"llama3"', b'"gpt2"'), "with pattern 'gpt2'"),
        ("herd_tokenizer.json", None, r"herd_tokenizer\.json: missing"),
    ],
)
def test_a_damaged_file_is_named(file, damage, named, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if damage is not None:
        (tmp_path / file).write_bytes(damage(data))
    with pytest.raises(HerdError, match=named) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


PLACES = {"first": (0, 1, 2, 3, 4), "between": (0, 7, 300, 301, 302), "last": (1008, 1009, 1010, 1011, 1012)}
CHATML_SPECIALS = ("<|im_start|>", "<|endoftext|>", "<jupyter_code>", "<|im_end|>", "<empty_output>")


@pytest.fixture(params=PLACES)
def placed(request, tokenizer):
    """The trained ranks with ChatML's special tokens in other places."""
    places = PLACES[request.param]
    free = [token for token in range(1008 + 5) if token not in places]
    ranks = dict(zip(tokenizer.ranks, free, strict=True))
    return Tokenizer(ranks, dict(zip(CHATML_SPECIALS, places, strict=True)), "smollm")


def test_specials_may_be_anywhere_and_stay_there(placed, tokenizer, tmp_path):
    for text in (*TEXTS[:2], WORLD):
        ids = placed.encode(text)
        assert placed.decode(ids) == text and not set(ids) & set(placed.special.values())
        assert [i.tolist() for i in placed.encode_documents([text], 2)] == [ids]
    placed.save(tmp_path)
    again, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (again.ranks, again.special, again.pattern) == (placed.ranks, placed.special, "smollm")
    for text in (*TEXTS, WORLD, "a  1  b\n\n 22"):
        assert again.encode(text) == placed.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert theirs.decode(placed.encode(text)) == text
    assert theirs.convert_ids_to_tokens(list(placed.special.values())) == list(CHATML_SPECIALS)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (placed.eos_id, placed.pad_id) and len(theirs) == 1013


def test_chatml_puts_nothing_before_a_text(placed, tokenizer, tmp_path):
    """Its bos begins a message; in front of a text it would make the first word a role."""
    assert placed.encode("hello", bos=True, eos=True) == [*placed.encode("hello"), placed.eos_id]
    assert (placed.chat_format, tokenizer.chat_format) == ("chatml", "llama3")
    assert placed.call_id == placed.special["<jupyter_code>"]
    assert tokenizer.call_id == tokenizer.special["<|python_tag|>"]
    assert placed.stop_ids == {placed.special["<|im_end|>"], placed.special["<|endoftext|>"]}
    placed.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("hello")["input_ids"] == placed.encode("hello")


def test_smollm_keeps_digits_apart_and_blanks_before_them_together(tokenizer):
    ranks = {bytes([value]): value for value in range(256)} | {b"  ": 256, b"12": 257, b" 1": 258, b" a": 259}
    one = Tokenizer(ranks, CHATML_SPECIALS, "smollm")
    assert one.encode("  12") == [256, ord("1"), ord("2")]
    assert one.encode("   a") == [256, 259] and one.encode(" 1") == [ord(" "), ord("1")]


def test_wrong_specials_are_named(tokenizer, placed, tmp_path):
    with pytest.raises(HerdError, match=r"special token '<\|im_end\|>' is missing, which the chat format chatml needs"):
        Tokenizer(tokenizer.ranks, CHATML_SPECIALS[:3], "smollm")
    with pytest.raises(HerdError, match="the 1013 ids of tokens and specials do not count from 0 without gaps"):
        Tokenizer(tokenizer.ranks, dict.fromkeys(CHATML_SPECIALS, 1012), "smollm")
    placed.save(tmp_path)
    note = json.loads((tmp_path / "herd_tokenizer.json").read_text())
    if isinstance(note["specials"], dict):
        (tmp_path / "herd_tokenizer.json").write_text(
            json.dumps(note | {"specials": dict.fromkeys(CHATML_SPECIALS, "1")})
        )
        with pytest.raises(HerdError, match=r"herd_tokenizer\.json: 'specials' is not a list of distinct names, or a"):
            Tokenizer.load(tmp_path)
