"""Nothing leaves the machine: the whole way from open weights to an answer, without a network and with secrets about.

All runs in a network namespace of its own, which has a loopback and nothing else. What a library would send home is
seen by an audit hook; what it would do in a worker process fails for want of a network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ALONE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
SECRETS = {name: f"xyzzy-{name.lower()}-7341" for name in ("HERD_API_KEY", "OPENAI_API_KEY", "HF_TOKEN")}
HERD = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[0] if event.startswith("socket.get") else arguments[1]
        host = address[0] if isinstance(address, tuple) else address
        if event.startswith("socket.get") or isinstance(address, tuple):
            if host not in ("127.0.0.1", "::1", "localhost"):
                print("OUTBOUND", event, address, file=sys.stderr, flush=True)
sys.addaudithook(watch)
from herd.cli import main
sys.exit(main(sys.argv[1:]))
"""
ALL = """
import fcntl, json, os, socket, struct, subprocess, sys
herd, folder = [sys.executable, "-c", sys.argv[1]], sys.argv[2]
with socket.socket() as one:  # the loopback of a new namespace is down
    fcntl.ioctl(one, 0x8914, struct.pack("16sh", b"lo", 1))
try:
    socket.create_connection(("192.0.2.1", 443), timeout=2)
except OSError as error:
    print("no network:", error)
def run(*words):
    done = subprocess.run([*herd, *words], cwd=folder, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\\n")
    print("status", words[0], done.returncode)
run("run", "round.toml", "--out", "run", "--until", "executed-after-sft")
run("ask", "kept/shops.csv", "How many rows?", "--run", "run", "--json")
with subprocess.Popen([*herd, "serve", "--run", "run", "--port", "0"], cwd=folder, text=True,
                      stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
    try:
        said = [server.stdout.readline() for _ in range(2)]
        print(*said)
        address = next(word for line in said for word in line.split() if word.startswith("http"))
        import openai
        client = openai.OpenAI(base_url=address, api_key=os.environ["HERD_API_KEY"], timeout=60, max_retries=0)
        parts = client.chat.completions.create(model="tiny", stream=True, max_tokens=8,
                                               messages=[{"role": "user", "content": "Hello"}])
        print("streamed", json.dumps("".join(part.choices[0].delta.content or "" for part in parts)))
    finally:
        server.terminate()
        print(*server.communicate(timeout=20), sep="\\n")
"""


@pytest.fixture(scope="module")
def told(walls, write_round, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and all that was printed."""
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here: unshare --net fails")
    folder = tmp_path_factory.mktemp("private")
    write_round(folder)
    environment = {**os.environ, **SECRETS, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*ALONE, sys.executable, "-u", "-c", ALL, HERD, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout + done.stderr


def test_a_model_is_adopted_tuned_asked_and_served_without_a_network(told):
    _, said = told
    assert "no network: " in said  # or the rest would show nothing
    assert "status run 0" in said and "sft-tiny: done" in said
    assert "status ask 0" in said
    answer = next(json.loads(line) for line in said.splitlines() if line.startswith('{"') and '"question"' in line)
    assert answer["question"] == "How many rows?"
    assert "streamed " in said


def test_no_library_tries_to_send_anything(told):
    assert "OUTBOUND" not in told[1]


def test_the_watch_sees_what_would_be_sent():
    code = HERD.replace("from herd.cli import main", "import socket").replace(
        "sys.exit(main(sys.argv[1:]))", "socket.socket().connect_ex(('192.0.2.1', 9))"
    )
    said = subprocess.run([*ALONE, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "unshare" in said.stderr:
        pytest.skip(said.stderr)
    assert "OUTBOUND socket.connect ('192.0.2.1', 9)" in said.stderr


def test_secrets_of_the_environment_reach_neither_output_nor_files(told):
    folder, said = told
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "manifest.json" for path in files) and any(path.name == "evidence.jsonl" for path in files)
    for secret in SECRETS.values():
        assert secret not in said
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
