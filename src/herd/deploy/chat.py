"""Chat completions: from a checked request to a reply, whole or streamed.

Two ways. A client that offers a function named `python` gets the model's code as a tool call, runs it itself and sends
the result back. A request with `table` is worked on here: the code runs in the server's sandbox, and what happened is
told beside the words, in the field `herd` of each delta (streamed) or of the message (whole).

Functions of other names are described to the model in the system message; whether it uses them well depends on what it
was trained on. A message that begins as a call of one follows the schema of its arguments. Their calls are text until
they are whole, so with them the words are not streamed piece by piece.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from herd.console import HerdError
from herd.deploy.assistant import Assistant, Conversation, Done, Event, Text, fit
from herd.deploy.protocol import (
    PYTHON,
    ChatRequest,
    Function,
    RequestError,
    Tool,
    call_json,
    chat_chunk,
    head,
    sse,
    usage,
)
from herd.deploy.reading import Piece, Written, message_grammar, read
from herd.deploy.tables import Table
from herd.model.dialog import Dialog, Message, from_openai, python_call
from herd.model.generation import Sampling
from herd.model.grammars import call_rules
from herd.tools.prompts import system_prompt

REFUSED = "content_filter"
ENDINGS = {"answered": "stop", "length": "length", "stopped": "stop", "refused": REFUSED, "failed": "stop"}


@dataclass(frozen=True)
class Task:
    """A checked chat request, ready for the queue."""

    assistant: Assistant
    request: ChatRequest
    dialog: Dialog
    ids: list[int]
    sampling: Sampling

    def parts(self, stop: threading.Event) -> Iterator[Piece | Written]:
        """The job of a request without a table."""
        said = [message.content for message in self.dialog.messages if message.role == "user"]
        if said and (refusal := self.assistant.refusal(said[-1])):
            yield Piece(refusal)
            yield Written(Message("assistant", refusal), (), "refused", refusal)
            return
        for part in read(self.assistant.generator, self.assistant.tokenizer, self.ids, self.sampling, stop):
            yield replace(part, message=self._heard(part)) if isinstance(part, Written) else part

    @property
    def plain(self) -> bool:
        """Whether words are words: no function is offered whose calls are written as text."""
        return all(function.name == PYTHON for function in self.request.functions)

    def _heard(self, written: Written) -> Message:
        """What the client is told: calls of functions that it offered; everything else is words."""
        offered = {function.name for function in self.request.functions}
        if written.code is not None and PYTHON in offered:
            return Message("assistant", written.text, (python_call(written.code),))
        if self.plain or not all(call.name in offered for call in written.message.calls):
            return Message("assistant", written.text)
        return written.message

    def events(self, table: Table, stop: threading.Event) -> Iterator[Event]:
        """The job of a request with a table: the last message is asked in a conversation of those before it."""
        earlier = Dialog(self.dialog.messages[:-1])
        conversation = Conversation(self.assistant, table.session, earlier)
        yield from conversation.ask(self.dialog.messages[-1].content, stop, replace(self.sampling, grammar=None))


def prepare(assistant: Assistant, request: ChatRequest, table: Table | None) -> Task:
    """Check what only the model can tell. Raises RequestError naming the field."""
    dialog = _read_messages(request)
    if table is not None:
        if request.tools:
            raise RequestError(400, "with 'table' the server runs the code itself; leave 'tools' out", "tools")
        if request.response_format and request.response_format.type != "text":
            raise RequestError(400, "with 'table' an answer is words; leave 'response_format' out", "response_format")
        if dialog.messages[-1].role != "user":
            raise RequestError(400, "with 'table' the last message must be the user's", "messages")
        dialog = _with_system(dialog, system_prompt(table.facts))
    elif others := [function for function in request.functions if function.name != PYTHON]:
        dialog = _with_system(dialog, _describe(others))
    longest = assistant.context // 2 if request.asked_tokens() is None else assistant.context - 1
    sampling = request.sampling(assistant.sampling, longest, _grammar(request, assistant.tokenizer.call_id))
    try:
        _, ids, left_out = fit(dialog, assistant, sampling.max_tokens)
    except HerdError as error:
        raise RequestError(400, str(error), "messages", "context_length_exceeded") from None
    if left_out and table is None:  # a client keeps its own history: say so instead of answering from a part of it
        message = f"the messages and max_tokens exceed the model's context of {assistant.context} tokens"
        raise RequestError(400, message, "messages", "context_length_exceeded")
    room = assistant.context - len(ids)
    return Task(assistant, request, dialog, ids, replace(sampling, max_tokens=min(sampling.max_tokens, room)))


def _read_messages(request: ChatRequest) -> Dialog:
    try:
        return from_openai(request.messages)
    except HerdError as error:
        raise RequestError(400, str(error), "messages") from None


def _with_system(dialog: Dialog, text: str) -> Dialog:
    """The dialog with `text` at the head of its system message."""
    first, *rest = dialog.messages
    if first.role == "system":
        return Dialog((Message("system", f"{text}\n\n{first.content}"), *rest))
    return Dialog((Message("system", text), *dialog.messages))


def _describe(functions: list[Function]) -> str:
    lines = [json.dumps(function.model_dump(exclude_none=True), ensure_ascii=False) for function in functions]
    how = 'To call one of these functions, answer with {"name": ..., "parameters": {...}} and nothing else:'
    return "\n".join([how, *lines])


def _grammar(request: ChatRequest, call_id: int | None) -> str:
    """What the client's tools and format allow. Raises RequestError for a required call that this model cannot make."""
    answer = request.response_format.expression() if request.response_format else None
    wanted, functions = request.tool_choice, request.functions
    named = wanted.function.name if isinstance(wanted, Tool) else None
    callable_ = [f for f in functions if f.name != PYTHON or call_id is not None]
    allowed = [f for f in callable_ if named in (None, f.name)]
    required = named is not None or wanted == "required"
    if required and not allowed:
        raise RequestError(
            400, "the call that is required is of no function in tools that this model can call", "tool_choice"
        )
    others = {f.name: _schema(f) for f in allowed if f.name != PYTHON}
    code = call_id if any(f.name == PYTHON for f in allowed) else None
    return message_grammar(code, call_rules(others) if others else None, answer, required)


def _schema(function: Function) -> dict[str, Any] | None:
    """The schema of a function's arguments; None, any object, for one that no grammar can say, unless it is strict."""
    try:
        call_rules({function.name: function.parameters})
    except HerdError as error:
        if function.strict:
            raise RequestError(400, str(error), "tools") from None
        return None
    return function.parameters


def finish_reason(written: Written) -> str:
    if written.ending in ("length", "refused"):
        return "length" if written.ending == "length" else REFUSED
    return "tool_calls" if written.message.calls else "stop"


def whole(task: Task, parts: list[Piece | Written]) -> dict[str, Any]:
    """The reply to a request without a table, in one piece."""
    written = parts[-1]
    assert isinstance(written, Written)
    message: dict[str, Any] = {"role": "assistant", "content": written.message.content or None}
    if written.message.calls and written.ending == "end":
        message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in _calls(written.message)]
    else:
        message["content"] = written.message.content
    return _reply(task, message, finish_reason(written), usage(len(task.ids), len(written.ids)))


def whole_events(task: Task, events: list[Event]) -> dict[str, Any]:
    """The reply to a request with a table, in one piece. Raises RequestError for a turn that failed."""
    done = events[-1]
    assert isinstance(done, Done)
    if done.reason == "failed":
        raise RequestError(500, getattr(events[-2], "text", "the turn failed"), code="turn_failed")
    words = "".join(event.piece for event in events if isinstance(event, Text))
    told = [event_json(event) for event in events if not isinstance(event, Text)]
    message = {"role": "assistant", "content": words, "herd": told}
    return _reply(task, message, ENDINGS[done.reason], usage(done.prompt_tokens, done.tokens))


def _reply(task: Task, message: dict[str, Any], finish: str, tokens: dict[str, int]) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    start = head("chatcmpl", task.assistant.name)
    return {**start, "object": "chat.completion", "choices": [choice], "usage": tokens}


async def streamed(task: Task, parts: AsyncIterator[Piece | Written]) -> AsyncIterator[str]:
    """The reply to a request without a table, as server-sent events."""
    start = head("chatcmpl", task.assistant.name)
    yield sse(chat_chunk(start, {"role": "assistant", "content": ""}))
    opened = False
    async for part in parts:
        if isinstance(part, Written):
            for delta in _last_deltas(part, task.plain, opened):
                yield sse(chat_chunk(start, delta))
            yield sse(chat_chunk(start, {}, finish_reason(part)))
            if task.request.usage_wanted:
                tokens = usage(len(task.ids), len(part.ids))
                yield sse({**start, "object": "chat.completion.chunk", "choices": [], "usage": tokens})
        elif not task.plain:
            continue
        elif not part.code:
            yield sse(chat_chunk(start, {"content": part.text}))
        else:
            if not opened:
                yield sse(chat_chunk(start, {"tool_calls": [call_json(PYTHON, '{"code": "', 0)]}))
                opened = True
            yield sse(chat_chunk(start, _arguments(json.dumps(part.text, ensure_ascii=False)[1:-1])))
    yield sse("[DONE]")


def _last_deltas(written: Written, plain: bool, opened: bool) -> Iterator[dict[str, Any]]:
    """What of a message is told only at its end."""
    if opened and written.ending == "end":
        yield _arguments('"}')
    if not plain and written.message.content:
        yield {"content": written.message.content}
    if not opened and written.message.calls and written.ending == "end":
        yield {"tool_calls": _calls(written.message)}


def _calls(message: Message) -> list[dict[str, Any]]:
    """A message's calls as the protocol has them, arguments a string of JSON."""
    given = [(call.name, json.dumps(dict(call.arguments), ensure_ascii=False)) for call in message.calls]
    return [call_json(name, arguments, number) for number, (name, arguments) in enumerate(given)]


def _arguments(text: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}


async def streamed_events(task: Task, events: AsyncIterator[Event]) -> AsyncIterator[str]:
    """The reply to a request with a table, as server-sent events."""
    start = head("chatcmpl", task.assistant.name)
    yield sse(chat_chunk(start, {"role": "assistant", "content": ""}))
    last: Event | None = None
    async for event in events:
        if isinstance(event, Text):
            yield sse(chat_chunk(start, {"content": event.piece}))
        elif not isinstance(event, Done):
            yield sse(chat_chunk(start, {"herd": event_json(event)}))
        elif event.reason == "failed":
            text = getattr(last, "text", "the turn failed")
            yield sse(RequestError(500, text, code="turn_failed").body())
        else:
            yield sse(chat_chunk(start, {"herd": event_json(event)}, ENDINGS[event.reason]))
            if task.request.usage_wanted:
                tokens = usage(event.prompt_tokens, event.tokens)
                yield sse({**start, "object": "chat.completion.chunk", "choices": [], "usage": tokens})
        last = event
    yield sse("[DONE]")


def event_json(event: Event) -> dict[str, Any]:
    """An event as the page and other clients read it: its fields, and `type`, its name in small letters."""
    return {"type": type(event).__name__.lower(), **asdict(event)}
