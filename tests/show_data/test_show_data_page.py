"""The page and the picture of a funnel: whole, bounded, and harmless."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from herd.data.documents import document_id
from herd.report_funnel import draw, levels, warnings
from herd.show_data_books import open_books, plain
from herd.show_data_page import render


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


def test_the_page_is_one_file_in_which_documents_stay_text(say: Any, hostile: str, tmp_path: Path) -> None:
    page = tmp_path / "new" / "diet.html"
    assert say("inspect", "--html", str(page))[0] == 0
    written = page.read_text(encoding="utf-8")
    found = Scripts(written)
    assert not found.addresses and len(found.scripts) == 2
    (kind, rows), (_, code) = found.scripts
    assert kind == {"type": "application/json", "id": "drops"}
    drops = json.loads(rows)
    assert len(drops) == 8
    shown = next(row for row in drops if row[0] == document_id("manual", hostile))
    assert shown[1:] == [plain(hostile), "heuristics: few letters", "0.21 < 0.5", ""]
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


def test_what_is_left_after_each_step_adds_up(run: Path) -> None:
    funnel = open_books(run).funnel
    found = levels(funnel)
    assert [level.step for level in found] == ["", *(step["step"] for step in funnel["steps"])]
    for before, after in itertools.pairwise(found):
        assert before.documents - after.dropped == after.documents
        assert after.dropped == sum(rule.documents for rule in after.rules)
    assert found[-1].documents == 3
    spent = {"step": "language", "documents_in": 4, "documents_dropped": 4}
    told = warnings({"steps": [spent, spent | {"step": "url", "documents_dropped": 3}], "idle_rules": ["near"]})
    assert len(told) == 2
    assert "'language'" in told[0] and "every document" in told[0] and "'near' dropped nothing" in told[1]
