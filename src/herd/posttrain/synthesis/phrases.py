"""How people ask: a small grammar of phrasings for each kind of question, some of them never trained on.

A phrasing is a template of `phrases.toml`: `[a|b|]` is one of its alternatives, `{slot}` is filled by the question. A
hash decides which fifth of a kind's templates is held out; what is measured on those is measured on sentences whose
template no training example had. Words for a statistic or a comparison are vocabulary and stand in both.
"""

from __future__ import annotations

import hashlib
import random
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
HELD_OUT_SHARE = 5  # one template in so many, and one of each kind at least

ROWS = (  # what a row is called; people say what it stands for, and the table rarely does
    *("rows", "records", "entries", "lines", "cases", "observations", "items", "people", "orders", "customers"),
    *("patients", "employees", "products", "visits", "tickets", "events", "readings", "students", "cars", "trips"),
)
STATISTIC = {
    "mean": ("average", "mean", "average", "average", "avg", "mean value", "average value", "arithmetic mean"),
    "sum": ("total", "sum", "total", "total", "overall total", "combined total", "grand total", "total amount"),
    "median": ("median", "median value", "median", "midpoint (median)"),
    "min": ("minimum", "lowest", "smallest", "minimum value", "min", "lowest", "smallest recorded", "minimal"),
    "max": ("maximum", "highest", "largest", "biggest", "max", "highest", "largest recorded", "maximal"),
    "std": ("standard deviation", "standard deviation", "std"),
}
THAN = {  # every number after it: "above 30"
    ">": ("above", "over", "greater than", "more than", "higher than", "larger than", ">", "exceeding"),
    "<": ("below", "under", "less than", "lower than", "smaller than", "<", "beneath"),
    ">=": ("of at least", "at least", "greater than or equal to", ">=", "no less than", "not below"),
    "<=": ("of at most", "at most", "no more than", "<=", "less than or equal to", "not above"),
}
SIGNS = {"/": "divided by", "-": "minus", "+": "plus"}


@dataclass(frozen=True)
class Phrasings:
    """Templates of one kind of question."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def of(self, held_out: bool) -> tuple[str, ...]:
        return self.held_out if held_out else self.train


@cache
def all_phrasings() -> dict[str, Phrasings]:
    """The phrasings of every kind, by name."""
    text = files("herd.posttrain.synthesis").joinpath("phrases.toml").read_text(encoding="utf-8")
    return {kind: _split(templates) for kind, templates in tomllib.loads(text).items()}


def _split(templates: list[str]) -> Phrasings:
    """Templates that share a sentence stay together; what is held out is chosen by hash."""
    families = _families(templates)
    order = sorted(families, key=lambda family: hashlib.sha256("".join(sorted(family)).encode()).digest())
    held_out: list[str] = []
    for family in order:
        if len(held_out) < max(1, len(templates) // HELD_OUT_SHARE) and len(held_out) + len(family) < len(templates):
            held_out += family
    return Phrasings(tuple(t for t in templates if t not in held_out), tuple(held_out))


def _families(templates: list[str]) -> list[list[str]]:
    """Templates joined by the sentences they have in common, case and punctuation aside."""
    families: list[tuple[set[str], list[str]]] = []
    for template in templates:
        said, members = sentences(template), [template]
        for family in [family for family in families if family[0] & said]:
            families.remove(family)
            said, members = said | family[0], family[1] + members
        families.append((said, members))
    return [members for _, members in families]


def sentences(template: str) -> set[str]:
    """Every sentence a template can make, slots unfilled, in lower case and without punctuation."""
    found = re.search(r"\[([^\[\]]*\|[^\[\]]*)\]", template)
    if found is None:
        return {" ".join(re.sub(r"[^\w{}\s]", "", template).lower().split())}
    start, end = template[: found.start()], template[found.end() :]
    return set().union(*(sentences(start + option + end) for option in found[1].split("|")))


def expand(template: str, chance: random.Random, **slots: str) -> str:
    """One sentence of a template. Slots are filled last, so that brackets in a column's name stay as they are."""
    while (found := _CHOICE.search(template)) is not None:
        options = found[1].split("|")
        template = template[: found.start()] + chance.choice(options) + template[found.end() :]
    text = re.sub(r"\{(\w+)\}", lambda slot: slots[slot[1]], template)
    text = re.sub(r" {2,}", " ", text).strip()
    return text[:1].upper() + text[1:] if chance.random() < 0.85 else text
