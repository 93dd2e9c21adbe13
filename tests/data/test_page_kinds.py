"""Extraction by kind of page: what each variant keeps that another would not."""

import pydoc_data.topics

from herd.data.extract import Extracted, extract

PROSE = (
    "<p>The harbour was rebuilt after the flood, and the families who had left came back within two summers. "
    "Fishing began again before the new quay was finished, though the market did not open until the spring.</p>"
)
REFERENCE = """<main><h1>numpy random</h1><p>Functions of the <code>random</code> module.</p><table>
<tr><td><a href="#1"><code>random.default_rng</code></a></td><td><a href="#1"><code>seed_sequence</code></a></td></tr>
<tr><td><a href="#2"><code>random.shuffle</code></a></td><td><a href="#2"><code>permuted_axis</code></a></td></tr>
<tr><td><a href="#3"><code>random.choice</code></a></td><td><a href="#3"><code>choice_without</code></a></td></tr>
<tr><td><a href="#4"><code>random.bytes</code></a></td><td><a href="#4"><code>raw_bytes</code></a></td></tr></table>
<dl><dt><code>--seed</code> <em>N</em></dt><dd>Start from <code>N</code>.</dd></dl><pre>rng.bytes(4)</pre></main>"""
PAPER = r"""<article><h1>Sums</h1><p>By induction on <span class="math">\(n\)</span> the identity
<math display="block"><semantics><mrow><mi>S</mi></mrow><annotation encoding="application/x-tex">S_n
= \frac{n(n+1)}{2}</annotation></semantics></math> holds for every <img class="math" alt="n \ge 1" src="a.png">, so
<a href="large.png"><img alt="S_{100} = 5050" src="b.png"></a> as Gauss found.</p>
<p>The step uses <script type="math/tex; mode=display">S_{n+1} = S_n + n + 1</script> once.</p></article>"""


def html(text: str) -> Extracted:
    return extract(text.encode(), "html")


def test_kinds_follow_what_the_page_is_made_of() -> None:
    assert html(PROSE * 5).page == "article"
    assert html(REFERENCE).page == "code"
    assert html(PAPER).page == "reasoning"
    listing = pydoc_data.topics.topics["assignment"].replace("&", "&amp;").replace("<", "&lt;")
    assert html(f"{PROSE}<pre>{listing}</pre>").page == "code"
    assert extract(b"plain", "text").page == ""


def test_features_count_shares_of_the_text() -> None:
    features = html(f"<p>{'a' * 50} <a href='x'>{'b' * 25}</a></p><pre>{'c' * 25}</pre>").features
    assert features.characters in range(98, 106)
    assert abs(features.code - 0.25) < 0.02 and abs(features.links - 0.25) < 0.02
    assert html(PAPER).features.formulas >= 4 and html(REFERENCE).features.tables == 4


def test_a_reference_keeps_its_table_of_linked_names_and_short_code() -> None:
    text = html(REFERENCE).text
    assert "random.shuffle | permuted_axis\n" in text and "--seed N\n" in text and text.endswith("rng.bytes(4)\n")


def test_an_article_drops_a_table_of_links() -> None:
    rows = "".join(f"<tr><td><a href='{n}'>Our offer {n}</a></td></tr>" for n in range(9))
    text = html(f"{PROSE}<table>{rows}</table>{PROSE}").text
    assert "offer" not in text and text.count("harbour") == 2


def test_numbers_of_lines_go_from_code_but_a_table_of_results_stays() -> None:
    numbered = "\n".join(
        f"{n + 8:3d} {line}" for n, line in enumerate(["def f(x):", "    if x:", "", "        return 1"])
    )
    assert html(f"<pre>{numbered}</pre>").text == "def f(x):\n    if x:\n\n        return 1\n"
    results = "12 apples\n15 pears\n16 plums"
    assert html(f"<pre>{results}</pre>").text == results + "\n"


def test_numbers_of_lines_in_a_column_of_their_own_go() -> None:
    page = (
        "<table class='highlighttable'><tr><td class='linenos'><div class='linenodiv'><pre>1\n2</pre></div></td>"
        "<td class='code'><pre><span class='k'>for</span> x in y:\n    print(x)\n</pre></td></tr></table>"
    )
    assert html(page).text == "for x in y:\n    print(x)\n"


def test_code_whose_lines_are_elements_keeps_them_apart() -> None:
    assert html("<pre><ol><li>a = 1</li><li>  b = 2</li></ol></pre>").text == "a = 1\n  b = 2\n"


def test_displayed_equations_stand_on_lines_of_their_own() -> None:
    lines = html(PAPER).text.split("\n")
    assert r"= \frac{n(n+1)}{2}" in lines and "S_{n+1} = S_n + n + 1" in lines
    assert r"holds for every n \ge 1, so S_{100} = 5050 as Gauss found." in lines  # though the image is in a link


def test_alt_text_in_links_is_a_button_elsewhere() -> None:
    assert "Share" not in html(f"{PROSE}<p>Read on <a href='x'><img alt='Share this' src='y'></a> here.</p>").text


def test_a_list_of_citations_is_no_menu() -> None:
    titles = [
        "H. Zhang and L. Moore (2004). The optimality of a classifier that assumes too much. Proceedings of FLAIRS.",
        "J. Rennie, L. Shih and D. Karger (2003). Tackling the poor assumptions of text classifiers. ICML, 616-623.",
        "C. Manning and H. Schütze (2008). Introduction to the retrieval of information, pages 234 to 265.",
    ]
    entries = "".join(f"<li><a href='{n}'>{title}</a></li>" for n, title in enumerate(titles))
    text = html(f"{PROSE}<h2>References</h2><ul>{entries}</ul>").text
    assert "References" in text and all(title in text for title in titles)
