"""One protocol, here and over a network: a few lines around an engine, our server, llama.cpp's, and ones that fail."""

import importlib
import importlib.util
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import zip_longest
from math import isnan
from typing import Any

import pytest

from herd.console import HerdError
from herd.deploy.assistant import Assistant
from herd.infer.engine import Engine
from herd.infer.remote import Line, RemoteGenerator
from herd.model.formats.gguf import read_gguf
from herd.model.formats.gguf_write import write_gguf
from herd.model.formats.native import build
from herd.model.generation import Sampling

GREEDY = Sampling(temperature=0.0, max_tokens=12)
KEY = "sk-secret-and-long-0123456789"


@contextmanager
def serving(answer):
    """A server on this machine; `answer(handler, payload)` writes each reply. Yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/completions"
            answer(self, payload)

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def reply(handler, status, body, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


def completions_of(engine):
    """OpenAI's /completions with vLLM's fields, by an engine."""
    lock = threading.Lock()

    def answer(handler, payload):
        grammar = payload.get("structured_outputs", {}).get("grammar")
        sampling = Sampling(
            payload["temperature"],
            payload["top_p"],
            payload.get("top_k", 0),
            payload["max_tokens"],
            payload["seed"],
            tuple(payload.get("stop", ())),
            grammar,
            payload.get("min_p", 0.0),
            payload.get("repetition_penalty", 1.0),
            stop_ids=tuple(payload["stop_token_ids"]),
        )
        with lock:
            try:
                done = engine.generate([payload["prompt"]], sampling)[0]
                pieces = list(engine.stream(payload["prompt"], sampling))
            except HerdError as error:
                reply(handler, 400, {"error": {"message": str(error), "type": "invalid_request_error"}})
                return
        finish = "stop" if done.stop_reason in ("end", "stop") else "length"
        whole = {"index": 0, "text": done.text, "finish_reason": finish, "token_ids": done.ids}
        whole["logprobs"] = {"token_logprobs": done.logprobs}
        if not payload.get("stream"):
            reply(handler, 200, {"object": "text_completion", "choices": [whole]})
            return
        chunks = [
            {"index": 0, "text": piece or "", "token_ids": [] if token is None else [token], "finish_reason": None}
            for token, piece in zip_longest(done.ids, pieces)
        ]
        events = [{"choices": [chunk]} for chunk in chunks] + [{"choices": [], "usage": {"total_tokens": 3}}]
        lines = [": a comment\n\n", *(f"data: {json.dumps(event)}\n\n" for event in events), "data: [DONE]\n\n"]
        reply(handler, 200, "".join(lines).encode(), Content_Type="text/event-stream")

    return answer


@dataclass(frozen=True)
class Side:
    """An engine and the same model behind a server. Servers differ in words; `near`: how far log-probabilities may."""

    engine: Engine
    remote: RemoteGenerator
    too_long: str
    unknown_id: str
    near: float = 1e-4
    context: int = 64
    all_logprobs: bool = True  # llama.cpp tells none for the tokens that a stop string takes back
    tells_prompts: bool = False  # the log-probabilities of their tokens
    batch_rounds: bool = False  # llama.cpp: what runs beside a request changes its logits enough to change a draw


@contextmanager
def fake(request):
    """A few lines around the engine that know vLLM's fields."""
    engine = request.getfixturevalue("engine")
    with serving(completions_of(engine)) as address:
        remote = RemoteGenerator(address, "tiny", engine.tokenizer)
        yield Side(engine, remote, "65 tokens, the model's context is 64", r"outside 0 \.\. 399")


@contextmanager
def ours(request):
    engine = request.getfixturevalue("engine")
    assistant = Assistant("tiny", engine, engine.tokenizer, engine.model.config.context)
    with request.getfixturevalue("running_server")(assistant, None) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HERD_REMOTE_KEY", server.key)
        remote = RemoteGenerator(f"{server.url}/v1", "tiny", engine.tokenizer)
        yield Side(engine, remote, "context of 64 has to hold the answer too", "ids from 0 to 399", tells_prompts=True)


@contextmanager
def llama_cpp(request):
    """llama.cpp's server with SmolLM2 in F16, 64 tokens a slot as the tiny model has."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("llama.cpp is not here: install the extra peers")
    xllamacpp: Any = importlib.import_module("xllamacpp")
    model = read_gguf(request.getfixturevalue("adopted_file"))
    path = request.getfixturevalue("tmp_path_factory").mktemp("gguf") / "F16.gguf"
    write_gguf(path, model.config, model.state, model.tokenizer, "F16", "smollm2", "apache-2.0")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_parallel, settings.n_ctx, settings.n_batch = str(path), 4, 4 * 256, 256
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cpuparams.n_threads, settings.warmup, settings.verbosity, settings.port = 1, False, -1, 0
    server = xllamacpp.Server(settings)
    written = read_gguf(path)
    engine = Engine(build(written.config, written.state), written.tokenizer)
    remote = RemoteGenerator(f"{server.listening_address}/v1", "smollm2", written.tokenizer)
    yield Side(
        engine, remote, "exceeds the available context size .256", "invalid tokens", 0.05, 256, False, False, True
    )


SIDES = {"fake": fake, "ours": ours, "llama.cpp": llama_cpp}


@pytest.fixture(scope="module", params=["fake", "ours", pytest.param("llama.cpp", marks=pytest.mark.slow)])
def side(request):
    with SIDES[request.param](request) as found:
        yield found


@pytest.fixture(params=["here", "there"])
def generator(request, side):
    return side.engine if request.param == "here" else side.remote


@pytest.fixture(scope="module")
def prompts(side):
    texts = ("def main(", "import", "def main(", "x")
    return [side.engine.tokenizer.encode(text, bos=True) for text in texts]


def test_the_same_greedy_completions_here_and_there(side, prompts):
    samplings = [GREEDY, Sampling(0.0, max_tokens=5), Sampling(0.0, stop=("e",), max_tokens=40), GREEDY]
    here, there = side.engine.generate(prompts, samplings), side.remote.generate(prompts, samplings)
    assert [(c.ids, c.text, c.stop_reason) for c in there] == [(c.ids, c.text, c.stop_reason) for c in here]
    for a, b in zip(here, there, strict=True):
        told = [(x, y) for x, y in zip(a.logprobs, b.logprobs, strict=True) if side.all_logprobs or not isnan(y)]
        assert len(told) >= len(a.logprobs) - 2 * (a.stop_reason == "stop")
        assert all(x == pytest.approx(y, abs=side.near) for x, y in told)


def test_log_probabilities_of_prompts_are_told_or_that_they_are_not(side, prompts):
    asked = [Sampling(0.0, max_tokens=length, prompt_logprobs=True) for length in (0, 3, 0, 1)]
    here = side.engine.generate(prompts, asked)
    if not side.tells_prompts:
        with pytest.raises(HerdError, match=r"log-probabilit"):
            side.remote.generate(prompts, asked)
        return
    there = side.remote.generate(prompts, asked)
    assert [(c.ids, c.text, c.stop_reason) for c in there] == [(c.ids, c.text, c.stop_reason) for c in here]
    for a, b in zip(here, there, strict=True):
        assert a.prompt_logprobs == pytest.approx(b.prompt_logprobs, abs=side.near)


def test_further_stop_tokens_end_it_here_and_there(side, prompts):
    token = side.engine.generate([prompts[0]], GREEDY)[0].ids[5]
    asked = Sampling(0.0, max_tokens=12, stop_ids=(token,))
    here, there = side.engine.generate([prompts[0]], asked)[0], side.remote.generate([prompts[0]], asked)[0]
    assert here.ids[-1] == token and (there.ids, there.text, there.stop_reason) == (here.ids, here.text, "end")


def test_streams_agree_with_generate(generator, prompts):
    for sampling in (GREEDY, Sampling(1.0, 1.0, max_tokens=20, seed=4), Sampling(0.0, max_tokens=40, stop=("e",))):
        whole = generator.generate([prompts[0]], sampling)[0]
        assert "".join(generator.stream(prompts[0], sampling)) == whole.text
        assert tuple(generator.stream_tokens(prompts[0], sampling)) == whole.ids


def test_characters_of_several_tokens(generator, prompts):
    """llama.cpp's streams leave out the ids of their first tokens; the text and the ids are whole all the same."""
    sampling = Sampling(0.0, max_tokens=40, grammar='start: "a👩‍👩‍👧 你好 b"')
    whole = generator.generate([prompts[1]], sampling)[0]
    assert (whole.text, whole.stop_reason) == ("a👩‍👩‍👧 你好 b", "end") and len(whole.logprobs) == len(whole.ids) > 15
    assert "".join(generator.stream(prompts[1], sampling)) == whole.text
    assert tuple(generator.stream_tokens(prompts[1], sampling)) == whole.ids


def test_equal_prompts_are_drawn_apart_and_the_seed_decides(side, generator, prompts):
    sampling = Sampling(1.0, 1.0, max_tokens=20)
    first, second = generator.generate(prompts, sampling), generator.generate(prompts, sampling)
    assert first[0].ids != first[2].ids
    if side.batch_rounds and generator is side.remote:
        first, second = generator.generate(prompts[:1], sampling), generator.generate(prompts[:1], sampling)
    assert [c.ids for c in first] == [c.ids for c in second]


def test_a_grammar_binds(generator, prompts):
    bound = Sampling(1.0, 1.0, max_tokens=20, grammar="start: /[0-9]{3}/")
    assert all(c.text.isdigit() and len(c.text) == 3 for c in generator.generate(prompts, bound))
    assert len("".join(generator.stream(prompts[0], bound))) == 3


def test_how_tokens_are_drawn_is_the_same_everywhere(generator, prompts):
    """top_k 1, a min_p of 1 and a tiny top_p leave the best token; so does a repetition that is forbidden."""
    best = generator.generate(prompts, GREEDY)
    for narrow in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}):
        found = generator.generate(prompts, Sampling(**{"temperature": 1.5, "top_p": 1.0, "max_tokens": 12, **narrow}))
        assert [c.ids for c in found] == [c.ids for c in best]
    for prompt, one in zip(prompts, generator.generate(prompts, replace(GREEDY, repetition=100.0)), strict=True):
        assert not {*prompt} & {*one.ids} and len(set(one.ids)) == len(one.ids)


def test_both_name_a_prompt_that_is_wrong(side, generator, prompts):
    with pytest.raises(HerdError, match="prompt 1 is empty"):
        generator.generate([prompts[0], []], GREEDY)
    with pytest.raises(HerdError, match="2 prompts and 1 samplings"):
        generator.generate(prompts[:2], [GREEDY])
    with pytest.raises(HerdError, match=r"prompt 0: grammar: .*missing"):
        generator.generate([prompts[0]], replace(GREEDY, grammar="start: missing"))
    if generator is side.remote:  # an engine's own words are in test_engine.py
        for wrong, words in (([5] * (side.context + 1), side.too_long), ([10**6], side.unknown_id)):
            with pytest.raises(HerdError, match=f"prompt 1: remote: http.* refused the request .400.*{words}"):
                generator.generate([prompts[0], wrong], GREEDY)
            with pytest.raises(HerdError, match=f"refused the request .400.*{words}"):
                generator.stream(wrong, GREEDY)


def test_a_full_context_ends_a_completion(side):
    (one,) = side.remote.generate([[5] * (side.context - 3)], Sampling(0.0, max_tokens=20))
    assert one.stop_reason in ("context", "end") and len(one.ids) <= 3 and len(one.ids) > 0


def test_a_stream_can_be_left(generator, prompts):
    tokens = generator.stream_tokens(prompts[0], GREEDY)
    first = next(iter(tokens))
    tokens.close()
    assert first == generator.generate([prompts[0]], GREEDY)[0].ids[0]


def say(status, body, **headers):
    return lambda handler, payload: reply(handler, status, body, **headers)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (say(401, {"error": {"message": f"bad key {KEY}"}}), r"refused the key \(401\).*OTHER_KEY.*bad key \*\*\*"),
        (say(404, {"error": {"message": "no model"}}), r"no model 'tiny' \(404\)"),
        (say(307, b"", Location="http://127.0.0.1:9/v1"), r"points elsewhere \(307\)"),
        (say(400, {"detail": "too long"}), r"refused the request \(400\).*too long"),
        (say(500, b"x" * 5000), r"refused the request \(500\). It says: x{300} \.\.\.$"),
        (say(200, b"<html>login</html>"), "not a JSON object: <html>login</html>"),
        (say(200, {"choices": []}), "without a choice"),
        (say(200, {"choices": [{"text": "a"}]}), "no token ids"),
        (say(200, {"choices": [{"text": "a", "token_ids": [4000]}]}), r"ids outside 0 \.\. 399"),
        (say(200, {"choices": [{"text": "a", "token_ids": [5]}]}), "no log-probability"),
        (say(200, b"{}", Content_Length="50"), "broke off its answer"),
    ],
    ids=["key", "model", "redirect", "request", "error", "html", "empty", "ids", "vocabulary", "logprobs", "cut"],
)
def test_a_server_that_fails_is_named_without_the_key(answer, expected, tokenizer, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", KEY)
    with (
        serving(answer) as address,
        pytest.raises(HerdError, match=rf"prompt 0: remote: {address} .*{expected}") as caught,
    ):
        RemoteGenerator(address, "tiny", tokenizer, "OTHER_KEY").generate([[5]], GREEDY)
    assert KEY not in str(caught.value) and caught.value.__cause__ is None


def test_the_key_is_sent_and_read_anew(tokenizer, monkeypatch):
    seen = []

    def answer(handler, payload):
        seen.append(handler.headers["Authorization"])
        reply(handler, 200, {"choices": [{"text": "", "token_ids": [5], "logprobs": {"token_logprobs": [-1]}}]})

    with serving(answer) as address:
        generator = RemoteGenerator(address, "tiny", tokenizer)
        monkeypatch.delenv("HERD_REMOTE_KEY", raising=False)
        generator.generate([[5]], GREEDY)
        monkeypatch.setenv("HERD_REMOTE_KEY", KEY + "\n")
        generator.generate([[5]], GREEDY)
        monkeypatch.setenv("HERD_REMOTE_KEY", "two\nlines")
        with pytest.raises(HerdError, match="HERD_REMOTE_KEY") as caught:
            generator.generate([[5]], GREEDY)
    assert seen == [None, f"Bearer {KEY}"] and "two" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(status, engine, tokenizer, monkeypatch):
    prompts = [tokenizer.encode("def main(", bos=True)]
    waits, ready = [], completions_of(engine)
    monkeypatch.setattr(Line, "pause", lambda line, seconds: waits.append(seconds))
    asked = []

    def answer(handler, payload):
        asked.append(payload)
        if len(asked) < 4:
            reply(handler, status, b"", **({"Retry_After": "7"} if len(asked) == 2 else {}))
        else:
            ready(handler, payload)

    with serving(answer) as address:
        completion = RemoteGenerator(address, "tiny", engine.tokenizer).generate([prompts[0]], GREEDY)[0]
    assert completion.ids == engine.generate([prompts[0]], GREEDY)[0].ids
    assert waits == [0.5, 7.0, 2.0]


def test_a_server_that_stays_busy_is_an_error(tokenizer, monkeypatch):
    monkeypatch.setattr(Line, "pause", lambda line, seconds: None)
    with serving(say(429, b"")) as address, pytest.raises(HerdError, match=r"was busy \(429\) 5 times"):
        RemoteGenerator(address, "tiny", tokenizer).generate([[5]], GREEDY)


def test_no_route(tokenizer):
    with serving(say(200, b"")) as address:
        pass
    with pytest.raises(HerdError, match=rf"remote: {address} does not answer \(.*refused"):
        RemoteGenerator(address, "tiny", tokenizer).generate([[5]], GREEDY)


def test_a_server_that_is_silent(tokenizer):
    done = threading.Event()
    with serving(lambda handler, payload: done.wait(5)) as address:
        with pytest.raises(HerdError, match=r"does not answer \(timed out"):
            RemoteGenerator(address, "tiny", tokenizer, timeout=0.2).generate([[5]], GREEDY)
        done.set()


def test_a_stream_that_breaks_off_is_an_error(tokenizer):
    event = b'data: {"choices": [{"text": "abc"}]}\n\n'
    with serving(say(200, event)) as address:
        pieces = RemoteGenerator(address, "tiny", tokenizer).stream([5], GREEDY)
        assert next(pieces) == "abc"
        with pytest.raises(HerdError, match="broke off"):
            next(pieces)


def test_a_server_that_ignores_the_grammar_is_found_out(tokenizer):
    ids = tokenizer.encode("no")
    choice = {"text": "no", "token_ids": ids, "logprobs": {"token_logprobs": [-1.0] * len(ids)}}
    with serving(say(200, {"choices": [choice]})) as address, pytest.raises(HerdError, match="ignored the grammar"):
        RemoteGenerator(address, "tiny", tokenizer).generate([[5]], Sampling(grammar='start: "yes"'))
    with serving(say(422, {"detail": "extra field"})) as address, pytest.raises(HerdError, match="structured_outputs"):
        RemoteGenerator(address, "tiny", tokenizer).generate([[5]], Sampling(grammar='start: "yes"'))


def test_stopping_closes_the_connections_under_way(tokenizer):
    waiting, over, stop = threading.Semaphore(0), threading.Event(), threading.Event()

    def answer(handler, payload):
        waiting.release()
        over.wait(20)  # it is still thinking

    with serving(answer) as address:
        generator, found, began = RemoteGenerator(address, "tiny", tokenizer), [], time.monotonic()
        call = threading.Thread(target=lambda: found.extend(generator.generate([[5]] * 20, GREEDY, stop)))
        call.start()
        assert all(waiting.acquire(timeout=10) for _ in range(16))
        stop.set()
        call.join(10)
        assert [(c.ids, c.stop_reason) for c in found] == [((), "cancelled")] * 20
        late = generator.generate([[5]], replace(GREEDY, seconds=0.1))
        assert late[0].stop_reason == "deadline" and time.monotonic() - began < 15
        over.set()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://me:word@host/v1", "http://host/v1?k=1", ""])
def test_addresses_that_are_not_plain_are_refused(url, tokenizer):
    with pytest.raises(HerdError, match="the address must look like") as caught:
        RemoteGenerator(url, "tiny", tokenizer)
    assert "word" not in str(caught.value).replace("password", "")
