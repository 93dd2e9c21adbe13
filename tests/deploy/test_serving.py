"""The server as a process: signals, a port that is taken, keys for other hosts."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from herd.console import HerdError
from herd.deploy.server import KEY_VARIABLE, find_key, serve
from herd.tools.sandbox import Sandbox

HELLO = {"model": "toy", "messages": [{"role": "user", "content": "hello"}], "stream": True}
SERVE = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("fakes", sys.argv[1])
fakes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fakes)
from herd.deploy.assistant import Assistant
from herd.deploy.server import serve
from herd.model.tokenizer import train_tokenizer
tokenizer = train_tokenizer([pathlib.Path(fakes.__file__).read_text() * 3], 400)
model = fakes.Scripted(tokenizer, "word " * 40)
model.held = True
serve(Assistant("toy", model, tokenizer, 2000), fakes.InProcess(), "127.0.0.1", 0)
"""


def test_sigterm_lets_the_running_answer_end(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop(KEY_VARIABLE, None)
    command = [sys.executable, "-c", SERVE, str(Path(__file__).with_name("conftest.py"))]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        url, key = process.stdout.readline().strip().split("#key=")
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.post(url + "tables", headers=headers, content=b"region,units\nNorth,5\n").status_code == 201
        assert list(tmp_path.glob("herd-table-*"))
        with httpx.stream("POST", url + "v1/chat/completions", headers=headers, json=HELLO) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        words = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert words == "word " * 40 and chunks[-1]["choices"][0]["finish_reason"] == "stop"
        said = process.stderr.read()
        process.wait(10)
    assert list(tmp_path.glob("herd-*")) == [] and "Traceback" not in said and key not in said
    with pytest.raises(httpx.ConnectError):
        httpx.get(url + "health")


def test_a_port_that_is_taken_is_one_clear_line(scripted):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(HerdError, match="in use"):
        serve(scripted(), Sandbox.__new__(Sandbox), "127.0.0.1", taken.getsockname()[1])


def test_other_hosts_need_a_key_of_ones_own(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    key, fresh = find_key("127.0.0.1")
    assert fresh and len(key) >= 32 and key != find_key("127.0.0.1")[0]
    with pytest.raises(HerdError, match=KEY_VARIABLE):
        find_key("0.0.0.0")
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(HerdError, match="at least 12"):
        find_key("127.0.0.1")
    monkeypatch.setenv(KEY_VARIABLE, "long enough a key".replace(" ", "-"))
    assert find_key("0.0.0.0") == ("long-enough-a-key", False)
