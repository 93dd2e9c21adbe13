"""A request while it runs: tokens become text, a stop token, a stop string or a limit ends it."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from herd.console import HerdError
from herd.infer.grammar import Progress
from herd.infer.sampling import random_stream, weaken
from herd.model.generation import Completion, Sampling, StopReason
from herd.model.tokenizer import Tokenizer

NOT_NUMBERS = "the model's logits are not numbers (NaN or infinite): its weights are damaged or its training diverged"


class Request:
    """Prompt `index` of a call: its tokens so far, the text that is certain, and why it ended."""

    def __init__(
        self,
        prompt: list[int],
        index: int,
        sampling: Sampling,
        tokenizer: Tokenizer,
        context: int,
        grammar: Progress | None = None,
    ) -> None:
        self.prompt, self.index, self.sampling, self.tokenizer = prompt, index, sampling, tokenizer
        self.grammar = grammar
        self.limit = min(sampling.max_tokens, context - len(prompt))
        self.stream = random_stream(sampling.seed, index)
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.text = ""
        self.prompt_logprobs: list[float] = []
        self.reason: StopReason | None = None if self.limit or sampling.prompt_logprobs else "context"
        self.error: str | None = None
        self._deadline = None if sampling.seconds is None else time.monotonic() + sampling.seconds
        self._seen = set(prompt) if sampling.repetition != 1 else set[int]()
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")  # holds back an unfinished character
        self._held = ""  # the possible beginning of a stop string

    @property
    def open(self) -> bool:
        """Whether it goes on."""
        return self.reason is None and self.error is None

    def fail(self, why: str) -> None:
        """End it with an error."""
        self.error = f"prompt {self.index}: {why}"

    @contextmanager
    def failing(self) -> Iterator[None]:
        """A HerdError inside ends this request and nothing else."""
        try:
            yield
        except HerdError as error:
            self.fail(str(error))

    def end_late(self) -> None:
        """End it where its time is over."""
        if self.open and self._deadline is not None and time.monotonic() >= self._deadline:
            self._end("deadline")

    def cancel(self) -> None:
        """End it from outside."""
        if self.open:
            self._end("cancelled")

    def score(self, logits_RV: Tensor, start: int, end: int) -> None:
        """Note the log-probabilities that logits after the prompt's tokens `start` .. end-1 give the token after each.

        Ends it where the prompt does and nothing more is to come.
        """
        targets = self.prompt[start + 1 : end + 1]
        chosen = logits_RV[: len(targets)].log_softmax(-1).gather(1, torch.tensor(targets, dtype=torch.int64)[:, None])
        if not chosen.isfinite().all():
            self.fail(NOT_NUMBERS)
        self.prompt_logprobs += chosen[:, 0].tolist()
        if self.open and end == len(self.prompt) and not self.limit:
            self._end("context" if self.sampling.max_tokens else "length")

    @property
    def shapes(self) -> bool:
        """Whether it changes logits before a token is chosen."""
        return self.grammar is not None or self.sampling.repetition != 1

    def shape(self, logits_V: Tensor) -> None:
        """Weaken tokens that came before; set the logits of those that the grammar forbids here to -inf; in place."""
        if self.sampling.repetition != 1:
            weaken(logits_V, self._seen, self.sampling.repetition)
        if self.grammar is not None:
            logits_V.masked_fill_(~self.grammar.allowed(), -torch.inf)

    def take(self, token: int, logprob: float) -> None:
        """Add a drawn token; sets `reason` where it is the last one."""
        if self.grammar is not None:
            self.grammar.take(token)
        self.ids.append(token)
        if self.sampling.repetition != 1:
            self._seen.add(token)
        self.logprobs.append(logprob)
        if token in self.tokenizer.stop_ids or token in self.sampling.stop_ids:
            self._end("end")
            return
        self._add(self._characters.decode(self.tokenizer.token_bytes(token)))
        if self.reason is None and len(self.ids) == self.limit:
            self._end("length" if self.limit == self.sampling.max_tokens else "context")

    def completion(self) -> Completion:
        assert self.reason is not None, "asked for before the request ended"
        return Completion(self.text, tuple(self.ids), tuple(self.logprobs), self.reason, tuple(self.prompt_logprobs))

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
