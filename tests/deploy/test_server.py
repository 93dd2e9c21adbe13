"""The server as its clients meet it: OpenAI's own client, a queue, keys, limits, and people who go away."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import threading
import time
from typing import Any

import httpx
import openai
import pytest

from herd.console import HerdError
from herd.deploy.assistant import Assistant
from herd.deploy.server import Limits
from herd.infer.grammar import Grammars
from herd.tools.sandbox import Sandbox

SALES = "region,units\nNorth,5\nSouth,7\nNorth,1\n"
PYTHON: Any = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Run Python; the table is df.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}},
    },
}
HELLO: dict[str, Any] = {"model": "toy", "messages": [{"role": "user", "content": "hello"}]}


def upload(client, text=SALES, name="sales.csv"):
    reply = client.post("/tables", params={"name": name}, content=text if isinstance(text, bytes) else text.encode())
    assert reply.status_code == 201, reply.text
    return reply.json()


def events_of(reply):
    return [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]


def ask(client, table, question):
    with client.stream("POST", "/ask", json={"table": table, "question": question}) as reply:
        assert reply.status_code == 200
        return events_of(reply)


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_the_openai_client_streams_a_conversation_with_a_tool(running):
    server = running('> df["units"].sum()', 'It is 13, "thirteen".')
    client = server.openai()
    messages: list[Any] = [
        {"role": "system", "content": "A table is in df."},
        {"role": "user", "content": "How many units?"},
    ]
    name = arguments = call_id = finish = ""
    for chunk in client.chat.completions.create(model="toy", messages=messages, tools=[PYTHON], stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            name += call.function.name or ""
            arguments += call.function.arguments or ""
            call_id = call.id or call_id
        finish = chunk.choices[0].finish_reason or finish
    assert (name, json.loads(arguments), finish) == ("python", {"code": 'df["units"].sum()'}, "tool_calls")
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": "13"},
    ]
    pieces, finish, usage = [], None, None
    stream = client.chat.completions.create(
        model="toy", messages=messages, tools=[PYTHON], stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces += [choice.delta.content] if choice.delta.content else []
            finish = choice.finish_reason or finish
    assert "".join(pieces) == 'It is 13, "thirteen".' and len(pieces) > 3 and finish == "stop"
    assert usage is not None and usage.completion_tokens > 3 and usage.prompt_tokens > 20
    assert 'df["units"].sum()' in server.assistant.generator.prompts[-1]


def test_a_whole_reply_carries_the_call(running):
    client = running("> 1 + 1").openai()
    choice = client.chat.completions.create(**HELLO, tools=[PYTHON]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls] == [
        ("python", {"code": "1 + 1"})
    ]


def test_without_a_tool_no_call_can_be_opened_and_a_required_one_must_be(running):
    server = running("Hello.", "Hello.", "> 1")
    client, seen = server.openai(), server.assistant.generator.samplings
    assert client.chat.completions.create(**HELLO).choices[0].message.content == "Hello."
    client.chat.completions.create(**HELLO, tools=[PYTHON])
    client.chat.completions.create(**HELLO, tools=[PYTHON], tool_choice="required")
    tag = f"<[{server.assistant.tokenizer.call_id}]>"
    assert tag not in seen[0].grammar and f"({tag} TEXT)?" in seen[1].grammar and f"start: {tag}" in seen[2].grammar


def test_a_function_of_another_name_is_described_and_its_call_understood(running):
    call = '{"name": "weather", "parameters": {"city": "Oslo"}}'
    server = running(call, call, call)
    weather = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    client = server.openai()
    choice = client.chat.completions.create(**HELLO, tools=[weather]).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls[0].function.name == "weather"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    assert "weather" in server.assistant.generator.prompts[0].split("user")[0]
    chunks = list(client.chat.completions.create(**HELLO, tools=[weather], stream=True))
    assert [c.choices[0].delta.tool_calls[0].function.name for c in chunks if c.choices[0].delta.tool_calls] == [
        "weather"
    ]
    unasked = client.chat.completions.create(**HELLO).choices[0]
    assert (unasked.message.content, unasked.message.tool_calls, unasked.finish_reason) == (call, None, "stop")


def test_a_table_lets_the_server_run_the_code(running):
    server = running("> df['units'].sum()", "It is 13.", "> df['units'].max()", "It is 7.")
    table = upload(server.client())["id"]
    told, words = [], ""
    stream = server.openai().chat.completions.create(**HELLO, stream=True, extra_body={"table": table})
    for chunk in stream:
        delta = chunk.choices[0].delta
        words += delta.content or ""
        told += [delta.model_extra["herd"]] if delta.model_extra and "herd" in delta.model_extra else []
    assert words == "It is 13."
    assert [event["type"] for event in told] == ["code", "output", "done"]
    assert told[1]["value"] == {"kind": "number", "value": 13}
    whole = server.openai().chat.completions.create(**HELLO, extra_body={"table": table})
    assert whole.choices[0].message.content == "It is 7."
    assert whole.choices[0].message.model_extra["herd"][0] == {"type": "code", "text": "df['units'].max()"}


def test_the_pages_conversation_remembers(running):
    server = running("> df['units'].sum()", "It is 13.", "As I said.")
    client = server.client()
    table = upload(client)
    assert table["facts"]["rows"] == 3 and [c["name"] for c in table["facts"]["columns"]] == ["region", "units"]
    kinds = [event["type"] for event in ask(client, table["id"], "How many?")]
    assert kinds[:2] == ["code", "output"] and set(kinds[2:-1]) == {"text"} and kinds[-1] == "done"
    ask(client, table["id"], "Sure?")
    assert "It is 13." in server.assistant.generator.prompts[-1]
    assert client.delete(f"/tables/{table['id']}").json()["deleted"]
    reply = client.post("/ask", json={"table": table["id"], "question": "And now?"})
    assert reply.status_code == 404 and reply.json()["error"]["code"] == "table_not_open"


@pytest.mark.parametrize(
    "key", ["wrong", "", "the-key-of-the-test", "ключ"], ids=["wrong", "none", "shorter", "cyrillic"]
)
def test_a_wrong_key_opens_nothing(running, key):
    server = running()
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    for method, path in [("GET", "/v1/models"), ("POST", "/ask"), ("GET", "/metrics"), ("POST", "/tables")]:
        reply = httpx.request(method, server.url + path, headers=headers)
        assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(server.url + "/health").json() == {"status": "ok"}
    with pytest.raises(openai.AuthenticationError):
        server.openai("wrong").models.list()


def test_the_key_is_never_told(running, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        server = running("Hello.")
        replies = [
            server.client().get(path) for path in ("/metrics", "/v1/models", "/tables", "/nowhere", "/", "/health")
        ]
        replies += [server.client().post(path, json={"model": server.key}) for path in ("/ask", "/v1/completions")]
        replies += [
            server.client().post("/v1/chat/completions", json=HELLO),
            server.client(server.key + "x").get("/tables"),
        ]
    said = caplog.text + "".join(capfd.readouterr()) + "".join(r.text + str(r.headers) for r in replies)
    assert server.key not in said


def test_a_full_queue_says_when_to_come_back_and_recovers(running):
    server = running("...", "...", "Hello.", limits=Limits(waiting=1))
    model = server.assistant.generator
    model.held = True
    with server.client() as one, server.client() as two, server.client() as three:
        first = one.stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True, "max_tokens": 900})
        first.__enter__()
        assert model.opened.wait(5)
        second = threading.Thread(target=lambda: two.post("/v1/chat/completions", json={**HELLO, "max_tokens": 3}))
        second.start()
        assert until(lambda: server.server.worker.jobs == 2)
        refused = three.post("/v1/chat/completions", json=HELLO)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        assert "herd_requests_deferred 1" in three.get("/metrics").text
        first.__exit__(None, None, None)
        second.join()
        assert three.post("/v1/chat/completions", json=HELLO).json()["choices"][0]["message"]["content"] == "Hello."


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_who_goes_away_cancels(running, stream):
    server = running("...", "Hello.")
    model = server.assistant.generator
    model.held = True
    leaving = httpx.Client(base_url=server.url, headers=server.client().headers)
    body = {**HELLO, "stream": stream, "max_tokens": 900}
    if stream:
        reply = leaving.send(leaving.build_request("POST", "/v1/chat/completions", json=body), stream=True)
        next(reply.iter_lines())
        assert model.opened.wait(5)
        reply.close()
    else:
        with pytest.raises(httpx.ReadTimeout):
            leaving.post("/v1/chat/completions", json=body, timeout=0.5)
        leaving.close()
    assert model.closed.wait(5) and model.given < 500
    model.held = False
    assert until(lambda: server.server.worker.jobs == 0)
    assert (
        server.client().post("/v1/chat/completions", json=HELLO).json()["choices"][0]["message"]["content"] == "Hello."
    )


def test_who_leaves_the_queue_gives_up_the_place(running):
    server = running("...", "Hello.", limits=Limits(waiting=1))
    model = server.assistant.generator
    model.held = True
    with server.client() as one, server.client() as two:
        with one.stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True, "max_tokens": 900}):
            assert model.opened.wait(5)
            with pytest.raises(httpx.ReadTimeout):
                two.post("/v1/chat/completions", json=HELLO, timeout=0.3)
            two.close()
            assert until(lambda: server.server.worker.jobs == 1)
        assert until(lambda: server.server.worker.jobs == 0)
    assert len(model.prompts) == 1


def function(name, parameters=None, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters or {"type": "object"}, **more}}


BAD_REQUESTS = {
    "no-model": ({"messages": HELLO["messages"]}, 400, "model"),
    "other-model": ({**HELLO, "model": "gpt"}, 404, "model"),
    "no-messages": ({"model": "toy", "messages": []}, 400, "messages"),
    "too-many-messages": ({"model": "toy", "messages": HELLO["messages"] * 300}, 400, "messages"),
    "wrong-role": ({"model": "toy", "messages": [{"role": "boss", "content": "x"}]}, 400, "messages"),
    "temperature": ({**HELLO, "temperature": -1}, 400, "temperature"),
    "several-choices": ({**HELLO, "n": 2}, 400, "n"),
    "penalty": ({**HELLO, "presence_penalty": 1}, 400, "presence_penalty"),
    "other-format": ({**HELLO, "response_format": {"type": "xml"}}, 400, "response_format.type"),
    "no-schema": ({**HELLO, "response_format": {"type": "json_schema"}}, 400, "response_format.json_schema"),
    "bad-schema": (
        {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "text"}}}},
        400,
        "response_format.json_schema.schema",
    ),
    "strict-and-impossible": ({**HELLO, "tools": [function("f", {"not": {}}, strict=True)]}, 400, "tools"),
    "required-of-another": (
        {**HELLO, "tools": [function("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        400,
        "tool_choice",
    ),
    "max-tokens": ({**HELLO, "max_tokens": 10**9}, 400, "max_tokens"),
    "too-long": ({"model": "toy", "messages": [{"role": "user", "content": "why " * 3000}]}, 400, "messages"),
    "empty-stop": ({**HELLO, "stop": ""}, 400, "stop"),
    "required-without-tool": ({**HELLO, "tool_choice": "required"}, 400, "tool_choice"),
    "unknown-table": ({**HELLO, "table": "table-x"}, 404, "table"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_names_the_field(running, name):
    body, status, param = BAD_REQUESTS[name]
    reply = running("Hello.").client().post("/v1/chat/completions", json=body)
    assert reply.status_code == status and reply.json()["error"]["param"] == param
    assert reply.json()["error"]["message"] and reply.json()["error"]["type"]


def test_what_is_not_json_or_too_large_is_refused(running):
    server = running("Hello.", limits=Limits(request_bytes=2000, table_bytes=3000))
    client = server.client()
    assert client.post("/v1/chat/completions", content=b"{").status_code == 400
    assert client.post("/v1/chat/completions", content=b"\xff\xfe").json()["error"]["type"] == "invalid_request_error"
    for path, size in (("/v1/chat/completions", 2001), ("/tables", 3001)):
        assert client.post(path, content=b"x" * size).status_code == 413
        unsaid = client.post(path, content=(b"x" * 1000 for _ in range(5)))  # chunked: no length is claimed
        assert unsaid.status_code == 413 and unsaid.json()["error"]["code"] == "too_large"
    with socket.create_connection(server.socket.getsockname()) as line:  # 2 GB announced, nothing sent
        line.sendall(f"POST /tables HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.key}\r\n".encode())
        line.sendall(b"Content-Length: 2147483648\r\n\r\n")
        assert b" 413 " in line.recv(4096).split(b"\r\n")[0]
    assert client.get("/nowhere").json()["error"]["type"] == "not_found_error"
    assert client.get("/ask").status_code == 405
    assert client.post("/v1/chat/completions", json=HELLO).status_code == 200


def test_another_host_name_is_refused(running):
    server = running()
    assert httpx.get(server.url + "/", headers={"host": "evil.example"}).status_code == 421
    assert httpx.get(server.url + "/", headers={"host": "localhost:8000"}).status_code == 200


def test_the_page_may_load_nothing_and_sets_no_cookie(running):
    reply = httpx.get(running().url)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert "set-cookie" not in reply.headers and reply.headers["x-content-type-options"] == "nosniff"


def test_a_failed_turn_reaches_the_client_and_the_next_works(running):
    server = running("> x...", "Hello.")
    table = upload(server.client())["id"]
    with pytest.raises(openai.APIError, match="did not end"):
        list(server.openai().chat.completions.create(**HELLO, stream=True, max_tokens=30, extra_body={"table": table}))
    assert server.openai().chat.completions.create(**HELLO).choices[0].message.content == "Hello."


def test_the_guard_speaks_for_the_model(running):
    server = running("Sure.", guard=lambda text: "I won't." if "bomb" in text else None)
    bad = {"model": "toy", "messages": [{"role": "user", "content": "a bomb"}]}
    choice = server.openai().chat.completions.create(**bad).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("I won't.", "content_filter")
    assert server.client().post("/v1/completions", json={"model": "toy", "prompt": "a bomb"}).status_code == 400
    assert server.assistant.generator.prompts == []


def test_only_so_many_tables_stay_open(running):
    server = running(limits=Limits(tables=2))
    client = server.client()
    first, second, third = (upload(client)["id"] for _ in range(3))
    assert client.delete(f"/tables/{first}").status_code == 404
    assert client.delete(f"/tables/{second}").status_code == client.delete(f"/tables/{third}").status_code == 200


MALFORMED = {  # name: bytes, what the note or the error says, rows that are kept (None: refused)
    "ragged": (b"a,b\n1,2\n3\n4,5,6\n7,8\n", "rows with more cells", 3),
    "latin-1": ("Ort,n\nK\u00f6ln,1\nM\u00fcnchen,2\n".encode("latin-1"), "not UTF-8", 2),
    "duplicate-names": (b"n,n,m\n1,2,3\n", "occur twice", 1),
    "formulas": (b"who,n\n=cmd|' /C calc'!A0,1\n@SUM(A1),2\n", "never run", 2),
    "zero-bytes": (b"", "empty", None),
    "binary": (bytes(range(256)) * 40, "binary", None),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_noted_or_refused_and_the_conversation_goes_on(running, name):
    data, words, rows = MALFORMED[name]
    server = running("> df.shape[0]", "So many.")
    client = server.client()
    table = upload(client)["id"]
    reply = client.post("/tables", params={"name": f"../{name}.csv"}, content=data)
    if rows is None:
        error = reply.json()["error"]
        assert reply.status_code == 400 and error["param"] == "file"
        assert words in error["message"] and f"{name}.csv" in error["message"] and "\n" not in error["message"]
    else:
        facts = reply.json()["facts"]
        assert reply.status_code == 201 and facts["rows"] == rows and any(words in note for note in facts["notes"])
        table = reply.json()["id"]
    events = ask(client, table, "How many rows?")
    assert events[1]["value"]["value"] == (rows or 3) and events[-1]["reason"] == "answered"


def test_a_tiny_random_model_behind_a_real_engine_and_a_real_sandbox(random_engine, tokenizer, start_server):
    """What is said is nonsense; that every grammar is taken, and every turn ends in the protocol, is not."""
    assistant = Assistant("toy", random_engine, tokenizer, 900)
    with contextlib.ExitStack() as stack:
        try:
            sandbox = stack.enter_context(Sandbox())
        except HerdError as error:
            pytest.skip(str(error))
        server = start_server(assistant, Limits(), sandbox)
        client, ours = server.openai(), server.client()
        free: dict[str, Any] = {**HELLO, "temperature": 1, "max_tokens": 30, "seed": 3}
        for choice in ("none", "auto", "required"):
            reply = client.chat.completions.create(**free, tools=[PYTHON], tool_choice=choice).choices[0]
            assert (reply.message.tool_calls is None) or choice != "none"
            chunks = list(client.chat.completions.create(**free, tools=[PYTHON], tool_choice=choice, stream=True))
            called = any(chunk.choices[0].delta.tool_calls for chunk in chunks)
            assert chunks[-1].choices[0].finish_reason and (called or choice != "required")
        table = upload(ours)
        assert table["facts"]["rows"] == 3
        assert ask(ours, table["id"], "units?")[-1]["type"] == "done"


def test_an_untrained_model_answers_in_json_and_calls_by_the_schema(random_engine, tokenizer, start_server, city):
    schema_of_city, is_city = city
    client = start_server(Assistant("toy", random_engine, tokenizer, 900)).openai()
    free: dict[str, Any] = {**HELLO, "temperature": 1, "max_tokens": 200}
    schema: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema_of_city}}
    for seed in range(3):
        choice = client.chat.completions.create(**free, seed=seed, response_format=schema).choices[0]
        assert choice.finish_reason == "stop" and is_city(json.loads(choice.message.content))
        chunks = client.chat.completions.create(**free, seed=seed, response_format=schema, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
        tools = [
            function("weather", schema_of_city),
            function("time", schema_of_city),
            function("odd", {"not": {}}),
            PYTHON,
        ]
        named = {"type": "function", "function": {"name": "weather"}}
        choice = client.chat.completions.create(**free, seed=seed, tools=tools, tool_choice=named).choices[0]
        (call,) = choice.message.tool_calls
        assert call.function.name == "weather" and is_city(json.loads(call.function.arguments))
        choice = client.chat.completions.create(**free, seed=seed, tools=tools[:2], tool_choice="required").choices[0]
        assert is_city(json.loads(choice.message.tool_calls[0].function.arguments))


def test_what_an_answer_may_be_is_in_its_grammar(running, city):
    schema_of_city, _ = city
    server = running("{}", "{}", "Hi.", '{"name": "weather", "parameters": {"city": "Oslo", "days": 1}}')
    client, seen = server.openai(), server.assistant.generator.samplings
    client.chat.completions.create(**HELLO, response_format={"type": "json_object"})
    client.chat.completions.create(**HELLO, response_format={"type": "json_object"}, tools=[PYTHON])
    client.chat.completions.create(**HELLO, tools=[function("weather", schema_of_city)])
    tag = f"<[{server.assistant.tokenizer.call_id}]> TEXT"
    assert seen[0].grammar.startswith("start: %json {") and tag not in seen[0].grammar
    assert re.match(rf"start: %json .* \| {re.escape(tag)}\n", seen[1].grammar)
    words = Grammars(server.assistant.tokenizer)
    for text, taken in (
        ("Hi {", True),
        ('{"name"', True),
        ('{"name": 1', False),
        ('{"name": "weather", "parameters": {"city": "Oslo", "days": 1}}', True),
        ('{"type": "function", "name": "weather", "parameters": {"city": "Oslo", "days": 0', False),
        ('{"a": "JSON of another kind"}', True),
    ):
        progress = words.begin(seen[2].grammar)
        with contextlib.nullcontext() if taken else pytest.raises(HerdError):
            for token in server.assistant.tokenizer.encode(text):
                progress.take(token)
