"""Looking inside a curated corpus: funnel, samples, fates in words, SQL behind walls, a page, a folder of one's own."""

from __future__ import annotations

import builtins
import itertools
import json
import re
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.artifact import open_artifact, publish, read_current, write_current
from herd.cli import main
from herd.console import HerdError
from herd.data.documents import CHANGES, CURATED, DROPS, RAW, SAMPLES, document_id
from herd.report_funnel import draw, levels, warnings
from herd.show_data import half_bars
from herd.show_data_books import find, measured, open_books, plain, raw_files
from herd.show_data_curate import vocabulary_size
from herd.show_data_page import render
from herd.show_data_samples import pairs

STEPS = (
    *("blocklist", "extract", "pii", "language", "domains", "url", "exact", "near", "lines", "heuristics"),
    *("contamination", "outliers", "quality", "mix"),
)
HOSTILE = "docs/</script><script>alert('x')</script>\x1b[31m\u202ered&amp;.html"
GUIDE = "docs/guide/install.html"
TEXT = "Install the package with pip.\n\n    pip install herd\n\nThen run it on a folder of your own."


class Fate(NamedTuple):
    path: str
    step: str = ""
    rule: str = ""
    score: float = 0.0
    threshold: float = 0.0
    size: int = 900
    kept: str = ""
    url: str = ""


FATES = [
    Fate(GUIDE, size=2_400, url="https://docs.example.org/install"),
    Fate("docs/guide/usage.html", size=1_800),
    Fate("src/tool.py", size=3_000),
    Fate("docs/old/install.html", "url", "older", 0, 0, 2_300, GUIDE, "https://docs.example.org/install"),
    Fate("mirror/usage.html", "exact", "same_text", 1, 1, 1_800, "docs/guide/usage.html"),
    Fate("mirror/install.html", "near", "minhash", 0.93, 0.8, 2_350, GUIDE),
    Fate("mirror/setup.html", "near", "minhash", 0.88, 0.8, 2_200, GUIDE),
    Fate("docs/empty.html", "extract", "no_text", 0, 1, 512),
    Fate("docs/de/anleitung.html", "language", "other_language", 0.97, 0, 1_500),
    Fate("docs/stub.html", "heuristics", "too_short", 20, 200, 20),
    Fate(HOSTILE, "heuristics", "few_letters", 0.21, 0.5, 700),
]


def _id(path: str) -> str:
    return document_id("manual", path)


def _row(fate: Fate) -> dict[str, Any]:
    return {"id": _id(fate.path), "source": "manual", "path": fate.path, "url": fate.url, "bytes": fate.size}


def _drop(fate: Fate) -> dict[str, Any]:
    said = {"step": fate.step, "rule": fate.rule, "score": fate.score, "threshold": fate.threshold}
    return _row(fate) | said | {"kept": _id(fate.kept) if fate.kept else ""}


def _kept(fate: Fate) -> dict[str, Any]:
    code = fate.path.endswith(".py")
    facts = {"kind": "code" if code else "docs", "page": "" if code else "article", "language": "en", "licence": "MIT"}
    more = {"retrieved": date(2026, 1, 2), "split": "train", "group": "code" if code else "general", "topic": ""}
    return _row(fate) | facts | more | {"quality": None if code else 0.75, "text": TEXT}


def _raw(fate: Fate) -> dict[str, Any]:
    row = {key: value for key, value in _row(fate).items() if key != "bytes"}
    facts = {"kind": "docs", "media": "html", "licence": "MIT", "retrieved": date(2026, 1, 2)}
    return row | facts | {"content": b"x" * fate.size}


def _sample(fate: Fate) -> dict[str, Any]:
    row = {key: value for key, value in _drop(fate).items() if key not in ("bytes", "kept")}
    return row | {"step": fate.step or "heuristics", "dropped": bool(fate.step), "text": f"{fate.path}\n<b>{TEXT}</b>"}


def _funnel() -> dict[str, Any]:
    documents, size, steps = len(FATES), 40_000, []
    for step in STEPS:
        gone = [fate for fate in FATES if fate.step == step]
        rules = {
            rule: {"documents": len(of), "bytes": sum(f.size for f in of)}
            for rule in sorted({f.rule for f in gone})
            if (of := [f for f in gone if f.rule == rule])
        }
        if step == "pii":
            rules["masked"] = {"documents": 0, "bytes": 0, "documents_changed": 1, "changes": 2}
        dropped = {"documents_dropped": len(gone), "bytes_dropped": sum(f.size for f in gone)}
        steps.append({"step": step, "documents_in": documents, "bytes_in": size, **dropped, "rules": rules})
        documents, size = documents - len(gone), size - dropped["bytes_dropped"] - (20_000 if step == "extract" else 0)
    kept = [_kept(fate) for fate in FATES if not fate.step]
    by = {
        f"by_{name}": {
            value: {"documents": len(of), "bytes": sum(r["bytes"] for r in of)}
            for value in sorted({r[name] for r in kept})
            if (of := [r for r in kept if r[name] == value])
        }
        for name in ("kind", "language", "source" if "source" in kept[0] else "kind", "group")
    }
    clusters = [{"kept": _id(GUIDE), "documents": 4}]
    of = {"source": "manual", "identified": "en", "share": 0.5}
    return {
        "steps": steps,
        "kept": {"documents": len(kept), "bytes": sum(r["bytes"] for r in kept), "splits": {"train": 3}, **by},
        "licences": {"MIT": len(kept)},
        "masked": {"email": 2},
        "idle_rules": ["heuristics.many_digits", "heuristics.generated", "quality.below_cut"],
        "languages": [
            {**of, "declared": "hi", "documents": 9, "bytes": 9_000, "confidence": 0.91},
            {**of, "declared": "", "documents": 2, "bytes": 2_000, "confidence": 0.99},
        ],
        "sites_dropped": [{"site": "bad.example.org", "rule": "domain_dirty_words", "score": 31, "threshold": 20}],
        "clusters": {"count": 2, "documents": 6, "largest": clusters},
    }


def build_run(path: Path, parts: bool = False) -> Path:
    """A run as the stages leave one; `parts`: raw documents in several files of a folder."""
    path.mkdir(parents=True)
    raw = [_raw(fate) for fate in FATES]
    with publish(path, "sources", "5" * 64, {"inputs": {}}, {}) as draft:
        if parts:
            (draft.folder / "documents").mkdir()
        for number, rows in enumerate([raw[:5], raw[5:]] if parts else [raw]):
            name = f"documents/{number:05d}.parquet" if parts else "documents.parquet"
            pq.write_table(pa.Table.from_pylist(rows, RAW), draft.folder / name)
        draft.write_json("sources.json", {})
    changes = [
        {"id": _id(GUIDE), "step": "pii", "rule": "masked", "count": 2, "bytes": 30, "sample": "2 email"},
        {
            "id": _id(GUIDE),
            "step": "lines",
            "rule": "repeated_line",
            "count": 3,
            "bytes": 90,
            "sample": "Edit it",
        },
    ]
    with publish(path, "curate", "c" * 64, {"inputs": {}}, {}) as draft:
        for name, rows, schema in (
            ("documents", [_kept(f) for f in FATES if not f.step], CURATED),
            ("drops", [_drop(f) for f in FATES if f.step], DROPS),
            ("changes", changes, CHANGES),
            ("samples", [_sample(f) for f in FATES], SAMPLES),
        ):
            table = pa.Table.from_pylist(rows, schema).sort_by("id")
            pq.write_table(table, draft.folder / f"{name}.parquet", row_group_size=3)
        draft.write_json("funnel.json", _funnel())
    for stage, key in (("sources", "5" * 12), ("curate", "c" * 12)):
        write_current(path, stage, f"{stage}-{key}")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("runs") / "manual")


@pytest.fixture
def say(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `herd data ...` at a width; returns its exit status and what it printed."""

    def call(*words: str, wide: int = 120) -> tuple[int, str]:
        monkeypatch.setenv("COLUMNS", str(wide))
        capsys.readouterr()
        status = main(["data", *words, "--run", str(run)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return call


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
    assert [fate.path for fate in find(books, _id("docs/stub.html"))[0]] == ["docs/stub.html"]
    assert {fate.path for fate in find(books, "https://docs.example.org/install")[0]} == {
        GUIDE,
        "docs/old/install.html",
    }
    assert find(books, GUIDE)[1] == 1  # an exact path stands alone, though others hold it
    found, total = find(books, "html", most=4)
    assert len(found) == 4 and total == sum(fate.path.endswith("html") for fate in FATES)
    status, printed = say("inspect", "--search", "mirror")
    assert status == 0 and "mirror/setup.html" in printed and "the same text as docs/guide/usage.html" in printed
    assert say("inspect", "--search", "no such words")[0] == 1


def test_why_a_near_duplicate_went_names_what_was_kept_and_its_cluster(say: Any) -> None:
    status, printed = say("why", "mirror/install.html")
    said = " ".join(printed.split())
    assert status == 0
    assert f"MinHash similarity 0.93 >= 0.8 to {GUIDE} ({_id(GUIDE)})" in said
    assert "kept because it is longer (2.5 kB against 2.4 kB)" in said  # its size before three lines were taken out
    assert re.search(r"✓ exact +passed", printed) and re.search(r"· heuristics +not reached", printed)
    assert "licence MIT" in said and "retrieved 2026-01-02" in said and "source manual" in said
    assert "4 documents" in said and "mirror/setup.html" in said


def test_why_a_document_was_kept_says_what_was_changed(say: Any) -> None:
    status, printed = say("why", _id(GUIDE))
    said = " ".join(printed.split())
    assert status == 0 and "Kept: 2.4 kB" in said and "pip install herd" in said
    assert "masked 2 times: 2 email" in said
    assert '3 lines taken out, 90 B, such as "Edit it"' in said
    assert "quality 0.750" in said and "group general" in said and "split train" in said
    assert "not reached" not in said and "dropped:" not in said


def test_why_of_an_address_tells_of_the_page_that_stands_for_its_older_copies(say: Any) -> None:
    status, printed = say("why", "https://docs.example.org/install")
    assert status == 0 and "Kept: 2.4 kB" in printed and "docs/old/install.html" in printed
    status, printed = say("why", "docs/old/install.html")
    said = " ".join(printed.split())
    assert status == 0 and f"an older copy of the same URL as {GUIDE}" in said and "(kept)" in said


def test_why_of_several_lists_them_and_of_none_says_what_is_near(say: Any) -> None:
    status, printed = say("why", "mirror")
    assert status == 1 and "3 documents match" in printed and "mirror/usage.html" in printed
    status, printed = say("why", "docs/guide/setup.htm")
    near = printed[printed.index("did you mean") :]
    assert status == 1 and near.index("mirror/setup.html") < near.index("docs/guide/install.html")
    status, printed = say("why", "zzz")
    assert status == 1 and "did you mean" not in printed


def test_scores_read_as_a_person_writes_them() -> None:
    assert measured(20, 200) == "20 < 200" and measured(0.931, 0.8) == "0.931 > 0.8"
    assert measured(1, 1) == "1 = 1" and measured(1234.5, 400_000) == "1,234 < 400,000"
    assert plain("a\x1b[2Jb\u202ec\nd") == "a·[2Jb·c·d" and plain("abcdef", 4) == "abc…"


def test_raw_documents_in_parts_are_read_like_one_file(tmp_path: Path, capsys: Any, run: Path) -> None:
    parts = build_run(tmp_path / "parts", parts=True)
    assert [len(raw_files(open_books(path).sources)) for path in (run, parts)] == [1, 2]
    for path in ("src/tool.py", HOSTILE):  # in the first part and in the last
        assert main(["data", "why", path, "--run", str(parts)]) == 0
        assert "retrieved  2026-01-02" in capsys.readouterr().out


def test_sql_over_the_decisions(say: Any) -> None:
    pytest.importorskip("duckdb")
    query = "select step, count(*) as n from drops group by step having n > 1 order by step"
    status, printed = say("inspect", "--sql", query)
    assert status == 0 and [line.split() for line in printed.splitlines()[1:]] == [["heuristics", "2"], ["near", "2"]]
    query = "select d.path, c.sample from documents d join changes c using (id) join samples s using (id)"
    assert GUIDE in say("inspect", "--sql", query)[1]
    status, printed = say("inspect", "--sql", "select path from drops")
    assert status == 0 and "\x1b" not in printed


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_text('{file}')",
        "select * from read_csv('{file}')",
        "select * from '{file}'",
        "select * from glob('{folder}/*')",
        "copy (select 1) to '{folder}/written.csv'",
        "copy drops to '{folder}/written.csv'",
        "attach '{folder}/written.db'",
        "set enable_external_access = true",
        "install httpfs",
        "create table x as select 1",
        "select 1; select 2",
        "select nothing from drops",
        "not sql at all",
        "",
    ],
)
def test_sql_reaches_nothing_but_the_tables(say: Any, tmp_path: Path, query: str) -> None:
    pytest.importorskip("duckdb")
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nswordfish\n")
    status, printed = say("inspect", "--sql", query.format(file=secret, folder=tmp_path))
    assert status == 1 and printed.startswith("herd: --sql:") and printed.count("\n") == 1
    assert "swordfish" not in printed and [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_without_duckdb_the_error_says_how_to_install_it(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "duckdb":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    status, printed = say("inspect", "--sql", "select 1")
    assert status == 1 and "pip install 'llm-herd[inspect]'" in printed


class Scripts(HTMLParser):
    """The scripts of a page with their attributes, all other text, and every address that it names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text, self.addresses, self._open = "", list[str](), None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = dict(attrs) if tag == "script" else None
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self._open is None:
            self.text += data
        else:
            self.scripts.append((self._open, data))
            self._open = None


def test_the_page_is_one_file_in_which_documents_stay_text(say: Any, run: Path, tmp_path: Path) -> None:
    import base64
    import hashlib

    page = tmp_path / "new" / "diet.html"
    assert say("inspect", "--html", str(page))[0] == 0
    written = page.read_text(encoding="utf-8")
    found = Scripts(written)
    assert not found.addresses and len(found.scripts) == 2
    (kind, rows), (_, code) = found.scripts
    assert kind == {"type": "application/json", "id": "drops"}
    drops = json.loads(rows)
    assert len(drops) == sum(bool(fate.step) for fate in FATES)
    hostile = next(row for row in drops if row[0] == _id(HOSTILE))
    assert hostile[1:] == [plain(HOSTILE), "heuristics: few letters", "0.21 < 0.5", ""]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in written or f"script-src &#39;sha256-{digest}&#39;" in written
    assert "alert(" not in code and "<b>Install the package" in found.text  # a sample's markup is shown, not obeyed
    assert "3 of 11 documents kept" in found.text and "the label lies" in found.text


def test_the_page_holds_a_bounded_number_of_drops(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.show_data_page.SEARCHED_ROWS", 5)
    found = Scripts(render(open_books(run)))
    assert len(json.loads(found.scripts[0][1])) == 5 and "the first 5 of 8 drops" in found.text


def test_the_picture_is_drawn_whatever_is_in_the_funnel(say: Any, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "funnel.png"
    assert say("inspect", "--picture", str(picture))[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    nothing = {"steps": [], "kept": {"documents": 0, "bytes": 0}}
    draw(nothing, "nothing $x^2$", tmp_path / "empty.png")
    step = {"step": "extract", "documents_in": 3, "bytes_in": 0, "documents_dropped": 3, "bytes_dropped": 0}
    rule = {"no_text": {"documents": 3, "bytes": 0}}
    draw({"steps": [step | {"rules": rule}], "kept": {"documents": 0, "bytes": 0}}, "all gone", tmp_path / "gone.png")
    assert (tmp_path / "empty.png").stat().st_size and (tmp_path / "gone.png").stat().st_size


def test_what_is_left_after_each_step_adds_up() -> None:
    found = levels(_funnel())
    assert [level.step for level in found] == ["", *STEPS]
    for before, after in itertools.pairwise(found):
        assert before.documents - after.dropped == after.documents
        assert after.dropped == sum(rule.documents for rule in after.rules)
    assert found[-1].documents == 3
    spent = {"step": "language", "documents_in": 4, "documents_dropped": 4}
    told = warnings({"steps": [spent, spent | {"step": "url", "documents_dropped": 3}], "idle_rules": ["near"]})
    assert len(told) == 2
    assert "'language'" in told[0] and "every document" in told[0] and "'near' dropped nothing" in told[1]


def _folder(path: Path) -> Path:
    """Real text, as a person's folder has it: manual pages of Python, some modules, and what can't be used."""
    import ast
    import textwrap as module
    from pydoc_data.topics import topics

    path.mkdir(parents=True)
    for name in sorted(topics)[:24]:
        (path / f"{name}.rst").write_text(topics[name])
    for source in (ast, module):
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
    from herd.data.shards import load_shards

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
    import tomllib

    from herd.recipe import Data
    from herd.show_data_curate import source_table

    folder = tmp_path / 'a "quoted" name'
    table = tomllib.loads(source_table("docs", folder, "CC BY 4.0"))["data"]
    (source,) = Data.model_validate(table).source
    assert source.kind == "folder" and source.path == str(folder) and source.licence == "CC BY 4.0"


def test_a_handful_of_documents_is_enough_and_some_are_held_out(tmp_path: Path, capsys: Any) -> None:
    import os

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
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
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


def test_a_run_without_curation_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_current(tmp_path / "run", "sources", "sources-0")
    with pytest.raises(HerdError):
        open_books(tmp_path / "run")
