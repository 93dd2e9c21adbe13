"""Hostile pages: linear time, bounded memory, and the content before the hostile part is kept."""

import subprocess
import sys
import time

import pytest

from herd.data.extract import extract
from herd.data.html_bounds import MAX_CHARACTERS, MAX_NESTING

FIRST = f"<p>{'A real paragraph. ' * 9}</p>"
MANY = 300_000
SECONDS = 10  # of processor time; each takes below 2, and minutes without the bound it is about


def attributes(value: str) -> str:
    return "<p " + " ".join(f"a{n}{value}" for n in range(MANY)) + ">"


HOSTILE = {
    "custom elements": "<x-y>" * MANY + "<div></div>" * MANY,
    "names of their own": "".join(f"<n{n}>" for n in range(MANY)) + "<div></div>" * MANY,
    "formatting to reopen": "<p>" + "".join(f"<b id={n}>" for n in range(400)) + "<p>x" * MANY,
    "attributes": attributes("=''"),
    "attributes with tags": attributes('="><a"'),
    "attributes without values": attributes(""),
    "options": "<select>" + "<option>x</option>" * MANY,
    "unclosed tags": "<p <div" * MANY,
    "unclosed quotes": '<a href="' * MANY,
    "unclosed comments": "<!--" * MANY,
    "unclosed scripts": "<script><svg>" * MANY,
    "cells": "<table>" + "<tr><td><p>" * MANY,
    "links": "<a href=x>" * MANY,
    "entities": "&amp;lt;" * MANY,
    "images": "<img alt='" * MANY,
    "pre": "<pre>" * MANY,
    "formulas": "<math><mrow>" * 1000 + "x" + "<math>" * MANY,
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_markup_takes_linear_time(hostile: str) -> None:
    start = time.process_time()
    page = extract((FIRST + hostile).encode(), "html")
    assert time.process_time() - start < SECONDS
    assert page.text.startswith("A real paragraph.")


def test_a_page_of_100_megabytes_is_cut_and_says_so() -> None:
    start = time.process_time()
    page = extract((FIRST + ("<p>" + "word " * 200) * 100_000).encode(), "html")
    assert not page.complete and page.text.startswith("A real paragraph.") and len(page.text) < MAX_CHARACTERS
    assert time.process_time() - start < 3 * SECONDS


def test_memory_stays_in_proportion_to_the_bound() -> None:
    """Formatting elements that each paragraph opens again would take 100 GB."""
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "from herd.data.extract import extract\n"
        "page = '<p>' + ''.join(f'<b id={n}>' for n in range(400)) + '<p>x' * 2_000_000\n"
        "extract(page.encode(), 'html')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout) < 2000, "megabytes"


def test_deep_but_honest_pages_are_whole() -> None:
    deep = "<div>" * (MAX_NESTING // 2) + "bottom" + "</div>" * (MAX_NESTING // 2)
    flat = "<ul>" + "<li>an entry without its end tag" * 3000 + "</ul><p>the end"
    drawing = "<svg>" + "<path d='M0 0'/>" * 3000 + "</svg>"
    page = extract((FIRST + deep + drawing + flat).encode(), "html")
    assert page.complete and "bottom" in page.text and page.text.endswith("the end\n")


def test_broken_characters() -> None:
    assert extract(b"<p>caf\xe9 \x93quoted\x94 and more words</p>", "html").text == "café “quoted” and more words\n"
    with pytest.raises(UnicodeError):
        extract(b"<p>zero \0 byte</p>", "html")
    assert extract(b"<p>a\x01b \x03c\x05</p>", "html").text == "a b c\n"  # marks of ours in the page
