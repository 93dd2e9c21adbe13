"""Data sets of the hub: with a stand-in for `datasets`, and with the package itself on a local folder where it is."""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from herd.data.documents import RawDocument
from herd.data.hub import read_hugging_face
from herd.data.readers import Skipped, Unavailable
from herd.recipe_data import HuggingFace

ROWS: list[dict[str, Any]] = [
    {"body": "first row", "url": "https://a.org/1", "license": "MIT", "date": "2024-05-06", "image": b"\0"},
    {"body": None, "url": "", "license": "", "date": None, "image": b"\0"},
    {"body": "third row", "url": "", "license": None, "date": None, "image": b"\0"},
]


class Stream:
    """As much of an IterableDataset as is used."""

    def __init__(self, rows: list[dict[str, Any]], columns: list[str] | None, fails_at: int = 99) -> None:
        self.rows, self.column_names, self.fails_at = rows, columns, fails_at
        self.taken = 0

    def select_columns(self, names: list[str]) -> "Stream":
        self.rows = [{name: row[name] for name in names} for row in self.rows]
        assert all("image" not in row for row in self.rows)
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(self.rows):
            if number == self.fails_at:
                raise ConnectionError("the hub\nis gone")
            self.taken += 1
            yield row


def install(monkeypatch: pytest.MonkeyPatch, stream: Stream) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def load_dataset(path: str, **options: Any) -> Stream:
        asked.update(options, path=path)
        return stream

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def source(**more: Any) -> HuggingFace:
    return HuggingFace(kind="hugging-face", name="hub", **{"dataset": "a/b", "column": "body", **more})


def read(wanted: HuggingFace, base: Path) -> tuple[list[RawDocument], Skipped]:
    skipped = Skipped()
    return list(read_hugging_face(wanted, base, skipped)), skipped


def test_rows_are_streamed_with_what_they_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = install(monkeypatch, Stream(ROWS, list(ROWS[0])))
    documents, skipped = read(source(config="en", split="test", revision="abc", licence="CC0-1.0"), tmp_path)
    assert asked == {"path": "a/b", "name": "en", "split": "test", "revision": "abc", "streaming": True}
    today = datetime.now(UTC).date()
    assert [(found.path, found.content, found.url, found.licence) for found in documents] == [
        ("test#1", b"first row", "https://a.org/1", "MIT"),
        ("test#3", b"third row", "", "CC0-1.0"),
    ]
    assert documents[0].retrieved.isoformat() == "2024-05-06" and documents[1].retrieved == today
    assert skipped == {"row without text": 1}


def test_max_bytes_ends_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream([{"body": "x" * 100} for _ in range(50)], None)
    install(monkeypatch, stream)
    documents, skipped = read(source(max_bytes=1_050), tmp_path)
    assert len(documents) == 10 and stream.taken == 11 and skipped == {"beyond max_bytes": 1}


def test_a_missing_package_is_said_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Unavailable, match=r"pip install llm-herd\[hub\]"):
        read(source(), tmp_path)


def test_a_missing_column_and_a_broken_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Stream(ROWS, list(ROWS[0])))
    with pytest.raises(Unavailable, match="a/b has no column 'text', only body, date, image, license, url"):
        read(source(column="text"), tmp_path)
    install(monkeypatch, Stream(ROWS, None, fails_at=2))
    with pytest.raises(Unavailable, match=r"^a/b after row 2: the hub is gone$"):
        read(source(), tmp_path)


def test_the_package_itself_on_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="the extra hub is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    rows = [{"body": f"text {n}", "n": n, "url": f"https://a.org/{n}"} for n in range(100)]
    (tmp_path / "mine" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents, _ = read(source(dataset="mine"), tmp_path)
    assert [(found.path, found.content.decode(), found.url) for found in documents] == [
        (f"train#{n + 1}", f"text {n}", f"https://a.org/{n}") for n in range(100)
    ]
