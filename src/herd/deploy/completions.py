"""Plain completions: texts or token ids continued as they are, with log-probabilities where asked for.

Enough for `infer/remote.py`: prompts as token ids, several at once, `logprobs` 0 or 1 (those of the drawn tokens) and
vLLM's `return_token_ids`, `structured_outputs` and `prompt_logprobs` 0 (of the prompt's tokens alone). Streaming is for
one prompt without log-probabilities.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from herd.deploy.assistant import Assistant
from herd.deploy.protocol import CompletionRequest, RequestError, head, sse, usage
from herd.deploy.reading import Piece, Written, read
from herd.model.generation import Completion, Sampling
from herd.model.tokenizer import Tokenizer

GROUP = 16  # prompts of one call
FINISHES = {
    **dict.fromkeys(("end", "stop", "stopped", "cancelled"), "stop"),
    **dict.fromkeys(("length", "context", "deadline"), "length"),
}


@dataclass(frozen=True)
class Task:
    """A checked request, ready for the queue."""

    assistant: Assistant
    request: CompletionRequest
    prompts: list[list[int]]
    sampling: Sampling

    def completions(self, stop: threading.Event) -> Iterator[Completion]:
        """The job of a whole reply: one completion for each prompt, in order."""
        for start in range(0, len(self.prompts), GROUP):
            if stop.is_set():
                return
            yield from self.assistant.generator.generate(self.prompts[start : start + GROUP], self.sampling, stop)

    def parts(self, stop: threading.Event) -> Iterator[Piece | Written]:
        """The job of a streamed reply."""
        assistant = self.assistant
        room = replace(
            self.sampling, max_tokens=min(self.sampling.max_tokens, assistant.context - len(self.prompts[0]))
        )
        yield from read(assistant.generator, assistant.tokenizer, self.prompts[0], room, stop, with_calls=False)


def prepare(assistant: Assistant, request: CompletionRequest) -> Task:
    """Check what only the model can tell. Raises RequestError naming the field."""
    prompts = [_ids(prompt, assistant.tokenizer) for prompt in _each(request.prompt)]
    for number, ids in enumerate(prompts):
        if not ids or not 0 <= min(ids) <= max(ids) < assistant.tokenizer.vocab_size:
            expected = f"ids from 0 to {assistant.tokenizer.vocab_size - 1}, one at least"
            raise RequestError(400, f"prompt {number}: expected {expected}", "prompt")
        if len(ids) >= assistant.context:
            message = (
                f"prompt {number} has {len(ids)} tokens; the context of {assistant.context} has to hold the answer too"
            )
            raise RequestError(400, message, "prompt", "context_length_exceeded")
        if assistant.refusal(assistant.tokenizer.decode(ids)):
            raise RequestError(400, f"prompt {number} was refused by the guard", "prompt", "content_policy_violation")
    stop_ids = tuple(request.stop_token_ids or ())
    if any(not 0 <= token < assistant.tokenizer.vocab_size for token in stop_ids):
        known = f"ids from 0 to {assistant.tokenizer.vocab_size - 1}"
        raise RequestError(400, f"expected {known}", "stop_token_ids")
    scored = request.prompt_logprobs is not None
    if request.stream and (len(prompts) > 1 or request.logprobs is not None or scored):
        raise RequestError(400, "streaming is for one prompt, without logprobs", "stream")
    grammar = request.structured_outputs.lark() if request.structured_outputs else None
    sampling = request.sampling(assistant.sampling, assistant.context - 1, grammar)
    sampling = replace(
        sampling,
        top_k=max(request.top_k, 0),  # -1 is vLLM's "all"
        min_p=request.min_p,
        repetition=request.repetition_penalty,
        prompt_logprobs=scored,
        stop_ids=stop_ids,
    )
    return Task(assistant, request, prompts, sampling)


def _each(prompt: str | list[int] | list[str] | list[list[int]]) -> list[Any]:
    """The prompts of a request: texts, or lists of ids."""
    return [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else list(prompt)


def _ids(prompt: str | list[int], tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else prompt


def whole(task: Task, completions: list[Completion]) -> dict[str, Any]:
    """The reply in one piece."""
    choices = [_choice(task, number, completion) for number, completion in enumerate(completions)]
    tokens = usage(sum(map(len, task.prompts)), sum(len(completion.ids) for completion in completions))
    return {**head("cmpl", task.assistant.name), "object": "text_completion", "choices": choices, "usage": tokens}


def _choice(task: Task, number: int, completion: Completion) -> dict[str, Any]:
    choice = _plain(number, completion.text, FINISHES[completion.stop_reason])
    if task.request.logprobs is not None:
        names = [task.assistant.tokenizer.decode([token]) for token in completion.ids]
        offsets = [sum(map(len, names[:index])) for index in range(len(names))]
        choice["logprobs"] = {"tokens": names, "token_logprobs": list(completion.logprobs), "text_offset": offsets}
        choice["logprobs"]["top_logprobs"] = None
    if task.request.return_token_ids:
        choice["token_ids"] = list(completion.ids)
    if task.request.prompt_logprobs is not None:
        told = zip(task.prompts[number][1:], completion.prompt_logprobs, strict=True)
        decode = task.assistant.tokenizer.decode
        choice["prompt_logprobs"] = [
            None,
            *({str(token): {"logprob": logprob, "decoded_token": decode([token])}} for token, logprob in told),
        ]
    return choice


def _plain(number: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": number, "text": text, "logprobs": None, "finish_reason": finish}


async def streamed(task: Task, parts: AsyncIterator[Piece | Written]) -> AsyncIterator[str]:
    """The reply as server-sent events."""
    start = {**head("cmpl", task.assistant.name), "object": "text_completion"}
    told = 0
    async for part in parts:
        last = isinstance(part, Written)
        choice = _plain(0, "" if last else part.text, FINISHES[part.ending] if last else None)
        if task.request.return_token_ids:
            choice["token_ids"] = list(part.ids[told:] if last else part.ids)
        told += 0 if last else len(part.ids)
        yield sse({**start, "choices": [choice]})
        if isinstance(part, Written) and task.request.usage_wanted:
            yield sse({**start, "choices": [], "usage": usage(len(task.prompts[0]), len(part.ids))})
    yield sse("[DONE]")
