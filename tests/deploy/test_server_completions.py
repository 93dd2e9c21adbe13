"""`/v1/completions`: token ids, log-probabilities, structured outputs, and our own client of it."""

import json
import re

import pytest

from herd.deploy.assistant import Assistant
from herd.deploy.server import Limits
from herd.infer.remote import RemoteGenerator
from herd.model.generation import Sampling


def test_completions_of_token_ids_with_log_probabilities(running):
    server = running("one two", "three")
    words = server.assistant.tokenizer
    prompts = [words.encode("a", bos=True), words.encode("b", bos=True)]
    body = {"model": "toy", "prompt": prompts, "max_tokens": 50, "logprobs": 1, "return_token_ids": True}
    first, second = server.client().post("/v1/completions", json=body).json()["choices"]
    assert (first["text"], first["finish_reason"], second["text"]) == ("one two", "stop", "three")
    assert words.decode(first["token_ids"][:-1]) == "one two"
    assert first["logprobs"]["token_logprobs"] == [-0.5] * len(first["token_ids"])
    reply = running("four five").openai().completions.create(model="toy", prompt="x", stream=True)
    assert "".join(chunk.choices[0].text for chunk in reply) == "four five"


WRONG_STRUCTURED = {
    "none": ({}, "structured_outputs"),
    "two": ({"regex": "a", "json": {}}, "structured_outputs"),
    "schema": ({"json": {"type": "text"}}, "structured_outputs.json"),
    "no-json": ({"json": "{"}, "structured_outputs.json"),
    "regex": ({"regex": "(?=a)"}, "structured_outputs.regex"),
    "grammar": ({"grammar": "start: nothing"}, "structured_outputs.grammar"),
    "unknown": ({"choice": ["a"]}, "structured_outputs.choice"),
}


def test_structured_outputs_of_each_kind(random_engine, tokenizer, start_server, city):
    schema, is_city = city
    structured = {
        "json": (schema, lambda text: is_city(json.loads(text))),
        "json-text": (json.dumps(schema), lambda text: is_city(json.loads(text))),
        "regex": ("[0-9]{3}/[a-c]", lambda text: re.fullmatch("[0-9]{3}/[a-c]", text)),
        "grammar": ('start: "yes" | "no"', lambda text: text in ("yes", "no")),
    }
    client = start_server(Assistant("toy", random_engine, tokenizer, 900)).client()
    body = {"model": "toy", "prompt": ["a", "b"], "max_tokens": 100, "temperature": 1, "top_p": 1}
    for name, (value, judge) in structured.items():
        asked = body | {"structured_outputs": {name.split("-")[0]: value}}
        choices = client.post("/v1/completions", json=asked).json()["choices"]
        assert len(choices) == 2 and all(judge(choice["text"]) for choice in choices), name
    for value, param in WRONG_STRUCTURED.values():
        reply = client.post("/v1/completions", json=body | {"structured_outputs": value})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == param


def test_our_own_remote_generator_gets_what_the_engine_gives(random_engine, tokenizer, start_server, monkeypatch):
    engine = random_engine
    server = start_server(Assistant("toy", engine, tokenizer, 900), Limits())
    monkeypatch.setenv("HERD_REMOTE_KEY", server.key)
    remote = RemoteGenerator(f"{server.url}/v1", "toy", tokenizer)
    prompts = [tokenizer.encode(text, bos=True) for text in ("units", "def main(")]
    for sampling in (Sampling(0.0, max_tokens=12), Sampling(0.0, max_tokens=12, grammar='start: "yes" | "no"')):
        far, near = remote.generate(prompts, sampling), engine.generate(prompts, sampling)
        assert [(c.ids, c.text, c.stop_reason) for c in far] == [(c.ids, c.text, c.stop_reason) for c in near]
        assert far[0].logprobs == pytest.approx(near[0].logprobs, abs=1e-4)
        assert tuple(remote.stream_tokens(prompts[0], sampling)) == near[0].ids
        assert "".join(remote.stream(prompts[0], sampling)) == near[0].text
