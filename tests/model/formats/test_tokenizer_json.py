"""Vocabularies of others give the ids that tokenizers gives, or are refused by name; damage never gets further."""

import copy
import json
import os
import pathlib
import random

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from herd.console import HerdError
from herd.model.formats import merge_order, tokenizer_json
from herd.model.formats.tokenizer_files import byte_characters
from herd.model.formats.tokenizer_json import load_any_tokenizer, read_tokenizer_json, read_tokenizer_model
from herd.model.tokenizer import PATTERN, Tokenizer, special_tokens, train_tokenizer

LIBRARY = pathlib.Path(os.__file__).parent
TEXTS = [(LIBRARY / f"{name}.py").read_text(encoding="utf-8") for name in ("argparse", "tarfile", "typing", "ast")]
WORLD = "नमस्ते दुनिया · สวัสดี · 你好，世界 · Здравствуй · 👩‍👩‍👧 · don't I'LL 12345 1½\r\n\n\t  x  \n \u3000…\x00"
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def trained(split, specials, **options):
    """A tokenizer of PyPI tokenizers: each token made in the one way that training saw."""
    found = tokenizers.Tokenizer(models.BPE(**options))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split == "smollm")
    first = (
        pre_tokenizers.Digits(individual_digits=True)
        if split == "smollm"
        else pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    )
    found.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(
        [*TEXTS, WORLD * 3],
        trainers.BpeTrainer(vocab_size=1500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    return found


@pytest.fixture(scope="module", params=["smollm", "llama3", "llama3 ignore_merges"])
def theirs(request):
    split, *whole = request.param.split()
    specials = CHATML if split == "smollm" else [*special_tokens(1500)]
    return trained(split, specials, ignore_merges=bool(whole))


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("theirs") / "tokenizer.json"
    theirs.save(str(path))
    return path


@pytest.fixture(scope="module")
def ours(file):
    return load_any_tokenizer(file)


def test_ids_are_those_of_tokenizers(theirs, ours):
    assert len(json.loads(theirs.to_str())["model"]["merges"]) < 1500  # one way only of making each token
    draw = random.Random(0)
    words = ["".join(draw.choices("aeinorst_=()", k=draw.randint(1, 40))) for _ in range(3000)]
    words += [ours.decode(draw.choices(range(20, ours.vocab_size), k=6)) for _ in range(3000)]
    for text in [*TEXTS, WORLD, *(word for word in words if "<|" not in word)]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert ours.special == {entry.content: token for token, entry in theirs.get_added_tokens_decoder().items()}
    assert ours.chat_format == ("chatml" if "<|im_start|>" in ours.special else "llama3")


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("abcdefst ._\n'1é你"))
def test_any_text_has_the_same_ids(theirs, ours, text):
    text = text.replace("<|", "<")  # tokenizers finds special tokens in text, ours never does
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_merges_may_be_texts_or_lists(file, ours, tmp_path):
    content = json.loads(file.read_text())
    content["model"]["merges"] = [
        " ".join(m) if isinstance(m, list) else m.split(" ") for m in content["model"]["merges"]
    ]
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert read_tokenizer_json(tmp_path / "other.json").ranks == ours.ranks


def test_what_was_read_can_be_written(theirs, ours, tmp_path):
    ours.save(tmp_path)
    again = load_any_tokenizer(tmp_path)
    assert (again.ranks, again.special, again.pattern) == (ours.ranks, ours.special, ours.pattern)
    assert again.chat_format == ours.chat_format
    (tmp_path / "herd_tokenizer.json").unlink()
    assert load_any_tokenizer(tmp_path).encode(WORLD) == theirs.encode(WORLD, add_special_tokens=False).ids


def test_special_tokens_tell_the_chat_format(tmp_path):
    trained("llama3", CHATML).save(str(tmp_path / "tokenizer.json"))
    found = load_any_tokenizer(tmp_path)
    assert (found.pattern, found.chat_format) == ("llama3", "chatml")
    found.save(tmp_path / "saved")
    assert load_any_tokenizer(tmp_path / "saved").chat_format == "chatml"


def test_metas_file_alone(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 600)
    tokenizer.save(tmp_path / "whole")
    path = tmp_path / "tokenizer.model"
    path.write_bytes((tmp_path / "whole" / "tokenizer.model").read_bytes())
    for place in (path, tmp_path):
        found = load_any_tokenizer(place)
        assert (found.ranks, found.special) == (tokenizer.ranks, tokenizer.special)
    path.write_bytes(b"\n\x0b\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")  # SentencePiece, as of Llama 2
    with pytest.raises(HerdError, match=r"tokenizer\.model: line 1 is damaged .*expected: base64 token, space, rank"):
        read_tokenizer_model(path)


def test_gguf_vocabularies(gguf_fields, write_gguf, tmp_path):
    path = write_gguf(tmp_path / "model.gguf", gguf_fields("smollm"), {})
    found = load_any_tokenizer(path)
    assert found.pattern == "smollm" and found.decode(found.encode("def f():")) == "def f():"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(HerdError, match=r"model\.gguf: not a whole GGUF file"):
        load_any_tokenizer(path)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(
        HerdError, match=r"no tokenizer; expected herd_tokenizer\.json, tokenizer\.json or tokenizer\.m"
    ):
        load_any_tokenizer(tmp_path)
    with pytest.raises(HerdError, match=r"nowhere: missing; expected a tokenizer's folder"):
        load_any_tokenizer(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def whole():
    """A small vocabulary as others write it: all bytes, three tokens, ChatML's specials."""
    table = byte_characters()
    vocabulary = {table[value]: value for value in range(256)} | {"ab": 256, "abc": 257, "cd": 258}
    vocabulary |= {name: 259 + place for place, name in enumerate(CHATML)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": 259 + place, "content": name, **flags} for place, name in enumerate(CHATML)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b", "ab c", "c d"]},
    }


def changed(whole, change):
    content = copy.deepcopy(whole)
    change(content)
    return content


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(content):
        for key in path:
            content = content[key]
        content[last] = value

    return change


def unreachable(content):
    """`cde`, by merges of c and de, while c and d are joined first: tokenizers never gives it, tiktoken would."""
    vocabulary = content["model"]["vocab"]
    vocabulary["de"], vocabulary["cde"] = 262, 263
    content["model"]["merges"] += ["d e", "c de"]


WRONG = {
    "a list": (lambda content: content.clear(), "model.type is None; herd reads 'BPE'"),
    "unigram": (put("model", "type", "Unigram"), "model.type is 'Unigram'; herd reads 'BPE'"),
    "dropout": (put("model", "dropout", 0.1), "model.dropout is 0.1; herd reads byte-level BPE without it"),
    "unknown token": (put("model", "unk_token", "<unk>"), "model.unk_token is '<unk>'"),
    "byte fallback": (put("model", "byte_fallback", True), "model.byte_fallback is True"),
    "prefix": (put("model", "continuing_subword_prefix", "##"), "model.continuing_subword_prefix is '##'"),
    "ignore_merges": (put("model", "ignore_merges", "yes"), "model.ignore_merges is 'yes'; expected true or false"),
    "normalizer": (put("normalizer", {"type": "NFC"}), r'normalizer is {"type": "NFC"}; herd encodes text as it is'),
    "splitter": (put("pre_tokenizer", {"type": "Whitespace"}), r'pre_tokenizer is {"type": "Whitespace"}; herd reads'),
    "no splitter": (
        put("pre_tokenizer", None),
        "pre_tokenizer is None; herd reads Llama 3's Split or SmolLM2's Digits",
    ),
    "prefix space": (put("pre_tokenizer", "pretokenizers", 1, "add_prefix_space", True), "pre_tokenizer is"),
    "no split": (put("pre_tokenizer", "pretokenizers", 1, "use_regex", False), "pre_tokenizer is"),
    "all digits": (put("pre_tokenizer", "pretokenizers", 0, "individual_digits", False), "pre_tokenizer is"),
    "regex": (
        put("pre_tokenizer", "pretokenizers", 0, {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated"}),
        "pre_tokenizer is",
    ),
    "no vocab": (put("model", "vocab", None), "model.vocab is not a table of 1 to 1,000,000 tokens"),
    "list vocab": (put("model", "vocab", [["a", 1.0]]), "model.vocab is not a table"),
    "id in words": (put("model", "vocab", "ab", "256"), "model.vocab: 'ab' has the id '256'; expected a whole number"),
    "true id": (put("model", "vocab", "ab", True), "model.vocab: 'ab' has the id True"),
    "negative id": (put("model", "vocab", "ab", -1), "model.vocab: 'ab' has the id -1"),
    "gap": (put("model", "vocab", "cd", 300), "the 262 ids of tokens and specials do not count from 0 without gaps"),
    "huge id": (put("model", "vocab", "cd", 10**30), "do not count from 0 without gaps"),
    "id twice": (put("model", "vocab", "cd", 257), "do not count from 0 without gaps"),
    "not byte level": (put("model", "vocab", "a b", 262), "model.vocab: 'a b' is neither special nor byte-level text"),
    "empty token": (put("model", "vocab", "", 262), "model.vocab: '' is neither special nor byte-level text"),
    "surrogate": (put("model", "vocab", "\ud800", 262), r"model.vocab: '\\ud800' is neither special"),
    "other id": (put("model", "vocab", CHATML[0], 0), "'<|endoftext|>' has the id 0, in added_tokens 259"),
    "no specials": (put("added_tokens", None), "added_tokens is not a list of at most 10,000 tokens"),
    "not special": (put("added_tokens", 0, "special", False), "'<|endoftext|>' is not special; herd finds no added"),
    "special without id": (put("added_tokens", 0, "id", None), "added_tokens: {.*} has no content, or no id"),
    "special number": (put("added_tokens", 0, "content", 7), "added_tokens: {.*} has no content, or no id"),
    "special twice": (
        put("added_tokens", 0, "content", CHATML[1]),
        r"'<\|im_start\|>' is given twice, or is not UTF-8",
    ),
    "special surrogate": (put("added_tokens", 0, "content", "\udc80"), "is given twice, or is not UTF-8"),
    "no chat": (put("added_tokens", 2, "content", "<x>"), "model.vocab: '<|im_end|>' is .* byte-level|special token"),
    "no merges": (put("model", "merges", None), "model.merges is missing; expected a list"),
    "merge of three": (put("model", "merges", ["a b c"]), "model.merges: 'a b c' is not two tokens"),
    "merge of numbers": (put("model", "merges", [[1, 2]]), r"model.merges: '\[1, 2\]' is not two tokens"),
    "merge not bytes": (put("model", "merges", ["a 你"]), "model.merges: 'a 你' is not byte-level text"),
    "merge of nothing": (put("model", "merges", ["a b", "c e"]), "model.merges: b'c' b'e' makes no token"),
    "merge order": (put("model", "merges", ["c d", "a b", "ab c"]), "makes no token, or not in the order of ids"),
    "merge twice": (put("model", "merges", ["a b", "a b", "ab c", "c d"]), "or is given twice"),
    "merge lacking": (put("model", "merges", ["a b", "c d"]), r"token 257 \(b'abc'\): its bytes come out as 2 tokens"),
    "unreachable": (unreachable, r"token 263 \(b'cde'\): its bytes come out as 2 tokens by the merges; herd's encoder"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_named(whole, name, tmp_path):
    change, problem = WRONG[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(changed(whole, change)))
    with pytest.raises(HerdError, match=problem) as caught:
        load_any_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_the_vocabulary_that_was_changed_is_read(whole, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert load_any_tokenizer(tmp_path).encode("abcd 1") == [257, ord("d"), ord(" "), ord("1")]


def test_a_token_of_three_parts_comes_only_as_a_whole_piece(whole, tmp_path):
    """As 678 of Llama 3's: with `ignore_merges` both encoders give it for a piece that it is, and only then."""

    def change(content):
        content["model"]["vocab"]["xyz"] = 262
        content["model"]["ignore_merges"] = True

    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(changed(whole, change)))
    ours, theirs = load_any_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    for text in ("xyz", "xyza", "axyz", "abcd xyz 1xyz"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    content = json.loads(path.read_text())
    content["model"]["ignore_merges"] = False
    path.write_text(json.dumps(content))
    with pytest.raises(HerdError, match=r"token 262 \(b'xyz'\): its bytes come out as 3 tokens"):
        load_any_tokenizer(path)


ODD = st.sampled_from(
    [None, True, -1, 0, 1.5, 10**40, "", "a", "a b", "\ud800", "<|im_end|>", [], {}, [[]], {"": {}}, ["a"]]
)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_file_with_odd_values_is_read_or_refused(whole, tmp_path_factory, data):
    content = copy.deepcopy(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place = content
        while place:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.integers(0, 3)) == 0:
                place[key] = copy.deepcopy(data.draw(ODD))
                break
            place = place[key]
    path = tmp_path_factory.getbasetemp() / "odd.json"
    path.write_text(json.dumps(content))
    try:
        found = read_tokenizer_json(path)
    except HerdError as error:
        assert "\n" not in str(error) and len(str(error)) < 1_000
    else:
        assert found.decode(found.encode("abcd 1")) == "abcd 1"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 200_000, '{"model":' * 200_000, "[1, 2]", '"text"', "\ufeff{}", '{"a": ' + "9" * 10_000 + "}"],
    ids=["empty", "cut", "deep", "deeper", "list", "text", "mark", "number"],
)
def test_damaged_json_is_one_line(text, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(HerdError, match=r"tokenizer\.json: (not JSON that can be read|model\.type is)"):
        load_any_tokenizer(path)


def test_too_much_is_refused_before_it_costs_time(whole, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(changed(whole, put("model", "vocab", "a" * 200_000, 262))))
    with pytest.raises(HerdError, match="the tokens are too long: their squared lengths sum to over 100,000,000"):
        load_any_tokenizer(path)
    many = [{"id": place, "content": f"<{place}>", "special": True} for place in range(10_001)]
    path.write_text(json.dumps(changed(whole, put("added_tokens", many))))
    with pytest.raises(HerdError, match="added_tokens is not a list of at most 10,000"):
        load_any_tokenizer(path)
    monkeypatch.setattr(tokenizer_json, "MAX_FILE_BYTES", 1000)
    with pytest.raises(HerdError, match=r"tokenizer\.json: .* no vocabulary has over 1.0 kB"):
        load_any_tokenizer(path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_merges_are_exact_or_refused(data, tmp_path_factory):
    """Random lists of merges over three letters: what is read gives the ids that tokenizers gives, for every text."""
    table = byte_characters()
    tokens, merges = ["a", "b", "c"], []
    for _ in range(data.draw(st.integers(1, 7))):
        left, right = (data.draw(st.sampled_from(tokens)) for _ in range(2))
        if left + right not in tokens:
            tokens.append(left + right)
        elif tokens[-1] != left + right or [left, right] in merges:
            continue
        merges.append([left, right])
    vocabulary = {character: value for value, character in enumerate(table)}
    vocabulary |= {token: 256 + place for place, token in enumerate(tokens[3:])}
    ranks = {bytes(table.index(character) for character in token): rank for token, rank in vocabulary.items()}
    found = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[(a, b) for a, b in merges]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = [(left.encode(), right.encode()) for left, right in merges]
    texts = data.draw(st.lists(st.text("abc", max_size=14), min_size=20, max_size=20))
    ours = Tokenizer(ranks, special_tokens(300))
    same = [ours.encode(text) == found.encode(text).ids for text in texts if text]
    try:
        merge_order.check_merges(ranks, spelled, whole_pieces=False)
    except HerdError:
        lone = [ours.encode(token) == found.encode(token).ids for token in tokens]
        assert not all(lone)  # it was right to refuse: a token of its own shows the difference
    else:
        assert all(same)
