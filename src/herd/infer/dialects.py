"""How servers are asked for completions, and how their answers are read: vLLM's fields, and llama.cpp's own.

Our server speaks vLLM's. llama.cpp's server has `/v1/completions` too, but without the ids of tokens, so its own
`/completion` is used. What it cannot do as others do:

- It ends at the end tokens that its file names; it takes none from a client.
- A token that leaves a character unfinished, or that a stop string takes back, has an id but no log-probability: NaN.
- In a stream such tokens have no id either; the whole completion is then asked for once more, by the same seed.
- Its samplers work in an order of their own by default, temperature last; they are put into ours.
- What runs beside a request, or stands in its cache, changes its logits enough to change a draw now and then: a seed
  decides only what a request alone gets.
- A grammar goes to the llguidance inside it, where it was built with that.
"""

from __future__ import annotations

import codecs
import json
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from herd.console import HerdError
from herd.infer.request import Request
from herd.model.generation import Completion, Sampling, StopReason
from herd.model.tokenizer import Tokenizer

Payload = dict[str, Any]
SAMPLERS = ("penalties", "temperature", "top_k", "min_p", "top_p")  # sampling.py's order
NO_IDS = "gave no token ids; it must know vLLM's return_token_ids, or be llama.cpp's server"
LLGUIDANCE = "%llguidance {}\n"  # by which llama.cpp knows a grammar that is not its own


class Unreadable(Exception):
    """An answer that is not what the dialect expects: what is wrong, and the answer where it may say why itself."""

    def __init__(self, problem: str, reply: Payload | None = None) -> None:
        super().__init__(problem)
        self.said = None if reply is None else json.dumps(reply).encode()


class Event(NamedTuple):
    """A piece of a streamed answer. `ids` None: it tells none; `drawn`: how many tokens there are by now, if told."""

    text: str
    ids: list[int] | None
    drawn: int | None = None


class Dialect(Protocol):
    """A way of asking.

    `grammar_needs`: what a server must have to follow a grammar. `tells_all`: whether its streams have the ids of all
    tokens, and end as asked.
    """

    grammar_needs: str
    tells_all: bool

    def path(self, base: str) -> str:
        """The path that is asked, from that of the server's address."""
        ...

    def payload(self, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling, seed: int, stream: bool) -> Payload:
        """What is asked, without the model's name."""
        ...

    def completion(self, reply: Payload, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling) -> Completion:
        """A whole answer. Raises Unreadable."""
        ...

    def event(self, event: Payload, tokenizer: Tokenizer) -> Event:
        """One event of a stream. Raises Unreadable."""
        ...

    def last(self, event: Payload) -> bool:
        """Whether the stream ends with this event, and not with [DONE]."""
        ...


class VLLM:
    """OpenAI's `/completions` with vLLM's fields."""

    grammar_needs = "it must know vLLM's structured_outputs"
    tells_all = True

    def path(self, base: str) -> str:
        return f"{base}/completions"

    def payload(self, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling, seed: int, stream: bool) -> Payload:
        payload: Payload = {
            "prompt": prompt,
            "max_tokens": max(sampling.max_tokens, 1),  # for 0 one is drawn, and not told on
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "stop_token_ids": sorted({*tokenizer.stop_ids, *sampling.stop_ids}),
            "return_token_ids": True,
        }
        payload |= {"stream": True} if stream else {"logprobs": 1}
        if sampling.stop:
            payload["stop"] = list(sampling.stop)
        if sampling.top_k:
            payload["top_k"] = sampling.top_k
        if sampling.min_p:
            payload["min_p"] = sampling.min_p
        if sampling.repetition != 1:
            payload["repetition_penalty"] = sampling.repetition
        if sampling.prompt_logprobs:
            payload["prompt_logprobs"] = 0
        if sampling.grammar is not None:
            payload["structured_outputs"] = {"grammar": sampling.grammar}
        return payload

    def completion(self, reply: Payload, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling) -> Completion:
        choice = _choice(reply)
        ids = _ids(choice.get("token_ids"), tokenizer)
        logprobs = choice.get("logprobs")
        values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if not isinstance(values, list) or len(values) != len(ids):
            raise Unreadable(f"gave no log-probability for each of {len(ids)} tokens")
        reason: StopReason
        if choice.get("finish_reason") == "length":
            reason = "length" if len(ids) >= sampling.max_tokens else "context"
        else:
            ended = not sampling.stop or (bool(ids) and ids[-1] in {*tokenizer.stop_ids, *sampling.stop_ids})
            reason = "end" if ended else "stop"
        of_prompt = _prompt_logprobs(choice, prompt) if sampling.prompt_logprobs else ()
        if not sampling.max_tokens:
            return Completion("", (), (), "length", of_prompt)
        return Completion(_string(choice.get("text")), tuple(ids), tuple(map(float, values)), reason, of_prompt)

    def event(self, event: Payload, tokenizer: Tokenizer) -> Event:
        if not event.get("choices") and "error" not in event:  # an event of usage figures has no choice
            return Event("", [])
        choice = _choice(event)
        ids = choice.get("token_ids")
        return Event(_string(choice.get("text")), None if ids is None else _ids(ids, tokenizer))

    def last(self, event: Payload) -> bool:
        return False


class LlamaCpp:
    """llama.cpp's `/completion`. Ids are what it says; their text and end are found here as the engine finds them."""

    grammar_needs = "llama.cpp must be built with llguidance (LLAMA_LLGUIDANCE)"
    tells_all = False

    def path(self, base: str) -> str:
        return f"{base.removesuffix('/v1')}/completion"

    def payload(self, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling, seed: int, stream: bool) -> Payload:
        if sampling.prompt_logprobs:
            raise HerdError("llama.cpp's server does not tell the log-probabilities of a prompt; vLLM's and herd's do")
        payload: Payload = {
            "prompt": prompt,
            "n_predict": sampling.max_tokens,
            "temperature": sampling.temperature,
            "samplers": list(SAMPLERS),
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "top_p": sampling.top_p,
            "seed": seed,
            "repeat_penalty": sampling.repetition,
            "repeat_last_n": len(prompt) + sampling.max_tokens if sampling.repetition != 1 else 0,
            "return_tokens": True,
        }
        if stream:
            payload["stream"] = True  # no stop strings: while one may be on its way, tokens come without ids
        else:
            payload |= {"n_probs": 1, "stop": list(sampling.stop)}
        if sampling.grammar is not None:
            payload["grammar"] = LLGUIDANCE + sampling.grammar
        return payload

    def completion(self, reply: Payload, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling) -> Completion:
        ids = _ids(reply.get("tokens"), tokenizer)
        request = Request(prompt, 0, sampling, tokenizer, len(prompt) + sampling.max_tokens)
        for token, logprob in zip(ids, _logprobs(reply, ids, tokenizer), strict=True):
            if request.open:
                request.take(token, logprob)
        if not request.open:
            return request.completion()
        request.cancel()  # the server's context is full, or its file names an end token that the tokenizer does not
        return replace(request.completion(), stop_reason="context" if reply.get("stop_type") == "limit" else "end")

    def event(self, event: Payload, tokenizer: Tokenizer) -> Event:
        if "error" in event:
            raise Unreadable("ended its answer with an error", event)
        drawn = event.get("tokens_predicted")
        ids = _ids(event.get("tokens"), tokenizer)
        return Event(_string(event.get("content")), ids, drawn if isinstance(drawn, int) else None)

    def last(self, event: Payload) -> bool:
        return event.get("stop") is True


def _logprobs(reply: Payload, ids: list[int], tokenizer: Tokenizer) -> Iterator[float]:
    """One for each id, NaN for those of which llama.cpp tells none."""
    told = deque(reply.get("completion_probabilities") or [])
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    for token in ids:
        characters.decode(tokenizer.token_bytes(token))
        unfinished = bool(characters.getstate()[0])  # a character comes with its last token only
        if unfinished or not told or told[0].get("id") != token:
            yield math.nan
        else:
            yield float(told.popleft()["logprob"])


def _prompt_logprobs(choice: Payload, prompt: list[int]) -> tuple[float, ...]:
    """Those of the prompt's tokens from the second on, which stand under their ids."""
    told = choice.get("prompt_logprobs")
    try:
        assert isinstance(told, list) and len(told) == len(prompt)
        return tuple(float(one[str(token)]["logprob"]) for token, one in zip(prompt[1:], told[1:], strict=True))
    except (AssertionError, KeyError, TypeError, ValueError):
        raise Unreadable(f"gave no log-probability for each of the prompt's {len(prompt)} tokens") from None


def _choice(reply: Payload) -> Payload:
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unreadable("answered without a choice", reply)
    return choices[0]


def _ids(ids: Any, tokenizer: Tokenizer) -> list[int]:
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise Unreadable(NO_IDS)
    if ids and not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size:
        raise Unreadable(f"gave ids outside 0 .. {tokenizer.vocab_size - 1}; it serves another tokenizer")
    return ids


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""
