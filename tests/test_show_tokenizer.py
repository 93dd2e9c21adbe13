"""`herd tokenizer compare`: the figures are right, languages are told by folder or text, the picture is drawn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from herd.cli import main
from herd.model.tokenizer import Tokenizer, train_tokenizer
from herd.show_tokenizer import languages_of_subfolders, measure, names

LIBRARY = Path(os.__file__).parent
ENGLISH = (LIBRARY / "argparse.py").read_text(encoding="utf-8")
TEXTS = {
    "en": "The committee published its report on the state of the rivers in spring, and nobody read it. " * 3,
    "de": "Der Ausschuss hat seinen Bericht über den Zustand der Flüsse im Frühjahr veröffentlicht. " * 3,
    "ru": "Комитет опубликовал весной свой доклад о состоянии рек, и никто его не прочитал. " * 3,
}


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer([ENGLISH], 600).save(folder / "small")
    train_tokenizer([ENGLISH, *TEXTS.values()], 1200).save(folder / "large")
    return {name: folder / name for name in ("small", "large")}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for language, text in TEXTS.items():
        (folder / f"{language}.txt").write_text(text)
    return folder


def test_the_table_has_what_was_counted(tokenizers: dict[str, Path], texts: Path, tmp_path: Path, capsys: Any) -> None:
    picture = tmp_path / "pictures" / "two.png"
    paths = [str(tokenizers["small"]), str(tokenizers["large"] / "tokenizer.json")]
    assert main(["tokenizer", "compare", *paths, "--on", str(texts), "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "1: tokenizers" not in printed and "large/tokenizer.json, 1,200 tokens" in printed
    small, large = (Tokenizer.load(tokenizers[name]) for name in ("small", "large"))
    for language, text in TEXTS.items():
        text = text.strip("\n") + "\n"  # as extraction leaves it
        row = next(line.split() for line in printed.splitlines() if line.startswith(f"{language} "))
        characters = [len(text) / len(one.encode(text)) for one in (small, large)]
        sizes = [len(text.encode()) / len(one.encode(text)) for one in (small, large)]
        expected = [characters[0], sizes[0], characters[1], sizes[1], characters[1] / characters[0]]
        assert row[1] == "1" and row[4:] == [f"{value:.3f}" for value in expected]
    assert printed.splitlines()[-1] == f"picture: {picture}"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


def test_subfolders_named_by_languages_name_them(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    for language, text in TEXTS.items():
        (tmp_path / language).mkdir()
        (tmp_path / language / "a.md").write_text(text)
    (tmp_path / "pt-BR").mkdir()
    (tmp_path / "pt-BR" / "english.txt").write_text(TEXTS["en"])
    (tmp_path / ".git").mkdir()
    found = measure({"one": Tokenizer.load(tokenizers["small"])}, tmp_path)
    assert set(found) == {"en", "de", "ru", "pt"} and found["pt"].bytes == len(TEXTS["en"]) + 1
    (tmp_path / "src").mkdir()  # no language, so the other names may be none either
    assert languages_of_subfolders(tmp_path) == {}
    assert "pt" not in measure({"one": Tokenizer.load(tokenizers["small"])}, tmp_path)


def test_names_tell_the_tokenizers_apart() -> None:
    assert names([Path("/a/x.json"), Path("/a/y.gguf")]) == ["x.json", "y.gguf"]
    assert names([Path("/a/tokenizer.json"), Path("/b/tokenizer.json")]) == ["a/tokenizer.json", "b/tokenizer.json"]


def test_what_is_wrong_is_one_line(tokenizers: dict[str, Path], texts: Path, tmp_path: Path, capsys: Any) -> None:
    def fails(*words: Any) -> str:
        assert main(["tokenizer", "compare", *map(str, words)]) == 1
        return capsys.readouterr().err

    small, empty = tokenizers["small"], tmp_path / "empty"
    empty.mkdir()
    assert "no texts; expected txt, md" in fails(small, "--on", empty)
    assert "no folder" in fails(small, "--on", tmp_path / "nowhere")
    assert "expected a name that ends in .png" in fails(small, "--on", texts, "--picture", "a.pdf")
    assert "a tokenizer is given twice" in fails(small, small, "--on", texts)
    assert "no tokenizer; expected herd_tokenizer.json" in fails(texts, "--on", texts)
