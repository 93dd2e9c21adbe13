"""One turn of a conversation with the tool: what a member emits is parsed, its code executed, the result handed back.

Evaluation, sampling and the assistant all advance conversations by these functions, so that what is trained, measured
and served is the same protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from herd.console import progress
from herd.model.dialog import Dialog, Message, parse, prompt
from herd.model.generation import Completion, Generator, Sampling
from herd.model.tokenizer import Tokenizer
from herd.tools.columns import call_grammar, known_values
from herd.tools.sandbox import Result, Session
from herd.tools.table import TableFacts

MAX_CALLS = 3
SAID_MESSAGES = 4  # the newest of these may name a value
UNFINISHED = "the call was cut off before its end"


@dataclass
class Episode:
    """A dialog whose next message is the assistant's, and the session its calls run in."""

    dialog: Dialog
    session: Session
    facts: TableFacts
    results: list[Result] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    done: bool = False

    @property
    def codes(self) -> list[str]:
        """The code of its calls so far."""
        calls = (call for message in self.dialog.messages for call in message.calls)
        return [call.code for call in calls if call.code is not None]


def grammar_of(dialog: Dialog, facts: TableFacts, tokenizer: Tokenizer) -> str:
    """What the assistant may say next: calls on the table's columns, compared with values it has or that were said."""
    said = [message.content for message in dialog.messages if message.role in ("user", "tool")]
    values = known_values(facts, said[-SAID_MESSAGES:])
    return call_grammar([column.name for column in facts.columns], tokenizer.call_id, values)


def code_of(completion: Completion, tokenizer: Tokenizer) -> str | None:
    """The code of a whole call; None for words, and for a call that was cut off."""
    calls = parse(completion.ids, tokenizer).calls
    return calls[0].code if calls and completion.stop_reason in ("end", "stop") else None


def take(episode: Episode, completion: Completion, tokenizer: Tokenizer, max_calls: int = MAX_CALLS) -> None:
    """Add a completion to an episode: words end it, a Python call is executed and its result added.

    A call that was cut off, or that names another function, is answered with an error, as a failing one is. After
    `max_calls` calls the episode ends without an answer in words.
    """
    message = parse(completion.ids, tokenizer)
    episode.completions.append(completion)
    episode.dialog = episode.dialog.then(message)
    if not message.calls:
        episode.done = True
        return
    result = _execute(message, completion, episode.session)
    episode.results.append(result)
    episode.dialog = episode.dialog.then(Message("tool", result.text))
    episode.done = len(episode.results) >= max_calls


def _execute(message: Message, completion: Completion, session: Session) -> Result:
    code = message.calls[0].code
    if code is None:
        return _refused(f"there is no function '{message.calls[0].name}'; call Python")
    if completion.stop_reason in ("length", "context"):
        return _refused(UNFINISHED)
    return session.run(code)


def _refused(reason: str) -> Result:
    return Result(ok=False, text=f"Error: {reason}", value=None, error=reason, seconds=0.0)


def run_episodes(
    generator: Generator,
    tokenizer: Tokenizer,
    episodes: Sequence[Episode],
    sampling: Sampling,
    title: str,
    use_grammar: bool = True,
    max_calls: int = MAX_CALLS,
) -> None:
    """Advance all episodes to their ends, all open ones together: generate, execute, generate again.

    `sampling.grammar` is set for each episode by its table and what was said, unless `use_grammar` is off.
    """
    with progress(title, len(episodes)) as bar:
        while open_ones := [episode for episode in episodes if not episode.done]:
            settings = [
                replace(sampling, grammar=grammar_of(episode.dialog, episode.facts, tokenizer) if use_grammar else None)
                for episode in open_ones
            ]
            prompts = [prompt(episode.dialog, tokenizer) for episode in open_ones]
            for episode, completion in zip(open_ones, generator.generate(prompts, settings), strict=True):
                take(episode, completion, tokenizer, max_calls)
            bar.update(sum(episode.done for episode in episodes), "")
