"""Generation on another machine: any server with OpenAI's `/completions` that takes token ids as the prompt.

Besides OpenAI's fields it sends those of vLLM; to llama.cpp's server, which is known by what it says of itself, those
that it has instead (dialects.py). A completion that does not follow its grammar is an error. Redirects are not followed
and proxies not used, so prompts and key go to the named server only. The key comes from an environment variable and
appears in no error.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

from herd.console import HerdError
from herd.infer.dialects import NO_IDS, VLLM, Dialect, Event, LlamaCpp, Unreadable
from herd.infer.grammar import Grammars
from herd.infer.request import Request
from herd.model.generation import Completion, Sampling, StopReason, one_each
from herd.model.tokenizer import Tokenizer

PARALLEL = 16  # requests of one call under way at once
ATTEMPTS = 5  # at a busy server
BUSY = (429, 503)
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds
WATCH_SECONDS = 0.05  # how often a call looks whether it is stopped or too late
SHOWN = 300  # characters of a server's own message


class Line:
    """One request under way, which another thread may cut: its connection is then closed, and the server told so."""

    def __init__(self, seconds: float | None = None) -> None:
        self.reason: StopReason | None = None
        self._seconds, self._deadline = seconds, float("inf")
        self._socket: socket.socket | None = None
        self._lock, self._was_cut = threading.Lock(), threading.Event()

    def start(self) -> None:
        """Begin to count the seconds."""
        if self._seconds is not None:
            self._deadline = time.monotonic() + self._seconds

    @property
    def late(self) -> bool:
        return time.monotonic() >= self._deadline

    def hold(self, connection: http.client.HTTPConnection) -> None:
        """Connect. Raises OSError where it was cut meanwhile."""
        connection.connect()
        with self._lock:
            self._socket = connection.sock
        if self.reason is not None:
            raise OSError(self.reason)

    def pause(self, seconds: float) -> None:
        """Wait before the next attempt, unless it is cut."""
        self._was_cut.wait(seconds)

    def cut(self, reason: StopReason) -> None:
        """End it; more than once does no harm."""
        with self._lock:
            self.reason = self.reason or reason
            held = self._socket
        self._was_cut.set()
        if held is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                held.shutdown(socket.SHUT_RDWR)


class RemoteGenerator:
    """A `Generator` over a server, for example `RemoteGenerator("http://gpu:8000/v1", "llama-3-8b", tokenizer)`.

    The tokenizer must be the model's. `timeout` is for each wait on the network, in seconds. Every method raises
    HerdError that names the server and what it answered. Raises HerdError for a URL that is not plain http or https.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        tokenizer: Tokenizer,
        key_variable: str = "HERD_REMOTE_KEY",
        timeout: float = 600,
    ) -> None:
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or "@" in url.netloc:
            raise HerdError(
                "remote: the address must look like https://host:8000/v1, without a user, a password or a question mark"
            )
        self.base_url, self.model, self.tokenizer = base_url.rstrip("/"), model, tokenizer
        self.key_variable, self.timeout = key_variable, timeout
        self._url, self._grammars = url, Grammars(tokenizer)
        self._dialect: Dialect | None = None
        self._asking = threading.Lock()

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling | Sequence[Sampling],
        stop: threading.Event | None = None,
    ) -> list[Completion]:
        """One completion for each prompt, in order; a request each, so that equal prompts are drawn apart.

        Setting `stop` closes the connections of those under way and sends no more: their completions are empty, for
        what the server had by then is not told. So are those whose seconds were over.
        """
        each = one_each(prompts, sampling)
        lines = [Line(one.seconds) for one in each]
        watched = stop is not None or any(one.seconds is not None for one in each)
        with ThreadPoolExecutor(PARALLEL) as pool:
            jobs = [
                pool.submit(self._complete, *job) for job in zip(range(len(each)), prompts, each, lines, strict=True)
            ]
            left = set(jobs)
            while left:
                done, left = wait(left, WATCH_SECONDS if watched else None, FIRST_EXCEPTION)
                if any(job.exception() for job in done) or (stop is not None and stop.is_set()):
                    for line in lines:
                        line.cut("cancelled")
                for line in lines:
                    if line.late:
                        line.cut("deadline")
            return [job.result() for job in jobs]  # raises the first error

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[str]:
        """Pieces of text as they become certain; joined they are the completion's text."""
        dialect, events = self._stream(prompt, sampling)
        if dialect.tells_all:
            return (event.text for event in events if event.text)
        return self._pieces(events, prompt, sampling)

    def stream_tokens(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        """Ids one by one, a stop token included; closing the iterator closes the connection."""
        dialect, events = self._stream(prompt, sampling)
        if dialect.tells_all:
            tokens = (token for event in events for token in self._told(event))
        else:
            tokens = (token for _, token in self._followed(events, prompt, sampling))
        return self._bound(tokens, sampling.grammar, dialect)

    def _told(self, event: Event) -> list[int]:
        if event.ids is None:
            raise self._error(NO_IDS)
        return event.ids

    def _pieces(self, events: Iterator[Event], prompt: list[int], sampling: Sampling) -> Iterator[str]:
        sent, request = 0, None
        for request, _ in self._followed(events, prompt, sampling):
            if len(request.text) > sent:
                yield request.text[sent:]
                sent = len(request.text)
        if request is not None:
            request.cancel()  # gives out what was held back
            if len(request.text) > sent:
                yield request.text[sent:]

    def _followed(
        self, events: Iterator[Event], prompt: list[int], sampling: Sampling
    ) -> Iterator[tuple[Request, int]]:
        """The tokens of a stream that says neither where they end nor what some of them are (dialects.py).

        What it leaves out is in the whole completion, which the same seed gives once more.
        """
        request = Request(prompt, 0, sampling, self.tokenizer, len(prompt) + sampling.max_tokens)
        with contextlib.closing(_closable(events)) as open_events:
            for event in open_events:
                ids = self._told(event)
                if event.drawn is not None and len(request.ids) + len(ids) < event.drawn:
                    break
                for token in ids:
                    request.take(token, 0.0)
                    yield request, token
                    if not request.open:
                        return
            else:
                return
        whole = self._complete(0, prompt, sampling, Line()).ids
        if list(whole[: len(request.ids)]) != request.ids:
            raise self._error("drew other tokens by the same seed when asked for what its stream had left out")
        for token in whole[len(request.ids) :]:
            request.take(token, 0.0)
            yield request, token

    def _stream(self, prompt: list[int], sampling: Sampling) -> tuple[Dialect, Iterator[Event]]:
        """The events of a streamed answer; asked for here, so that a bad prompt fails at the call."""
        dialect = self._find_dialect(Line())
        response = self._open(dialect, self._payload(dialect, 0, prompt, sampling, True), sampling, Line())
        return dialect, self._events(response, dialect)

    def _complete(self, index: int, prompt: list[int], sampling: Sampling, line: Line) -> Completion:
        line.start()
        try:
            if line.reason is not None:
                return Completion("", (), (), line.reason)
            dialect = self._find_dialect(line)
            with self._open(
                dialect, self._payload(dialect, index, prompt, sampling, False), sampling, line
            ) as response:
                reply = self._json(self._read(response))
            with self._reading():
                completion = dialect.completion(reply, self.tokenizer, prompt, sampling)
            for _ in self._bound(iter(completion.ids), sampling.grammar, dialect):
                pass
            return completion
        except HerdError as error:
            if line.reason is not None:
                return Completion("", (), (), line.reason)
            raise HerdError(f"prompt {index}: {error}") from None

    def _bound(self, ids: Iterator[int], grammar: str | None, dialect: Dialect) -> Iterator[int]:
        """The ids, as long as they follow the grammar: a server that does not know it may ignore it without a word."""
        progress = None if grammar is None else self._grammars.begin(grammar)
        for token in ids:
            if progress is not None:
                try:
                    progress.take(token)
                except HerdError:
                    raise self._error(f"ignored the grammar; {dialect.grammar_needs}") from None
            yield token

    def _find_dialect(self, line: Line) -> Dialect:
        """How the server is spoken to; asked once. What else is wrong with it, the request itself will say."""
        with self._asking:
            if self._dialect is None:
                with self._send("GET", f"{self._base}/models", None, self._headers(), line) as response:
                    theirs = response.getheader("Server", "") == "llama.cpp" or b'"llamacpp"' in self._read(response)
                self._dialect = LlamaCpp() if theirs else VLLM()
            return self._dialect

    def _payload(
        self, dialect: Dialect, index: int, prompt: list[int], sampling: Sampling, stream: bool
    ) -> dict[str, Any]:
        if not prompt:
            raise HerdError(f"prompt {index} is empty; begin it with the token {self.tokenizer.bos_id} at least")
        if sampling.grammar is not None:
            self._grammars.begin(sampling.grammar)  # a wrong one is named here: some servers ignore it
        digest = hashlib.sha256(f"{sampling.seed}/{index}".encode()).digest()  # a prompt has a stream of its own
        seed = int.from_bytes(digest[:4], "little") >> 1
        return {"model": self.model, **dialect.payload(self.tokenizer, prompt, sampling, seed, stream)}

    @property
    def _base(self) -> str:
        return self._url.path.rstrip("/")

    def _open(
        self, dialect: Dialect, payload: Mapping[str, Any], sampling: Sampling, line: Line
    ) -> http.client.HTTPResponse:
        """Send a request until the server is not busy. Raises HerdError unless it answers 200."""
        asked = ("POST", dialect.path(self._base), json.dumps(payload).encode(), self._headers(), line)
        response = self._send(*asked)
        for attempt in range(ATTEMPTS - 1):
            if response.status not in BUSY:
                break
            when = response.getheader("Retry-After", "")
            response.close()
            line.pause(min(float(when) if when.isdigit() else FIRST_WAIT * 2**attempt, LONGEST_WAIT))
            response = self._send(*asked)
        if response.status == 200:
            return response
        problem = self._refusal(response.status, sampling, dialect)
        raise self._error(f"{problem}. It says: {self._said(self._read(response))}")

    def _refusal(self, status: int, sampling: Sampling, dialect: Dialect) -> str:
        if status in BUSY:
            return f"was busy ({status}) {ATTEMPTS} times"
        if status in (401, 403):
            return f"refused the key ({status}); set the environment variable {self.key_variable} to a valid one"
        if status == 404:
            return f"knows no such address or no model {self.model!r} (404)"
        if 300 <= status < 400:
            return f"points elsewhere ({status}), which is not followed; give the final address"
        if sampling.grammar is not None and status in (400, 422):
            return f"refused the request ({status}); with a grammar {dialect.grammar_needs}"
        return f"refused the request ({status})"

    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip()

    def _headers(self) -> dict[str, str]:
        headers, key = {"Content-Type": "application/json"}, self._key()
        if not (key.isascii() and key.isprintable()):
            raise HerdError(f"remote: the key in {self.key_variable} holds characters that no header can carry")
        return headers | ({"Authorization": f"Bearer {key}"} if key else {})

    def _send(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], line: Line
    ) -> http.client.HTTPResponse:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self.timeout)
        try:
            line.hold(connection)
            connection.request(method, path, body, headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._error(f"does not answer ({_cause(error)})") from None

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._error(f"broke off its answer ({_cause(error)})") from None

    def _events(self, response: http.client.HTTPResponse, dialect: Dialect) -> Iterator[Event]:
        """What a stream of server-sent events holds. Raises HerdError where it ends before its last event."""
        with response:
            while True:
                try:
                    line = response.readline()
                except (OSError, http.client.HTTPException) as error:
                    raise self._error(f"broke off its answer ({_cause(error)})") from None
                if not line:
                    raise self._error("broke off its answer (the stream ended without [DONE])")
                if line.startswith(b"data:"):
                    data = line.removeprefix(b"data:").strip()
                    if data == b"[DONE]":
                        return
                    event = self._json(data)
                    with self._reading():
                        found = dialect.event(event, self.tokenizer)
                    yield found
                    if dialect.last(event):
                        return

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self._error(f"answered something that is not a JSON object: {self._said(data)}")
        return value

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Puts the server's name before what is wrong with its answer."""
        try:
            yield
        except Unreadable as error:
            said = "" if error.said is None else f". It says: {self._said(error.said)}"
            raise self._error(f"{error}{said}") from None

    def _said(self, body: bytes) -> str:
        """What a server says in an error, shortened; a key that it repeats is blotted out."""
        text = body.decode("utf-8", "replace")
        try:
            value = json.loads(text)
            error = value.get("error", value) if isinstance(value, dict) else value
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except ValueError:
            pass  # not JSON: shown as it is
        text = " ".join((text.replace(self._key(), "***") if self._key() else text).split())
        return (text if len(text) <= SHOWN else text[:SHOWN] + " ...") or "nothing"

    def _error(self, problem: str) -> HerdError:
        return HerdError(f"remote: {self.base_url} {problem}")


def _closable(events: Iterator[Event]) -> Generator[Event, None, None]:
    yield from events


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
