"""Against the official Llama 3 tokenizer, which PyPI llama-models carries: same ids, and the same kind of extension.

It is under Meta's licence, so it is an extra of its own (`pip install -e ".[peers]"`) and nothing of it is kept here.
The documents are Debian's, downloaded by apt-get once and kept in the user's cache.
"""

from __future__ import annotations

import importlib.util
import random
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.data.debian import read_debian_packages
from herd.data.extract import extract
from herd.data.language import identify
from herd.data.readers import Skipped, Unavailable
from herd.model.extend import extend_tokenizer
from herd.model.formats.tokenizer_files import read_ranks
from herd.model.formats.tokenizer_json import load_any_tokenizer
from herd.model.tokenizer import Tokenizer, special_tokens
from herd.recipe_data import DebianPackages

PACKAGES = ["harden-doc", "apache2-doc"]  # 5 MB; English, French, German, Italian, Spanish, Portuguese, Turkish, ...
BASE_RANKS = 100_256  # where cl100k ends and Llama 3's own begin
LEARNED = 4_000
FEWEST_DOCUMENTS, FEWEST_LANGUAGES = 400, 7
NOT_HERE = "PyPI llama-models is not installed (the extra 'peers')"

# What tokenizers stumble over: blanks and line ends of all kinds, contractions, digits, marks, joiners, directions, and
# text that looks like special tokens.
FRAGMENTS = [
    *("<|begin_of_text|>", "<|eot_id|>", "<|", "|>", "<|reserved_special_token_2|>", "'s", "'LL", "’s", "don't", "'"),
    *(" ", "  ", "\t", "\n", "\r\n", "\r", "\u00a0", "\u2003", "\u3000", "\u2028", "\x85", "\x1c", "\x0b", "\ufeff"),
    *(
        "1",
        "12345",
        "٣٤",
        "½",
        "Ⅷ",
        "²",
        "१२",
        "e\u0301",
        "İ",
        "ſ",
        "ẞ",
        "ﬁ",
        "नमस्ते",
        "สวัสดี",
        "你好",
        "データ",
        "한국어",
    ),
    *("👩‍👩‍👧", "🇩🇪", "👍🏽", "\u200d", "\u200f", "\x00", "\x7f", "\U0010ffff", "\ufffd", "_", "--", "…", "://", "\\n"),
    *("the", " The", "Straße", "naïve", "Ünïcödé", "שלום", "مرحبا", "Привет"),
]


class Document(NamedTuple):
    path: str
    language: str
    text: str


@pytest.fixture(scope="module")
def official() -> Any:
    """The Tokenizer of llama-models."""
    return pytest.importorskip("llama_models.llama3.tokenizer", reason=NOT_HERE).Tokenizer.get_instance()


@pytest.fixture(scope="module")
def model_file() -> Path:
    spec = importlib.util.find_spec("llama_models")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(NOT_HERE)
    return Path(spec.submodule_search_locations[0]) / "llama3" / "tokenizer.model"


@pytest.fixture(scope="module")
def ours(model_file: Path) -> Tokenizer:
    return load_any_tokenizer(model_file)


@pytest.fixture(scope="module")
def documents(model_file: Path) -> list[Document]:
    """Real pages with the language of their text, those of at least 200 characters."""
    source = DebianPackages(kind="debian-packages", name="pages", packages=PACKAGES, required=True)
    try:
        pages = [
            (page.path, extract(page.content, page.media).text) for page in read_debian_packages(source, Skipped())
        ]
    except Unavailable as error:
        pytest.skip(f"no documents: {error}")
    return [Document(path, identify(text)[0], text) for path, text in pages if len(text) >= 200]


def test_special_tokens_have_the_official_ids(official: Any, ours: Tokenizer) -> None:
    assert (ours.vocab_size, ours.special) == (official.n_words, official.special_tokens)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (official.bos_id, official.eos_id, official.pad_id)
    assert ours.stop_ids == set(official.stop_tokens) and ours.call_id == official.python_tag_id
    expected = [128000, 2028, 374, 264, 1296, 11914, 13, 128001]
    assert ours.encode("This is a test sentence.", bos=True, eos=True) == expected


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=30).map("".join) | st.text())
def test_adversarial_strings_have_the_official_ids(official: Any, ours: Tokenizer, text: str) -> None:
    """Lone surrogates included; the official code takes a BOS and EOS when asked, as ours does."""
    assert ours.encode(text, bos=True, eos=True) == official.encode(text, bos=True, eos=True)


def test_long_runs_have_the_official_ids(official: Any, ours: Tokenizer) -> None:
    draw = random.Random(0)
    for parts in range(1, 9):
        kinds = (draw.choice(("x", " ", "\n", "é", "字", "1")) for _ in range(parts))
        text = "".join(kind * draw.choice((1, 24_999, 25_000, 25_001, 60_000)) for kind in kinds)
        assert ours.encode(text) == official.encode(text, bos=False, eos=False)
    text = "word 字 " * 150_000
    assert ours.encode(text) == official.encode(text, bos=False, eos=False)


@pytest.mark.slow
def test_real_documents_have_the_official_ids(
    official: Any, ours: Tokenizer, documents: list[Document], capsys: Any
) -> None:
    counts: defaultdict[str, int] = defaultdict(int)
    encoded = ours.encode_documents([document.text for document in documents], threads=2)
    for document, ids in zip(documents, encoded, strict=True):
        assert ids.tolist() == official.encode(document.text, bos=False, eos=False), document.path
        counts[document.language] += 1
    many = {language: count for language, count in sorted(counts.items()) if count >= 10}
    with capsys.disabled():
        print(f"\n{len(documents)} documents, {sum(len(ids) for ids in encoded):,} ids, languages: {many}")
    assert len(documents) >= FEWEST_DOCUMENTS and len(many) >= FEWEST_LANGUAGES


@pytest.mark.slow
def test_the_official_tokenizer_json_round(ours: Tokenizer, documents: list[Document], tmp_path: Path) -> None:
    """As exported by us and read again, without the note of ours."""
    ours.save(tmp_path)
    (tmp_path / "herd_tokenizer.json").unlink()
    again = load_any_tokenizer(tmp_path / "tokenizer.json")
    assert (again.ranks, again.special) == (ours.ranks, ours.special)
    assert load_any_tokenizer(tmp_path / "tokenizer.model").special == ours.special


@pytest.mark.slow
def test_extending_cl100k_leaves_english_and_helps_the_others(
    model_file: Path, documents: list[Document], capsys: Any
) -> None:
    """A fifth of the pages is held out; equal amounts of each language are learned from, English is kept."""
    ranks = {token: rank for token, rank in read_ranks(model_file).items() if rank < BASE_RANKS}
    base = Tokenizer(ranks, special_tokens(BASE_RANKS + 16))
    learn, held = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for number, document in enumerate(documents):
        (held if number % 5 == 0 else learn)[document.language].append(document.text)
    others = [language for language in sorted(held) if language != "en" and len(held[language]) >= 5]
    assert len(others) >= FEWEST_LANGUAGES - 1
    texts = [text for language in others for text in _up_to(learn[language], 250_000)]
    found = extend_tokenizer(base, texts, base.vocab_size + LEARNED, keep=_english(learn["en"]))
    assert base.ranks.items() <= found.ranks.items() and len(found.ranks) == BASE_RANKS + LEARNED

    english = _english(held["en"])
    changed = [part for part in english if found.encode(part) != base.encode(part)]
    assert len(english) >= 1_000 and not any(part.isascii() for part in changed)
    assert len(changed) <= len(english) // 500, changed  # such as quote a word of another language
    lines = []
    for language in ["en", *others]:
        characters = sum(map(len, held[language]))
        before, after = (characters / sum(len(one.encode(text)) for text in held[language]) for one in (base, found))
        lines.append(
            f"{language}: {len(held[language])} held-out pages, {before:.3f} to {after:.3f} characters a token"
        )
        assert language == "en" or after > before, language
    with capsys.disabled():
        print("", f"{len(changed)} of {len(english)} held-out English paragraphs changed", *lines, sep="\n")


def _english(texts: list[str]) -> list[str]:
    """Paragraphs in English: pages are at times half translated."""
    parts = (part for text in texts for part in text.split("\n\n") if len(part) >= 100)
    return [part for part in parts if identify(part)[0] == "en"]


def _up_to(texts: list[str], characters: int) -> list[str]:
    """Texts from the first on, until they have so many characters."""
    taken, size = [], 0
    for text in texts:
        if size < characters:
            taken.append(text)
            size += len(text)
    return taken
