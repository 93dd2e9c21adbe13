"""Fates of documents in words."""

from __future__ import annotations

import re
from typing import Any

from herd.data.documents import document_id

GUIDE = "docs/guide/install.html"


def test_why_a_near_duplicate_went_names_what_was_kept_and_its_cluster(say: Any) -> None:
    status, printed = say("why", "mirror/install.html")
    said = " ".join(printed.split())
    assert status == 0
    assert f"MinHash similarity 0.93 >= 0.8 to {GUIDE} ({document_id('manual', GUIDE)})" in said
    assert "kept because it is longer (2.5 kB against 2.4 kB)" in said  # its size before three lines were taken out
    assert re.search(r"✓ exact +passed", printed) and re.search(r"· heuristics +not reached", printed)
    assert "licence MIT" in said and "retrieved 2026-01-02" in said and "source manual" in said
    assert "4 documents" in said and "mirror/setup.html" in said


def test_why_a_document_was_kept_says_what_was_changed(say: Any) -> None:
    status, printed = say("why", document_id("manual", GUIDE))
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
