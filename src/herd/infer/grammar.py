"""Completions that follow a grammar: which tokens may come next, by llguidance (PyPI, MIT).

The grammar's syntax is llguidance's variant of Lark; `<[17]>` is the special token 17, which text can never spell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from herd.console import HerdError
from herd.model.tokenizer import Tokenizer

KEPT = 32  # compiled grammars; a call's prompts use few


class Grammars:
    """Compiles grammars for one tokenizer; equal grammars are compiled once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._words: LLTokenizer | None = None  # takes a second to build for a large vocabulary, so on first use
        self._compiled: dict[str, LLMatcher] = {}

    def begin(self, grammar: str) -> Progress:
        """A completion's way through a grammar, at its start. Raises HerdError with llguidance's message."""
        if grammar not in self._compiled:
            self._words = self._words or LLTokenizer(_Vocabulary(self._tokenizer), eos_token=self._ends())  # pyright: ignore[reportArgumentType]
            matcher = LLMatcher(self._words, grammar, log_level=0)
            if matcher.is_error():
                raise _error(matcher)
            if len(self._compiled) >= KEPT:
                self._compiled.pop(next(iter(self._compiled)))
            self._compiled[grammar] = matcher
        return Progress(self._compiled[grammar].deep_copy(), self._tokenizer.vocab_size)

    def _ends(self) -> list[int]:
        """The stop tokens, the end of text first: each may come wherever the grammar may end."""
        eos = self._tokenizer.eos_id
        return [eos, *sorted(self._tokenizer.stop_ids - {eos})]


class Progress:
    """Where one completion stands in its grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> Tensor:
        """Which tokens may come next, bool (V,); where the grammar can only end, the stop tokens.

        Raises HerdError where the grammar became too complex to follow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return torch.from_numpy(np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_))

    def take(self, token: int) -> None:
        """Go on by one token. Raises HerdError for a token that is not allowed."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _error(self._matcher)


def _error(matcher: LLMatcher) -> HerdError:
    """llguidance's message without the parser's state, which it adds behind it in <tags>."""
    return HerdError(f"grammar: {matcher.get_error().split(chr(10) + '<')[0].strip()}")


class _Vocabulary:
    """A tokenizer in the form that llguidance reads."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.tokens: Sequence[bytes] = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids: Sequence[int] = sorted(tokenizer.special.values())

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))
