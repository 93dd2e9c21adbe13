"""Second thoughts: several drafts of a call are tried, and the best of them is run.

Drafts are compared first by what separates them from the question (grounding.py), then by how many come to the same
result: self-consistency (Wang et al. 2022, arXiv:2203.11171) where the answers are executed. Drafts that are written
differently and come to the same value vote for each other; drafts that fail vote for nothing. Measured in docs/log.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from herd.evaluate.answers import is_right
from herd.model.generation import Generator, Sampling
from herd.model.tokenizer import Tokenizer
from herd.tools.sandbox import Result
from herd.tools.turns import code_of


@dataclass(frozen=True)
class Chosen:
    """The code to run, how many of how many drafts come to its result, and what separates it from the question."""

    code: str
    agree: int
    drafts: int
    gaps: tuple[str, ...]

    @property
    def doubt(self) -> str | None:
        """What a person should know before trusting the result, in a line; None where nothing speaks against it."""
        reasons = list(self.gaps[:2])
        if 2 * self.agree <= self.drafts:
            reasons.append(f"only {self.agree} of {self.drafts} drafts come to this result")
        return f"Look at the code before you trust this: {'; '.join(reasons)}." if reasons else None


@dataclass
class _Group:
    """Drafts with one result; `code` is the best of them."""

    result: Result
    code: str
    gaps: tuple[str, ...]
    votes: int


def draft(
    generator: Generator, tokenizer: Tokenizer, ids: list[int], sampling: Sampling, count: int, stop: threading.Event
) -> tuple[list[str], int]:
    """The code of `count` samples of one prompt, without those that are words or were cut off; all their tokens.

    Setting `stop` ends them within a token.
    """
    completions = generator.generate([ids] * count, sampling, stop)
    codes = [code for completion in completions if (code := code_of(completion, tokenizer)) is not None]
    return codes, sum(len(completion.ids) for completion in completions)


def choose(
    codes: Sequence[str], run: Callable[[str], Result] | None, gaps: Callable[[str], Sequence[str]]
) -> Chosen | None:
    """The code with the fewest gaps, of these the one that most agree with, of these the first.

    `run` executes code where nothing is kept of it; without it only equal code agrees. None where nothing runs.
    """
    groups: list[_Group] = []
    for code in dict.fromkeys(codes):
        try:
            found = tuple(gaps(code))
        except (SyntaxError, ValueError, RecursionError):
            continue
        result = run(code) if run else Result(True, code, None, None, 0.0)
        if not result.ok:
            continue
        group = next((group for group in groups if _same(group.result, result)), None)
        if group is None:
            groups.append(_Group(result, code, found, codes.count(code)))
        else:
            group.votes += codes.count(code)
            if len(found) < len(group.gaps):
                group.code, group.gaps = code, found
    if not groups:
        return None
    best = max(groups, key=lambda group: (-len(group.gaps), group.votes))
    return Chosen(best.code, best.votes, len(codes), best.gaps)


def _same(one: Result, other: Result) -> bool:
    """Whether two results say the same. Code that shows nothing can't be compared, so it agrees with nothing else."""
    if one.value is None or other.value is None:
        return bool(one.text) and one.text == other.text
    return is_right(one.value, other.value)
