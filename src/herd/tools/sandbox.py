"""Runs code that a model wrote, behind walls, and keeps its variables over a conversation.

A Sandbox is one process behind bubblewrap that has imported pandas; a Session is a fork of it with a process table and
an empty file system of its own, one thread, no network, and limits (inside/walls.py). Starting one takes milliseconds.
What a session says is checked as if an enemy had written it (replies.py). On Linux alone; elsewhere, and where
bubblewrap does not work, HerdError says what to do.

What this does not promise: the kernel is shared, so a hole in it is a hole here; timing and the number of processors
can be seen from inside.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from herd.console import HerdError, human_bytes, say, warn
from herd.tools import bubblewrap, table
from herd.tools.replies import Ended, Nonsense, Value, read_result, receive, send
from herd.tools.table import TableFacts

Backend = Literal["bubblewrap", "none-unsafe"]

PROGRAM = ("-m", "herd.tools.inside.zygote")
START_SECONDS = 120.0  # importing pandas on a loaded machine
OPEN_SECONDS = 120.0  # parsing the largest table that is allowed
SMALLEST_MEMORY = 256 << 20
LOST = "the session was started anew: variables of earlier calls are gone"


@dataclass(frozen=True)
class Limits:
    """What a session may use: seconds a call, address space, characters of output kept, bytes of files in /tmp."""

    seconds: float = 10
    memory_bytes: int = 1 << 30
    output_bytes: int = 20_000
    disk_bytes: int = 64 << 20


@dataclass(frozen=True)
class Result:
    """What came of a call: `text` is what a model and a person are shown, `error` one line or None."""

    ok: bool
    text: str
    value: Value | None
    error: str | None
    seconds: float


class Sandbox:
    """Where sessions come from. Use it as a context manager; sessions may be used from several threads, one each."""

    def __init__(self, limits: Limits | None = None, backend: Backend = "bubblewrap") -> None:
        self.limits = limits or Limits()
        if self.limits.memory_bytes < SMALLEST_MEMORY:
            raise HerdError(f"the sandbox's memory: expected at least {human_bytes(SMALLEST_MEMORY)}")
        self._tree: tempfile.TemporaryDirectory[str] | None = None
        if backend == "none-unsafe":
            warn("sandbox = none-unsafe: code that the model writes runs with all your rights on this machine")
            self._tree = tempfile.TemporaryDirectory(prefix="herd-unsafe-")
            self._command = bubblewrap.without_walls(Path(self._tree.name), [*PROGRAM, "no-walls"])
        elif backend == "bubblewrap":
            self._command = bubblewrap.command(bubblewrap.find(), [*PROGRAM, "walls"])
        else:
            raise HerdError(f'[tools] sandbox: "{backend}" is not known; expected "bubblewrap" or "none-unsafe"')
        self._lock = threading.Lock()
        self._first: _First | None = None
        self._sessions: set[Session] = set()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all sessions and the process they come from."""
        for session in list(self._sessions):
            session.close()
        with self._lock:
            if self._first is not None:
                self._first.close()
                self._first = None
        if self._tree is not None:
            self._tree.cleanup()

    def session(self) -> Session:
        """A new session with no variables but pd and np."""
        session = Session(self)
        self._sessions.add(session)
        return session

    def _start(self) -> tuple[socket.socket, _First, int]:
        """A socket to a new session, the process it was forked from and its number there.

        Where that process has died it is started once more, and the person told.
        """
        ours, theirs = socket.socketpair()
        words = {"do": "start", **{k: getattr(self.limits, k) for k in ("memory_bytes", "disk_bytes", "output_bytes")}}
        try:
            with self._lock:
                try:
                    first = self._first or _First(self._command)
                    self._first = first
                    reply = first.ask(words, theirs)
                except Ended:
                    say("the sandbox's first process has ended; it is started again")
                    self._first = first = _First(self._command)
                    reply = first.ask(words, theirs)
        except Ended:
            ours.close()
            raise HerdError(
                "the sandbox: its first process ends again and again; is the machine out of memory?"
            ) from None
        finally:
            theirs.close()
        if "pid" not in reply:
            ours.close()
            raise HerdError(f"the sandbox: a session could not be walled in ({reply.get('error')}); nothing was run")
        return ours, first, int(reply["pid"])

    def _stop(self, first: _First, pid: int) -> int:
        """Kill a session; the signal by which it had ended (9 where it was still alive), 0 where that isn't known."""
        with self._lock:
            try:
                return int(first.ask({"do": "stop", "pid": pid}).get("signal", 0))
            except Ended:
                return 0


class _First:
    """The process behind the walls that forks sessions; speaks JSON lines over a Unix socket on its standard input."""

    def __init__(self, command: list[str]) -> None:
        self._ours, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        # bubblewrap dies with the thread that started it, so that thread stays until the process ends.
        self._keeper = threading.Thread(target=self._keep, args=(command, theirs, started), daemon=True)
        self._keeper.start()
        started.wait()
        theirs.close()
        self._ours.settimeout(START_SECONDS)
        try:
            if self._failure is not None or not self._line().get("ready"):
                raise Ended
        except (Ended, TimeoutError):
            self._errors.seek(0)
            said = self._errors.read(100_000).decode(errors="replace").strip().splitlines()
            reason = str(self._failure) if self._failure else said[-1] if said else "it gave no reason"
            self.close()
            raise HerdError(f"the sandbox: its first process did not start ({reason})") from None

    def _keep(self, command: list[str], theirs: socket.socket, started: threading.Event) -> None:
        try:
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=self._errors
            )
        except OSError as error:
            self._failure = error
        started.set()
        if self._process is not None:
            self._process.wait()

    def ask(self, words: dict[str, Any], passed: socket.socket | None = None) -> dict[str, Any]:
        """The answer to an order. Raises Ended where the process has gone or does not answer."""
        try:
            data = json.dumps(words).encode() + b"\n"
            if passed is None:
                self._ours.sendall(data)
            else:
                socket.send_fds(self._ours, [data], [passed.fileno()])
            return self._line()
        except (OSError, TimeoutError):
            self.close()
            raise Ended from None

    def _line(self) -> dict[str, Any]:
        data = b""
        while not data.endswith(b"\n"):
            part = self._ours.recv(65536)
            if not part:
                raise Ended
            data += part
        return json.loads(data)

    def close(self) -> None:
        """End the process and, with it, every session."""
        self._ours.close()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._keeper.join()
        self._errors.close()


class Session:
    """One conversation's interpreter. A call that breaks a limit ends it; the next call starts it anew and says so."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._limits = sandbox.limits
        self._link: tuple[socket.socket, _First, int] | None = None
        self._tables: dict[str, tuple[Path, TableFacts]] = {}
        self._ran: list[str] = []  # what ran well since the session was started
        self._lost = False
        self._closed = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session and everything that its code started."""
        self._closed = True
        self._drop()
        self._sandbox._sessions.discard(self)

    def run(self, code: str) -> Result:
        """Run `code`. Whatever it does, a Result comes back; HerdError only where no session can be started."""
        started = time.monotonic()
        notes = self._ready()
        seconds = self._limits.seconds
        try:
            reply = self._ask({"do": "run", "code": code.encode(errors="replace").decode()}, seconds)
            text, value, error = read_result(reply, self._limits.output_bytes)
        except _Lost as lost:
            text = error = f"{lost}; its variables are gone"
            value = None
        if error is None:
            self._ran.append(code)
        text = "\n".join([*(f"({note})" for note in notes), *([text] if text else [])])
        return Result(error is None, text, value, error, time.monotonic() - started)

    def twin(self) -> Session:
        """A new session with the same tables and, by running again what ran well here, the same variables.

        What is run there leaves this session as it is.
        """
        twin = self._sandbox.session()
        twin._tables = dict(self._tables)
        for code in self._ran:
            twin.run(code)
        return twin

    def open_table(self, path: Path, name: str = "df") -> TableFacts:
        """Copy a CSV or TSV file into the session and read it there, as the variable `name`.

        Raises HerdError where the file can't be read as a table; the session goes on.
        """
        if not name.isidentifier():
            raise HerdError(f"the name of a table: {name!r} is not a name in Python")
        self._ready()
        facts = self._load(path, name)
        self._tables[name] = (path, facts)
        return facts

    def facts(self, name: str = "df") -> TableFacts:
        """The table `name` as it is now, after what code has done to it. Raises HerdError where it is none."""
        self._ready()
        path, opened = self._tables.get(name, (Path(name), TableFacts(name, 0, (), ())))
        try:
            reply = self._ask({"do": "facts", "name": name}, self._limits.seconds)
            if "error" not in reply:
                return replace(table.read_facts(reply, path.stem), notes=opened.notes)
            problem = str(reply["error"])[:1000]
        except _Lost as lost:
            problem = str(lost)
        except ValueError:
            self._forget()
            problem = "the session gave no answer that can be read"
        raise HerdError(f"{name}: {problem}")

    def _ready(self) -> list[str]:
        """Start the session where it isn't running, with its tables; notes on what that lost."""
        if self._closed:
            raise HerdError("the session is closed")
        if self._link is not None:
            return []
        self._link = self._sandbox._start()
        notes = [LOST] if self._lost else []
        self._lost = False
        for name, (path, _) in self._tables.items():
            try:
                self._load(path, name)
            except HerdError as error:
                notes.append(f"{name} could not be read again: {error}")
        return notes

    def _load(self, path: Path, name: str) -> TableFacts:
        file, size = table.open_file(path)
        with file:
            request = {"do": "open", "name": name, "suffix": path.suffix.lower(), "size": size}
            try:
                reply = self._ask(request, OPEN_SECONDS, (file, size))
                if "error" not in reply:
                    return table.read_facts(reply, path.stem)
                problem = str(reply["error"])[:1000].removeprefix("Unreadable: ")
                if problem.startswith("MemoryError"):
                    most = human_bytes(self._limits.memory_bytes)
                    problem = f"the table needs more memory than a session has, which is {most}"
            except _Lost as lost:
                problem = str(lost)
            except ValueError:
                self._forget()
                problem = "the session gave no answer that can be read"
        raise HerdError(f"{path.name}: {problem}")

    def _ask(self, request: dict[str, Any], seconds: float, data: tuple[BinaryIO, int] | None = None) -> dict[str, Any]:
        """The reply to a request. Raises _Lost, and ends the session, where none comes that can be read."""
        assert self._link is not None
        connection = self._link[0]
        deadline = time.monotonic() + seconds
        try:
            connection.settimeout(seconds)
            send(connection, request)
            if data is not None:
                _copy(*data, connection)
            reply = receive(connection, deadline)
            if request["do"] == "run":
                read_result(reply, self._limits.output_bytes)
            return reply
        except TimeoutError:
            self._forget()
            raise _Lost(f"TimeoutError: stopped after {seconds:g} s") from None
        except Nonsense as nonsense:
            self._forget()
            raise _Lost(f"ProtocolError: the code made the session say {nonsense}, so it was stopped") from None
        except (Ended, OSError):
            raise _Lost(_why(self._forget())) from None

    def _forget(self) -> int:
        """End the process of a session whose state is lost; the signal by which it ended."""
        self._lost = True
        self._ran.clear()
        return self._drop()

    def _drop(self) -> int:
        if self._link is None:
            return 0
        connection, first, pid = self._link
        self._link = None
        connection.close()
        return self._sandbox._stop(first, pid)


class _Lost(Exception):
    """A call that ended its session; the message is one line for a person."""


def _copy(file: BinaryIO, size: int, connection: socket.socket) -> None:
    """Send exactly `size` bytes of a file that may have shrunk since (then zero bytes follow)."""
    left = size
    while left:
        part = file.read(min(left, 1 << 20)) or bytes(min(left, 1 << 20))
        connection.sendall(part)
        left -= len(part)


def _why(signal_number: int) -> str:
    """Why a session's process has gone, as far as its end tells."""
    if signal_number == 9:
        return "MemoryError or time: the system stopped the code"
    if signal_number == 11:
        return "RecursionError: the code overflowed its stack or memory"
    return f"the code ended its process (signal {signal_number})" if signal_number else "the code ended its own process"
