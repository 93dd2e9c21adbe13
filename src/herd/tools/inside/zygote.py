"""The first process inside the sandbox: imports pandas once and forks a process for each session.

It reads orders of the host from its standard input, a Unix socket, one JSON line each, and answers each with a line:
`start` comes with a socket on which the host talks to the new session; `stop` ends one. It never reads what a session
says. It ends when the host's end of the socket closes.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from typing import Any

from herd.tools.inside import session, walls

SESSION_SOCKET = 3
UNSAFE_FOLDERS: dict[int, str] = {}  # process -> its folder, where there are no walls


def main() -> None:
    """Serve orders until the host goes away."""
    walled = sys.argv[1] == "walls"
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    if walled:
        walls.adopt_orphans()
    warm_up()
    gc.collect()
    gc.freeze()
    answer(control, {"ready": True})
    while (order := receive(control)) is not None:
        words, descriptors = order
        if words["do"] == "start":
            answer(control, start(control, descriptors[0], words, walled))
        else:
            answer(control, stop(words["pid"], walled))
    os._exit(0)


def warm_up() -> None:
    """Import pandas and use what sessions use first, so that forks find it loaded."""
    import pandas as pd

    table = pd.read_csv(io.StringIO("a,b,c\n1,x,2024-01-01\n2,y,2024-01-02\n"))
    table["c"] = pd.to_datetime(table["c"], format="%Y-%m-%d")
    table.groupby("b").agg({"a": "mean"}).sort_values("a").to_string()
    table.describe()


def receive(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next order and the descriptors that came with it, or None at the end."""
    data, descriptors, _, _ = socket.recv_fds(control, 65536, 1)
    while data and not data.endswith(b"\n"):
        more = control.recv(65536)
        data = data + more if more else b""
    return (json.loads(data), descriptors) if data else None


def answer(control: socket.socket, words: dict[str, Any]) -> None:
    """One line to the host."""
    control.sendall(json.dumps(words).encode() + b"\n")


def start(control: socket.socket, descriptor: int, words: dict[str, Any], walled: bool) -> dict[str, Any]:
    """Fork a session that talks on `descriptor`: {"pid": ...}, or {"error": ...} where a wall could not be built."""
    told, telling = os.pipe()
    folder = "" if walled else tempfile.mkdtemp(prefix="herd-unsafe-")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            control.close()
            os.close(told)
            begin(descriptor, telling, words, walled, folder)
        os._exit(1)
    os.close(telling)
    os.close(descriptor)
    with os.fdopen(told, "rb") as pipe:
        said = pipe.read(4096)
    if walled or not said.startswith(b"{"):
        os.waitpid(child, 0)  # in between the session and this process, and done
    if folder:
        UNSAFE_FOLDERS[child] = folder
    return json.loads(said) if said.startswith(b"{") else {"error": said.decode(errors="replace") or "it ended at once"}


def begin(descriptor: int, telling: int, words: dict[str, Any], walled: bool, folder: str) -> None:
    """In the fork: build the walls, tell the number of the process (or what failed), and become the session."""
    try:
        if walled:
            walls.own_namespaces(words["disk_bytes"])
            grandchild = os.fork()
            if grandchild:
                os.write(telling, json.dumps({"pid": grandchild}).encode())
                os._exit(0)
        else:
            os.setsid()
            os.write(telling, json.dumps({"pid": os.getpid()}).encode())
            os.chdir(folder)
        os.dup2(descriptor, SESSION_SOCKET)
        os.dup2(0, 2)
        os.closerange(SESSION_SOCKET + 1, 1024)
        if walled:
            os.chdir("/tmp")
        walls.limit(words["memory_bytes"], words["disk_bytes"])
        if walled:
            walls.limit_the_rest()
            walls.drop_rights()
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(telling, str(error).encode())
        os._exit(1)
    gc.unfreeze()
    session.serve(SESSION_SOCKET, words["output_bytes"])


def stop(pid: int, walled: bool) -> dict[str, Any]:
    """Kill a session and all that it started, and say how it ended: {"signal": number or 0, "status": number}."""
    with contextlib.suppress(ProcessLookupError):
        if walled:
            os.kill(pid, signal.SIGKILL)  # process 1 of its table: the kernel kills the rest with it
        else:
            os.killpg(pid, signal.SIGKILL)
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return {"signal": 0, "status": 0}
    if pid in UNSAFE_FOLDERS:
        shutil.rmtree(UNSAFE_FOLDERS.pop(pid), ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    return {"signal": max(0, -code), "status": max(0, code)}


if __name__ == "__main__":
    main()
