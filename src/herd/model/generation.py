"""The generator protocol: what may ask for text from a model without knowing where the model runs.

Plain values only; importing this needs no torch. `infer/engine.py` implements it on this machine, `infer/remote.py`
over a network.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from herd.console import HerdError

StopReason = Literal["end", "stop", "length", "context", "deadline", "cancelled"]


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. The defaults are the released reference code's (spec 12.1).

    `repetition` divides (or, below 0, multiplies) the logits of tokens that came before, in the prompt or since; 1 does
    nothing (Keskar et al. 2019, arXiv:1909.05858). Temperature 0 then is greedy and ignores the rest: `top_k` keeps
    that many tokens (0: all), `min_p` those with at least that share of the best one's chance, `top_p` the most
    probable of these until their mass reaches it. `stop` ends the text before the first of these strings, `stop_ids`
    are tokens that end it besides the tokenizer's, `seconds` ends a request that long after it was asked. `grammar` is
    what the whole completion must follow, in llguidance's Lark syntax (`model/grammars.py`); a stop token can come only
    where the grammar may end. `prompt_logprobs` asks for those of the prompt's tokens too, and then `max_tokens` may be
    0. Raises HerdError naming a value that is out of range.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    max_tokens: int = 256
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    min_p: float = 0.0
    repetition: float = 1.0
    seconds: float | None = None
    prompt_logprobs: bool = False
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0 <= self.temperature < float("inf"), "a finite number from 0 up"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (no limit) or more"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition": (0 < self.repetition < float("inf"), "a finite number above 0"),
            "seconds": (self.seconds is None or self.seconds > 0, "above 0, or None"),
            "max_tokens": (
                self.max_tokens >= (0 if self.prompt_logprobs else 1),
                "1 or more (0 only to ask for prompt_logprobs)",
            ),
            "seed": (0 <= self.seed < 2**63, "from 0 to 2^63 - 1"),
            "stop": (not isinstance(self.stop, str) and all(self.stop), "a tuple of strings that are not empty"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise HerdError(f"sampling: {name} is {getattr(self, name)!r}; it must be {expected}")


@dataclass(frozen=True)
class Completion:
    """What a generator made of one prompt.

    `ids` are all tokens drawn, a stop token included; `text` leaves the stop token and a stop string out.
    `logprobs` (nats, one for each id) are under the model's own distribution, before temperature, top-k and top-p.
    `stop_reason`: "end" a stop token, "stop" a stop string, "length" max_tokens, "context" the context is full,
    "deadline" its seconds were over, "cancelled" the call was stopped; what there was by then is given.
    `prompt_logprobs`, where asked for: of the prompt's second token, its third and so on, each after those before it.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReason
    prompt_logprobs: tuple[float, ...] = ()


class Generator(Protocol):
    """Anything that continues token prompts."""

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling | Sequence[Sampling],
        stop: threading.Event | None = None,
    ) -> list[Completion]:
        """One completion for each prompt, in order; one sampling for all, or one each. Setting `stop` cancels the rest.

        Equal prompts of one call get random streams of their own. Raises HerdError, which names the prompt.
        """
        ...

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[str]:
        """Pieces of one completion's text as they become certain; joined they equal `Completion.text`."""
        ...

    def stream_tokens(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        """The ids of one completion as they are drawn; closing the iterator cancels the rest."""
        ...


def one_each(prompts: Sequence[list[int]], sampling: Sampling | Sequence[Sampling]) -> list[Sampling]:
    """The sampling of each prompt. Raises HerdError where there are more or fewer than prompts."""
    if isinstance(sampling, Sampling):
        return [sampling] * len(prompts)
    if len(sampling) != len(prompts):
        raise HerdError(f"generate: {len(prompts)} prompts and {len(sampling)} samplings; give one for all or one each")
    return list(sampling)
