"""Files as people have them: each is read with notes on what was repaired, or refused in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from herd.console import HerdError
from herd.tools import bubblewrap
from herd.tools.sandbox import Limits, Sandbox, Session
from herd.tools.table import Column, TableFacts, open_file, read_facts


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        bubblewrap.find()
    except HerdError as error:
        pytest.skip(f"no working bubblewrap: {error}")
    with Sandbox(Limits(seconds=20)) as sandbox:
        yield sandbox


@pytest.fixture
def session(sandbox: Sandbox) -> Iterator[Session]:
    with sandbox.session() as session:
        yield session


def opened(session: Session, folder: Path, data: bytes, name: str = "sales.csv") -> TableFacts:
    path = folder / name
    path.write_bytes(data)
    return session.open_table(path)


def rows(session: Session) -> object:
    """The table as lists of rows, as the session's JSON value gives it."""
    value = session.run("df").value
    assert value is not None
    return value["rows"]


def test_facts_of_an_orderly_file(session: Session, tmp_path: Path) -> None:
    data = b"region,units,when,open\nNorth,3,2024-01-05,True\nSouth,4.5,2024-02-01,False\nNorth,,2024-01-09,True\n"
    facts = opened(session, tmp_path, data)
    assert facts.name == "sales" and facts.rows == 3
    assert facts.columns == (
        Column("region", "text", 0, 2, ("North", "South")),
        Column("units", "number", 1, 2, ("3", "4.5")),
        Column("when", "date", 0, 3, ("2024-01-05", "2024-02-01")),
        Column("open", "bool", 0, 2, ("True", "False")),
    )
    assert facts.notes == ("read as dates: when",)


def test_facts_follow_what_code_does(session: Session, tmp_path: Path) -> None:
    opened(session, tmp_path, b"a,b\n1,2\n3,4\n")
    session.run("df['c'] = df.a + df.b")
    assert [column.name for column in session.facts().columns] == ["a", "b", "c"]
    session.run("df = 5")
    with pytest.raises(HerdError, match="df: Unreadable: it is no longer a table but a int"):
        session.facts()
    assert session.run("df + 1").text == "6"


def test_the_table_comes_back_after_code_was_stopped(session: Session, tmp_path: Path) -> None:
    opened(session, tmp_path, b"a\n1\n2\n")
    assert not session.run("import os; os._exit(1)").ok
    after = session.run("df.a.sum()")
    assert after.value == {"kind": "number", "value": 3} and "started anew" in after.text
    (tmp_path / "sales.csv").unlink()
    session.run("import os; os._exit(1)")
    assert "df could not be read again" in session.run("1").text


# name: (bytes, expected rows, part of a note)
REPAIRED: dict[str, tuple[bytes, list[list[object]], str]] = {
    "long-rows": (b"a,b\n1,2\n3,4,5\n6,7\n", [[1, 2], [6, 7]], "1 rows with more cells than the header's 2 left out"),
    "short-rows": (b"a,b\n1,2\n3\n5,6\n", [[1, 2], [3, None], [5, 6]], "1 rows with fewer cells"),
    "long-first-row": (b"a,b\n1,2,3\n4,5\n6,7\n", [[4, 5], [6, 7]], "left out"),
    "more-columns-than-names": (b"a,b\n1,2,3\n4,5,6\n", [[1, 2, 3], [4, 5, 6]], "2 names for 3 columns"),
    "delimiter-at-line-ends": (b"a,b,\n1,2,\n3,4,\n", [[1, 2], [3, 4]], "without name and values left out"),
    "duplicate-names": (b"a,a,a.2\n1,2,3\n", [[1, 2, 3]], "occur twice renamed: a.2, a.2.2"),
    "unnamed-column": (b"a,,c\n1,2,3\n", [[1, 2, 3]], "1 columns without a name called column 2"),
    "no-header": (b"1,2\n3,4\n", [[1, 2], [3, 4]], "first line holds only numbers"),
    "spaces-in-names": (b" a , b\n1,2\n", [[1, 2]], "spaces around column names"),
    "nul-bytes": (b"a,b\n1\0,2\n", [[1, 2]], "1 NUL bytes removed"),
    "cp1252": ("a,b\nZürich,€5\n".encode("cp1252"), [["Zürich", "€5"]], "not UTF-8: read as cp1252"),
    "latin-1": (b"a,b\n\xe9\x81,1\n", [["\xe9\N{REPLACEMENT CHARACTER}", 1]], "read as latin-1"),
    "unclosed-quote": (b'a,b\n"x,1\ny,2\n', [['"x', 1], ["y", 2]], "never closed"),
    "formulas": (b"a,b\n=cmd|' /C calc'!A0,+1+1\n@SUM(A1),-5\n", [["=cmd|' /C calc'!A0", "+1+1"], ["@SUM(A1)", "-5"]],
                 "3 cells look like spreadsheet formulas"),
    "leading-zeros": (b"zip,n\n01234,1\n90210,2\n", [["01234", 1], ["90210", 2]], "leading zeros: zip"),
    "decimal-comma": (b"a;b\n1,5;x\n-2,25;y\n", [[1.5, "x"], [-2.25, "y"]], "decimal commas read as numbers: a"),
    "decimal-comma-thousands": (b"a;b\n1.234,5;x\n7;y\n", [[1234.5, "x"], [7, "y"]], "decimal commas"),
    "currency": (b'a,b\n"$1,200",5%\n$30,6%\n', [["$1,200", "5%"], ["$30", "6%"]], "kept as text: a, b"),
    "ambiguous-dates": (b"d\n01/02/2024\n03/04/2024\n", [["01/02/2024"], ["03/04/2024"]], "can't be told apart"),
    "day-first-dates": (b"d\n01/02/2024\n13/04/2024\n", [["2024-02-01"], ["2024-04-13"]], "read as dates: d"),
    "named-month-dates": (b'd\n"Jan 5, 2024"\n"Feb 29, 2024"\n', [["2024-01-05"], ["2024-02-29"]], "read as dates: d"),
    "no-rows": (b"a,b\n", [], "the table has no rows"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "expected", "note"), [pytest.param(*v, id=k) for k, v in REPAIRED.items()])
def test_repairs_are_noted(
    data: bytes, expected: list[list[object]], note: str, session: Session, tmp_path: Path
) -> None:
    facts = opened(session, tmp_path, data)
    assert any(note in said for said in facts.notes), facts.notes
    assert rows(session) == expected


# name: (bytes, expected rows); nothing of these is worth a note
ORDERLY: dict[str, tuple[bytes, list[list[object]]]] = {
    "utf-8-mark": (b"\xef\xbb\xbfa,b\n\xc3\xa9,1\n", [["é", 1]]),
    "utf-16": ("a,b\nZürich,1\n".encode("utf-16"), [["Zürich", 1]]),
    "semicolons": (b"a;b\n1;x,y\n2;z\n", [[1, "x,y"], [2, "z"]]),
    "tabs": (b"a\tb\n1\tx y\n", [[1, "x y"]]),
    "bars": (b"a|b\n1|x\n", [[1, "x"]]),
    "separator-hint": (b"sep=;\na;b\n1;2\n", [[1, 2]]),
    "one-column": (b"a\nx\ny\n", [["x"], ["y"]]),
    "windows-line-ends": (b"a,b\r\n1,x\r\n", [[1, "x"]]),
    "old-mac-line-ends": (b"a,b\r1,x\r", [[1, "x"]]),
    "no-last-line-end": (b"a,b\n1,x", [[1, "x"]]),
    "blank-lines": (b"\n\na,b\n1,x\n\n  \n2,y\n", [[1, "x"], [2, "y"]]),
    "quoted-delimiter": (b'a,b\n"x,y",1\n"say ""hi""",3\n', [["x,y", 1], ['say "hi"', 3]]),
    "quoted-line-end": (b'a,b\n"two\nlines",2\n', [["two\nlines", 2]]),
    "header-over-two-lines": (b'"first\nname",b\nx,1\n', [["x", 1]]),
}  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), [pytest.param(*v, id=k) for k, v in ORDERLY.items()])
def test_forms_of_csv(data: bytes, expected: list[list[object]], session: Session, tmp_path: Path) -> None:
    opened(session, tmp_path, data)
    assert rows(session) == expected


def test_a_large_regular_file_reads_as_pandas_reads_it(session: Session, tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": range(20_000), "x": [i / 7 for i in range(20_000)], "t": ["a,b", 'c"d'] * 10_000})
    frame.to_csv(tmp_path / "big.csv", index=False)
    facts = session.open_table(tmp_path / "big.csv")
    assert (facts.rows, facts.notes) == (20_000, ())
    assert session.run("df.x.sum(), df.n.sum(), (df.t == 'c\"d').sum()").value == {
        "kind": "list",
        "values": [frame.x.sum(), int(frame.n.sum()), 10_000],
    }


def test_column_names_are_safe_to_show(session: Session, tmp_path: Path) -> None:
    names = ("a\x1b[2J", "b" * 5000, "c\u202ed")
    facts = opened(session, tmp_path, (",".join(names) + "\n1,2,3\n").encode())
    shown = [column.name for column in facts.columns]
    assert shown == ["a [2J", "b" * 200, "c d"]
    assert session.run("list(df.columns)").value == {"kind": "list", "values": shown}


# name: (bytes, part of the error)
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "sales.csv: the file is empty"),
    "blank": (b"\n \n", "sales.csv: the file holds no text"),
    "binary": (bytes(range(256)) + bytes(1000), "sales.csv: it is binary data"),
    "five-thousand-columns": (
        b",".join([b"c%d" % i for i in range(5000)]) + b"\n",
        "it has 5,000 columns; at most 1,000",
    ),
}


@pytest.mark.parametrize(("data", "problem"), [pytest.param(*v, id=k) for k, v in REFUSED.items()])
def test_refused_files_leave_the_session_as_it_was(data: bytes, problem: str, session: Session, tmp_path: Path) -> None:
    opened(session, tmp_path, b"a\n1\n", "good.csv")
    with pytest.raises(HerdError, match=problem):
        opened(session, tmp_path, data)
    assert session.run("df.a.sum()").text == "1"


def test_two_gigabytes_are_refused_by_size(session: Session, tmp_path: Path) -> None:
    with (tmp_path / "huge.csv").open("wb") as file:
        file.truncate(2_000_000_000)
    with pytest.raises(HerdError, match=r"huge.csv: the file has 2.0 GB; at most 200.0 MB are read"):
        session.open_table(tmp_path / "huge.csv")


def test_what_is_no_csv_file_is_refused(session: Session, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv"):
        with pytest.raises(HerdError, match="not a regular file"):
            session.open_table(tmp_path / name)
    with pytest.raises(HerdError, match=r"table.xlsx: this kind of file is not supported; expected .csv, .tsv"):
        session.open_table(tmp_path / "table.xlsx")
    with pytest.raises(HerdError, match="no such file"):
        session.open_table(tmp_path / "nothing.csv")
    with pytest.raises(HerdError, match="not a name in Python"):
        session.open_table(tmp_path / "nothing.csv", "df; import os")


def test_a_table_beyond_the_memory_says_so(tmp_path: Path, sandbox: Sandbox) -> None:
    path = tmp_path / "wide.csv"
    path.write_bytes(b"a,b\n" + b"1,2\n" * 15_000_000)
    with Sandbox(Limits(memory_bytes=256 << 20)) as small, small.session() as session:
        with pytest.raises(HerdError, match="needs more memory than a session has, which is 268"):
            session.open_table(path)
        assert session.run("1 + 1").value == {"kind": "number", "value": 2}


def test_a_file_that_shrinks_while_it_is_read_does_not_hang(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sales.csv"
    path.write_bytes(b"a\n1\n")
    monkeypatch.setattr("herd.tools.sandbox.table.open_file", lambda path: (open_file(path)[0], 100))
    facts = session.open_table(path)
    assert facts.rows == 1 and any("NUL" in note for note in facts.notes)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param([], id="list"),
        pytest.param({"rows": -1, "columns": []}, id="negative-rows"),
        pytest.param({"rows": True, "columns": []}, id="rows-no-number"),
        pytest.param({"rows": 1, "columns": [{"name": "a", "kind": "evil", "examples": []}]}, id="unknown-kind"),
        pytest.param({"rows": 1, "columns": [{"name": 5, "kind": "text", "examples": []}]}, id="name-no-text"),
        pytest.param({"rows": 1, "columns": [], "notes": [5]}, id="note-no-text"),
    ],
)
def test_facts_from_a_hostile_session_are_refused(reply: object) -> None:
    with pytest.raises(ValueError):
        read_facts(reply, "sales")
