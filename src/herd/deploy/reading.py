"""An assistant's message as it arrives token by token: pieces of its words, then pieces of the code of a call.

Pieces are whole characters; a stop string and what follows it are never given out. What the message means once it is
whole (which calls it holds) is `dialog.parse`'s business, not decided here.
"""

from __future__ import annotations

import codecs
import collections.abc
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal, cast

from herd.model.dialog import Message, parse
from herd.model.generation import Generator, Sampling
from herd.model.tokenizer import Tokenizer

Ending = Literal["end", "length", "stopped", "refused"]


WORDS = "TEXT: /(?s:.*)/"  # llguidance lets text spell no special token, so a call cannot be opened in it
WORDS_ONLY = f"start: TEXT\n{WORDS}"
OTHER_WORDS = r'OTHER_WORDS: /(?s:.*)/ & ~/(?s:\s*(\{\s*"(name|type)"|<tool_call>|<function=).*)/'


@dataclass(frozen=True)
class Piece:
    """A piece of text or of a call's code, with the tokens that came since the last piece."""

    text: str
    code: bool = False
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Written:
    """A message that has ended: what it means, its ids, and its pieces put together (`code` None: no call tag came).

    `ending`: "end" by the model, "length" cut at max_tokens, "stopped" from outside, "refused" by a guard.
    """

    message: Message
    ids: tuple[int, ...]
    ending: Ending
    text: str
    code: str | None = None


def words_or_call(call_id: int) -> str:
    """The grammar of a message of words, with or without code after them."""
    return message_grammar(call_id)


def message_grammar(
    call_id: int | None = None, functions: str | None = None, answer: str | None = None, required: bool = False
) -> str:
    """The grammar of a message: words, code behind them where there is a `call_id`, or a function's call.

    `functions` are the rules of `grammars.call_rules`: words then do not begin as such a call does. `answer` is an
    expression that takes the place of words. With `required` the message is a call.
    """
    words = answer or ("OTHER_WORDS" if functions else "TEXT")
    code = None if call_id is None else f"<[{call_id}]> TEXT"
    forms = [] if required else [words if answer or code is None else f"{words} ({code})?"]
    if code is not None and (required or answer):
        forms.append(code)
    if functions:
        forms.append("call")
    return "\n".join([f"start: {' | '.join(forms)}", WORDS, *([OTHER_WORDS, functions] if functions else [])])


def read(
    generator: Generator,
    tokenizer: Tokenizer,
    prompt: list[int],
    sampling: Sampling,
    stop: threading.Event,
    with_calls: bool = True,
) -> Iterator[Piece | Written]:
    """Let the model write one message; yields its pieces, and `Written` last. `stop` is heeded after each token.

    Without calls the call tag is a token like any other, and everything is text. Raises HerdError for a prompt that
    the generator refuses.
    """
    message = _Reading(tokenizer, sampling.stop, tokenizer.call_id if with_calls else None)
    ending: Ending = "length"
    unstopped = replace(sampling, stop=())  # stop strings are for the words, and are looked for here
    with closing(_closable(generator.stream_tokens(prompt, unstopped))) as tokens:
        for token in tokens:
            if stop.is_set():
                ending = "stopped"
                break
            if piece := message.take(token):
                yield piece
            if message.ended:
                ending = "end"
                break
    if piece := message.rest():
        yield piece
    yield Written(message.parsed(), tuple(message.ids), ending, message.text, message.code)


def _closable(tokens: Iterator[int]) -> collections.abc.Generator[int, None, None]:
    """The same tokens in a generator, which has `close` whatever it was given."""
    yield from tokens


class _Reading:
    """A message on its way."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...], call_id: int | None) -> None:
        self.tokenizer, self.stops, self.call_id = tokenizer, stops, call_id
        self.ids: list[int] = []
        self._told = 0  # of these, given out with pieces
        self.ended = False
        self.text, self.code = "", cast("str | None", None)  # as they were given out
        self._held = ""  # the possible beginning of a stop string
        self._cut = False
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")  # holds back an unfinished character

    def take(self, token: int) -> Piece | None:
        """Add a token; the piece that became certain with it, if any."""
        self.ids.append(token)
        if token in self.tokenizer.stop_ids:
            self.ended = True
            return None
        if self.call_id is not None and token == self.call_id and self.code is None:
            piece = self._give(self._held + self._characters.decode(b"", final=True))
            self._held, self.code = "", ""
            self._characters.reset()
            return piece
        text = self._characters.decode(self.tokenizer.token_bytes(token))
        return self._give(self._certain(text) if self.code is None else text)

    def rest(self) -> Piece | None:
        """What was held back, once no token follows."""
        text = self._held + self._characters.decode(b"", final=True)
        self._held = ""
        return None if self._cut else self._give(text)

    def parsed(self) -> Message:
        """The message that the tokens make; the words alone where a stop string cut it."""
        return Message("assistant", self.text) if self._cut else parse(self.ids, self.tokenizer)

    def _give(self, text: str) -> Piece | None:
        if self.code is None:
            self.text += text
        else:
            self.code += text
        if not text:
            return None
        ids, self._told = tuple(self.ids[self._told :]), len(self.ids)
        return Piece(text, self.code is not None, ids)

    def _certain(self, text: str) -> str:
        """The part of the words so far that no stop string can take back."""
        held = self._held + text
        found = [at for at in map(held.find, self.stops) if at >= 0]
        if found:
            self._held, self._cut, self.ended = "", True, True
            return held[: min(found)]
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        lengths = range(min(longest, len(held)), 0, -1)
        keep = next((n for n in lengths if any(stop.startswith(held[-n:]) for stop in self.stops)), 0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]
