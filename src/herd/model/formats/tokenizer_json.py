"""Vocabularies that others wrote: Hugging Face's `tokenizer.json`, Meta's `tokenizer.model` by itself, GGUF.

What herd wrote carries a note of ours and is read by `tokenizer_files.py`. Here a file is hostile until shown
otherwise: what our encoder could not do exactly is refused, by the key and its value, and so is what is no vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from herd.console import HerdError, human_bytes
from herd.model.formats.merge_order import check_merges, read_merges
from herd.model.formats.tokenizer_files import byte_characters, load_tokenizer, read_ranks
from herd.model.tokenizer import PATTERNS, Tokenizer, special_tokens

MAX_FILE_BYTES = 50_000_000  # Llama 3's tokenizer.json has 9 to 17 MB
MAX_TOKENS = 1_000_000
MAX_SPECIALS = 10_000  # tiktoken makes one pattern of all their names
MAX_SPECIAL_CHARACTERS = 256
NOTE, HUGGING_FACE, META = "herd_tokenizer.json", "tokenizer.json", "tokenizer.model"

# What a byte-level BPE may say of itself; anything else would split or spell text in another way.
_PLAIN = {
    "dropout": (None, 0.0),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
}


def load_any_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer at a path: a file, or a folder with herd's note, a tokenizer.json or a tokenizer.model.

    A file is read by its ending: .json, .gguf, else Meta's format. Raises HerdError naming the file and what is
    missing, damaged or not supported.
    """
    if path.is_dir():
        if (path / NOTE).exists():
            return load_tokenizer(path)
        found = [path / name for name in (HUGGING_FACE, META) if (path / name).exists()]
        if not found:
            raise HerdError(f"{path}: no tokenizer; expected {NOTE}, {HUGGING_FACE} or {META} in it, or a .gguf file")
        path = found[0]
    if not path.exists():
        raise HerdError(f"{path}: missing; expected a tokenizer's folder, {HUGGING_FACE}, {META} or a .gguf file")
    if path.suffix == ".gguf":
        from herd.model.formats.gguf import read_gguf_tokenizer

        return read_gguf_tokenizer(path)
    if path.name == NOTE:
        return load_tokenizer(path.parent)
    return read_tokenizer_json(path) if path.suffix == ".json" else read_tokenizer_model(path)


def read_tokenizer_model(path: Path) -> Tokenizer:
    """Meta's file alone: Llama 3's split and its special tokens behind the ranks, 256 behind 128,000 and more.

    Raises HerdError naming the line that is damaged.
    """
    _check_size(path)
    ranks = read_ranks(path)
    return Tokenizer(ranks, special_tokens(len(ranks)))


def read_tokenizer_json(path: Path) -> Tokenizer:
    """Hugging Face's file of a byte-level BPE with Llama 3's or SmolLM2's split of text.

    What it puts around a text (`post_processor`) is left aside: `Tokenizer.encode` adds BOS and EOS when asked. Special
    tokens are never found in text, though Hugging Face does so. Raises HerdError naming the key and its value where
    the file is damaged or our encoder would not give the ids that it means.
    """
    _check_size(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise HerdError(f"{path}: not JSON that can be read ({str(error)[:100]})") from None
    try:
        return _tokenizer(content)
    except HerdError as error:
        raise HerdError(f"{path}: {error}") from None


def _check_size(path: Path) -> None:
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise HerdError(f"{path}: {human_bytes(size)}; no vocabulary has over {human_bytes(MAX_FILE_BYTES)}")


def _tokenizer(content: Any) -> Tokenizer:
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise HerdError(f"model.type is {_shown(kind)}; herd reads 'BPE'")
    for key, allowed in _PLAIN.items():
        if model.get(key) not in allowed:
            raise HerdError(f"model.{key} is {_shown(model[key])}; herd reads byte-level BPE without it")
    if content.get("normalizer") is not None:
        raise HerdError(f"normalizer is {_shown(content['normalizer'])}; herd encodes text as it is")
    pattern = _pattern(content.get("pre_tokenizer"))
    specials = _specials(content.get("added_tokens"))
    table = {character: value for value, character in enumerate(byte_characters())}
    ranks = _ranks(model.get("vocab"), specials, table)
    whole = model.get("ignore_merges", False)
    if not isinstance(whole, bool):
        raise HerdError(f"model.ignore_merges is {_shown(whole)}; expected true or false")
    try:
        check_merges(ranks, read_merges(model.get("merges"), table), whole)
    except HerdError as error:
        raise HerdError(f"model.{error}") from None
    return Tokenizer(ranks, specials, pattern)


def _pattern(splitter: Any) -> str:
    """Name of the split pattern that a `pre_tokenizer` stands for."""
    steps = splitter.get("pretokenizers") if isinstance(splitter, dict) and splitter.get("type") == "Sequence" else None
    if isinstance(steps, list) and len(steps) == 2 and all(isinstance(step, dict) for step in steps):
        first, second = steps
        spells = second.get("type") == "ByteLevel" and second.get("add_prefix_space") is False
        splits_too = second.get("use_regex", True)
        if spells and first.get("type") == "Split" and splits_too is False:
            alone = first.get("behavior") == "Isolated" and first.get("invert", False) is False
            regex = first["pattern"].get("Regex") if isinstance(first.get("pattern"), dict) else None
            for name, ours in PATTERNS.items():
                if alone and regex == ours:
                    return name
        if spells and first.get("type") == "Digits" and first.get("individual_digits") is True and splits_too is True:
            return "smollm"  # each digit by itself, then ByteLevel's own split, which is GPT-2's
    known = "Llama 3's Split or SmolLM2's Digits, each with ByteLevel after it and no space put before a text"
    raise HerdError(f"pre_tokenizer is {_shown(splitter)}; herd reads {known}")


def _specials(added: Any) -> dict[str, int]:
    if not isinstance(added, list) or len(added) > MAX_SPECIALS:
        raise HerdError(f"added_tokens is not a list of at most {MAX_SPECIALS:,} tokens")
    specials: dict[str, int] = {}
    for entry in added:
        name, token = (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not 0 < len(name) <= MAX_SPECIAL_CHARACTERS or not _is_id(token):
            raise HerdError(f"added_tokens: {_shown(entry)} has no content, or no id")
        if entry.get("special") is not True:
            raise HerdError(f"added_tokens: {_shown(name)} is not special; herd finds no added token in text")
        if name in specials or not _is_utf8(name):
            raise HerdError(f"added_tokens: {_shown(name)} is given twice, or is not UTF-8")
        specials[name] = token
    return specials


def _ranks(vocabulary: Any, specials: Mapping[str, int], table: Mapping[str, int]) -> dict[bytes, int]:
    """Tokens in bytes with their ids, in the order of ids, without the special ones."""
    if not isinstance(vocabulary, dict) or not 0 < len(vocabulary) <= MAX_TOKENS:
        raise HerdError(f"model.vocab is not a table of 1 to {MAX_TOKENS:,} tokens")
    ranks: dict[bytes, int] = {}
    for name, token in vocabulary.items():
        if not _is_id(token):
            raise HerdError(f"model.vocab: {_shown(name)} has the id {_shown(token)}; expected a whole number from 0")
        if name in specials:
            if specials[name] != token:
                raise HerdError(f"model.vocab: {_shown(name)} has the id {token}, in added_tokens {specials[name]}")
        elif not name or not all(character in table for character in name):
            raise HerdError(f"model.vocab: {_shown(name)} is neither special nor byte-level text")
        else:
            ranks[bytes(table[character] for character in name)] = token
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    """A value of a file for a one-line message, cut where it is long."""
    text = repr(value) if not isinstance(value, dict | list) else json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 200 else f"{text[:200]}..."
