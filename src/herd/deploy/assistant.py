"""The analyst: a question about a table in, code, its result and an answer out, all on this machine.

A turn: the model writes; where it calls Python, the code runs in the sandbox and the model reads the result; after at
most `MAX_CALLS` calls it has to say its answer in words. With `drafts` a call is written that many times more, and the
best of what was written is run (drafts.py). A turn that fails (a call that never ends, a dead sandbox) is forgotten, so
that the conversation can go on. The sandbox keeps its variables over the turns.
"""

from __future__ import annotations

import collections.abc
import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from herd.console import HerdError
from herd.deploy.drafts import choose, draft
from herd.deploy.grounding import gaps
from herd.deploy.reading import WORDS_ONLY, Written, read, words_or_call
from herd.model.dialog import Call, Dialog, Message, prompt, python_call
from herd.model.generation import Generator, Sampling
from herd.model.tokenizer import Tokenizer
from herd.tools.sandbox import Result
from herd.tools.table import TableFacts
from herd.tools.turns import MAX_CALLS, SAID_MESSAGES, grammar_of

GREEDY = Sampling(temperature=0.0, max_tokens=256)
DRAFTS = 8  # this and the next as measured in docs/log.md
DRAFT_ROUNDS = 2  # as long as the best draft has gaps
DRAFT_SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=120)
TRIAL_SECONDS = 20.0  # for all drafts of a call; only drafts that hang take so long
MAX_TRIED_CELLS = 5_000_000  # a larger table takes seconds to read again for each draft
Reason = Literal["answered", "length", "stopped", "refused", "failed"]


@dataclass(frozen=True)
class Code:
    """Python that the model asks to run; it is run next."""

    text: str


@dataclass(frozen=True)
class Output:
    """What the code gave: the text that the model reads, and the value as JSON for showing it."""

    text: str
    value: dict[str, Any] | None = None


@dataclass(frozen=True)
class Error:
    """Code that failed (the model may repair it), or what ended the turn if `Done("failed")` follows."""

    text: str


@dataclass(frozen=True)
class Text:
    """A piece of the answer in words."""

    piece: str


@dataclass(frozen=True)
class Notice:
    """Something about the conversation that a person should know."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of a turn, with the tokens that the model read and wrote. `calls`: how often code was run."""

    reason: Reason
    calls: int = 0
    prompt_tokens: int = 0
    tokens: int = 0


Event = Code | Output | Error | Text | Notice | Done
Guard = Callable[[str], str | None]


class Session(Protocol):
    """What a conversation needs of a sandbox's session."""

    def run(self, code: str) -> Result: ...

    def twin(self) -> AbstractContextManager[Session]: ...

    def facts(self) -> TableFacts: ...


@dataclass(frozen=True)
class Assistant:
    """A loaded member. `guard` is shown what the user says; it gives a refusal to say instead, or None.

    `drafts`: how often a greedily written call is written again by sampling before one is chosen; 0 runs it as it is.
    """

    name: str
    generator: Generator
    tokenizer: Tokenizer
    context: int
    guard: Guard | None = None
    sampling: Sampling = GREEDY
    drafts: int = 0

    def refusal(self, text: str) -> str | None:
        """What the guard says instead of an answer, None where it lets the text pass or there is no guard."""
        return self.guard(text) if self.guard else None


class Conversation:
    """Turns with one assistant about one table, or about none (`session` None: it cannot run code then).

    Not for two threads at once. `dialog` is what the model will see of the turns that ended well.
    """

    def __init__(self, assistant: Assistant, session: Session | None, dialog: Dialog) -> None:
        self.assistant, self.session, self.dialog = assistant, session, dialog

    def ask(self, text: str, stop: threading.Event | None = None, sampling: Sampling | None = None) -> Iterator[Event]:
        """One turn, event by event; `Done` is always the last. Setting `stop` ends it within a token or a call."""
        if refusal := self.assistant.refusal(text):
            yield Text(refusal)
            yield Done("refused")
            return
        turn = _Turn(self, sampling or self.assistant.sampling, stop or threading.Event())
        try:
            yield from turn.go(self.dialog.then(Message("user", text)))
        except HerdError as error:
            yield Error(str(error))
            yield turn.done("failed")


class _Turn:
    """One turn on its way: what was run, read and written so far."""

    def __init__(self, conversation: Conversation, sampling: Sampling, stop: threading.Event) -> None:
        self.conversation, self.assistant, self.session = conversation, conversation.assistant, conversation.session
        self.sampling, self.stop = sampling, stop
        self.calls = self.prompt_tokens = self.tokens = 0
        self.ran: list[str] = []  # code of this turn that ran well

    def done(self, reason: Reason) -> Done:
        return Done(reason, self.calls, self.prompt_tokens, self.tokens)

    def go(self, dialog: Dialog) -> Iterator[Event]:
        """From a dialog that ends with the user's message to `Done`. The conversation keeps a turn that ends well."""
        while True:
            dialog, ids, left_out = fit(dialog, self.assistant, self.sampling.max_tokens)
            if left_out:
                yield Notice(
                    f"The conversation outgrew the model's context: its {left_out} oldest messages are left out."
                )
            written = yield from self._write(dialog, ids)
            if written.ending == "stopped":
                yield self.done("stopped")
                return
            can_call = self.session is not None and self.calls < MAX_CALLS
            message = written.message if can_call else Message("assistant", written.text.strip())
            if written.ending == "length" and (message.calls or written.code is not None):
                raise HerdError(
                    f"the model's code did not end within {len(written.ids)} tokens, so it was not run; "
                    "ask again in other words"
                )
            if self.sampling.temperature == 0 and self.assistant.drafts and not self.stop.is_set():
                message = yield from self._reconsidered(message, dialog, ids)
            dialog = dialog.then(message)
            if not message.calls or self.session is None:
                break
            for call in message.calls:
                answer = yield from self._run(call, self.session)
                dialog = dialog.then(Message("tool", answer))
        self.conversation.dialog = dialog
        yield from self._closing(written)

    def _write(self, dialog: Dialog, ids: list[int]) -> collections.abc.Generator[Event, None, Written]:
        """One message of the model, its words given out as they come."""
        room = min(self.sampling.max_tokens, self.assistant.context - len(ids))
        sampling = replace(self.sampling, max_tokens=room, grammar=self._grammar(dialog))
        self.prompt_tokens += len(ids)
        for part in read(self.assistant.generator, self.assistant.tokenizer, ids, sampling, self.stop):
            if isinstance(part, Written):
                self.tokens += len(part.ids)
                return part
            if not part.code:
                yield Text(part.text)
        raise AssertionError("unreachable: Written is always the last")

    def _reconsidered(
        self, message: Message, dialog: Dialog, ids: list[int]
    ) -> collections.abc.Generator[Event, None, Message]:
        """The same message with the best code that the model writes here; a Notice where there is reason for doubt."""
        session, first = self.session, message.calls[0].code if len(message.calls) == 1 else None
        facts = self._facts()
        if session is None or first is None or facts is None:
            return message
        said = [part.content for part in dialog.messages if part.role in ("user", "tool")]
        asked = [part.content for part in dialog.messages if part.role == "user"][-1]

        deadline = time.monotonic() + TRIAL_SECONDS

        @functools.cache
        def run(code: str) -> Result:
            if self.stop.is_set() or time.monotonic() > deadline:
                return Result(False, "", None, "not tried", 0.0)
            with session.twin() as twin:
                return twin.run(code)

        tried = run if facts.rows * len(facts.columns) <= MAX_TRIED_CELLS else None
        sampling, codes, chosen = replace(DRAFT_SAMPLING, grammar=self._grammar(dialog)), [first], None
        for number in range(DRAFT_ROUNDS):
            sampling = replace(sampling, seed=self.sampling.seed + number)
            more, tokens = draft(
                self.assistant.generator, self.assistant.tokenizer, ids, sampling, self.assistant.drafts, self.stop
            )
            self.tokens += tokens
            codes += more
            chosen = choose(codes, tried, lambda code: gaps(asked, said[-SAID_MESSAGES:], code, facts, self.ran))
            if self.stop.is_set() or (chosen is not None and not chosen.gaps):
                break
        if chosen is None:
            return message
        if chosen.doubt:
            yield Notice(chosen.doubt)
        return replace(message, calls=(python_call(chosen.code),))

    def _facts(self) -> TableFacts | None:
        """The table as it is now; None where there is none, or code has made something else of df."""
        try:
            return self.session.facts() if self.session else None
        except HerdError:
            return None

    def _grammar(self, dialog: Dialog) -> str | None:
        """What may be written: code with only the columns that the table has now, or words alone."""
        call_id = self.assistant.tokenizer.call_id
        if self.session is None or call_id is None or self.calls >= MAX_CALLS:
            return WORDS_ONLY
        if (facts := self._facts()) is None:  # no labels are known, so any Python may be written
            return words_or_call(call_id)
        return grammar_of(dialog, facts, self.assistant.tokenizer)

    def _run(self, call: Call, session: Session) -> collections.abc.Generator[Event, None, str]:
        """Run a call; returns what the model is told."""
        self.calls += 1
        if call.code is None:
            text = f"There is no tool '{call.name}'; only Python can be run."
            yield Error(text)
            return text
        yield Code(call.code)
        result = session.run(call.code)
        if result.ok:
            self.ran.append(call.code)
        yield Output(result.text, result.value) if result.ok else Error(result.text)
        return result.text

    def _closing(self, written: Written) -> Iterator[Event]:
        if written.ending == "length":
            yield Notice(f"The answer was cut after {len(written.ids)} tokens.")
            yield self.done("length")
            return
        if not written.text.strip() and not self.calls:
            yield Notice("The model gave no answer; ask in other words.")
        yield self.done("answered")


def fit(dialog: Dialog, assistant: Assistant, answer_tokens: int) -> tuple[Dialog, list[int], int]:
    """A dialog without its oldest turns, as far as the context asks for it; its prompt; how many messages are left out.

    System messages and the newest turn stay. At least half of the context is for the prompt. Raises HerdError where
    these alone do not fit.
    """
    room = assistant.context - min(answer_tokens, assistant.context // 2)
    messages = list(dialog.messages)
    while len(ids := prompt(Dialog(tuple(messages)), assistant.tokenizer)) > room:
        users = [index for index, message in enumerate(messages) if message.role == "user"]
        if len(users) < 2:
            raise HerdError(
                f"the question, the table's columns and the results so far are {len(ids)} tokens, {room} fit into the "
                "model's context; ask for less at once, or load a table with fewer columns"
            )
        del messages[users[0] : users[1]]
    return Dialog(tuple(messages)), ids, len(dialog.messages) - len(messages)
