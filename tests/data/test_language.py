import socket

import pytest

from herd.data.language import UNKNOWN, identify


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The quick brown fox jumps over the lazy dog while nobody is watching the road."),
        ("de", "Der schnelle braune Fuchs springt über den faulen Hund, während niemand zusieht."),
        ("fr", "Le renard brun et rapide saute par-dessus le chien paresseux pendant la nuit."),
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
    english = "This sentence is written in English for everyone to read and enjoy. "
    german = "Dieser Satz ist auf Deutsch geschrieben, damit ihn alle lesen können. "
    assert identify(german * 2 + english * 100)[0] == "en"
