"""Generation on this machine: prefill a KV cache with the prompts, then decode token by token.

Prompts of one length form a batch, at most `max_batch` rows; finished rows leave it. What this engine does not do:
mix lengths in a batch, take in a request while others run, share a prompt's keys and values between samples, or
page its cache. Results of a row do not depend on its neighbours beyond rounding: a matrix product may sum in another
order for another batch size.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from herd.console import HerdError
from herd.infer.sampling import draw, random_stream
from herd.model.generation import Completion, Sampling, StopReason
from herd.model.tokenizer import Tokenizer
from herd.model.transformer import KVCache, Transformer


class Engine:
    """A `Generator` over a model in this process; runs on the device and in the dtype of the model's weights.

    Raises HerdError where the tokenizer has more ids than the model has rows.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, max_batch: int = 16) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise HerdError(f"tokenizer of {tokenizer.vocab_size} ids, model of {model.config.vocab_size} rows")
        self.model, self.tokenizer, self.max_batch = model, tokenizer, max_batch

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """One completion for each prompt, in order.

        Raises HerdError naming a prompt that is empty, holds an unknown id or is longer than the context.
        """
        requests = [self._request(prompt, index, sampling) for index, prompt in enumerate(prompts)]
        by_length = sorted(requests, key=lambda request: len(request.prompt))
        for _, same in groupby(by_length, key=lambda request: len(request.prompt)):
            rows = list(same)
            for start in range(0, len(rows), self.max_batch):
                for _ in self._decode(rows[start : start + self.max_batch]):
                    pass
        return [request.completion() for request in requests]

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[str]:
        """Pieces of text, each whole characters and no part of a stop string; joined they are the completion's text."""
        request = self._request(prompt, 0, sampling)  # here, not at the first piece: a bad prompt fails at the call
        return self._pieces(request)

    def _pieces(self, request: _Request) -> Iterator[str]:
        sent = 0
        for _ in self._decode([request]):
            if len(request.text) > sent:
                yield request.text[sent:]
                sent = len(request.text)

    def _request(self, prompt: list[int], index: int, sampling: Sampling) -> _Request:
        context = self.model.config.context
        if not prompt:
            raise HerdError(f"prompt {index} is empty; begin it with the token {self.tokenizer.bos_id} at least")
        if len(prompt) > context:
            raise HerdError(f"prompt {index} has {len(prompt)} tokens, the model's context is {context}; shorten it")
        if not 0 <= min(prompt) <= max(prompt) < self.model.config.vocab_size:
            raise HerdError(f"prompt {index} holds a token id outside 0 .. {self.model.config.vocab_size - 1}")
        return _Request(prompt, index, sampling, self.tokenizer, context)

    def _decode(self, requests: list[_Request]) -> Iterator[None]:
        """Run prompts of one length to their ends; yields after each token, when every request is up to date."""
        live = [request for request in requests if request.reason is None]
        if not live:
            return
        weight = self.model.tok_embeddings.weight
        longest = len(live[0].prompt) + live[0].limit
        cache = KVCache(self.model.config, len(live), longest, weight.dtype, weight.device)
        tokens_BT = torch.tensor([request.prompt for request in live], device=weight.device)
        while True:
            logits_BV = self._next_logits(tokens_BT, cache)
            logprobs_BV = logits_BV.log_softmax(-1)
            for row, request in enumerate(live):
                token = draw(logits_BV[row], request.sampling, request.stream)
                request.take(token, float(logprobs_BV[row, token]))
            yield
            kept = [row for row, request in enumerate(live) if request.reason is None]
            if not kept:
                return
            if len(kept) < len(live):
                cache.values = cache.values[:, :, kept]
                live = [live[row] for row in kept]
            tokens_BT = torch.tensor([[request.ids[-1]] for request in live], device=weight.device)

    @torch.inference_mode()
    def _next_logits(self, tokens_BT: Tensor, cache: KVCache) -> Tensor:
        """Logits after the last token, (B, V), float32; only ids that the tokenizer knows."""
        last_BD = self.model.hidden(tokens_BT, cache=cache)[:, -1]
        return self.model.output(last_BD).float()[:, : self.tokenizer.vocab_size]


class _Request:
    """One prompt on its way: the tokens so far, the text that is certain, and why it ended."""

    def __init__(self, prompt: list[int], index: int, sampling: Sampling, tokenizer: Tokenizer, context: int) -> None:
        self.prompt, self.sampling, self.tokenizer = prompt, sampling, tokenizer
        self.limit = min(sampling.max_tokens, context - len(prompt))
        self.stream = random_stream(sampling.seed, index)
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.text = ""
        self.reason: StopReason | None = "context" if self.limit == 0 else None
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")  # holds back an unfinished character
        self._held = ""  # the possible beginning of a stop string

    def take(self, token: int, logprob: float) -> None:
        """Add a drawn token; sets `reason` where it is the last one."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        if token in self.tokenizer.stop_ids:
            self._end("end")
            return
        self._add(self._characters.decode(self.tokenizer.token_bytes(token)))
        if self.reason is None and len(self.ids) == self.limit:
            self._end("length" if self.limit == self.sampling.max_tokens else "context")

    def completion(self) -> Completion:
        assert self.reason is not None, "asked for before the request ended"
        return Completion(self.text, tuple(self.ids), tuple(self.logprobs), self.reason)

    def _add(self, text: str) -> None:
        self._held += text
        found = [at for at in map(self._held.find, self.sampling.stop) if at >= 0]
        if found:
            self.text += self._held[: min(found)]
            self._held, self.reason = "", "stop"
            return
        certain = len(self._held) - _possible_beginning(self._held, self.sampling.stop)
        self.text, self._held = self.text + self._held[:certain], self._held[certain:]

    def _end(self, reason: StopReason) -> None:
        self._add(self._characters.decode(b"", final=True))
        if self.reason is None:  # not a stop string that the last bytes completed
            self.text, self._held, self.reason = self.text + self._held, "", reason


def _possible_beginning(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` with which a stop string could begin."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    lengths = range(min(longest, len(text)), 0, -1)
    return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in stops)), 0)
