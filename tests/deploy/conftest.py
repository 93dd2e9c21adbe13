"""Stand-ins for the rooms below: a model that says what it is told to, a sandbox without walls."""

from __future__ import annotations

import os
import pathlib
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from herd.artifact import Artifact, find, publish
from herd.console import HerdError
from herd.deploy.assistant import Assistant
from herd.deploy.server import Limits
from herd.infer.engine import Engine
from herd.model.config import ModelConfig
from herd.model.generation import Completion, one_each
from herd.model.tokenizer import Tokenizer, train_tokenizer
from herd.tools.inside.session import fresh_names, guarded, open_table, run, table_facts
from herd.tools.sandbox import Result
from herd.tools.table import TableFacts, open_file, read_facts

SALES = """region,units,price,day
North,5,2.5,2024-01-05
South,7,4.0,2024-01-06
North,1,8.0,2024-01-07
East,9,1.0,2024-01-08
"""


@pytest.fixture
def published(tmp_path):
    """Publishes what a function writes as an artifact of a stage."""

    def make(stage, write) -> Artifact:
        key = "0" * 64
        with publish(tmp_path, stage, key, {}, {}) as draft:
            write(draft)
        artifact = find(tmp_path, stage, key)
        assert artifact is not None
        return artifact

    return make


class Scripted:
    """A generator whose messages are given: "text" for words, "> code" for a Python call, "...": writes for ever.

    `opened` is set while it writes; with `held` set it waits, after each token, for `go`.
    """

    def __init__(self, tokenizer: Tokenizer, *messages: str) -> None:
        self.tokenizer, self.queue = tokenizer, deque(messages)
        self.prompts: list[str] = []
        self.samplings = []
        self.given = 0
        self.held, self.go, self.opened, self.closed = False, threading.Event(), threading.Event(), threading.Event()

    def stream_tokens(self, prompt, sampling) -> Iterator[int]:
        self.prompts.append(self.tokenizer.decode(prompt))
        self.samplings.append(sampling)
        return self._tokens(sampling.max_tokens)

    def _tokens(self, limit: int) -> Iterator[int]:
        message = self.queue.popleft() if self.queue else "..."
        ids, call_id = self.ids(message), self.tokenizer.call_id
        assert call_id is not None
        self.opened.set()
        try:
            for count in range(limit):
                if message.startswith("> ") and message.endswith("..."):
                    token = call_id if count == 0 else ids[1]
                elif message == "...":
                    token = ids[0]
                elif count < len(ids):
                    token = ids[count]
                else:
                    return
                self.given += 1
                yield token
                if self.held:
                    self.go.wait(0.01)
        finally:
            self.opened.clear()
            self.closed.set()

    def ids(self, message: str) -> list[int]:
        ids = self.tokenizer.encode(message.removeprefix("> "))
        if message.startswith("> "):
            assert self.tokenizer.call_id is not None
            return [self.tokenizer.call_id, *ids, self.tokenizer.special["<|eom_id|>"]]
        return [*ids, self.tokenizer.special["<|eot_id|>"]]

    def generate(self, prompts, sampling, stop=None) -> list[Completion]:
        done = []
        for prompt, one in zip(prompts, one_each(prompts, sampling), strict=True):
            ids = tuple(self.stream_tokens(prompt, one))
            ended = ids[-1] in self.tokenizer.stop_ids
            text = self.tokenizer.decode(ids[:-1] if ended else ids)
            done.append(Completion(text, ids, tuple(-0.5 for _ in ids), "end" if ended else "length"))
        return done

    def stream(self, prompt, sampling) -> Iterator[str]:
        raise AssertionError("the assistant reads tokens")


class InProcess:
    """The inside of the sandbox without its walls, for code that the tests themselves write."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = fresh_names()
        self.ran: list[str] = []
        self.stem = ""
        self.path: pathlib.Path | None = None

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.names.clear()

    def session(self) -> InProcess:
        return InProcess()

    def twin(self) -> InProcess:
        twin = InProcess()
        assert self.path is not None
        twin.open_table(self.path)
        for code in self.ran:
            run(code, twin.names, 20_000)
        return twin

    def open_table(self, path: pathlib.Path, name: str = "df") -> TableFacts:
        self.path = path
        file, _ = open_file(path)
        with file:
            data = bytearray(file.read())
        reply = guarded(lambda: open_table(data, {"name": name, "suffix": path.suffix}, self.names))
        if "error" in reply:
            raise HerdError(f"{path.name}: {reply['error']}")
        self.stem = path.stem
        return read_facts(reply, path.stem)

    def facts(self) -> TableFacts:
        reply = guarded(lambda: table_facts({"name": "df"}, self.names))
        if "error" in reply:
            raise HerdError(f"df: {reply['error']}")
        return read_facts(reply, self.stem)

    def run(self, code: str) -> Result:
        self.ran.append(code)
        reply = run(code, self.names, 20_000)
        return Result(reply["error"] is None, reply["text"], reply["value"], reply["error"], 0.0)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([(pathlib.Path(os.__file__).parent / "argparse.py").read_text()], 500)


@pytest.fixture
def scripted(tokenizer):
    """Makes an assistant of given messages; its model is `assistant.generator`."""

    def make(*messages: str, context: int = 2000, **more) -> Assistant:
        return Assistant("toy", Scripted(tokenizer, *messages), tokenizer, context, **more)

    return make


@pytest.fixture
def session(tmp_path) -> InProcess:
    """A session with the sales table open."""
    path = tmp_path / "sales.csv"
    path.write_text(SALES)
    one = InProcess()
    one.open_table(path)
    return one


@pytest.fixture
def start_server(running_server):
    """Starts a server over an assistant, with limits and a sandbox; it ends with the test."""
    with ExitStack() as stack:
        yield lambda assistant, limits=None, sandbox=None: stack.enter_context(
            running_server(assistant, sandbox or InProcess(), limits)
        )


@pytest.fixture
def running(scripted, start_server):
    """Starts a server whose model says the given messages."""

    def start(*messages: str, limits: Limits | None = None, **more):
        return start_server(scripted(*messages, **more), limits)

    return start


@pytest.fixture
def random_engine(tokenizer, untrained):
    """An engine of an untrained network with a context of 900."""
    return Engine(untrained(ModelConfig(2, 48, 4, 2, 96, tokenizer.vocab_size, 12, 900)), tokenizer)


@pytest.fixture(scope="session")
def city():
    """A JSON schema, and whether a value follows it."""
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }

    def follows(value):
        return set(value) == {"city", "days"} and value["city"] in ("Oslo", "Rome") and 1 <= value["days"] <= 9

    return schema, follows
