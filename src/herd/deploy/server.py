"""`herd serve`: one member behind the OpenAI protocol, and the page for people, on this machine.

Nothing leaves it: no outbound request, no telemetry, no cookies; the key and what is said are never logged. One
request is worked on at a time and a bounded number wait; who goes away cancels.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from herd.console import HerdError
from herd.deploy import chat, completions
from herd.deploy.assistant import Assistant, Done, Event
from herd.deploy.door import EVERY_HOST, LOOPBACK, Door
from herd.deploy.protocol import ChatRequest, CompletionRequest, Question, RequestError, parse_body, sse
from herd.deploy.reading import Written
from herd.deploy.tables import Table, Tables
from herd.deploy.worker import Busy, Stream, Worker
from herd.model.generation import Completion
from herd.tools.sandbox import Sandbox

KEY_VARIABLE = "HERD_API_KEY"
SHORTEST_KEY = 12
DRAIN_SECONDS = 30
WATCH_SECONDS = 0.2  # how often a whole reply's client is looked for
PAGE = Path(__file__).with_name("page.html")
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one server takes: bytes of a request and of a CSV file, tables open at once, requests that wait."""

    request_bytes: int = 4_000_000
    table_bytes: int = 50_000_000
    tables: int = 8
    waiting: int = 8


class Server:
    """The routes over one assistant. `app` is the ASGI application; its lifespan's end closes tables and queue."""

    def __init__(
        self, assistant: Assistant, sandbox: Sandbox, key: str, host: str = "127.0.0.1", limits: Limits = Limits()
    ) -> None:
        self.assistant, self.limits = assistant, limits
        self.worker = Worker(limits.waiting)
        self.tables = Tables(assistant, sandbox, limits.tables)
        self.tokens = 0  # written by the model since the start; only the worker's thread adds to it
        self._page, self._policy = _page()
        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/ask", self.ask, methods=["POST"]),
            Route("/tables", self.list_tables),
            Route("/tables", self.open_table, methods=["POST"]),
            Route("/tables/{id}", self.close_table, methods=["DELETE"]),
        ]
        handlers: dict[Any, Any] = {
            RequestError: lambda _, error: error.response(),
            Busy: _busy,
            HTTPException: _http_error,
            HerdError: lambda _, error: RequestError(500, str(error)).response(),
            ClientDisconnect: lambda _, error: Response(status_code=499),
            Exception: lambda _, error: RequestError(500, "an error inside the server; its log says more").response(),
        }
        starlette = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)
        self.app = Door(starlette, key, host, {"": limits.request_bytes, "/tables": limits.table_bytes})

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(self.worker.close)
        await anyio.to_thread.run_sync(self.tables.close_all)

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers={"content-security-policy": self._policy})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        model = {"id": self.assistant.name, "object": "model", "created": 0, "owned_by": "herd"}
        return JSONResponse({"object": "list", "data": [model]})

    async def metrics(self, request: Request) -> Response:
        lines = [
            "# TYPE herd_requests_total counter",
            *(
                f'herd_requests_total{{route="{route}",status="{status}"}} {count}'
                for (route, status), count in sorted(self.app.answered.items())
            ),
        ]
        jobs = self.worker.jobs
        for name, kind, value in (
            ("tokens_predicted_total", "counter", self.tokens),
            ("requests_processing", "gauge", min(jobs, 1)),
            ("requests_deferred", "gauge", max(jobs - 1, 0)),
            ("tables_open", "gauge", len(self.tables)),
        ):
            lines += [f"# TYPE herd_{name} {kind}", f"herd_{name} {value}"]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def chat(self, request: Request) -> Response:
        body = parse_body(ChatRequest, await request.body())
        self._check_model(body.model)
        table = self.tables.check(body.table) if body.table is not None else None
        task = await anyio.to_thread.run_sync(chat.prepare, self.assistant, body, table)
        if table is None:
            parts = self.worker.submit(lambda stop: self._counted(task.parts(stop)))
            if body.stream:
                return EventStream(chat.streamed(task, aiter(parts)), parts)
            return JSONResponse(chat.whole(task, await _all(request, parts)))
        events = self.worker.submit(lambda stop: self._using(table.id, lambda t: task.events(t, stop)))
        if body.stream:
            return EventStream(chat.streamed_events(task, aiter(events)), events)
        return JSONResponse(chat.whole_events(task, await _all(request, events)))

    async def complete(self, request: Request) -> Response:
        body = parse_body(CompletionRequest, await request.body())
        self._check_model(body.model)
        task = await anyio.to_thread.run_sync(completions.prepare, self.assistant, body)
        if body.stream:
            parts = self.worker.submit(lambda stop: self._counted(task.parts(stop)))
            return EventStream(completions.streamed(task, aiter(parts)), parts)
        whole = self.worker.submit(lambda stop: self._counted(task.completions(stop)))
        return JSONResponse(completions.whole(task, await _all(request, whole)))

    async def ask(self, request: Request) -> Response:
        """The page's way: a question in the conversation that the server keeps with a table."""
        body = parse_body(Question, await request.body())
        self.tables.check(body.table)
        events = self.worker.submit(
            lambda stop: self._using(body.table, lambda t: t.conversation.ask(body.question, stop))
        )
        return EventStream(_told(events), events)

    async def list_tables(self, request: Request) -> Response:
        """What the page needs at its start: who answers, and how large a file may be."""
        return JSONResponse({"model": self.assistant.name, "max_bytes": self.limits.table_bytes})

    async def open_table(self, request: Request) -> Response:
        """Take a CSV file: its bytes are the body, its name is in the query."""
        name = request.query_params.get("name", "table.csv")
        with tempfile.TemporaryDirectory(prefix="herd-upload-") as folder:
            path = Path(folder) / "upload"
            with path.open("wb") as file:
                async for piece in request.stream():
                    file.write(piece)
            try:
                table = await anyio.to_thread.run_sync(self.tables.open, name, path)
            except HerdError as error:
                raise RequestError(400, str(error), "file", "unreadable_table") from None
        return JSONResponse({"id": table.id, "object": "table", "facts": asdict(table.facts)}, 201)

    async def close_table(self, request: Request) -> Response:
        id = request.path_params["id"]
        await anyio.to_thread.run_sync(self.tables.close, id)
        return JSONResponse({"id": id, "object": "table", "deleted": True})

    def _check_model(self, name: str) -> None:
        if name != self.assistant.name:
            raise RequestError(
                404, f"no model '{name[:80]}' here; there is '{self.assistant.name}'", "model", "model_not_found"
            )

    def _counted(self, parts: Iterator[T]) -> Iterator[T]:
        """The parts of a job, the tokens that they report added to the metrics."""
        for part in parts:
            if isinstance(part, Written | Completion):
                self.tokens += len(part.ids)
            elif isinstance(part, Done):
                self.tokens += part.tokens
            yield part

    def _using(self, id: str, job: Callable[[Table], Iterator[Event]]) -> Iterator[Event]:
        """A job with a table, which stays open until the job has ended."""
        with self.tables.using(id) as table:
            yield from self._counted(job(table))


class EventStream(StreamingResponse):
    """Server-sent events of a job, which is cancelled when the client goes away, also before the first event."""

    def __init__(self, events: AsyncIterator[str], job: Stream) -> None:
        super().__init__(_explained(events), media_type="text/event-stream")
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _explained(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The events; what a job raises after the answer has begun becomes an event, the last."""
    try:
        async for event in events:
            yield event
    except HerdError as error:
        yield sse(RequestError(500, str(error)).body())
    except RequestError as error:
        yield sse(error.body())


async def _told(events: Stream[Event]) -> AsyncIterator[str]:
    async for event in events:
        yield sse(chat.event_json(event))


async def _all(request: Request, stream: Stream[T]) -> list[T]:
    """Everything that a job yields. Raises ClientDisconnect where the client went away, which cancels the job."""

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(WATCH_SECONDS)
        stream.cancel()

    watching = asyncio.create_task(watch())
    try:
        items = [item async for item in stream]
    finally:
        watching.cancel()
    if await request.is_disconnected():
        raise ClientDisconnect
    if not items:  # taken out of the queue, though the client waits: the server ends
        raise RequestError(503, "the server is shutting down", code="shutting_down")
    return items


def _busy(request: Request, error: Exception) -> Response:
    assert isinstance(error, Busy)
    return RequestError(429, str(error), code="queue_full").response({"retry-after": str(error.seconds)})


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = "no such path" if error.status_code == 404 else error.detail
    return RequestError(error.status_code, text).response(dict(error.headers or {}))


def _page() -> tuple[str, str]:
    """The page, and the policy that lets exactly its own script and style run and nothing be loaded from elsewhere."""
    text = PAGE.read_text(encoding="utf-8")
    digests = {}
    for tag in ("script", "style"):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        hashes = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in found)
        digests[tag] = " ".join(f"'sha256-{digest}'" for digest in hashes)
    rest = "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return text, f"default-src 'none'; script-src {digests['script']}; style-src {digests['style']}; {rest}"


def find_key(host: str) -> tuple[str, bool]:
    """The bearer key, and whether it was made here. Raises HerdError for a key that is too weak for the host."""
    given = os.environ.get(KEY_VARIABLE, "")
    if given:
        if len(given) < SHORTEST_KEY or not given.isascii() or not given.isprintable() or " " in given:
            raise HerdError(
                f"{KEY_VARIABLE}: at least {SHORTEST_KEY} printable ASCII characters without blanks are expected"
            )
        return given, False
    if host not in LOOPBACK:
        raise HerdError(
            f"--host {host}: others could reach this server, so choose a key of your own: "
            f"set {KEY_VARIABLE} to at least {SHORTEST_KEY} characters"
        )
    return secrets.token_urlsafe(24), True


def serve(assistant: Assistant, sandbox: Sandbox, host: str, port: int, limits: Limits = Limits()) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that were taken in are answered first, for up to 30 seconds.

    Raises HerdError for a port that is taken or a host that needs a key.
    """
    key, fresh = find_key(host)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise HerdError(
            f"--host {host} --port {port}: cannot listen there ({os.strerror(error.errno or 0).lower()})"
        ) from None
    server = Server(assistant, sandbox, key, host, limits)
    config = uvicorn.Config(
        server.app,
        access_log=False,
        log_level="warning",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    shown = "127.0.0.1" if host in EVERY_HOST else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    print(f"{assistant.name} answers at {address}v1 (OpenAI protocol) and on the page:", flush=True)
    print(f"  {address}#key={key}" if fresh else f"  {address} (key: {KEY_VARIABLE})", flush=True)
    uvicorn.Server(config).run(sockets=[listening])
