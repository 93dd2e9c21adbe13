"""Formulas keep their source, however a page's tool writes them, and appear once."""

import pytest

from herd.data.extract import extract

MATHML = (
    "<mrow><msup><mi>x</mi><mn>2</mn></msup><mo>+</mo><msub><mi>a</mi><mi>i</mi></msub><mo>=</mo>"
    "<mfrac><mn>1</mn><msqrt><mi>n</mi></msqrt></mfrac></mrow>"
)
TEX = r"\sum_{i<n} x_i"
KATEX = (
    '<span class="katex-display"><span class="katex"><span class="katex-mathml"><math display="block"><semantics>'
    f'<mrow><mo>∑</mo></mrow><annotation encoding="application/x-tex">{TEX.replace("<", "&lt;")}</annotation>'
    '</semantics></math></span><span class="katex-html" aria-hidden="true"><span class="mord">∑xi</span></span>'
    "</span></span>"
)
WIKIPEDIA = (
    '<span class="mwe-math-element"><span class="mwe-math-mathml-inline" style="display: none;">'
    rf'<math alttext="{{\displaystyle {TEX}}}"><mi>x</mi></math></span>'
    rf'<img class="mwe-math-fallback-image-inline" alt="{{\displaystyle {TEX}}}" src="x.svg"></span>'
)
MATHJAX2 = (
    '<span class="MathJax_Preview">…</span><span class="MathJax"><nobr>∑xi</nobr></span>'
    f'<script type="math/tex">{TEX}</script>'
)
MATHJAX3 = (
    '<mjx-container class="MathJax"><svg><g></g></svg><mjx-assistive-mml><math>'
    f'<annotation encoding="application/x-tex">{TEX.replace("<", "&lt;")}</annotation></math></mjx-assistive-mml>'
    "</mjx-container>"
)
SPHINX = rf'<span class="math notranslate">\({TEX.replace("<", "&lt;")}\)</span>'
IMAGE = f'<img class="math" src="m.png" alt="{TEX}">'


@pytest.mark.parametrize("markup", [KATEX, WIKIPEDIA, MATHJAX2, MATHJAX3, SPHINX, IMAGE])
def test_tex_is_kept_once(markup: str) -> None:
    text = extract(f"<p>Consider {markup} for large n.</p>".encode(), "html").text
    assert text.count(TEX) == 1 and "∑" not in text and "…" not in text
    assert text.startswith("Consider") and text.endswith("for large n.\n")


def test_mathml_without_a_source_is_written_as_tex() -> None:
    text = extract(f"<p>Here <math>{MATHML}</math> holds.</p>".encode(), "html").text
    assert text == "Here x^2 + a_i = \\frac{1}{\\sqrt{n}} holds.\n"


def test_a_formula_of_one_letter_is_text() -> None:
    page = '<p>Let <img class="math" src="x.png" alt="X"> and <math><mi>Y</mi></math> be sets.</p>'
    assert extract(page.encode(), "html").text == "Let X and Y be sets.\n"


def test_scripts_that_are_no_formulas_are_dropped() -> None:
    page = (
        "<p>Text.</p><script type='application/json'>{\"a\": \"<p>no</p>\"}</script><script>if (a<b) x('</p>')</script>"
    )
    assert extract(page.encode(), "html").text == "Text.\n"
