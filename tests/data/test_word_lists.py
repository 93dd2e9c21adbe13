import ast
import inspect
import io
import json
import os
import pickle
import signal
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from pydoc_data import topics

import pytest

from herd.console import HerdError
from herd.data.word_lists import DirtyWords, is_dirty, word_count
from herd.data.words import tokens

FAKE = ["blorptastic", "zquargle", "Жбрунь", "grin blop", "one-two flumph snarx", "b*lorp", "much too long to be one"]


def _load(folder: Path, files: Mapping[str, list[str] | str], languages: tuple[str, ...] = ("en",)) -> DirtyWords:
    for name, words in files.items():
        text = words if isinstance(words, str) else json.dumps(words) if name.endswith("json") else "\n".join(words)
        (folder / name).write_text(text, encoding="utf-8")
    return DirtyWords.load(files, folder, languages)


def _count(dirty: DirtyWords, text: str, language: str = "en") -> int:
    return dirty.count(tokens(text), text, language)


@pytest.mark.parametrize("name", ["en.json", "en.txt", "mine.txt"])
def test_counts_words_and_phrases_and_not_what_contains_them(tmp_path: Path, name: str) -> None:
    dirty = _load(tmp_path, {name: FAKE})
    assert dirty.entries == {"en": 5} and dirty.ignored == 2
    assert _count(dirty, "A blorptastic, BLORPTASTIC Zquargle.") == 3
    assert _count(dirty, "grin blop, one two flumph snarx; one-two flumph snarx") == 3
    assert _count(dirty, "жбрунь, ЖБРУНЬ и Жбрунь") == 3
    assert _count(dirty, "blorptastically zquargles grin. A blop and a lorp, too long, blorp_tastic") == 0
    assert _count(dirty, "") == 0 and _count(dirty, "blorptastic", "de") == 0


def test_languages_without_spaces_are_searched_within_and_hindi_by_words(tmp_path: Path) -> None:
    files = {"zh.json": ["坏词", "乙", "qblorp"], "th.txt": ["คำหยาบ"], "hi.json": ["बुराशब्द", "बुरा शब्द"]}
    dirty = _load(tmp_path, files, ("zh", "th", "hi"))
    text = "这里有一个坏词在句子里，又一个坏词。 qblorp"
    assert _count(dirty, text, "zh") == 3 and word_count(tokens(text), text, "zh") == len(text) // 2
    assert _count(dirty, "乙方和甲方签订合同", "zh") == 0  # a single character stands in many words
    assert _count(dirty, "นี่คือคำหยาบในประโยค", "th") == 1
    assert _count(dirty, "यह बुराशब्द है, और यह बुरा शब्द भी", "hi") == 2


def test_technical_text_survives_words_that_lists_call_dirty(tmp_path: Path) -> None:
    listed = ["kill", "killed", "slave", "master", "execute", "orphan", "abort", "blorptastic"]
    dirty = _load(tmp_path, {"en.txt": listed})
    pages = [*topics.topics.values(), *(inspect.getsource(module) for module in (signal, subprocess, os))]
    for module in (signal, subprocess, os):
        pages += [doc for node in ast.walk(ast.parse(inspect.getsource(module))) if (doc := _docstring(node))]
    counts = [(_count(dirty, page), len(tokens(page).words)) for page in pages]
    assert sum(count > 0 for count, _ in counts) >= 20  # Raffel et al. would drop these
    assert not any(is_dirty(count, words) for count, words in counts)
    spoiled = topics.topics["class"] + "blorptastic " * 100
    assert is_dirty(_count(dirty, spoiled), len(tokens(spoiled).words))


def _docstring(node: ast.AST) -> str | None:
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Module)
    return ast.get_docstring(node) if isinstance(node, kinds) else None


def test_a_few_words_never_make_a_page_dirty() -> None:
    assert not is_dirty(4, 10) and is_dirty(5, 10)
    assert not is_dirty(20, 1_000) and is_dirty(21, 1_000)


def test_of_a_package_the_files_named_for_languages_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "herd" / "npm").mkdir(parents=True)
    files = {"package.json": '{"name": "x"}', "en.json": '["blorptastic"]', "de.json": '["quarxig"]', "README.md": "no"}
    with tarfile.open(tmp_path / "herd" / "npm" / "scope-words-1.0.0.tgz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
    dirty = DirtyWords.load(["npm:@scope/words==1.0.0:package"], tmp_path, ["en", "de", "fr"])
    assert dirty.entries == {"de": 1, "en": 1} and dirty.languages == {"de", "en"}
    again = pickle.loads(pickle.dumps(dirty))  # as a process pool does
    assert _count(again, "sehr quarxig", "de") == 1 and _count(again, "sehr quarxig") == 0
    assert DirtyWords.load(["npm:@scope/words==1.0.0:package/de.json"], tmp_path, ["de"]).entries == {"de": 1}
    with pytest.raises(HerdError, match="no file is named for a language of fr"):
        DirtyWords.load(["npm:@scope/words==1.0.0:package"], tmp_path, ["fr"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("en.json", '{"a": 1}'),
        ("en.json", "[1, 2]"),
        ("en.json", "["),
        ("en.json", "[" * 100_000),
        ("en.txt", "# none\n"),
    ],
)
def test_what_is_no_list_of_words_is_an_error_that_names_it(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(HerdError, match=name):
        _load(tmp_path, {name: text})
