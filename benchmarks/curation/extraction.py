"""Quality and speed of HTML extraction on documentation pages, for our extractor and for trafilatura.

    python benchmarks/curation/extraction.py --side herd --pages PAGES         (scores and MB/s of ours, as JSON)
    PEER/bin/python benchmarks/curation/extraction.py --side trafilatura --pages PAGES   (seconds and texts, as JSON)

PAGES holds a JSON string a line, each the HTML of a page (`write_pages`). The second runs in an environment that has
trafilatura and nothing of ours; `peer` runs it from here and scores what it returns by the same rules.

Ground truth comes from the markup that three generators are known to write, never from our extractor. A page's
content is its container (CONTAINERS: Sphinx, DocBook, doxygen, AsciiDoc) without the navigation inside it
(NAVIGATION). Of the content count

- code: each non-blank line of a <pre>, without numbers of lines; kept where a line of the output has the same text.
  Of the lines that begin with a space, indentation is intact where the output has exactly that line;
- maths: each formula (Sphinx `.math`, MathJax scripts, TeX annotations, alt text of images of formulas), kept where
  the output has it, white space aside;
- paragraphs: each <p> of at least 40 characters and 5 words (not an address) without images, formulas and line breaks; kept likewise;
- navigation: each text of a link in NAVIGATION, outside the content too, that does not occur in the content; leaked
  where it is a whole line of the output.

Each figure is the share over all pages together; one that nothing counted for is NaN.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Extract = Callable[[bytes], str]

CONTAINERS = (
    "div.body[role=main], article.bd-article, div[itemprop=articleBody], main, div.body, div.main > div.content",  # Sphinx
    "div#content, div.fancy",  # AsciiDoc, SQLite
    "div.contents",  # doxygen
    "body > div.refentry, body > div.sect1, body > div.sect2, body > div.chapter, body > div.appendix",  # DocBook
)
NAVIGATION = (
    "nav, [role=navigation], .related, .sphinxsidebar, .bd-sidebar, .sk-sidebar-wrapper, .navheader, .navfooter, "
    ".breadcrumb, .breadcrumbs, .bd-breadcrumbs, .prev-next-area, .navpath, #nav-path, .tabs, div.toc, .topic.contents, "
    ".nosearch, .sphx-glr-footer, .sidebar-drawer, .toc-drawer, footer"
)
NOT_TEXT = ".headerlink, .viewcode-link, .linenos, .lineno, script:not([type^='math/']), style, .copybtn"
MATHS = ".math, script[type^='math/'], annotation[encoding='application/x-tex'], img.math"
PARAGRAPH, WORDS = 40, 5  # characters and words


class Truth(NamedTuple):
    """What of a page an extractor should keep (code with its indentation) and what not (navigation)."""

    code: list[str]
    maths: list[str]
    paragraphs: list[str]
    navigation: list[str]


def truth(page: bytes) -> Truth | None:
    """What counts on a page, or None where it has no container that we know."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(page)
    links = {_plain(a.text()) for region in tree.css(NAVIGATION) for a in region.css("a")}
    for selector in CONTAINERS:
        if content := tree.css_first(selector):
            break
    else:
        return None
    _remove(content, NAVIGATION + ", " + NOT_TEXT)
    code = [
        line.rstrip()
        for pre in content.css("pre")
        for line in pre.text().expandtabs(8).split("\n")
        if line.strip()
    ]  # fmt: skip
    maths = [_squeezed(_formula(node)) for node in content.css(MATHS)]
    paragraphs = [
        _squeezed(p.text())
        for p in content.css("p")
        if len(p.text().strip()) >= PARAGRAPH
        and len(p.text().split()) >= WORDS
        and p.css_first("img, math, .math, script, br, svg") is None
    ]
    inside = _plain(content.text(separator=" ")) + _plain(content.text())
    outside = sorted(link for link in links if len(link) > 1 and link not in inside)
    return Truth(code, [m for m in maths if m], paragraphs, outside)


def _remove(content: Any, selector: str) -> None:
    for node in reversed(list({node.mem_id: node for node in content.css(selector)}.values())):
        if node.mem_id != content.mem_id:
            node.decompose()


def _formula(node: Any) -> str:
    if node.tag == "img":
        return node.attributes.get("alt") or ""
    image = node.css_first("img")
    return (image.attributes.get("alt") or "") if image is not None else node.text()


def _plain(text: str) -> str:
    return " ".join(text.replace("¶", "").split())


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text.replace("¶", ""))


def score(pages: Sequence[bytes], extract: Extract) -> dict[str, float]:
    """Shares in [0, 1] over the pages that have a container: see the rules above; `pages` is how many those are."""
    return score_texts(pages, [extract(page) for page in pages])


def score_texts(pages: Sequence[bytes], texts: Sequence[str]) -> dict[str, float]:
    """`score` of texts that were extracted elsewhere."""
    kept = dict.fromkeys(("code_lines", "indentation", "maths", "paragraphs", "navigation_leaked"), 0)
    all_of = dict(kept)
    scored = 0

    def count(name: str, found: list[bool]) -> None:
        kept[name] += sum(found)
        all_of[name] += len(found)

    for page, text in zip(pages, texts, strict=True):
        known = truth(page)
        if known is None:
            continue
        scored += 1
        squeezed, exact = _squeezed(text), {line.rstrip() for line in text.split("\n")}
        lines = {_plain(line) for line in exact}
        count("code_lines", [_plain(line) in lines for line in known.code])
        count("indentation", [line in exact for line in known.code if line[0] == " "])
        count("maths", [formula in squeezed for formula in known.maths])
        count("paragraphs", [paragraph in squeezed for paragraph in known.paragraphs])
        count("navigation_leaked", [link in lines for link in known.navigation])
    shares = {name: kept[name] / n if n else float("nan") for name, n in all_of.items()}
    return {**shares, "pages": float(scored)}


def measure(extract: Extract, pages: Sequence[bytes], rounds: int = 3) -> float:
    """Megabytes (1e6 bytes) of HTML per second of processor time, the best of `rounds`."""
    megabytes = sum(map(len, pages)) / 1e6
    return megabytes / min(_seconds(extract, pages)[0] for _ in range(rounds))


def _seconds(extract: Extract, pages: Sequence[bytes]) -> tuple[float, list[str]]:
    start = time.process_time()
    texts = [extract(page) for page in pages]
    return time.process_time() - start, texts


def peer(python: Path, pages: Path) -> tuple[float, list[str]]:
    """MB/s of processor time and the texts of trafilatura, run by the interpreter of its own environment.

    Raises subprocess.CalledProcessError where that environment lacks it.
    """
    command = [str(python), __file__, "--side", "trafilatura", "--pages", str(pages)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found["megabytes"] / found["seconds"], found["texts"]


def write_pages(path: Path, pages: Sequence[bytes]) -> None:
    """A JSON string a line; bytes that are not UTF-8 are replaced."""
    path.write_text("".join(json.dumps(page.decode("utf-8", "replace")) + "\n" for page in pages))


def read_pages(path: Path) -> list[bytes]:
    with path.open() as lines:
        return [json.loads(line).encode() for line in lines]


def _trafilatura() -> Extract:
    import trafilatura  # pyright: ignore[reportMissingImports]

    def extract(page: bytes) -> str:
        # as datatrove 0.10 calls it, on text
        html = page.decode()
        return trafilatura.extract(html, favor_precision=True, include_comments=False, deduplicate=True) or ""

    return extract


def _herd() -> Extract:
    from herd.data.extract import extract

    return lambda page: extract(page, "html").text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--side", choices=("herd", "trafilatura"), default="herd")
    parser.add_argument("--pages", type=Path, required=True, help="a JSON string of HTML a line")
    arguments = parser.parse_args()
    pages = read_pages(arguments.pages)
    if arguments.side == "herd":
        extract = _herd()
        result: dict[str, Any] = {"mb_per_s": measure(extract, pages), **score(pages, extract)}
    else:
        seconds, texts = _seconds(_trafilatura(), pages)
        result = {"seconds": seconds, "megabytes": sum(map(len, pages)) / 1e6, "texts": texts}
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
