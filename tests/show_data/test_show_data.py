"""Looking inside a curated corpus: the funnel, samples side by side, searches."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.artifact import write_current
from herd.cli import main
from herd.console import HerdError
from herd.data.documents import document_id
from herd.show_data import half_bars
from herd.show_data_books import find, measured, open_books, plain, raw_files, rows_where
from herd.show_data_samples import pairs

GUIDE = "docs/guide/install.html"


@pytest.mark.parametrize("wide", [80, 120])
def test_the_funnel_fits_the_terminal_and_tells_everything(say: Any, wide: int) -> None:
    status, printed = say("inspect", wide=wide)
    assert status == 0
    assert max(len(line) for line in printed.splitlines()) <= wide
    assert "3 of 11 documents kept" in printed
    lines = printed.splitlines()
    near = next(i for i, line in enumerate(lines) if line.startswith("near-duplicates dropped"))
    assert re.search(r"\b5 +9\.\d kB$", lines[near]) and lines[near + 1].split()[:2] == ["minhash", "-2"]
    assert re.search(r"manual +hi +en +9 .* the label lies", printed)
    assert not re.search(r"not declared +en .* the label lies", printed)
    assert "Never fired in the step 'heuristics': many digits, generated." in " ".join(printed.split())
    assert "2 clusters of 6 documents" in printed and GUIDE in printed
    assert re.search(r"bad.example.org +domain dirty words +31 > 20", printed)
    for division in ("group", "kind", "language", "licence", "split"):
        assert re.search(rf"\b{division} +documents share", printed), division


def test_two_bars_in_one_line_are_told_apart_without_colour() -> None:
    assert half_bars(1.0, 0.5, 10) == "█" * 5 + "▀" * 5
    assert half_bars(0.2, 0.6, 10) == "██" + "▄" * 4
    assert half_bars(0.0001, 0.0, 10) == "▀"  # what is there is seen
    assert half_bars(0.0, 0.0, 10) == ""


def test_samples_of_a_step_stand_side_by_side_and_are_harmless(say: Any) -> None:
    status, printed = say("inspect", "--step", "heuristics")
    assert status == 0 and "\x1b" not in printed and "\u202e" not in printed
    beside = [line for line in printed.splitlines() if line.count("╭─") == 2]
    assert len(beside) == 2  # two dropped beside two of the three that passed
    assert "too short  20 < 200" in printed and "few letters  0.21 < 0.5" in printed
    status, printed = say("inspect", "--step", "filters")
    assert status == 1 and "no such step; steps are blocklist, extract" in printed


def test_a_copy_stands_beside_what_was_kept_in_its_place(run: Path) -> None:
    books = open_books(run)
    found = [(gone["path"], stays["path"]) for gone, stays in pairs(books, "near", 9) if gone and stays]
    assert sorted(found) == [("mirror/install.html", GUIDE), ("mirror/setup.html", GUIDE)]
    ((gone, stays),) = pairs(books, "language", 9)
    assert gone is not None and gone["path"] == "docs/de/anleitung.html" and stays is None
    assert len(pairs(books, "heuristics", 2)) == 2 and pairs(books, "mix", 9) == []


def test_a_search_finds_documents_by_words_id_url_and_path(say: Any, run: Path) -> None:
    books = open_books(run)
    assert {fate.path for fate in find(books, "INSTALL mirror")[0]} == {"mirror/install.html"}
    assert [fate.path for fate in find(books, document_id("manual", "docs/stub.html"))[0]] == ["docs/stub.html"]
    assert {fate.path for fate in find(books, "https://docs.example.org/install")[0]} == {
        GUIDE,
        "docs/old/install.html",
    }
    assert find(books, GUIDE)[1] == 1  # an exact path stands alone, though others hold it
    found, total = find(books, "html", most=4)
    assert len(found) == 4 and total == 10  # all but a module of Python
    status, printed = say("inspect", "--search", "mirror")
    assert status == 0 and "mirror/setup.html" in printed and "the same text as docs/guide/usage.html" in printed
    assert say("inspect", "--search", "no such words")[0] == 1


def test_scores_read_as_a_person_writes_them() -> None:
    assert measured(20, 200) == "20 < 200" and measured(0.931, 0.8) == "0.931 > 0.8"
    assert measured(1, 1) == "1 = 1" and measured(1234.5, 400_000) == "1,234 < 400,000"
    assert plain("a\x1b[2Jb\u202ec\nd") == "a·[2Jb·c·d" and plain("abcdef", 4) == "abc…"


def test_raw_documents_in_parts_are_read_like_one_file(
    tmp_path: Path, capsys: Any, run: Path, build_run: Callable[..., Path], hostile: str
) -> None:
    parts = build_run(tmp_path / "parts", parts=True)
    assert [len(raw_files(open_books(path).sources)) for path in (run, parts)] == [1, 2]
    for path in ("src/tool.py", hostile):  # in the first part and in the last
        assert main(["data", "why", path, "--run", str(parts)]) == 0
        assert "retrieved  2026-01-02" in capsys.readouterr().out


def test_a_run_without_curation_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_current(tmp_path / "run", "sources", "sources-0")
    with pytest.raises(HerdError):
        open_books(tmp_path / "run")


def test_all_that_match_exactly_are_counted_and_few_are_shown(tmp_path: Path, build_run: Callable[..., Path]) -> None:
    books = open_books(build_run(tmp_path / "run"))
    drops = pq.read_table(books.file("drops.parquet"))
    everywhere = pa.array(["https://docs.example.org/install"] * drops.num_rows)
    drops = drops.set_column(drops.column_names.index("url"), "url", everywhere)
    pq.write_table(drops, books.file("drops.parquet"), row_group_size=3)
    found, total = find(books, "https://docs.example.org/install", most=2)
    assert [bool(fate.step) for fate in found] == [False, True] and total == 1 + drops.num_rows == 9


def test_a_document_is_found_by_its_id_wherever_it_lies_and_other_columns_read_of_its_group_only(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(open_books(run).file("drops.parquet")).sort_by("path")
    pq.write_table(table, path := tmp_path / "by path.parquet", row_group_size=3)
    read: list[list[str]] = []
    real = pq.ParquetFile.read_row_group

    def noted(file: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        read.append(columns)
        return real(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    for id in table["id"].to_pylist():
        read.clear()
        assert [row["id"] for row in rows_where(path, "id", [id], ["path"])] == [id]
        assert [columns for columns in read if "path" in columns] == [["path", "id"]]
