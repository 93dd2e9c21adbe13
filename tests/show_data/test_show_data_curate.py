"""From a folder of one's own to documents, a tokenizer and shards."""

from __future__ import annotations

import ast
import json
import os
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow.parquet as pq
import pytest

from herd.artifact import open_artifact, read_current
from herd.cli import main
from herd.data.shards import load_shards
from herd.recipe import Data
from herd.show_data_books import find, open_books
from herd.show_data_curate import source_table, vocabulary_size


def _folder(path: Path) -> Path:
    """Real text, as a person's folder has it: manual pages of Python, some modules, and what can't be used."""
    path.mkdir(parents=True)
    for name in sorted(topics)[:24]:
        (path / f"{name}.rst").write_text(topics[name])
    for source in (ast, textwrap):
        (path / Path(str(source.__file__)).name).write_text(Path(str(source.__file__)).read_text())
    (path / "copy of ast.py").write_text(Path(str(ast.__file__)).read_text())
    (path / "note.txt").write_text("too short")
    (path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    return path


def _is_copy(run: Path, path: str) -> bool:
    (fate,), _ = find(open_books(run), path)
    return bool(fate.kept)


def _state(path: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_size, p.stat().st_mtime_ns) for p in path.rglob("*")}


def test_a_folder_becomes_documents_tokenizer_and_shards(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    folder = _folder(tmp_path / "My Docs")
    before = _state(folder)
    assert main(["data", "curate", "My Docs", "--licence", "PSF-2.0"]) == 0
    printed = capsys.readouterr().out
    run = Path("runs") / "my-docs"
    assert _state(folder) == before
    current = read_current(run)
    assert list(current) == ["curate", "shards", "sources", "tokenizer"]
    shards = load_shards(run / current["shards"])
    assert shards.train_tokens > 10_000 and len(shards.heldout.ids) >= 2
    table = pq.read_table(run / current["curate"] / "documents.parquet").to_pylist()
    assert {row["licence"] for row in table} == {"PSF-2.0"} and len(table) >= 20
    assert current["shards"] in printed and "[[data.source]]" in printed and "1 other kind of file" in printed
    assert f"path = {json.dumps(str(folder))}" in printed and f"herd data inspect --run {run}" in printed

    assert main(["data", "curate", "My Docs", "--licence", "PSF-2.0"]) == 0  # nothing is made twice
    assert read_current(run) == current
    assert capsys.readouterr().err.count("was done already") == 4

    assert main(["data", "inspect"]) == 0  # the newest run that has curated documents
    assert "equal texts dropped" in capsys.readouterr().out
    assert main(["data", "why", "note.txt"]) == 0
    assert "dropped: too short: 10 bytes < 200" in " ".join(capsys.readouterr().out.split())
    assert main(["data", "why", "copy of ast.py" if _is_copy(run, "copy of ast.py") else "ast.py"]) == 0
    assert "dropped: the same text as" in " ".join(capsys.readouterr().out.split())
    assert main(["data", "inspect", "--step", "exact"]) == 0
    assert "kept in its place" in capsys.readouterr().out


def test_the_snippet_is_a_source_of_a_recipe(tmp_path: Path) -> None:
    folder = tmp_path / 'a "quoted" name'
    table = tomllib.loads(source_table("docs", folder, "CC BY 4.0"))["data"]
    (source,) = Data.model_validate(table).source
    assert source.kind == "folder" and source.path == str(folder) and source.licence == "CC BY 4.0"


def test_a_handful_of_documents_is_enough_and_some_are_held_out(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    library = Path(os.__file__).parent
    for name in ("bisect", "heapq", "queue", "shelve", "statistics"):
        (folder / f"{name}.py").write_text((library / f"{name}.py").read_text())
    assert main(["data", "curate", str(folder), "--out", str(tmp_path / "run")]) == 0
    current = read_current(tmp_path / "run")
    documents = pq.read_table(tmp_path / "run" / current["curate"] / "documents.parquet", columns=["split"])
    splits = documents["split"].to_pylist()
    assert splits.count("heldout") >= 2 and splits.count("train") >= 1
    assert open_artifact(tmp_path / "run" / current["tokenizer"]).manifest["asked"]["settings"]


def test_too_little_text_is_an_error_that_says_what_there_was(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "a.md").write_text("A line or two of text that is much too short.\n" * 8)
    (tmp_path / "small" / "b.jpg").write_bytes(b"\xff\xd8")
    assert main(["data", "curate", "small"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "1 document with 368 B were read" in said and "1 other kind of file" in said
    assert "--min-bytes asks for 20.0 kB" in said and "data.min_bytes" not in said

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "b.jpg").write_bytes(b"\xff\xd8")
    assert main(["data", "curate", "photos"]) == 1
    assert "it holds 1 file (1 .jpg); expected text, Markdown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["docs", "--out", "docs/run"], "which is only read"),
        (["."], "which is only read"),
        (["docs", "--vocab", "3"], "--vocab 3"),
        (["docs", "--workers", "0"], "--workers 0"),
        (["docs", "--min-bytes", "-1"], "--min-bytes -1"),
        (["docs", "--languages", ","], "--languages"),
        (["docs", "--out", "taken"], "another run is here"),
    ],
)
def test_wishes_that_cannot_be_met_are_said_before_anything_is_made(
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    build_run: Callable[..., Path],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    build_run(tmp_path / "taken")
    before = sorted(tmp_path.rglob("*"))
    assert main(["data", "curate", *words]) == 1
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_vocabulary_grows_with_the_text_within_bounds() -> None:
    sizes = [vocabulary_size(count) for count in (0, 20_000, 1_100_000, 5_000_000, 8_200_000, 10**9, 10**15)]
    assert sizes == [512, 512, 512, 2_048, 4_096, 131_072, 131_072]
