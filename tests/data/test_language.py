import random
import socket

import pytest

from herd.data.language import UNKNOWN, LanguageTable, declared_language, identify

GERMAN = "Dieser Satz ist auf Deutsch geschrieben, damit ihn alle lesen können. "
ENGLISH = "This sentence is written in English for everyone to read and enjoy. "


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The quick brown fox jumps over the lazy dog while nobody is watching the road."),
        ("de", "Der schnelle braune Fuchs springt über den faulen Hund, während niemand zusieht."),
        ("fr", "Le renard brun et rapide saute par-dessus le chien paresseux pendant la nuit."),
        ("hi", "यह वाक्य हिन्दी में लिखा गया है ताकि सब लोग इसे आसानी से पढ़ सकें।"),
        ("th", "ประโยคนี้เขียนเป็นภาษาไทยเพื่อให้ทุกคนอ่านได้"),
    ],
)
def test_identifies_offline(language: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    code, confidence = identify(text)
    assert code == language and 0.5 < confidence <= 1


def test_text_without_words_has_no_language() -> None:
    assert identify("12 + 34 = 46 !!\n") == (UNKNOWN, 0.0)


def test_long_documents_are_judged_by_more_than_their_start() -> None:
    assert identify(GERMAN * 2 + ENGLISH * 100)[0] == "en"


@pytest.mark.parametrize(
    ("path", "head", "language"),
    [
        ("manual/index.html.de", b"", "de"),
        ("manual/index.de.html", b'<html lang="en">', "de"),
        ("html/pt-BR/sect.apt.html", b"", "pt"),
        ("html/zh_CN/index.html", b"", "zh"),
        ("https://site.example/fr/page.html", b"", "fr"),
        ("guide/nb-NO/ch01.html", b"", "no"),
        ("page.html", b'<!DOCTYPE html>\n<HTML class=x LANG="hi-IN">', "hi"),
        ("page.html", b'<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="ja">', "ja"),
        ("page.html", b"<html lang=xx>", ""),
        ("page.html", b'<html data-lang="de">', ""),
        ("page.html", b'<p lang="de">', ""),
        ("src/io/os/id/is/readme.md", b"", ""),
        ("jquery.ui.html", b"", ""),
        ("archive.tar.gz", b"", ""),
        ("", b"", ""),
    ],
)
def test_the_language_that_a_page_says_it_has(path: str, head: bytes, language: str) -> None:
    assert declared_language(path, head) == language


def test_the_table_shows_where_labels_lie_and_is_the_same_whatever_the_parts() -> None:
    documents = [("handbook", "hi", ENGLISH * n) for n in range(1, 10)]
    documents += [("handbook", "hi", "यह वाक्य हिन्दी में लिखा गया है। " * 2)]
    documents += [("handbook", "de", GERMAN * n) for n in range(1, 10)]
    documents += [("handbook", "de", ENGLISH), ("loose", "", ENGLISH), ("handbook", "de", "1 2 3")]
    whole = LanguageTable()
    parts = [LanguageTable() for _ in range(4)]
    for number, (source, declared, text) in enumerate(documents):
        for table in (whole, parts[number % 4]):
            table.add(source, declared, *identify(text), size=len(text.encode()))
    random.Random(1).shuffle(parts)
    merged = LanguageTable()
    for part in parts:
        merged.merge(LanguageTable.from_json(part.to_json()))
    assert merged.rows() == whole.rows() and merged.to_json() == whole.to_json()
    (lie,) = whole.lies()
    assert (lie.source, lie.declared, lie.identified, lie.documents) == ("handbook", "hi", "en", 9)
    assert lie.share > 0.9 and 0.5 < lie.confidence <= 1
    assert sum(row.documents for row in whole.rows()) == len(documents)
