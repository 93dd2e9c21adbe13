"""Generation on another machine: any server with OpenAI's `/completions` that takes token ids as the prompt.

Besides OpenAI's fields it sends those of vLLM: `stop_token_ids`, `top_k`, `min_p`, `repetition_penalty`,
`return_token_ids`, and a grammar as `structured_outputs`; a completion that does not follow its grammar is an error.
Redirects are not followed and proxies not used, so prompts and key go to the named server only. The key comes from an
environment variable and appears in no error.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from herd.console import HerdError
from herd.infer.grammar import Grammars
from herd.model.generation import Completion, Sampling, StopReason, one_each
from herd.model.tokenizer import Tokenizer

PARALLEL = 16  # requests of one call under way at once
ATTEMPTS = 5  # at a busy server
BUSY = (429, 503)
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds
SHOWN = 300  # characters of a server's own message


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

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling | Sequence[Sampling],
        stop: threading.Event | None = None,
    ) -> list[Completion]:
        """One completion for each prompt, in order; a request each, so that equal prompts are drawn apart.

        Setting `stop` sends no more of them; those that were sent run to their ends.
        """
        each = one_each(prompts, sampling)

        def complete(index: int) -> Completion:
            if stop is not None and stop.is_set():
                return Completion("", (), (), "cancelled")
            return self._complete(index, prompts[index], each[index])

        with ThreadPoolExecutor(PARALLEL) as pool:
            try:
                return list(pool.map(complete, range(len(prompts))))
            except HerdError:
                pool.shutdown(cancel_futures=True)
                raise

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[str]:
        """Pieces of text as the server sends them; joined they are the completion's text."""
        response = self._open(self._payload(0, prompt, sampling) | {"stream": True}, sampling)
        return (text for choice in self._events(response) if (text := _text(choice)))

    def stream_tokens(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        """Ids one by one, a stop token included; closing the iterator closes the connection."""
        payload = self._payload(0, prompt, sampling) | {"stream": True, "return_token_ids": True}
        response = self._open(payload, sampling)
        return (token for choice in self._events(response) for token in self._ids(choice))

    def _complete(self, index: int, prompt: list[int], sampling: Sampling) -> Completion:
        try:
            payload = self._payload(index, prompt, sampling) | {"logprobs": 1, "return_token_ids": True}
            with self._open(payload, sampling) as response:
                choice = self._choice(self._json(self._read(response)))
            ids = self._ids(choice)
            logprobs = choice.get("logprobs")
            values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
            if not isinstance(values, list) or len(values) != len(ids):
                raise self._error(f"gave no log-probability for each of {len(ids)} tokens")
            if sampling.grammar is not None:
                self._check_grammar(ids, sampling.grammar)
            reason = self._reason(choice, ids, sampling)
            return Completion(_text(choice), tuple(ids), tuple(map(float, values)), reason)
        except HerdError as error:
            raise HerdError(f"prompt {index}: {error}") from None

    def _check_grammar(self, ids: list[int], grammar: str) -> None:
        """A server that does not know the field may ignore it without a word."""
        progress = self._grammars.begin(grammar)
        try:
            for token in ids:
                progress.take(token)
        except HerdError:
            raise self._error("ignored the grammar; it must know vLLM's structured_outputs") from None

    def _payload(self, index: int, prompt: list[int], sampling: Sampling) -> dict[str, Any]:
        if not prompt:
            raise HerdError(f"prompt {index} is empty; begin it with the token {self.tokenizer.bos_id} at least")
        digest = hashlib.sha256(f"{sampling.seed}/{index}".encode()).digest()  # a prompt has a stream of its own
        payload = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": int.from_bytes(digest[:4], "little") >> 1,
            "stop_token_ids": sorted(self.tokenizer.stop_ids),
        }
        if sampling.stop:
            payload["stop"] = list(sampling.stop)
        if sampling.top_k:
            payload["top_k"] = sampling.top_k
        if sampling.min_p:
            payload["min_p"] = sampling.min_p
        if sampling.repetition != 1:
            payload["repetition_penalty"] = sampling.repetition
        if sampling.grammar is not None:
            payload["structured_outputs"] = {"grammar": sampling.grammar}
        return payload

    def _open(self, payload: Mapping[str, Any], sampling: Sampling) -> http.client.HTTPResponse:
        """Send a request until the server is not busy. Raises HerdError unless it answers 200."""
        body, headers = json.dumps(payload).encode(), self._headers()
        response = self._send(body, headers)
        for attempt in range(ATTEMPTS - 1):
            if response.status not in BUSY:
                break
            asked = response.getheader("Retry-After", "")
            response.close()
            time.sleep(min(float(asked) if asked.isdigit() else FIRST_WAIT * 2**attempt, LONGEST_WAIT))
            response = self._send(body, headers)
        if response.status == 200:
            return response
        problem = self._refusal(response.status, sampling)
        raise self._error(f"{problem}. It says: {self._said(self._read(response))}")

    def _refusal(self, status: int, sampling: Sampling) -> str:
        if status in BUSY:
            return f"was busy ({status}) {ATTEMPTS} times"
        if status in (401, 403):
            return f"refused the key ({status}); set the environment variable {self.key_variable} to a valid one"
        if status == 404:
            return f"knows no such address or no model {self.model!r} (404)"
        if 300 <= status < 400:
            return f"points elsewhere ({status}), which is not followed; give the final address"
        if sampling.grammar is not None and status in (400, 422):
            return f"refused the request ({status}); with a grammar it must know vLLM's structured_outputs"
        return f"refused the request ({status})"

    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip()

    def _headers(self) -> dict[str, str]:
        headers, key = {"Content-Type": "application/json"}, self._key()
        if not (key.isascii() and key.isprintable()):
            raise HerdError(f"remote: the key in {self.key_variable} holds characters that no header can carry")
        return headers | ({"Authorization": f"Bearer {key}"} if key else {})

    def _send(self, body: bytes, headers: dict[str, str]) -> http.client.HTTPResponse:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self.timeout)
        try:
            connection.request("POST", f"{self._url.path.rstrip('/')}/completions", body, headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._error(f"does not answer ({_cause(error)})") from None

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._error(f"broke off its answer ({_cause(error)})") from None

    def _events(self, response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        """The choices of a stream of server-sent events. Raises HerdError where it ends before its last event."""
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
                    if event.get("choices") or "error" in event:  # an event of usage figures has no choice
                        yield self._choice(event)

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self._error(f"answered something that is not a JSON object: {self._said(data)}")
        return value

    def _choice(self, reply: dict[str, Any]) -> dict[str, Any]:
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise self._error(f"answered without a choice. It says: {self._said(json.dumps(reply).encode())}")
        return choices[0]

    def _ids(self, choice: dict[str, Any]) -> list[int]:
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise self._error("gave no token ids; it must know vLLM's return_token_ids")
        if ids and not 0 <= min(ids) <= max(ids) < self.tokenizer.vocab_size:
            raise self._error(f"gave ids outside 0 .. {self.tokenizer.vocab_size - 1}; it serves another tokenizer")
        return ids

    def _reason(self, choice: dict[str, Any], ids: list[int], sampling: Sampling) -> StopReason:
        if choice.get("finish_reason") == "length":
            return "length" if len(ids) >= sampling.max_tokens else "context"
        ended = not sampling.stop or (bool(ids) and ids[-1] in self.tokenizer.stop_ids)
        return "end" if ended else "stop"

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


def _text(choice: dict[str, Any]) -> str:
    text = choice.get("text")
    return text if isinstance(text, str) else ""


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
