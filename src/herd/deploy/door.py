"""Who may come in and how much they may bring: host names, the key, body sizes; and the headers of every answer.

A plain ASGI layer before the routes, so that nothing of a refused request is read or parsed.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders

from herd.console import human_bytes
from herd.deploy.protocol import RequestError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = {"/", "/health"}  # what needs no key: the page, which holds no data, and the sign of life
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
EVERY_HOST = frozenset({"0.0.0.0", "::"})
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Door:
    """Lets a request through to `app`, or answers it. `answered` counts answers by route and status.

    `limits`: bytes of a body by path, with "" for all other paths. A host name that is not ours is refused, so that
    a foreign page cannot reach a loopback server through a name of its own (DNS rebinding).
    """

    def __init__(self, app: App, key: str, host: str, limits: Mapping[str, int]) -> None:
        self.app, self.limits = app, limits
        self._key = key.encode()
        self._hosts = None if host in EVERY_HOST else LOOPBACK | {host.lower()}
        self.answered: Counter[tuple[str, int]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                self.answered[_route(scope["path"]), message["status"]] += 1
            await send(message)

        limit = self.limits.get(scope["path"], self.limits[""])
        try:
            self._check(scope["path"], Headers(scope=scope), limit)
        except RequestError as error:
            headers = {"www-authenticate": "Bearer"} if error.status == 401 else {"connection": "close"}
            await error.response(headers)(scope, receive, counted)
            return
        await self.app(scope, _bounded(receive, limit), counted)

    def _check(self, path: str, headers: Headers, limit: int) -> None:
        host = headers.get("host", "").lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self._hosts is not None and name.strip("[]") not in self._hosts:
            raise RequestError(421, "this server does not answer to that host name", code="wrong_host")
        if path not in OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
                raise RequestError(
                    401, "wrong or missing key; send the header 'Authorization: Bearer KEY'", code="invalid_api_key"
                )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            raise _too_large(limit)


def _bounded(receive: Receive, limit: int) -> Receive:
    """`receive` that raises RequestError once a body, whatever length it claimed, exceeds its limit."""
    came = 0

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal came
        message = await receive()
        came += len(message.get("body", b""))
        if came > limit:
            raise _too_large(limit)
        return message

    return bounded


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the body is too large; up to {human_bytes(limit)} are taken here", code="too_large")


def _route(path: str) -> str:
    """A path with ids left out, so that metrics neither grow nor tell them."""
    known = {"/", "/health", "/metrics", "/ask", "/tables", "/v1/models", "/v1/completions", "/v1/chat/completions"}
    return path if path in known else "/tables/ID" if path.startswith("/tables/") else "other"
