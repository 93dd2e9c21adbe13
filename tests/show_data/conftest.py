"""What tests of `herd data` share: a curated run as the stages leave one, and the command line on it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.artifact import publish, write_current
from herd.cli import main
from herd.data.documents import CHANGES, CURATED, DROPS, RAW, SAMPLES, document_id

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


def _build_run(path: Path, parts: bool = False) -> Path:
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


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eleven documents, three of them kept. Read it, don't change it."""
    return _build_run(tmp_path_factory.mktemp("runs") / "manual")


@pytest.fixture(scope="session")
def build_run() -> Callable[..., Path]:
    """`build_run(path, parts=False)` makes another such run."""
    return _build_run


@pytest.fixture(scope="session")
def hostile() -> str:
    """Path of a document that would do harm to a terminal or a page."""
    return HOSTILE


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
