"""A tokenizer on disk: Meta's `tokenizer.model`, Hugging Face's fast tokenizer, and a note of ours with the specials.

`tokenizer.model` (a line a token: base64, space, rank) and `herd_tokenizer.json` are what we read back; the Hugging
Face files are derived, so that `AutoTokenizer.from_pretrained` and llama.cpp's converter find what they expect.
"""

from __future__ import annotations

import base64
import binascii
import json
from itertools import count
from pathlib import Path
from typing import Any

from herd.console import HerdError
from herd.model.formats.chat_templates import TEMPLATES
from herd.model.tokenizer import PATTERNS, Tokenizer

SCHEMA = 1


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the four files into `folder`, which is created where missing."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in tokenizer.ranks.items())
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    special = list(tokenizer.special) if _specials_follow(tokenizer) else tokenizer.special
    note = {"schema": SCHEMA, "pattern": tokenizer.pattern, "ranks": len(tokenizer.ranks), "specials": special}
    _write_json(folder / "herd_tokenizer.json", note)
    _write_json(folder / "tokenizer.json", fast_tokenizer(tokenizer))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer))


def _specials_follow(tokenizer: Tokenizer) -> bool:
    """Whether the special tokens follow the byte sequences, as in every vocabulary we train."""
    return list(tokenizer.special.values()) == list(range(len(tokenizer.ranks), tokenizer.vocab_size))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read what `save_tokenizer` wrote. Raises HerdError naming a missing or damaged file and the line or key."""
    note_file, model_file = folder / "herd_tokenizer.json", folder / "tokenizer.model"
    try:
        note = json.loads(note_file.read_bytes())
        schema, pattern, size, specials = (note[key] for key in ("schema", "pattern", "ranks", "specials"))
    except FileNotFoundError:
        raise HerdError(f"{note_file}: missing; not a tokenizer that herd wrote") from None
    except (ValueError, KeyError, TypeError) as error:
        raise HerdError(f"{note_file}: damaged ({error!r})") from None
    if schema != SCHEMA or pattern not in PATTERNS:
        known = ", ".join(map(repr, PATTERNS))
        raise HerdError(f"{note_file}: schema {schema} with pattern {pattern!r}; herd reads {SCHEMA}, {known}")
    places = list(specials.values()) if isinstance(specials, dict) else []
    good = isinstance(specials, dict | list) and all(isinstance(name, str) for name in specials)
    if not good or len(set(specials)) < len(specials) or not all(type(place) is int for place in places):
        raise HerdError(f"{note_file}: 'specials' is not a list of distinct names, or a table of names and ids")
    ranks = read_ranks(model_file, frozenset(places))
    if len(ranks) != size:
        raise HerdError(f"{model_file}: {len(ranks)} tokens, {note_file.name} promises {size}; the file is damaged")
    try:
        return Tokenizer(ranks, specials, pattern)
    except HerdError as error:
        raise HerdError(f"{note_file}: {error}") from None


def read_ranks(path: Path, taken: frozenset[int] = frozenset()) -> dict[bytes, int]:
    """Tokens and ranks of a file in Meta's format.

    Raises HerdError naming the line that is damaged: ranks count up from 0 past the ids `taken` by special tokens,
    tokens are distinct, and where nothing is taken, as in all of ours, every single byte is there.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise HerdError(f"{path}: missing") from None
    ranks: dict[bytes, int] = {}
    free = (number for number in count() if number not in taken)
    for line_number, (line, number) in enumerate(zip(lines, free, strict=False), 1):
        try:
            token, rank = line.split()
            if int(rank) != number:
                raise ValueError(f"rank {int(rank)} where {number} is due")
            ranks[base64.b64decode(token, validate=True)] = number
        except (ValueError, binascii.Error) as error:
            expected = "expected: base64 token, space, rank"
            raise HerdError(f"{path}: line {line_number} is damaged ({error}); {expected}") from None
    if len(ranks) != len(lines) or not (taken or all(bytes([value]) in ranks for value in range(256))):
        raise HerdError(f"{path}: damaged: a token twice, or a single byte missing")
    return ranks


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that joins to a token, in the order of the joined token's rank.

    tiktoken joins any neighbours whose joint bytes are a token, the lowest rank first; so all splits of a token are
    merges, as in the released Llama 3 tokenizer.json, not only the one that training saw.
    """
    found = []
    for token, rank in ranks.items():
        splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        found += [(rank, ranks[a], ranks[b], a, b) for a, b in splits if a in ranks and b in ranks]
    return [(a, b) for *_, a, b in sorted(found)]


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in Hugging Face's byte-level vocabularies (GPT-2's table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    spare = iter(range(256, 512))
    return [chr(value) if value in printable else chr(next(spare)) for value in range(256)]


_SPELLING = byte_characters()


def spelled(token: bytes) -> str:
    """A token in Hugging Face's and GGUF's byte-level spelling."""
    return "".join(_SPELLING[value] for value in token)


def fast_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`. Like the released one Llama 3's puts BOS first unless told not to."""
    vocabulary = {spelled(token): rank for token, rank in tokenizer.ranks.items()}
    if not _specials_follow(tokenizer):  # what is not in here gets an id behind all others when it is loaded
        vocabulary = dict(sorted((vocabulary | tokenizer.special).items(), key=lambda item: item[1]))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    processors = [byte_level]
    if tokenizer.chat_format == "llama3":  # ChatML puts nothing before a text
        processors.append(_begin_with_bos(tokenizer.bos_id))
    split = {
        "type": "Split",
        "pattern": {"Regex": PATTERNS[tokenizer.pattern]},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": name, **flags} for name, token in tokenizer.special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {"type": "Sequence", "processors": processors},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocabulary,
            "merges": [f"{spelled(a)} {spelled(b)}" for a, b in merges(tokenizer.ranks)],
        },
    }


def _begin_with_bos(bos_id: int) -> dict[str, Any]:
    bos = "<|begin_of_text|>"

    def part(sequence: str, type_id: int) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": bos, "type_id": type_id}},
            {"Sequence": {"id": sequence, "type_id": type_id}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": part("A", 0) + part("B", 1),
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    bos, eos, pad = (tokenizer.decode([token]) for token in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,  # true would drop the space before a comma when decoding
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": TEMPLATES[tokenizer.chat_format],
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
