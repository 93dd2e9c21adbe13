"""Byte-level BPE as Llama 3 has it (spec 2.5, 2.6): trained with rustbpe, encoded with tiktoken.

Byte sequences have ids in merge order; the special tokens come after them, as in Llama 3, or where an adopted
vocabulary has them. Text that looks like a special token is ordinary text: a special token enters a sequence by its id
only, so that no document or user can forge one.
Writing and reading tokenizers is in `formats/tokenizer_files.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import regex
import rustbpe
import tiktoken
from numpy.typing import NDArray

from herd.console import HerdError

PATTERN_NAME = "llama3"
_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
PATTERNS = {
    "llama3": "|".join(
        (
            rf"(?i:{_CONTRACTIONS})",  # English contractions
            r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a word, with the one character before it
            r"\p{N}{1,3}",  # digits in threes
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # symbols
            r"\s*[\r\n]+",  # line ends with what is blank before them
            r"\s+(?!\S)",  # blanks, leaving the last one to the word after them
            r"\s+",
        )
    ),
    # SmolLM2: first every digit by itself, then GPT-2's pattern on what is between; here as one pattern, so that
    # blanks before a digit end there as they end before the end of the text.
    "smollm": "|".join(
        (
            r"\p{N}",
            _CONTRACTIONS,
            r" ?\p{L}+",
            r" ?[^\s\p{L}\p{N}]+",
            r"\s+(?=\p{N})",
            r"\s+(?!\S)",
            r"\s+",
        )
    ),
}
PATTERN = PATTERNS[PATTERN_NAME]
ChatFormat = Literal["llama3", "chatml"]
NAMED_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
STOP_TOKENS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


@dataclass(frozen=True)
class _Roles:
    """Which special token does what in a chat format."""

    chat_format: ChatFormat
    bos: str
    eos: str
    pad: str
    stops: tuple[str, ...]
    headers: tuple[str, ...]
    call: str  # opens a call of the Python interpreter; a vocabulary may lack it

    @property
    def all(self) -> tuple[str, ...]:
        return (self.bos, self.eos, self.pad, *self.stops, *self.headers)

    def are_in(self, specials: Iterable[str]) -> bool:
        return set(self.all) <= set(specials)


_ROLES = {
    "llama3": _Roles(
        "llama3",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        STOP_TOKENS,
        ("<|start_header_id|>", "<|end_header_id|>"),
        "<|python_tag|>",
    ),
    # SmolLM2 pads with its end token, so padding can never be told by its id; and it has a token for notebook code
    "chatml": _Roles(
        "chatml", "<|im_start|>", "<|im_end|>", "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), (), "<jupyter_code>"
    ),
}
FULL_VOCABULARY = 128_000  # from here on Llama 3's 256 special tokens; below, 16: rows cost more in a small model
PIECE_CHARACTERS = 400_000  # the released code's guards against the split pattern's stack and quadratic merging
RUN_CHARACTERS = 25_000

_LONG_RUN = re.compile(rf"(?<!\S)\S{{{RUN_CHARACTERS + 1},}}|(?<!\s)\s{{{RUN_CHARACTERS + 1},}}")


def special_tokens(vocab_size: int) -> tuple[str, ...]:
    """Names of the special tokens of a vocabulary of this size (specials included), in id order."""
    count = 256 if vocab_size >= FULL_VOCABULARY else 16
    reserved = (f"<|reserved_special_token_{2 + i}|>" for i in range(count - len(NAMED_SPECIALS)))
    return (*NAMED_SPECIALS, *reserved)


class Tokenizer:
    """Text to token ids and back.

    `ranks` maps each byte sequence to its id. `specials` are the special tokens' ids by name, or their names alone,
    which then take the ids after the ranks; together the ids count from 0 without gaps. `pattern` names how text is
    split; the chat format is the one usual with it, or the other where only that one's special tokens are there.
    Raises HerdError where an id or a special token is missing or given twice.
    """

    def __init__(
        self, ranks: Mapping[bytes, int], specials: Mapping[str, int] | Sequence[str], pattern: str = PATTERN_NAME
    ) -> None:
        usual, other = ("llama3", "chatml") if pattern == "llama3" else ("chatml", "llama3")
        roles = _ROLES[other if _ROLES[other].are_in(specials) and not _ROLES[usual].are_in(specials) else usual]
        self.pattern = pattern
        self.chat_format: ChatFormat = roles.chat_format
        self.ranks = dict(ranks)
        given = specials if isinstance(specials, Mapping) else {n: len(ranks) + i for i, n in enumerate(specials)}
        self.special: dict[str, int] = dict(given)
        if missing := [name for name in roles.all if name not in self.special]:
            raise HerdError(f"special token '{missing[0]}' is missing, which the chat format {roles.chat_format} needs")
        self.vocab_size = len(self.ranks) + len(self.special)
        by_id = {token: text for text, token in self.ranks.items()}
        by_id |= {token: name.encode() for name, token in self.special.items()}
        if by_id.keys() != set(range(self.vocab_size)):
            raise HerdError(f"the {self.vocab_size} ids of tokens and specials do not count from 0 without gaps")
        self._bytes = [by_id[token] for token in range(self.vocab_size)]
        self.bos_id, self.eos_id, self.pad_id = (self.special[n] for n in (roles.bos, roles.eos, roles.pad))
        self.stop_ids = frozenset(self.special[name] for name in roles.stops)
        self.call_id = self.special.get(roles.call)
        # tiktoken wants every byte: those that the vocabulary lacks get ids behind it, and are dropped once encoded
        lacking = [bytes([value]) for value in range(256) if bytes([value]) not in self.ranks]
        self._lacks_bytes = bool(lacking)
        every = self.ranks | {byte: self.vocab_size + index for index, byte in enumerate(lacking)}
        self._tiktoken = tiktoken.Encoding(
            pattern, pat_str=PATTERNS[pattern], mergeable_ranks=every, special_tokens=self.special
        )

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of a text; no special token but the asked-for `bos` and `eos`.

        ChatML has no token that begins a text (its bos begins a message), so there `bos` adds nothing.
        A lone surrogate, which UTF-8 cannot say, becomes U+FFFD. Bytes that the vocabulary lacks (SmolLM2: those of
        six control characters and of planes 4 to 15) are left out, as Hugging Face leaves them out.
        """
        ids: list[int] = []
        for piece in _pieces(text):
            ids += self._tiktoken.encode_ordinary(piece)
        if self._lacks_bytes:
            ids = [token for token in ids if token < self.vocab_size]
        begin = [self.bos_id] if bos and self.chat_format == "llama3" else []
        return [*begin, *ids, *([self.eos_id] if eos else [])]

    def encode_documents(self, texts: Sequence[str], threads: int = 1) -> list[NDArray[np.int32]]:
        """Token ids of many texts, one int32 array each, without BOS and EOS; equal to `encode` of each."""
        pieces = [list(_pieces(text)) for text in texts]
        flat = [piece for some in pieces for piece in some]
        if threads > 1:
            encoded = iter(self._tiktoken.encode_ordinary_batch(flat, num_threads=threads))
        else:
            encoded = map(self._tiktoken.encode_ordinary, flat)
        parts = (np.array(ids, dtype=np.int32) for ids in encoded)
        if self._lacks_bytes:
            parts = (ids[ids < self.vocab_size] for ids in parts)
        return [np.concatenate([next(parts) for _ in some]) for some in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD, special tokens their names."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of token ids. Raises HerdError for an id outside the vocabulary."""
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token, a special token's name in UTF-8. Raises HerdError for an id outside the vocabulary."""
        if not 0 <= token < self.vocab_size:
            raise HerdError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        return self._bytes[token]

    def save(self, folder: Path) -> None:
        """Write Meta's and Hugging Face's files into a folder, see `formats/tokenizer_files.py`."""
        from herd.model.formats.tokenizer_files import save_tokenizer

        save_tokenizer(self, folder)

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """Inverse of `save`. Raises HerdError naming a missing or damaged file."""
        from herd.model.formats.tokenizer_files import load_tokenizer

        return load_tokenizer(folder)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn merges from texts until the vocabulary, specials included, has `vocab_size` tokens.

    The same texts in the same or another order give the same merges, on any number of threads.
    Raises HerdError where the vocabulary has no room for the 256 bytes, or the text has too few pairs to merge.
    """
    specials = special_tokens(vocab_size)
    merged = vocab_size - len(specials)
    if merged < 256:
        raise HerdError(f"tokenizer: vocab_size {vocab_size} is below {256 + len(specials)}, the bytes and specials")
    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue] (an extension without stubs)
    trainer.train_from_iterator((encodable(text) for text in texts), merged, pattern=PATTERN)
    learned = cast(list[tuple[bytes, int]], trainer.get_mergeable_ranks())
    if len(learned) < merged:
        raise HerdError(
            f"tokenizer: the text gives only {len(learned) - 256} merges; "
            f"set vocab_size to at most {len(learned) + len(specials)}, or add text"
        )
    return Tokenizer({bytes(token): rank for token, rank in learned}, specials)


def encodable(text: str) -> str:
    """The text with lone surrogates replaced, as encoding does."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def split_text(text: str, pattern: str) -> list[str]:
    """The stretches of a text that no token reaches across, in order: what merging sees one by one."""
    split = regex.compile(PATTERNS[pattern])
    return [part for piece in _pieces(encodable(text)) for part in split.findall(piece)]


def _pieces(text: str) -> Iterator[str]:
    """Cut a text as the released code does: every 400,000 characters, and in runs of over 25,000 of one kind.

    At least one piece, which is empty for an empty text.
    """
    for start in range(0, max(1, len(text)), PIECE_CHARACTERS):
        piece = text[start : start + PIECE_CHARACTERS]
        begin = 0
        if _may_have_long_run(piece):
            for run in _LONG_RUN.finditer(piece):
                for cut in range(run.start() + RUN_CHARACTERS, run.end(), RUN_CHARACTERS):
                    yield piece[begin:cut]
                    begin = cut
        yield piece[begin:]


def _may_have_long_run(text: str) -> bool:
    """False where no stretch of half a run's length is all blank or all not: a look that costs next to nothing."""
    half = RUN_CHARACTERS // 2
    stretches = (text[start : start + half] for start in range(0, len(text), half))
    return len(text) > RUN_CHARACTERS and any(some.isspace() or len(some.split(None, 1)) < 2 for some in stretches)
