"""The benchmark's scores of extraction can be bad: they follow what an extractor does, on pages with known markup."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

from herd.data.extract import extract

PAGE = rb"""<body><div class="related" role="navigation"><a href="n">Next: tuples</a></div>
<div class="body" role="main">
<h1>Lists</h1><p>A list is an ordered collection of values, and it can grow and shrink in place.</p>
<div class="highlight"><pre><span class="k">for</span> x in y:
    print(x)
</pre></div><p>It costs <span class="math">\(n^2\)</span> steps.</p></div>
<div class="sphinxsidebar"><a href="t">All the topics</a></div></body>"""


@pytest.fixture(scope="module")
def scoring() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks/curation/extraction.py"
    spec = importlib.util.spec_from_file_location("extraction_benchmark", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_our_extractor_keeps_all_and_leaks_nothing(scoring: ModuleType) -> None:
    scores = scoring.score([PAGE], lambda page: extract(page, "html").text)
    assert scores == {
        "code_lines": 1, "indentation": 1, "maths": 1, "paragraphs": 1, "navigation_leaked": 0, "pages": 1,
    }  # fmt: skip


def test_losses_and_leaks_show(scoring: ModuleType) -> None:
    flattened = "Next: tuples\nfor x in y:\nprint(x)\nAll the topics"
    scores = scoring.score_texts([PAGE], [flattened])
    assert scores["code_lines"] == 1 and scores["indentation"] == 0
    assert scores["maths"] == scores["paragraphs"] == 0 and scores["navigation_leaked"] == 1


def test_pages_of_unknown_markup_do_not_count(scoring: ModuleType) -> None:
    scores = scoring.score([b"<p>A page of a generator that the rules know nothing about.</p>"], lambda page: "")
    assert scores["pages"] == 0 and math.isnan(scores["paragraphs"])


def test_pages_survive_the_file_between_the_sides(scoring: ModuleType, tmp_path: Path) -> None:
    pages = [PAGE, "<p>é\u2028\r\n</p>".encode()]
    scoring.write_pages(tmp_path / "pages.jsonl", pages)
    assert scoring.read_pages(tmp_path / "pages.jsonl") == pages
    assert scoring.measure(lambda page: page.decode() * 100, pages) > 0
