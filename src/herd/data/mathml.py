"""Source of a formula in MathML: its TeX annotation or alternative text, else the presentation written out as TeX."""

from __future__ import annotations

from typing import Any

_TEX = ("application/x-tex", "tex", "latex", "text/x-tex", "application/x-latex", "llatex")
_DEEPEST = 60  # formulas nest 10 deep; below this depth only the text is taken
_SILENT = frozenset(["annotation", "annotation-xml", "none", "mprescripts", "mphantom", "maligngroup", "malignmark"])
_SCRIPTS = {"msub": "_", "msup": "^", "munder": "_", "mover": "^"}
_BOTH = frozenset(["msubsup", "munderover"])


def source(math: Any) -> str:
    """TeX of a <math> element, on one line where it has no line breaks of its own."""
    for annotation in math.css("annotation"):
        if (annotation.attributes.get("encoding") or "").lower() in _TEX and (text := annotation.text().strip()):
            return text
    if text := (math.attributes.get("alttext") or "").strip():
        return text
    return " ".join(_children(math, 0).split())


def _children(node: Any, depth: int) -> str:
    return "".join(_written(child, depth) for child in _elements(node, depth))


def _elements(node: Any, depth: int) -> list[Any]:
    found, child = [], node.first_child
    while child is not None:
        if child.tag[0] not in "-!":
            found.append(child)
        child = child.next
    return found


def _group(text: str) -> str:
    return text if len(text) == 1 else "{" + text + "}"


def _written(node: Any, depth: int) -> str:
    tag = node.tag
    if tag in _SILENT:
        return ""
    if depth >= _DEEPEST or node.first_child is None:
        return " ".join(node.text().split())
    if tag in ("mi", "mn", "mo", "mtext", "ms"):
        text = " ".join(node.text().split())
        # operators are set apart as TeX sets them, and names of several letters keep apart from their neighbours
        return f" {text} " if (tag == "mi" and len(text) > 1) or (tag == "mo" and text in _RELATIONS) else text
    inside = [_written(child, depth + 1).strip() for child in _elements(node, depth)]
    if tag in _SCRIPTS and len(inside) == 2:
        return inside[0] + _SCRIPTS[tag] + _group(inside[1])
    if tag in _BOTH and len(inside) == 3:
        return f"{inside[0]}_{_group(inside[1])}^{_group(inside[2])}"
    if tag == "mfrac" and len(inside) == 2:
        return rf"\frac{{{inside[0]}}}{{{inside[1]}}}"
    if tag == "mroot" and len(inside) == 2:
        return rf"\sqrt[{inside[1]}]{{{inside[0]}}}"
    if tag == "msqrt":
        return rf"\sqrt{{{''.join(inside)}}}"
    if tag == "mtable":
        return r" \\ ".join(inside)
    if tag in ("mtr", "mlabeledtr"):
        return " & ".join(inside)
    if tag == "mfenced":
        attributes = node.attributes
        return (attributes.get("open") or "(") + ",".join(inside) + (attributes.get("close") or ")")
    return _children(node, depth + 1)


_RELATIONS = frozenset("= < > ≤ ≥ ≠ ≈ ≡ ∼ ∈ ∉ ⊂ ⊆ ∪ ∩ → ← ⇒ ⇔ ↦ + − - ± × ⋅ ∧ ∨ : ∣".split())
