"""Generation on this machine: prefill a KV cache with the prompts, then decode token by token.

Prompts of any lengths share a batch of up to `max_batch` rows; a finished row's place goes to the next prompt. Prompts
are taken in sorted order, so that each follows the one with which it shares most; what they share is computed once and
copied, their own ends are computed together. What this engine does not do: take in a request while others run, store a
shared beginning once, or page its cache. Results of a row do not depend on its neighbours beyond rounding: a matrix
product may sum in another order for another batch size.

Shape suffixes: B batch, T tokens, D model dim, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from herd.console import HerdError
from herd.infer.grammar import Grammars
from herd.infer.request import Request
from herd.infer.sampling import draw
from herd.model.generation import Completion, Sampling, one_each
from herd.model.tokenizer import Tokenizer
from herd.model.transformer import KVCache, Transformer

CACHE_BLOCK = 256  # tokens by which the rows of a cache grow
PREFILL_TOKENS = 4096  # prompt tokens computed at once: bounds the memory that long prompts take


class Engine:
    """A `Generator` over a model in this process; runs on the device and in the dtype of the model's weights.

    Raises HerdError where the tokenizer has more ids than the model has rows.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, max_batch: int = 32) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise HerdError(f"tokenizer of {tokenizer.vocab_size} ids, model of {model.config.vocab_size} rows")
        self.model, self.tokenizer, self.max_batch = model, tokenizer, max_batch
        self._grammars = Grammars(tokenizer)

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling | Sequence[Sampling]) -> list[Completion]:
        """One completion for each prompt, in order; one sampling for all, or one each.

        Raises HerdError naming a prompt that is empty, holds an unknown id, is longer than the context, has a wrong
        grammar, or for which the model gives logits that are not numbers.
        """
        each = one_each(prompts, sampling)
        requests = [self._request(prompt, index, each[index]) for index, prompt in enumerate(prompts)]
        for _ in self._run(requests):
            pass
        return [request.completion() for request in requests]

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[str]:
        """Pieces of text, each whole characters and no part of a stop string; joined they are the completion's text."""
        request = self._request(prompt, 0, sampling)  # here, not at the first piece: a bad prompt fails at the call
        return self._pieces(request)

    def stream_tokens(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        """Ids one by one, a stop token included; they are the completion's ids."""
        request = self._request(prompt, 0, sampling)
        return (request.ids[-1] for _ in self._run([request]))

    def _pieces(self, request: Request) -> Iterator[str]:
        sent = 0
        for _ in self._run([request]):
            if len(request.text) > sent:
                yield request.text[sent:]
                sent = len(request.text)

    def _request(self, prompt: list[int], index: int, sampling: Sampling) -> Request:
        config = self.model.config
        if not prompt:
            raise HerdError(f"prompt {index} is empty; begin it with the token {self.tokenizer.bos_id} at least")
        if len(prompt) > config.context:
            raise HerdError(
                f"prompt {index} has {len(prompt)} tokens, the model's context is {config.context}; shorten it"
            )
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            raise HerdError(f"prompt {index} holds a token id outside 0 .. {config.vocab_size - 1}")
        try:
            grammar = self._grammars.begin(sampling.grammar) if sampling.grammar is not None else None
        except HerdError as error:
            raise HerdError(f"prompt {index}: {error}") from None
        return Request(prompt, index, sampling, self.tokenizer, config.context, grammar)

    def _run(self, requests: list[Request]) -> Iterator[None]:
        """Run requests to their ends; yields whenever some have taken a token, and all are up to date."""
        waiting = deque(sorted((r for r in requests if r.reason is None), key=lambda request: request.prompt))
        if not waiting:
            return
        rows = _Rows(self.model, self.tokenizer.vocab_size, min(self.max_batch, len(waiting)))
        live: list[Request] = []
        while waiting or live:
            free = min(self.max_batch - len(live), len(waiting))
            if free:
                fresh = [waiting.popleft() for _ in range(free)]
                _take(fresh, rows.add([request.prompt for request in fresh]))
                live += fresh
            else:
                _take(live, rows.step([request.ids[-1] for request in live]))
            yield
            for row in reversed(range(len(live))):
                if live[row].reason is not None:  # the last row moves into its place
                    rows.drop(row)
                    live[row] = live[-1]
                    live.pop()


def _take(requests: list[Request], logits_BV: Tensor) -> None:
    """Draw the next token of each request from its row of logits, float32 on the CPU."""
    totals_B = logits_BV.logsumexp(-1)
    allowed_BV = logits_BV
    if any(request.grammar for request in requests):
        allowed_BV = logits_BV.clone()
    for row, request in enumerate(requests):
        if not totals_B[row].isfinite():
            raise HerdError(
                f"prompt {request.index}: the model's logits are not numbers (NaN or infinite): "
                "its weights are damaged or its training diverged"
            )
        request.forbid(allowed_BV[row])
    tokens = allowed_BV.argmax(-1).tolist()
    for row, request in enumerate(requests):
        if request.sampling.temperature > 0:
            tokens[row] = draw(allowed_BV[row], request.sampling, request.stream)
    logprobs = (logits_BV.gather(1, torch.tensor(tokens)[:, None])[:, 0] - totals_B).tolist()
    for request, token, logprob in zip(requests, tokens, logprobs, strict=True):
        request.take(token, logprob)


class _Rows:
    """The network's side of a batch: keys and values of the live rows, and of the last beginning that prompts share."""

    def __init__(self, model: Transformer, vocab_size: int, rows: int) -> None:
        self._model, self._vocab_size = model, vocab_size
        self._weight = model.tok_embeddings.weight
        self._rows, self._trunk = self._cache(rows), self._cache(1)
        self._rows.used = []
        self._prompt: list[int] = []  # what the trunk holds

    def add(self, prompts: list[list[int]]) -> Tensor:
        """New last rows that hold these prompts, which are sorted; logits after each, (B, V).

        The last `own` tokens of every prompt are computed in the rows, together; what is before them in the trunk.
        """
        first, own = len(self._rows.used), _own_tokens(prompts, PREFILL_TOKENS // len(prompts))
        self._rows.reserve(_blocks(max(map(len, prompts)) + 1))
        for prompt in prompts:
            kept = len(prompt) - own
            self._fill_trunk(prompt[:kept])
            self._rows.add_row(self._trunk, kept)
        fresh = self._rows.tail(first)
        hidden_BTD = self._hidden([prompt[len(prompt) - own :] for prompt in prompts], fresh)
        self._rows.used[first:] = fresh.used
        return self._logits(hidden_BTD)

    def _fill_trunk(self, tokens: list[int]) -> None:
        """Have the trunk begin with these tokens."""
        shared = _common(self._prompt, tokens)
        if shared < len(tokens):
            self._prompt, self._trunk.used = tokens, [shared]
            self._trunk.reserve(_blocks(len(tokens)))
            for at in range(shared, len(tokens), PREFILL_TOKENS):
                self._hidden([tokens[at : at + PREFILL_TOKENS]], self._trunk)

    def step(self, tokens: list[int]) -> Tensor:
        """Add one token to each row; logits after them, (B, V)."""
        self._rows.reserve(_blocks(max(self._rows.used) + 1))
        return self._logits(self._hidden([[token] for token in tokens], self._rows))

    def drop(self, row: int) -> None:
        self._rows.drop_row(row)

    def _cache(self, rows: int) -> KVCache:
        return KVCache(self._model.config, rows, 0, self._weight.dtype, self._weight.device)

    @torch.inference_mode()
    def _hidden(self, tokens: list[list[int]], cache: KVCache) -> Tensor:
        return self._model.hidden(torch.tensor(tokens, device=self._weight.device), cache=cache)

    @torch.inference_mode()
    def _logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits after the last token, (B, V), float32 on the CPU; only ids that the tokenizer knows."""
        return self._model.output(hidden_BTD[:, -1]).float()[:, : self._vocab_size].cpu()


def _own_tokens(prompts: list[list[int]], most: int) -> int:
    """How many tokens at the end of each prompt to compute apart from the others': at least one, and in all prompts.

    Enough for what a prompt shares with neither neighbour; where that is over `most`, only its last token counts.
    """
    shared = [0, *(_common(a, b) for a, b in pairwise(prompts)), 0]
    own = [max(1, len(prompt) - max(shared[at : at + 2])) for at, prompt in enumerate(prompts)]
    return min(max(count if count <= most else 1 for count in own), min(map(len, prompts)))


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _blocks(tokens: int) -> int:
    """The length of whole cache blocks that holds so many tokens."""
    return -(-tokens // CACHE_BLOCK) * CACHE_BLOCK
