"""What a question is, and how one is asked: columns named as people name them, conditions, a phrasing."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from herd.posttrain.synthesis import phrases as ph
from herd.posttrain.synthesis.words import literal, mention, natural, rows_of
from herd.tools.table import Column, TableFacts

MOST_GROUPS = 8
YES = {"yes": True, "no": False, "y": True, "n": False, "true": True, "false": False}


@dataclass(frozen=True)
class Step:
    """One call. `{}` in the code stands for the result of the step before it, as a literal."""

    code: str


@dataclass(frozen=True)
class Question:
    """`answer` is a sentence with `{}` for the result's text; "" where the result is told by itself."""

    kind: str
    text: str
    steps: tuple[Step, ...]
    answer: str = "{}"


@dataclass(frozen=True)
class View:
    """What builders need to know of a table: its columns by use, and quantiles of its numbers."""

    facts: TableFacts
    quantiles: dict[str, list[float]] = field(default_factory=dict)  # of number columns, at 10, 20 .. 90%

    @property
    def labels(self) -> list[str]:
        return [column.name for column in self.facts.columns]

    @property
    def numbers(self) -> list[Column]:
        return [c for c in self.facts.columns if c.kind == "number" and c.distinct > 2 and c.name in self.quantiles]

    @property
    def groups(self) -> list[Column]:
        """Columns to group by: few values, each several times."""
        limit = min(MOST_GROUPS * 3, max(2, self.facts.rows // 2))
        texts = [c for c in self.facts.columns if c.kind in ("text", "bool") and 2 <= c.distinct <= limit]
        whole = [c for c in self.numbers if c.distinct <= 8 and all(q == int(q) for q in self.quantiles[c.name])]
        return [*texts, *texts, *whole]  # a text is the usual thing to group by

    @property
    def names(self) -> list[Column]:
        """Columns that name a row."""
        return [c for c in self.facts.columns if c.kind == "text" and c.distinct > 0.6 * self.facts.rows]

    @property
    def dates(self) -> list[Column]:
        return [c for c in self.facts.columns if c.kind == "date"]


class NoPhrasing(Exception):
    """No phrasing of the kind can be said with what is given."""


@dataclass(frozen=True)
class Asking:
    """One act of asking: the table, the random stream, and which phrasings may be used."""

    view: View
    chance: random.Random
    held_out: bool

    def name(self, column: Column) -> str:
        return mention(column.name, self.view.labels, self.chance)

    def number(self, *apart: Column) -> Column | None:
        return self._one([c for c in self.view.numbers if c not in apart])

    def group(self, *apart: Column) -> Column | None:
        return self._one([c for c in self.view.groups if c not in apart])

    def _one(self, columns: Sequence[Column]) -> Column | None:
        return self.chance.choice(columns) if columns else None

    def word(self, statistic: str) -> str:
        return self.chance.choice(ph.STATISTIC[statistic])

    def say(self, *kinds: str, **slots: str) -> str:
        """A sentence of a phrasing all of whose slots are given. Raises NoPhrasing where there is none."""
        phrasings = [ph.all_phrasings()[kind] for kind in kinds]
        templates = [t for p in phrasings for t in p.of(self.held_out) if _slots(t) <= slots.keys()]
        if not templates:
            raise NoPhrasing
        noun = rows_of(self.view.facts.name, self.chance, ph.ROWS)
        return ph.expand(self.chance.choice(templates).replace("[rows]", noun), self.chance, **slots)

    def condition(self, *apart: Column) -> Condition | None:
        """A condition on a column that is none of `apart`."""
        numbers = [c for c in self.view.numbers if c not in apart]
        groups = [c for c in self.view.groups if c not in apart and values_of(c)]
        if groups and (not numbers or self.chance.random() < 0.65):
            return _is_value(self, self.chance.choice(groups))
        return _compared(self, self.chance.choice(numbers)) if numbers else None


@dataclass(frozen=True)
class Condition:
    """A filter in code, and the ways to say it that its slots allow."""

    column: Column
    code: str
    slots: dict[str, str]

    def numbered(self) -> dict[str, str]:
        """The slots of a second condition."""
        return {f"{name}2": text for name, text in self.slots.items() if name in ("cond", "has", "is")}


def values_of(column: Column) -> list[str]:
    """Values that a column is known to have, in full: an example that was cut is none."""
    return [example for example in column.examples if not example.endswith("...")]


def _slots(template: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", template))


def _is_value(ask: Asking, column: Column) -> Condition:
    value = ask.chance.choice(values_of(column))
    name = ask.name(column)
    if column.kind == "number":
        number = float(value)
        shown = f"{int(number)}"
        cond = ask.say("is_number", cat=name, val=shown)
        return Condition(column, f"df[{literal(column.name)}] == {shown}", _lower(cond) | {"has": f"{name} {shown}"})
    if column.kind == "bool" or (column.distinct == 2 and value.lower() in YES):
        wanted = YES[value.lower()]
        code = f"df[{literal(column.name)}] == {value if column.kind == 'bool' else literal(value)}"
        said, plain = ask.say("yes" if wanted else "no", cat=name, plain=natural(column.name)), natural(column.name)
        slots = _lower(said) | {
            "is": plain if wanted else f"not {plain}",
            "is_or_has": plain if wanted else f"not {plain}",
        }
        return Condition(column, code, slots | ({"has": f"{name} {value}"}))
    said = value if ask.chance.random() < 0.65 else ask.chance.choice((value.lower(), value.lower(), f'"{value}"'))
    cond = ask.say("is_value", cat=name, val=said)
    slots = {"has": ask.chance.choice((f"{name} {said}", f"{said} as {name}", f"{said} {name}")), "is": said}
    slots |= {"being": f"{name} {said}", "is_or_has": said}
    return Condition(column, f"df[{literal(column.name)}] == {literal(value)}", _lower(cond) | slots)


def _compared(ask: Asking, column: Column) -> Condition:
    sign = ask.chance.choice((">", ">", "<", "<", ">=", "<="))
    limit = _round(ask.chance.choice(ask.view.quantiles[column.name]))
    name, than = ask.name(column), f"{ask.chance.choice(ph.THAN[sign])} {limit}"
    cond = ask.say("compared", num=name, than=than)
    bare = sign in "<>" and ask.chance.random() < 0.4
    has = f"{'more' if sign == '>' else 'less'} than {limit} {name}" if bare else f"{name} {than}"
    return Condition(column, f"df[{literal(column.name)}] {sign} {limit}", _lower(cond) | {"has": has})


def _lower(cond: str) -> dict[str, str]:
    """The condition inside a sentence and at its beginning."""
    return {"cond": cond[:1].lower() + cond[1:], "Cond": cond[:1].upper() + cond[1:]}


def _round(value: float) -> str:
    """A limit as people choose one: two significant digits, whole from 10 on."""
    rounded = float(f"{value:.2g}")
    return str(int(rounded)) if rounded == int(rounded) else f"{rounded:g}"
