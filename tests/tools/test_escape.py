"""Each attempt to get out of the sandbox is first shown to work without it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pytest

from herd.tools.inside import seccomp
from herd.tools.sandbox import Limits, Sandbox

SECRET = "xyzzy-7341"
PROJECT = Path(__file__).resolve().parents[2]
root = pytest.mark.skipif(os.getuid() != 0, reason="works outside only for root")
x86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of its system calls are those of x86_64")


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


def test_nothing_is_writable_but_tmp(walls: None) -> None:
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
