"""The funnel of curation: its books as values that the report and the terminal share, and its picture as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from herd.console import human_bytes

# What each step did, in plain words, in the past tense: the bars beside them show what was left afterwards.
STEPS = {
    "blocklist": "listed sites dropped",
    "extract": "text extracted",
    "pii": "personal data masked",
    "language": "other languages dropped",
    "domains": "unsafe sites dropped",
    "url": "older copies of a page dropped",
    "exact": "equal texts dropped",
    "near": "near-duplicates dropped",
    "lines": "repeated lines taken out",
    "heuristics": "rules of quality applied",
    "contamination": "benchmark texts dropped",
    "outliers": "unusual texts dropped",
    "quality": "lowest scores dropped",
    "mix": "topics capped",
}
_INK, _MUTED, _FAINT, _WASH = "#1f1e1c", "#6a6760", "#c9c5bc", "#f3f1ec"  # the report's colours on light paper
_DOCUMENTS, _BYTES, _GONE, _PAPER = "#4a4843", "#0072b2", "#c24f00", "#fdfcfa"
_MARKUP = "#e8c9b3"  # bytes that went with the markup: a page lost its tags, not its text
_SERIF = ["Iowan Old Style", "Palatino Linotype", "Palatino", "P052", "Georgia", "DejaVu Serif"]
_SANS = ["Helvetica Neue", "Segoe UI", "Liberation Sans", "Arial", "DejaVu Sans"]


class Rule(NamedTuple):
    """What one rule of a step did: documents dropped, documents changed and let pass, changes, bytes gone."""

    name: str
    documents: int
    changed: int
    changes: int
    bytes: int

    @property
    def said(self) -> str:
        return self.name.replace("_", " ")


class Level(NamedTuple):
    """What is left after a step; the first, with no step, is what was read. `dropped` counts documents."""

    step: str
    said: str
    documents: int
    bytes: int
    dropped: int
    rules: tuple[Rule, ...]


def plain_name(step: str) -> str:
    """A step in plain words."""
    return STEPS.get(step, step.replace("_", " "))


def levels(books: Mapping[str, Any]) -> list[Level]:
    """The funnel of `funnel.json`, top to bottom; rules that dropped the most come first.

    Bytes as read are those of the files, from the first step on those of the text.
    """
    steps = books["steps"]
    if not steps:
        return []
    found = [Level("", "as read", steps[0]["documents_in"], steps[0]["bytes_in"], 0, ())]
    after = [*(step["bytes_in"] for step in steps[1:]), books["kept"]["bytes"]]
    for step, size in zip(steps, after, strict=True):
        rules = [
            Rule(name, c["documents"], c.get("documents_changed", 0), c.get("changes", 0), c["bytes"])
            for name, c in step["rules"].items()
        ]
        rules.sort(key=lambda rule: (-rule.documents, -rule.changed, rule.name))
        left = step["documents_in"] - step["documents_dropped"]
        found.append(Level(step["step"], plain_name(step["step"]), left, size, step["documents_dropped"], tuple(rules)))
    return found


def deed(rule: Rule) -> str:
    """What a rule did, as a person says it: 12 documents, 4.1 kB."""
    parts = []
    if rule.documents:
        parts.append(f"{count(rule.documents, 'document')}, {human_bytes(rule.bytes)}")
    if rule.changed:
        lines = f"{count(rule.changes, 'change')} in " if rule.changes else "changed "
        size = f", {human_bytes(rule.bytes)}" if not rule.documents and rule.bytes else ""
        parts.append(f"{lines}{count(rule.changed, 'document')}{size}")
    return "; ".join(parts) or "nothing"


def count(number: int, thing: str) -> str:
    """A number of things, one of them in the singular."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def warnings(books: Mapping[str, Any]) -> list[str]:
    """Sentences about steps that dropped everything they were given, and rules that never fired.

    The latter are what `funnel.json` lists as `idle_rules`: a step, or step.rule.
    """
    exhausted = [s["step"] for s in books["steps"] if 0 < s["documents_in"] == s["documents_dropped"]]
    said = [f"The step '{name}' ({plain_name(name)}) dropped every document it was given." for name in exhausted]
    by_step: dict[str, list[str]] = {}
    for name in books.get("idle_rules", ()):
        step, _, rule = name.partition(".")
        by_step.setdefault(step, []).append(rule.replace("_", " "))
    for step, rules in by_step.items():
        named = ", ".join(filter(None, rules))
        said.append(f"Never fired in the step '{step}': {named}." if named else f"The step '{step}' dropped nothing.")
    return said


def draw(books: Mapping[str, Any], title: str, picture: Path) -> None:
    """Draw the funnel into a PNG: documents to the left, bytes to the right, what each step took in orange."""
    import matplotlib
    from matplotlib.figure import Figure

    found = levels(books)
    settings = {"text.parse_math": False, "font.family": "sans-serif", "font.sans-serif": _SANS, "font.size": 9.5}
    with matplotlib.rc_context(settings), _without_font_warnings():  # type: ignore[arg-type]
        figure = Figure(figsize=(11, 1.85 + 0.42 * len(found)), dpi=160, facecolor=_PAPER)
        inches = figure.get_figheight()
        axes = figure.add_axes((0.24, 0.45 / inches, 0.455, (inches - 1.65) / inches))
        axes.set_facecolor(_PAPER)
        _bars(axes, found)
        figure.text(0.03, 1 - 0.42 / inches, title, fontfamily=_SERIF, fontsize=19, color=_INK, va="center")
        figure.text(0.03, 1 - 0.76 / inches, _summary(found), fontsize=9.5, color=_MUTED, va="center")
        note = "Orange: what the step took out. Pale: what went with the markup, as a page becomes text."
        figure.text(0.03, 0.26 / inches, note, fontsize=8, color=_MUTED, va="center")
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, facecolor=_PAPER)


def _summary(found: Sequence[Level]) -> str:
    if not found:
        return "nothing was read"
    read, kept = found[0], found[-1]
    return (
        f"{kept.documents:,} of {count(read.documents, 'document')} kept ({_share(kept.documents, read.documents)}), "
        f"{human_bytes(kept.bytes)} of text out of {human_bytes(read.bytes)} read"
    )


def _bars(axes: Any, found: Sequence[Level]) -> None:
    """The rows: name, a bar to each side of the middle, numbers at their feet, and the rules that did the most."""
    most = max((level.documents for level in found), default=1) or 1
    size = max((level.bytes for level in found), default=1) or 1
    middle, ends = 0.012, {-1: "right", 1: "left"}
    before = found[0] if found else None
    for y, level in enumerate(found):
        for side, value, last, whole, colour in (
            (-1, level.documents, before.documents if before else 0, most, _DOCUMENTS),
            (1, level.bytes, before.bytes if before else 0, size, _BYTES),
        ):
            wide, was = value / whole, max(value, last) / whole
            axes.barh(y, side, 0.62, left=side * middle, color=_WASH, zorder=1)
            axes.barh(y, side * wide, 0.62, left=side * middle, color=colour, zorder=3)
            if was - wide > 1e-9:  # at least a hair, so that a small loss is seen
                lost = max(was - wide, 0.003)
                gone = _MARKUP if side > 0 and level.step == "extract" else _GONE
                axes.barh(y, side * lost, 0.62, left=side * (middle + was - lost), color=gone, zorder=4)
            text = f"{value:,}" if side < 0 else human_bytes(value)
            inside = wide > 0.25
            place = side * (middle + 0.012) if inside else side * (middle + was + 0.014)
            ink = _PAPER if inside else _MUTED
            axes.text(place, y, text, ha=ends[side], va="center", fontsize=8.5, color=ink, zorder=5)
        name = {"color": _INK if level.step else _MUTED, "fontsize": 10}
        axes.text(-1.06, y, level.said, ha="right", va="center", **name)
        axes.text(1.05, y, _foremost(level), ha="left", va="center", fontsize=8.5, color=_MUTED)
        before = level
    axes.set_ylim(len(found) - 0.45, -0.55)
    axes.set_xlim(-1 - middle, 1 + middle)
    axes.axis("off")
    head = {"va": "bottom", "fontsize": 9, "color": _MUTED}
    axes.text(-0.024, -0.62, "documents", ha="right", **head)
    axes.text(0.024, -0.62, "bytes", ha="left", **head)
    axes.text(1.05, -0.62, "what went, by rule", ha="left", **{**head, "color": _GONE})


def _foremost(level: Level, most: int = 2, wide: int = 54) -> str:
    """The rules of a step that did the most, as one short line."""
    parts = [
        f"{rule.said} {rule.documents or rule.changed:,}" for rule in level.rules if rule.documents or rule.changed
    ]
    more = f" · {len(parts) - most} more" if len(parts) > most else ""
    line = " · ".join(parts[:most]) + more
    return line if len(line) <= wide else line[: wide - 1] + "…"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def _without_font_warnings() -> Any:
    """Fonts of the list that a machine lacks are no news: the last of it comes with matplotlib."""
    import contextlib
    import logging

    @contextlib.contextmanager
    def quiet() -> Any:
        logger = logging.getLogger("matplotlib.font_manager")
        before = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)

    return quiet()
