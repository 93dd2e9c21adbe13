"""Folders, local and in an object store: which files are read, as what, in which units."""

import gzip
import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
import uuid
from datetime import date, datetime
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.data import files
from herd.data.documents import RawDocument
from herd.data.files import listing
from herd.data.readers import Skipped, Unavailable, read_folder, read_unit, units
from herd.recipe_data import Folder

PROSE = topics["assert"]


def source(path: str = "texts", **more: Any) -> Folder:
    return Folder(kind="folder", name="mine", path=path, **more)


def read(base: Path, path: str = "texts") -> tuple[dict[str, RawDocument], dict[str, int]]:
    skipped = Skipped()
    documents = list(read_folder(source(path), base, skipped))
    assert len({document.path for document in documents}) == len(documents)
    return {document.path: document for document in documents}, {why: n for why, n in skipped.items() if n}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    root.mkdir()
    return root


@pytest.fixture
def memory() -> tuple[str, Any]:
    """Address and file system of an empty folder of fsspec's in-memory store."""
    store = fsspec.filesystem("memory")
    address = f"memory://{uuid.uuid4().hex}"
    store.mkdir(address)
    return address, store


def test_source_trees_of_many_languages(texts: Path) -> None:
    """Code by its ending or its name; binaries, objects and archives are left out."""
    code = inspect.getsource(json.decoder)
    for name in ("a.c", "B.CPP", "x.rs", "m.go", "s.sh", "q.sql", "n.jl", "t.tsx", "p.pl", "Makefile", "v.v"):
        (texts / name).write_text(code)
    (texts / "py.py").write_text(code)
    (texts / "paper.tex").write_text("\\section{One}\n")
    (texts / "README").write_text(PROSE)
    (texts / "a.o").write_bytes(b"\x7fELF")
    (texts / "video.ts").write_bytes(b"G\0\0\x10" * 47)
    documents, skipped = read(texts.parent)
    kinds = {path: (document.kind, document.media) for path, document in documents.items()}
    assert kinds.pop("py.py") == ("code", "python")
    assert kinds.pop("paper.tex") == kinds.pop("README") == ("docs", "text")
    assert len(kinds) == 11 and set(kinds.values()) == {("code", "text")}
    assert skipped == {"other kind of file": 1, "not text": 1}


def test_notebooks_without_their_outputs(texts: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Some *prose*."]},
        {"cell_type": "code", "source": "def f(x):\n    return x\n", "outputs": [{"text": "SECRET OUTPUT" * 1000}]},
        {"cell_type": "raw", "source": "raw"},
        {"cell_type": "code", "source": 7},
        "no cell",
    ]
    (texts / "a.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    (texts / "b.ipynb").write_text("[" * 100_000)
    (texts / "c.ipynb").write_text('{"cells": 3}')
    documents, skipped = read(texts.parent)
    assert documents["a.ipynb"].content == b"# Title\nSome *prose*.\n\ndef f(x):\n    return x\n"
    assert skipped == {"not a notebook": 2}


def test_compressed_files_are_read_through(texts: Path) -> None:
    (texts / "a.txt.gz").write_bytes(gzip.compress(PROSE.encode()))
    (texts / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    rows = b"".join(b'{"text": "row %d"}\n' % n for n in range(1_000))
    (texts / "r.jsonl.gz").write_bytes(gzip.compress(rows[:3_000]) + gzip.compress(rows[3_000:]))
    zst = pa.compress(rows, codec="zstd", asbytes=True)
    (texts / "r.jsonl.zst").write_bytes(zst)
    (texts / "cut.jsonl.gz").write_bytes(gzip.compress(rows)[:-200])
    (texts / "cut.txt.gz").write_bytes(gzip.compress(rows)[:-200])
    documents, skipped = read(texts.parent)
    assert documents["a.txt.gz"].content == PROSE.encode()
    assert documents["t.csv.gz"].content == b"t\na,b\n1,2\n"
    for name in ("r.jsonl.gz", "r.jsonl.zst"):
        assert [documents[f"{name}#{n + 1}"].content for n in range(1_000)] == [b"row %d" % n for n in range(1_000)]
    assert any(path.startswith("cut.jsonl.gz#") for path in documents)  # the rows before the damage
    assert skipped == {"unreadable": 2}


def test_bombs_are_counted_and_not_unpacked(texts: Path) -> None:
    zeros = gzip.compress(bytes(100_000_000))
    (texts / "a.txt.gz").write_bytes(zeros)
    (texts / "b.jsonl.gz").write_bytes(gzip.compress(b" " * 100_000_000))
    (texts / "c.jsonl").write_text('{"text": ' + "[" * 200_000 + "\n" + '{"text": "good"}\n')
    (texts / "d.jsonl").write_text('{"text": "' + "x" * 45_000_000 + '"}\n{"text": "after"}\n')
    documents, skipped = read(texts.parent)
    assert {path: document.content for path, document in documents.items()} == {
        "c.jsonl#2": b"good",
        "d.jsonl#2": b"after",
    }
    assert skipped == {
        files.LARGER: 1,
        "decompression bomb": 1,
        "malformed line": 1,
        "row too large or not text": 2,
    }


def test_rows_carry_address_licence_and_day(texts: Path) -> None:
    day = datetime(2024, 3, 4, 23, 59)
    table = {
        "text": ["one", "two"],
        "url": ["https://a.org/1", "not an address"],
        "licence": ["MIT", None],
        "date": [day, None],
        "id": [1, 2],
    }
    pq.write_table(pa.table(table), texts / "a.parquet")
    row = {"text": "three", "url": "https://a.org/3", "license": "CC0-1.0", "retrieved": "2023-01-02T03:04:05Z"}
    odd = {"text": "four", "url": "x" * 9_000, "license": 7, "date": "yesterday"}
    (texts / "b.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(odd)}\n")
    changed = date(2001, 9, 9)
    for path in texts.iterdir():
        os.utime(path, (1e9, 1e9))
    documents, _ = read(texts.parent)
    facts = {path: (found.url, found.licence, found.retrieved) for path, found in documents.items()}
    assert facts == {
        "a.parquet#1": ("https://a.org/1", "MIT", date(2024, 3, 4)),
        "a.parquet#2": ("", "unstated", changed),
        "b.jsonl#1": ("https://a.org/3", "CC0-1.0", date(2023, 1, 2)),
        "b.jsonl#2": ("", "unstated", changed),
    }


def test_days_that_are_none_do_not_cost_their_rows(texts: Path) -> None:
    times = (pa.array([2**62, 0], pa.timestamp("us")), pa.array([0, 1], pa.timestamp("ns", "Mars/Phobos")))
    for number, days in enumerate((*times, pa.array([2**31 - 1, 0], pa.date32()), pa.array(["x", "1970-01-01"]))):
        pq.write_table(pa.table({"text": ["one", "two"], "date": days}), texts / f"{number}.parquet")
    documents, skipped = read(texts.parent)
    assert len(documents) == 8 and not skipped
    assert {documents[f"{number}.parquet#2"].retrieved for number in (0, 2, 3)} == {date(1970, 1, 1)}


def test_web_archives_among_other_files(texts: Path) -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>A page</p>"
    head = (
        "WARC/1.0\r\nWARC-Type: {}\r\nWARC-Target-URI: http://a.org/\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n"
    )
    response = head.format("response", "application/http", len(page)).encode() + page + b"\r\n\r\n"
    text = head.format("conversion", "text/plain", 4).encode() + b"text\r\n\r\n"
    (texts / "crawl.warc").write_bytes(response)
    (texts / "crawl.warc.gz").write_bytes(gzip.compress(response))
    (texts / "crawl.warc.wet.gz").write_bytes(gzip.compress(text))
    (texts / "crawl.warc.zst").write_bytes(pa.compress(response, codec="zstd", asbytes=True))
    documents, skipped = read(texts.parent)
    assert {path: (found.media, found.url) for path, found in documents.items()} == {
        "crawl.warc#0": ("html", "http://a.org/"),
        "crawl.warc.gz#0": ("html", "http://a.org/"),
        "crawl.warc.wet.gz#0": ("text", "http://a.org/"),
    }
    assert skipped == {"other kind of file": 1}


def test_parquet_with_invalid_utf8_loses_no_other_row(texts: Path) -> None:
    strings = pa.array([b"good", b"caf\xe9", b"zero \0", b"last"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": strings}), texts / "a.parquet")
    pq.write_table(pa.table({"content": strings.cast(pa.binary()).dictionary_encode()}), texts / "b.parquet")
    pq.write_table(pa.table({"text": [[1], [2]]}), texts / "c.parquet")
    documents, skipped = read(texts.parent)
    assert [documents[f"{name}.parquet#{n}"].content for name in "ab" for n in (1, 2, 4)] == [
        b"good",
        b"caf\xe9",
        b"last",
    ] * 2
    assert skipped == {"row too large or not text": 2, "row without text": 2}


def test_of_damaged_parquet_every_row_is_read_or_the_file_is_counted(texts: Path) -> None:
    pq.write_table(pa.table({"text": [f"row {n} {PROSE}" for n in range(200)]}), texts / "a.parquet")
    whole = (texts / "a.parquet").read_bytes()
    chance = np.random.default_rng(3)
    outcomes = set()
    for _ in range(60):
        data = bytearray(whole)
        data[chance.integers(len(data))] ^= 1 << chance.integers(8)
        (texts / "a.parquet").write_bytes(data)
        documents, skipped = read(texts.parent)
        assert "unreadable" in skipped or len(documents) + sum(skipped.values()) == 200
        assert set(documents) <= {f"a.parquet#{n}" for n in range(1, 201)}
        outcomes.add("unreadable" in skipped)
    assert outcomes == {True, False}  # without checksums, a changed letter is read as it stands


def write_corpus(root: Path) -> None:
    for n in range(40):
        folder = root / f"d{n % 3}"
        folder.mkdir(exist_ok=True)
        (folder / f"{n:02d}.txt").write_text(f"document {n} " * (n + 1))
    (root / "d1" / "rows.jsonl").write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(500)))
    (root / "photo.jpg").write_bytes(b"\xff\xd8")


def test_units_cover_a_folder_once_whatever_their_size(texts: Path) -> None:
    write_corpus(texts)
    whole, counted = read(texts.parent)
    for unit_bytes in (1, 1_000, 5_000, 10**9):
        skipped = Skipped()
        found = units(source(), texts.parent, unit_bytes, skipped)
        for unit in found:
            assert len(unit.files) == 1 or sum(size for _, size in unit.files) <= unit_bytes
        documents = []
        for unit in reversed(found):  # as workers may: in any order, each by itself
            same = pickle.loads(pickle.dumps(unit))
            documents += read_unit(source(), texts.parent, same, skipped)
        assert {document.path: document for document in documents} == whole
        assert {why: n for why, n in skipped.items() if n} == counted == {"other kind of file": 1}
    assert [path for unit in units(source(), texts.parent, 99, Skipped()) for path, _ in unit.files] == sorted(
        path.partition("#")[0] for path in whole if "#" not in path or path.endswith("#1")
    )


def test_units_depend_on_names_and_sizes_only(tmp_path: Path, texts: Path) -> None:
    write_corpus(texts)
    before = units(source(), tmp_path, 2_000, Skipped())
    shutil.move(texts, tmp_path / "moved")
    for path in sorted((tmp_path / "moved").rglob("*.txt"), reverse=True):
        copy = path.read_bytes()
        path.unlink()
        path.write_bytes(copy)
    assert units(source("moved"), tmp_path, 2_000, Skipped()) == before


def test_a_file_that_is_gone_costs_its_documents_only(texts: Path) -> None:
    write_corpus(texts)
    [unit] = units(source(), texts.parent, 10**9, Skipped())
    (texts / "d0" / "00.txt").unlink()
    skipped = Skipped()
    assert len(list(read_unit(source(), texts.parent, unit, skipped))) == 539
    assert skipped["unreadable"] == 1


def test_an_object_store_reads_as_the_same_local_folder(texts: Path, memory: tuple[str, Any]) -> None:
    """Same documents, units and counts; hidden files and runs of herd are left out there too."""
    address, store = memory
    write_corpus(texts)
    (texts / ".hidden").mkdir()
    (texts / ".hidden" / "x.txt").write_text("hidden")
    (texts / "runs").mkdir()
    for name in ("current.json", "evidence.jsonl", "report.html"):
        (texts / "runs" / name).write_text("{}")
    pq.write_table(pa.table({"text": ["a row"]}), texts / "p.parquet")
    (texts / "z.txt.gz").write_bytes(gzip.compress(b"compressed"))
    store.put(f"{texts}/", f"{address}/", recursive=True)
    local, counted = read(texts.parent)
    remote, remote_counted = read(texts.parent, address)
    assert {path: found.content for path, found in remote.items()} == {
        path: found.content for path, found in local.items()
    }
    assert counted == remote_counted == {"other kind of file": 1, "a run of herd": 1}
    assert units(source(address), texts, 2_000, Skipped()) == units(source(), texts.parent, 2_000, Skipped())
    assert read(texts, f"file://{texts}")[0] == local


def test_a_single_file_is_a_source_too(texts: Path, memory: tuple[str, Any]) -> None:
    (texts / "a.jsonl").write_text('{"text": "one"}\n')
    (texts / "b.jsonl").write_text('{"text": "two"}\n')
    assert set(read(texts.parent, "texts/a.jsonl")[0]) == {"a.jsonl#1"}
    memory[1].put(str(texts / "b.jsonl"), f"{memory[0]}/sub/b.jsonl")
    assert set(read(texts, f"{memory[0]}/sub/b.jsonl")[0]) == {"b.jsonl#1"}


def test_what_is_missing_is_said(tmp_path: Path, memory: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match=r"no folder .*nowhere"):
        read(tmp_path, "nowhere")
    with pytest.raises(Unavailable, match=f"no folder {memory[0]}/nowhere"):
        read(tmp_path, f"{memory[0]}/nowhere")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(Unavailable, match="s3://bucket/x needs the package s3fs: pip install s3fs"):
        read(tmp_path, "s3://bucket/x")
    with pytest.raises(Unavailable, match="can't reach nonsense://x: "):
        read(tmp_path, "nonsense://x")


def test_listing_changes_with_the_files(texts: Path, memory: tuple[str, Any]) -> None:
    write_corpus(texts)
    memory[1].put(f"{texts}/", f"{memory[0]}/", recursive=True)
    for path, write in (
        (str(texts), lambda name, data: (texts / name).write_bytes(data)),
        (memory[0], lambda name, data: memory[1].pipe(f"{memory[0]}/{name}", data)),
    ):
        before = listing(path)
        assert before == listing(path) and before["files"] == 42
        write("d0/00.txt", b"changed")
        changed = listing(path)
        write("new.txt", b"new")
        assert len({facts["listing"] for facts in (before, changed, listing(path))}) == 3
    assert listing("nowhere", texts) == {"missing": True}


def test_a_store_that_fails_is_counted_file_by_file(memory: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients raise errors of their own; one that opening a file gives costs that file."""
    address, store = memory
    for n in range(3):
        store.pipe(f"{address}/{n}.txt", b"text %d" % n)

    class Refused(Exception):
        pass

    opened = type(store).open

    def refuse(self: Any, path: str, *more: Any, **options: Any) -> Any:
        if path.endswith("1.txt"):
            raise Refused("503\nslow down")
        return opened(self, path, *more, **options)

    monkeypatch.setattr(type(store), "open", refuse)
    documents, skipped = read(Path(), address)
    assert set(documents) == {"0.txt", "2.txt"} and skipped == {"unreadable": 1}


def test_zst_written_by_the_command_line_tool(texts: Path) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not on this machine")
    for part in ("one", "two"):
        (texts / part).write_text(f'{{"text": "{part}"}}\n')
        subprocess.run(["zstd", "-q", "--rm", texts / part], check=True)
    (texts / "r.jsonl.zst").write_bytes((texts / "one.zst").read_bytes() + (texts / "two.zst").read_bytes())
    assert [document.content for document in read(texts.parent)[0].values()] == [b"one", b"two"]
