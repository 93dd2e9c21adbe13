"""Generation on this machine: requests come and go while others run, over one paged cache.

Each step computes one more token of every request that decodes, and parts of the prompts of those that do not yet, in
one pass (continuous batching, as vLLM does). Blocks that a prompt shares with another are held and read once
(blocks.py, model/cache.py). Requests are admitted first come, first served, each only when the cache has room for all
that it may ever hold. Results of a request do not depend on its neighbours beyond rounding: a matrix product may sum in
another order for another batch. With `fixed_shapes` they do not depend on them at all.

Several threads may call; each drives the steps of all, and a call that is left ends its requests.

Shape suffixes: N tokens of a pass, B requests, D model dim, V vocabulary.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from herd.console import HerdError, human_bytes
from herd.infer.blocks import BLOCK, Blocks, Table, blocks_for
from herd.infer.grammar import Grammars
from herd.infer.native import NativeDecoder, decoder_of
from herd.infer.request import NOT_NUMBERS, Request
from herd.infer.sampling import draw
from herd.model.cache import PagedCache, Part, decodes
from herd.model.generation import Completion, Sampling, one_each
from herd.model.tokenizer import Tokenizer
from herd.model.transformer import Transformer

PREFILL_TOKENS = 2048  # prompt tokens of a step: bounds its memory, and how long those that decode wait
CHUNK = (
    8 * BLOCK
)  # prompt tokens of a step where it asks for log-probabilities (bounds their memory), and of fixed shapes
WORTH_WAITING = 8  # tokens
NATIVE_ROWS = 16  # requests that decode, up to which native.py is asked: one core, int4, 121 tokens a second against 55
CACHE_BYTES = 1 << 30


class Engine:
    """A `Generator` over a model in this process; runs on the device and in the dtype of the model's weights.

    At most `max_batch` requests run at once, in at most `cache_bytes` of keys and values. `keep`: prompts of earlier
    calls stay known, so that a conversation's beginning is not computed again; without it a call's results depend on
    nothing but the call. `fixed_shapes`: every product has one shape, so that a request alone and in any company gives
    the same tokens and log-probabilities to the bit, where the device's products treat all rows alike (torch's on CPUs
    do, as the tests show); a request alone then takes as long as `max_batch` of them. Raises HerdError where the
    tokenizer has more ids than the model has rows.

    Scheduling knows nothing of how a pass is computed: `_pass` and `_copy` are all that touch the network's memory, and
    up to `in_flight` passes are sent before the first one's logits are asked for (pipeline.py has several).
    """

    in_flight = 1

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        max_batch: int = 32,
        cache_bytes: int = CACHE_BYTES,
        keep: bool = False,
        fixed_shapes: bool = False,
    ) -> None:
        config = model.config
        if tokenizer.vocab_size > config.vocab_size:
            raise HerdError(f"tokenizer of {tokenizer.vocab_size} ids, model of {config.vocab_size} rows")
        self.model, self.tokenizer, self.max_batch, self.keep = model, tokenizer, max_batch, keep
        self.fixed_shapes = fixed_shapes
        weight = model.norm.weight  # which quantization leaves as it is
        block_bytes = 2 * config.layers * config.kv_heads * config.head_dim * weight.element_size() * BLOCK
        count = min(max(1, cache_bytes // block_bytes), max_batch * blocks_for(config.context))
        self._cache_bytes = count * block_bytes
        spare = 1 if fixed_shapes else 0  # a block for the rows that only fill a pass up
        self._new_cache = lambda: PagedCache(config, count + spare, BLOCK, weight.dtype, weight.device)
        self._cache: PagedCache | None = None
        self._native: NativeDecoder | None = None
        self.blocks = Blocks(count)
        self._waiting: deque[Request] = deque()
        self._live: list[_Live] = []
        self._sent: deque[tuple[list[_Asked], Callable[[], Tensor]]] = deque()
        self._read = False  # whether the last pass of fixed shape read a prompt
        self._lock = threading.RLock()
        self._grammars = Grammars(tokenizer)

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling | Sequence[Sampling],
        stop: threading.Event | None = None,
    ) -> list[Completion]:
        """One completion for each prompt, in order; one sampling for all, or one each. Setting `stop` cancels the rest.

        Raises HerdError naming a prompt that is empty, holds an unknown id, is longer than the context or the cache,
        has a wrong grammar or stop id, or for which the model gives logits that are not numbers.
        """
        each = one_each(prompts, sampling)
        requests = [self._request(prompt, index, each[index]) for index, prompt in enumerate(prompts)]
        for _ in self._follow(requests):
            if stop is not None and stop.is_set():
                with self._lock:
                    self._cancel(requests)
        return [request.completion() for request in requests]

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[str]:
        """Pieces of text, each whole characters and no part of a stop string; joined they are the completion's text."""
        request = self._request(prompt, 0, sampling)  # here, not at the first piece: a bad prompt fails at the call
        return self._pieces(request)

    def stream_tokens(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        """Ids one by one, a stop token included; they are the completion's ids."""
        request = self._request(prompt, 0, sampling)
        return self._tokens(request)

    def _pieces(self, request: Request) -> Iterator[str]:
        sent = 0
        for _ in self._follow([request]):
            if len(request.text) > sent:
                yield request.text[sent:]
                sent = len(request.text)

    def _tokens(self, request: Request) -> Iterator[int]:
        sent = 0
        for _ in self._follow([request]):
            while sent < len(request.ids):
                sent += 1
                yield request.ids[sent - 1]

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
        if any(not 0 <= token < self.tokenizer.vocab_size for token in sampling.stop_ids):
            known = f"0 .. {self.tokenizer.vocab_size - 1}"
            raise HerdError(f"prompt {index}: stop_ids {list(sampling.stop_ids)}; expected token ids, {known}")
        try:
            grammar = self._grammars.begin(sampling.grammar) if sampling.grammar is not None else None
        except HerdError as error:
            raise HerdError(f"prompt {index}: {error}") from None
        request = Request(prompt, index, sampling, self.tokenizer, config.context, grammar)
        if blocks_for(_most(request)) > self.blocks.count:
            raise HerdError(
                f"prompt {index} may grow to {_most(request)} tokens, the cache holds {self.blocks.count * BLOCK} "
                f"({human_bytes(self._cache_bytes)}); lower max_tokens or give the engine more"
            )
        return request

    def _follow(self, requests: list[Request]) -> Iterator[None]:
        """Run requests to their ends, and what others have waiting along with them; yields after each step.

        Left early, it ends them. Raises the first of their errors at the end.
        """
        with self._lock:
            if not self.keep and not self._live and not self._waiting:
                self.blocks.forget_idle()
            self._waiting += sorted((r for r in requests if r.open), key=lambda request: request.prompt)
        try:
            while any(request.open for request in requests):
                with self._lock:
                    if any(request.open for request in requests):  # another thread's step may have ended them
                        self._step()
                yield
        finally:
            with self._lock:
                self._cancel(requests)
        for request in requests:
            if request.error:
                raise HerdError(request.error)

    def memory(self) -> tuple[int, int, int]:
        """Blocks held, tokens that stand in them (what several share counted once), and requests that hold them."""
        with self._lock:
            held: dict[int, int] = {}
            for live in self._live:
                for at, block in enumerate(live.table.blocks):
                    held[block] = max(held.get(block, 0), min(BLOCK, live.done - at * BLOCK))
            return self.blocks.used, sum(held.values()), len(self._live)

    def _cancel(self, requests: list[Request]) -> None:
        """End those that have not; another call's are not touched."""
        for request in requests:
            request.cancel()
        self._clear()

    def _clear(self) -> None:
        """Give back what ended requests held."""
        self._waiting = deque(request for request in self._waiting if request.open)
        for live in self._live:
            if not live.request.open:
                live.table.close()
        self._live = [live for live in self._live if live.request.open]

    def _step(self) -> None:
        """Send what may be sent; then a token for each that the oldest pass computed to its end."""
        for request in [*self._waiting, *(live.request for live in self._live)]:
            request.end_late()
        self._clear()
        while len(self._sent) < self.in_flight and self._send():
            pass
        if not self._sent:
            return
        asked, logits = self._sent[0]
        logits_BV = logits()
        self._sent.popleft()  # not before: where that failed, other threads' requests must fail too, not wait
        ready = []
        for one in asked:
            request, last = one.live.request, one.row + one.rows - 1
            if request.open and one.scored:
                request.score(logits_BV[one.row : last + 1], one.end - one.rows, one.end)
            if request.open and one.end == one.live.length:  # others were ended while it was computed
                ready.append((request, last))
        if ready:
            take([request for request, _ in ready], logits_BV[[row for _, row in ready]])
        self._clear()

    def _send(self) -> bool:
        """One pass over a share of those that decode, and parts of prompts; False where all wait for their tokens.

        Every pass sees what was sent before it, so what it will have computed counts from now on.
        """
        self._admit()
        work = self._shaped() if self.fixed_shapes else _plan(self._live, self.in_flight)
        if not work:
            return False
        for live, end in work:
            live.table.grow(end)
        parts = [Part(live.table.blocks, live.done, end) for live, end in work]
        tokens = [token for live, end in work for token in live.tokens(end)]
        asked, rows, at = [], [], 0
        for live, end in work:
            first, at = at, at + end - live.done
            if live.scored or end == live.length:
                wanted = range(first if live.scored else at - 1, at)
                asked.append(_Asked(live, end, live.scored, len(rows), len(wanted)))
                rows += wanted
        self._sent.append((asked, self._pass(parts, tokens, rows)))
        for live, end in work:
            live.done = end
            live.table.publish(live.request.prompt[:end])
        return True

    def _shaped(self) -> list[tuple[_Live, int]]:
        """A pass of fixed shape: all that decode, and in turn with that a chunk of one prompt alone."""
        free = [live for live in self._live if live.done < live.length]
        decoding = [(live, live.length) for live in free if live.decodes]
        reading = [(live, min(live.length, live.done + CHUNK)) for live in free if not live.decodes]
        self._read = bool(reading) and not (decoding and self._read)
        return reading[:1] if self._read else decoding

    def _pass(self, parts: list[Part], tokens: list[int], rows: list[int]) -> Callable[[], Tensor]:
        """Begin to compute a pass; what is returned gives its logits, in the order of passes (see `_logits`)."""
        if self._cache is None:
            self._cache = self._new_cache()
            self._native = None if self.fixed_shapes else decoder_of(self.model, self._cache)
        if self._native is not None and len(parts) <= NATIVE_ROWS and all(map(decodes, parts)):
            logits_BV = self._native.logits(tokens, parts)[:, : self.tokenizer.vocab_size]
        else:
            logits_BV = self._logits(parts, tokens, rows)
        return lambda: logits_BV

    def _copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a block into another, after the passes sent so far."""
        assert self._cache is not None, "nothing was computed that could be copied"
        self._cache.copy(source, target, tokens)

    @torch.inference_mode()
    def _logits(self, parts: list[Part], tokens: list[int], rows: list[int]) -> Tensor:
        """Logits after the tokens at `rows`, (B, V), float32 on the CPU; only of ids that the tokenizer knows."""
        assert self._cache is not None
        filled = self.fixed_shapes and decodes(parts[0])
        if filled:
            spare = _rows(self.max_batch) - len(parts)
            parts, tokens = [*parts, *[Part([self.blocks.count], 1, 2)] * spare], [*tokens, *[0] * spare]
        self._cache.begin(parts, apart=self.fixed_shapes)
        at = torch.tensor([tokens], device=self.model.norm.weight.device)
        hidden_ND = self.model.hidden(at, cache=self._cache)[0]
        logits_BV = self.model.output(hidden_ND)[rows] if filled else self.model.output(hidden_ND[rows])
        return logits_BV.float()[:, : self.tokenizer.vocab_size].cpu()

    def _admit(self) -> None:
        """Take in those that wait, in their order, as far as rows and memory go."""
        while self._waiting and len(self._live) < self.max_batch:
            request = self._waiting[0]
            sharable = self._sharable(request)
            known = len(self.blocks.known(sharable)) * BLOCK
            nearest = max(self._live, key=lambda live: live.common(request.prompt), default=None) if sharable else None
            if nearest and not nearest.ready:
                soon = min(nearest.common(request.prompt), len(request.prompt) - 1)
                if soon - max(known, nearest.done) >= (CHUNK if self.fixed_shapes else WORTH_WAITING):
                    return  # what it begins with is being computed: soon it is known
            table = self.blocks.admit(sharable, _most(request))
            if table is None:
                return
            self._waiting.popleft()
            live = _Live(request, table, known)
            if nearest and not self.fixed_shapes:
                self._copy_tail(nearest, live)
            self._live.append(live)

    def _sharable(self, request: Request) -> list[int]:
        """What of a prompt may stand in blocks of others: not what its own logits are asked of; chunks of one shape."""
        if request.sampling.prompt_logprobs:
            return []
        if self.fixed_shapes:
            known = len(self.blocks.known(request.prompt)) * BLOCK
            return request.prompt[: known // CHUNK * CHUNK + 1]
        return request.prompt

    def _copy_tail(self, source: _Live, live: _Live) -> None:
        """Copy what another has computed of the block in which the two part ways, if that is the next one."""
        common = min(source.common(live.request.prompt), source.done, len(live.request.prompt) - 1)
        if live.done < common < live.done + BLOCK:
            live.table.grow(common)
            at = live.done // BLOCK
            self._copy(source.table.blocks[at], live.table.blocks[at], common - live.done)
            live.done = common


class _Asked(NamedTuple):
    """Logits of a pass that a request asked for: `rows` from `row` on, after its tokens up to `end`."""

    live: _Live
    end: int
    scored: bool
    row: int
    rows: int


@dataclass(eq=False)
class _Live:
    """A request that was admitted. The keys and values of its first `done` tokens are in the cache."""

    request: Request
    table: Table
    done: int

    @property
    def length(self) -> int:
        return len(self.request.prompt) + len(self.request.ids)

    @property
    def ready(self) -> bool:
        """Whether all but its last token are computed, so that it decodes."""
        return self.done == self.length - 1

    @property
    def decodes(self) -> bool:
        """Whether a pass computes one token of it that continues what the cache holds."""
        return self.ready and self.done > 0

    @property
    def scored(self) -> bool:
        """Whether the log-probabilities of what it reads now are asked for."""
        return self.request.sampling.prompt_logprobs and self.done < len(self.request.prompt)

    def tokens(self, end: int) -> list[int]:
        """Those from `done` on, up to `end`."""
        size = len(self.request.prompt)
        return self.request.prompt[self.done : end] + self.request.ids[max(0, self.done - size) : max(0, end - size)]

    def common(self, prompt: list[int]) -> int:
        """How many of its prompt's tokens another prompt begins with."""
        mine = self.request.prompt
        if mine == prompt:
            return len(mine)
        return next(
            (at for at, (x, y) in enumerate(zip(mine, prompt, strict=False)) if x != y), min(len(mine), len(prompt))
        )


def _plan(live: list[_Live], passes: int) -> list[tuple[_Live, int]]:
    """What a pass computes, up to which token of each: those that decode, by their blocks, then parts of prompts.

    Of several passes at once each gets its share of what one would have: an equal number of the requests, so that
    they stay spread when some end, and less of the prompts. Those that wait for a token are left out.
    """
    free = [one for one in live if one.done < one.length]
    decoding = [one for one in free if one.decodes][: -(-len(live) // passes)]
    decoding.sort(key=lambda one: one.table.blocks)
    left = max(1, PREFILL_TOKENS // passes - len(decoding))
    work = [(one, one.length) for one in decoding]
    for one in free:
        if not one.decodes and left > 0:
            end = min(one.length, one.done + (min(left, CHUNK) if one.scored else left))
            work.append((one, end))
            left -= end - one.done
    return work


def _rows(requests: int) -> int:
    """Rows of a decoding pass of fixed shape. torch's float32 products treat rows alike where each thread has a
    multiple of 4: with 5 rows on 2 threads the place of a row changed its last bits, with 4, 8, 12 ... it did not."""
    unit = 32 * -(-torch.get_num_threads() // 8)
    return -(-requests // unit) * unit


def _most(request: Request) -> int:
    """How many tokens a request may hold at most: its last is never computed."""
    return max(len(request.prompt), len(request.prompt) + request.limit - 1)


def take(requests: list[Request], logits_BV: Tensor) -> None:
    """Draw the next token of each request from its row of logits, float32 on the CPU; what fails is its request's."""
    own_BV = logits_BV.log_softmax(-1)  # row by row, where logsumexp sums one row in another order than many
    sound = own_BV.amax(-1).isfinite().tolist()
    allowed_BV = logits_BV.clone() if any(request.shapes for request in requests) else logits_BV
    for row, request in enumerate(requests):
        if not sound[row]:
            request.fail(NOT_NUMBERS)
            continue
        with request.failing():
            request.shape(allowed_BV[row])
    tokens = allowed_BV.argmax(-1).tolist()
    for row, request in enumerate(requests):
        if request.open and request.sampling.temperature > 0:
            tokens[row] = draw(allowed_BV[row], request.sampling, request.stream)
    logprobs = own_BV.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    for request, token, logprob in zip(requests, tokens, logprobs, strict=True):
        if request.open:
            with request.failing():
                request.take(token, logprob)
