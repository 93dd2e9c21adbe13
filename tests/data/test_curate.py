import ast
import json
from html import escape
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow.parquet as pq
import pytest

from herd import console
from herd.artifact import Artifact
from herd.console import HerdError
from herd.data.curate import CurateSettings, curate
from herd.data.funnel import STEPS
from herd.data.pii import mask
from herd.data.sources import CollectSettings, collect
from herd.data.writing import split_of
from herd.recipe_data import Data, Folder, PythonInstallation

STDLIB = PythonInstallation(
    kind="python-installation",
    name="stdlib",
    packages=[],
    modules=["asyncio", "json", "email", "ast", "typing", "shutil"],
)


def data(**more: Any) -> Data:
    return Data(**{"source": [STDLIB], "min_bytes": 1000, "held_out_share": 0.2, "workers": 1, **more})


# Chapters of Python's language reference: real prose that comes with every Python.
CHAPTERS = sorted((text for text in topics.values() if 2_000 < len(text) < 20_000), key=len)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, run_stage: Any) -> Artifact:
    """Real code of the standard library, and a folder with one document for each reason to drop it."""
    root = tmp_path_factory.mktemp("corpus") / "texts"
    root.mkdir()
    original = Path(json.__file__).read_text()
    files = {
        "essay.txt": CHAPTERS[-1],
        "near.txt": CHAPTERS[-1].replace("the", "this", 3)[:-40],
        "copy.py": original,
        "german.txt": "Der schnelle braune Fuchs springt über den faulen Hund, während niemand zusieht. " * 9,
        "short.txt": "Too short to be of any use to anybody who reads it.",
        "list.txt": "\n".join(f"Write to the person at person{n}@mail.org" for n in range(40)),
        "empty.html": "<html><nav><a href='x'>Only navigation</a></nav></html>",
        **{f"menu{n}.html": f"<p>Subscribe to our letter</p><p>{escape(CHAPTERS[n])}</p>" for n in range(10)},
    }
    for name, text in files.items():
        (root / name).write_text(text)
    mine = Folder(kind="folder", name="mine", path="texts", licence="CC0-1.0")
    return run_stage(collect, CollectSettings(sources=[STDLIB, mine], base=root.parent))


def raw(artifact: Artifact) -> list[dict[str, Any]]:
    return pq.read_table(artifact.path / "documents").to_pylist()


def rows(artifact: Artifact, name: str = "documents.parquet") -> list[dict[str, Any]]:
    return pq.read_table(artifact.file(name)).to_pylist()


def test_every_document_is_kept_or_dropped_for_a_recorded_reason(sources: Artifact, run_stage: Any) -> None:
    artifact = run_stage(curate, CurateSettings(data=data(), seed=1), {"sources": sources})
    kept, drops = rows(artifact), rows(artifact, "drops.parquet")
    assert sorted(row["id"] for row in [*kept, *drops]) == sorted(row["id"] for row in raw(sources))
    reasons = {row["path"]: (row["step"], row["rule"]) for row in drops if row["source"] == "mine"}
    assert reasons == {
        "near.txt": ("near", "minhash"),
        "copy.py": ("exact", "same_text"),
        "german.txt": ("language", "other_language"),
        "short.txt": ("heuristics", "too_short"),
        "list.txt": ("pii", "directory"),
        "empty.html": ("extract", "no_text"),
    }
    near = next(row for row in drops if row["step"] == "near")
    assert near["score"] >= near["threshold"] == 0.8
    order = [row["id"] for row in raw(sources)]
    assert [row["id"] for row in kept] == [i for i in order if i in {row["id"] for row in kept}]
    copy = next(row for row in drops if row["step"] == "exact")
    assert copy["kept"] in {row["id"] for row in raw(sources) if row["path"].endswith("json/__init__.py")}


def test_funnel_adds_up(sources: Artifact, run_stage: Any) -> None:
    artifact = run_stage(curate, CurateSettings(data=data(), seed=1), {"sources": sources})
    funnel = artifact.json("funnel.json")
    steps, kept = funnel["steps"], rows(artifact)
    assert [step["step"] for step in steps] == list(STEPS)
    assert steps[0]["documents_in"] == len(raw(sources))
    for step, following in zip(steps, [*steps[1:], {"documents_in": len(kept)}], strict=True):
        assert step["documents_in"] - step["documents_dropped"] == following["documents_in"]
        assert sum(rule["documents"] for rule in step["rules"].values()) == step["documents_dropped"]
    assert steps[-1]["bytes_in"] - steps[-1]["bytes_dropped"] == funnel["kept"]["bytes"]
    assert (
        funnel["kept"]["bytes"] == sum(row["bytes"] for row in kept) == sum(len(row["text"].encode()) for row in kept)
    )
    for by in ("kind", "language", "source"):
        assert sum(part["documents"] for part in funnel["kept"][f"by_{by}"].values()) == len(kept)
    assert sum(funnel["licences"].values()) == len(kept)


def test_boilerplate_lines_go_and_code_keeps_every_line(sources: Artifact, run_stage: Any) -> None:
    artifact = run_stage(curate, CurateSettings(data=data(), seed=1), {"sources": sources})
    kept = {row["path"]: row["text"] for row in rows(artifact)}
    menus = [text for path, text in kept.items() if path.startswith("menu")]
    assert menus and not any("Subscribe" in text for text in menus)
    before = {row["path"]: row["content"].decode() for row in raw(sources) if row["source"] == "stdlib"}
    for path in before.keys() & kept.keys():
        assert kept[path].strip("\n") == mask(before[path], "code").text.strip("\n")
        ast.parse(kept[path])


def test_equal_input_gives_equal_content_and_another_seed_only_another_split(sources: Artifact, run_stage: Any) -> None:
    one, two, other = (run_stage(curate, CurateSettings(data=data(), seed=s), {"sources": sources}) for s in (1, 1, 2))
    assert one.content == two.content != other.content
    assert [row["text"] for row in rows(one)] == [row["text"] for row in rows(other)]
    assert [row["split"] for row in rows(one)] != [row["split"] for row in rows(other)]


def test_held_out_documents_stay_held_out_and_are_about_the_share_asked_for() -> None:
    ids = [f"{n:016x}" for n in range(20_000)]
    heldout = {i for i in ids if split_of(i, 7, 0.03) == "heldout"}
    assert 0.025 < len(heldout) / len(ids) < 0.035
    assert heldout < {i for i in ids if split_of(i, 7, 0.05) == "heldout"}


def test_too_little_text_says_how_much_there_is_and_what_to_do(sources: Artifact, run_stage: Any) -> None:
    with pytest.raises(HerdError, match=r"left .* of text, data.min_bytes asks for 9.0 GB: add sources, or lower"):
        run_stage(curate, CurateSettings(data=data(min_bytes=9_000_000_000), seed=1), {"sources": sources})


def test_a_step_that_drops_everything_is_a_warning(
    sources: Artifact, run_stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(console, "warn", warned.append)
    with pytest.raises(HerdError):
        run_stage(
            curate, CurateSettings(data=data(max_document_bytes=2, min_document_bytes=1), seed=1), {"sources": sources}
        )
    assert "the step 'heuristics' dropped every document" in warned[0]


def test_the_list_of_sources_is_no_part_of_the_key() -> None:
    one = CurateSettings(data=data(), seed=1).model_dump()
    other = CurateSettings(data=data(source=[Folder(kind="folder", name="x", path="y")]), seed=1).model_dump()
    assert one == other and "source" not in one["data"] and one["data"]["languages"] == ["en"]
