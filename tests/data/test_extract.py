import time

import pytest

from herd.data.extract import decode, extract

PAGE = """<html><head><title>T</title><style>p{}</style><script>var tracker = 1;</script></head><body>
<div class="related" role="navigation"><ul><li><a href="a">index</a></li><li><a href="b">next</a></li></ul></div>
<nav><a href="/">Home of navigation</a></nav>
<main><h1>Sorting lists<a class="headerlink" href="#s">¶</a></h1>
<p>Use <code>sorted</code> to get a new list, or <a href="l">list.sort</a> to sort in place &amp; save memory.</p>
<pre>def f(x):
    if x:
        return <span class="k">None</span>
</pre>
<table><tr><th>Name</th><th>Cost</th></tr><tr><td><p>merge</p></td><td>n log n</td></tr></table>
<p>Energy is <img alt="E = mc^2" src="e.png"> and <script type="math/tex">a^2+b^2</script> too.</p>
<p>The root <math><mi>x</mi><annotation encoding="application/x-tex">\\sqrt{x}</annotation></math> is real.</p>
</main>
<aside>Popular posts</aside><footer>Copyright 2024</footer></body></html>"""


def html(text: str) -> str:
    return extract(text.encode(), "html").text


def test_indentation_of_code_is_kept_and_marked_as_verbatim() -> None:
    page = extract(PAGE.encode(), "html")
    assert "def f(x):\n    if x:\n        return None\n" in page.text
    lines = page.text.split("\n")
    assert [lines[first:last] for first, last in page.verbatim] == [["def f(x):", "    if x:", "        return None"]]


def test_navigation_scripts_and_footers_are_dropped() -> None:
    text = html(PAGE)
    for gone in ("index", "Home", "tracker", "Popular", "Copyright", "¶", "p{}"):
        assert gone not in text


def test_headings_and_links_in_sentences_are_plain_text() -> None:
    text = html(PAGE)
    assert text.startswith(
        "Sorting lists\n\nUse sorted to get a new list, or list.sort to sort in place & save memory.\n"
    )


def test_tables_become_rows() -> None:
    assert "Name | Cost\nmerge | n log n\n" in html(PAGE)


def test_maths_keeps_its_source() -> None:
    text = html(PAGE)
    assert "E = mc^2" in text and "a^2+b^2" in text and "\\sqrt{x}" in text


def test_a_list_of_links_goes_with_its_heading_but_a_cross_reference_stays() -> None:
    links = "".join(f"<li><a href='{n}'>Chapter {n}</a></li>" for n in range(9))
    text = html(
        f"<body><h2>Contents</h2><ul>{links}</ul><h2>Reading</h2><p>{'A sentence of some length. ' * 5}</p>"
        f"<p>See also</p><p><a href='x'>Writing files</a></p><p>{'Another sentence here. ' * 5}</p></body>"
    )
    assert "Chapter" not in text and "Contents" not in text
    assert "Reading" in text and "Writing files" in text


def test_code_with_line_numbers_and_line_break_elements() -> None:
    text = html("<pre><span class='lineno'>1</span>a = 1<br>if a:<br>    b = 2</pre>")
    assert text == "a = 1\nif a:\n    b = 2\n"


@pytest.mark.parametrize("nested", ["<div>", "<ul><li>", "<p><b>", "<table><td>", "<div></ul>", "<DIV\n>"])
def test_hostile_depth_takes_neither_time_nor_the_page_before_it(nested: str) -> None:
    start = time.monotonic()
    page = extract(f"<p>{'A real paragraph. ' * 9}</p>{nested * 100_000}deep".encode(), "html")
    assert page.text.startswith("A real paragraph.")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("broken", "left"),
    [
        ("", ""),
        ("<", ""),
        ("<pre>", ""),
        ("<td>x", "x\n"),
        ("<!doctype html>", ""),
        ("<a><table><p>", ""),
        ("&#0;&#xffffff;", ""),
        ("<table><tr><td>x<p>y", "x y\n"),
        ("<p>one<pre>two</p>three", "one\n\ntwothree\n"),
    ],
)
def test_of_broken_pages_the_text_is_kept(broken: str, left: str) -> None:
    assert html(broken) == left


def test_signs_of_a_script_inside_a_script_do_not_shift_the_blocks() -> None:
    page = "<p>First.</p><script><!--<script></script> a < b --></script><p>1 &lt; 2 &amp;lt;</p><h2>Last</h2>"
    text = html(page)
    assert text.startswith("First.") and text.endswith("\n\n1 < 2 &lt;\n\nLast\n")


def test_spans_of_highlighted_code_leave_their_text_as_it_is() -> None:
    code = '<span></span><span class="k">if</span> <span class="n">x</span> <span class="o">&lt;</span> 2:'
    page = f'<p>Call <code><span class="pre">f()</span></code>:</p><pre>{code}\n    <span class="k">pass</span>\n</pre>'
    assert html(page) == "Call f():\n\nif x < 2:\n    pass\n"


def test_markdown_loses_its_markers_and_keeps_code() -> None:
    source = (
        "# Title #1\n\n[![build](b.svg)](ci)\n\nSome **bold** and _soft_ [link](http://x) with `snake_case_name`.\n\n"
        "* item one\n\n> quoted\n\n```python\n# a comment\nx = a * b * c\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    page = extract(source.encode(), "markdown")
    assert page.text.startswith("Title #1\n\nSome bold and soft link with snake_case_name.\n\nitem one\n\nquoted\n")
    assert "# a comment\nx = a * b * c" in page.text
    assert "```" not in page.text and "|---" not in page.text and "build" not in page.text
    lines = page.text.split("\n")
    assert [lines[a:b] for a, b in page.verbatim] == [["# a comment", "x = a * b * c"]]


def test_names_with_underscores_and_products_survive_markdown() -> None:
    assert extract(b"call my_long_name or a*b*c or __init__ now\n", "markdown").text.count("my_long_name or a*b*c") == 1


@pytest.mark.parametrize(
    ("content", "media", "text", "encoding"),
    [
        ("é".encode(), "text", "é", "utf-8"),
        ("# coding: latin-1\né".encode("latin-1"), "python", "# coding: latin-1\né", "iso8859-1"),
        (b"caf\xe9 \x93quoted\x94", "text", "café “quoted”", "cp1252"),
        ("<meta charset='euc-kr'>한".encode("euc-kr"), "html", "<meta charset='euc-kr'>한", "euc_kr"),
        ("é".encode("utf-16"), "text", "é", "utf-16"),
    ],
)
def test_encodings(content: bytes, media: str, text: str, encoding: str) -> None:
    assert decode(content, media) == (text, encoding)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(UnicodeError):
        extract(b"\x7fELF\0\0", "text")
