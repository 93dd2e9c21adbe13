"""Questions about a table with the code that answers them: one builder for each kind.

A builder draws columns, values and a phrasing, and returns the question with its steps, or None where the table has
no columns for it. Nothing is executed here: the gold value is what running the steps gives (`dialogs.py`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from herd.posttrain.synthesis import phrases as ph
from herd.posttrain.synthesis.words import literal, mention, natural, plural, rows_of
from herd.tools.table import Column, TableFacts

MOST_GROUPS = 12
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
        return self.chance.choice(ph.STATISTIC[statistic].of(self.held_out))

    def say(self, *phrasings: ph.Phrasings, **slots: str) -> str:
        """A sentence of a phrasing all of whose slots are given."""
        templates = [t for p in phrasings for t in p.of(self.held_out) if _slots(t) <= slots.keys()]
        if self.held_out:  # a kind's held-out phrasings weigh the same, however many of them the table allows
            templates = sorted(set(templates))
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
        cond = ask.say(ph.IS_NUMBER, cat=name, val=shown)
        return Condition(column, f"df[{literal(column.name)}] == {shown}", _lower(cond) | {"has": f"{name} {shown}"})
    if column.kind == "bool" or (column.distinct == 2 and value.lower() in YES):
        wanted = YES[value.lower()]
        code = f"df[{literal(column.name)}] == {value if column.kind == 'bool' else literal(value)}"
        said, plain = ask.say(ph.YES if wanted else ph.NO, cat=name, plain=natural(column.name)), natural(column.name)
        slots = _lower(said) | {
            "is": plain if wanted else f"not {plain}",
            "is_or_has": plain if wanted else f"not {plain}",
        }
        return Condition(column, code, slots | ({"has": f"{name} {value}"}))
    said = value if ask.chance.random() < 0.75 else ask.chance.choice((value.lower(), f'"{value}"', f"'{value}'"))
    cond = ask.say(ph.IS_VALUE, cat=name, val=said)
    slots = {"has": ask.chance.choice((f"{name} {said}", f"{said} as {name}", f"{said} {name}")), "is": said}
    slots |= {"being": f"{name} {said}", "is_or_has": said}
    return Condition(column, f"df[{literal(column.name)}] == {literal(value)}", _lower(cond) | slots)


def _compared(ask: Asking, column: Column) -> Condition:
    sign = ask.chance.choice((">", ">", "<", "<", ">=", "<="))
    limit = _round(ask.chance.choice(ask.view.quantiles[column.name]))
    name, than = ask.name(column), f"{ask.chance.choice(ph.THAN[sign].of(ask.held_out))} {limit}"
    cond = ask.say(ph.COMPARED, num=name, than=than)
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


# ---- the kinds ----


def aggregate(ask: Asking) -> Question | None:
    column = ask.number()
    if column is None:
        return None
    how = ask.chance.choice(("mean", "mean", "sum", "sum", "median", "min", "max", "std"))
    phrasings = (ph.AGGREGATE, ph.HOW_MUCH) if how == "sum" and ask.chance.random() < 0.5 else (ph.AGGREGATE,)
    text = ask.say(*phrasings, stat=ask.word(how), col=ask.name(column))
    answer = f"The {_plain(how)} of {natural(column.name)} is {{}}."
    return Question("aggregate", text, (Step(f"df[{literal(column.name)}].{how}()"),), answer)


def filtered(ask: Asking) -> Question | None:
    column = ask.number()
    where = ask.condition(column) if column else None
    if column is None or where is None:
        return None
    how = ask.chance.choice(("mean", "mean", "sum", "sum", "median", "min", "max"))
    phrasings = (ph.FILTERED, ph.FILTERED_SUM) if how == "sum" and ask.chance.random() < 0.5 else (ph.FILTERED,)
    text = ask.say(*phrasings, stat=ask.word(how), col=ask.name(column), **where.slots)
    code = f"df[{where.code}][{literal(column.name)}].{how}()"
    return Question("filtered", text, (Step(code),), f"The {_plain(how)} of {natural(column.name)} there is {{}}.")


def count(ask: Asking) -> Question | None:
    return Question("count", ask.say(ph.COUNT), (Step("len(df)"),), "There are {} rows.")


def count_where(ask: Asking) -> Question | None:
    where = ask.condition()
    if where is None:
        return None
    text = ask.say(ph.COUNT_WHERE, **where.slots)
    return Question("count-where", text, (Step(f"len(df[{where.code}])"),), "There are {} of them.")


def count_two(ask: Asking) -> Question | None:
    first = ask.condition()
    second = ask.condition(first.column) if first else None
    if first is None or second is None:
        return None
    text = ask.say(ph.COUNT_TWO, **first.slots, **second.numbered())
    code = f"len(df[({first.code}) & ({second.code})])"
    return Question("count-two", text, (Step(code),), "There are {} that meet both conditions.")


def filtered_two(ask: Asking) -> Question | None:
    column = ask.number()
    first = ask.condition(column) if column else None
    second = ask.condition(column, first.column) if column and first else None
    if column is None or first is None or second is None:
        return None
    how = ask.chance.choice(("mean", "sum", "max", "min"))
    text = ask.say(ph.FILTERED_TWO, stat=ask.word(how), col=ask.name(column), **first.slots, **second.numbered())
    code = f"df[({first.code}) & ({second.code})][{literal(column.name)}].{how}()"
    return Question("filtered-two", text, (Step(code),), f"The {_plain(how)} under both conditions is {{}}.")


def group(ask: Asking) -> Question | None:
    column, by = ask.number(), ask.group()
    if column is None or by is None or by == column or by.distinct > MOST_GROUPS:
        return None
    how = ask.chance.choice(("mean", "mean", "sum", "sum", "median", "min", "max"))
    text = ask.say(ph.GROUP, stat=ask.word(how), col=ask.name(column), cat=ask.name(by))
    code = f"df.groupby({literal(by.name)})[{literal(column.name)}].{how}()"
    return Question(
        "group", text, (Step(code),), f"{_capital(_plain(how))} of {natural(column.name)} by {natural(by.name)}: {{}}."
    )


def group_count(ask: Asking) -> Question | None:
    by = ask.group()
    if by is None or by.distinct > MOST_GROUPS:
        return None
    text = ask.say(ph.GROUP_COUNT, cat=ask.name(by))
    return Question(
        "group-count", text, (Step(f"df[{literal(by.name)}].value_counts()"),), "Rows by " + natural(by.name) + ": {}."
    )


def group_best(ask: Asking) -> Question | None:
    column, by = ask.number(), ask.group()
    if column is None or by is None or by == column:
        return None
    how, high = ask.chance.choice(("mean", "mean", "sum")), ask.chance.random() < 0.65
    best = ask.chance.choice(("highest", "largest", "greatest", "biggest") if high else ("lowest", "smallest"))
    most = ask.chance.choice(("most", "highest", "largest") if high else ("least", "lowest"))
    phrasings = ph.GROUP_BEST_SUM if how == "sum" and ask.chance.random() < 0.5 else ph.GROUP_BEST
    text = ask.say(phrasings, stat=ask.word(how), col=ask.name(column), cat=ask.name(by), best=best, most=most)
    code = f"df.groupby({literal(by.name)})[{literal(column.name)}].{how}().{'idxmax' if high else 'idxmin'}()"
    return Question(
        "group-best", text, (Step(code),), f"It is {{}}, with the {best} {_plain(how)} of {natural(column.name)}."
    )


def group_most_rows(ask: Asking) -> Question | None:
    by = ask.group()
    if by is None:
        return None
    high = ask.chance.random() < 0.75
    text = ask.say(
        ph.GROUP_MOST_ROWS, cat=ask.name(by), most="most" if high else "least", highest="highest" if high else "lowest"
    )
    code = f"df[{literal(by.name)}].value_counts().{'idxmax' if high else 'idxmin'}()"
    return Question(
        "most-common", text, (Step(code),), f"{{}} is the {'most' if high else 'least'} common {natural(by.name)}."
    )


def distinct(ask: Asking) -> Question | None:
    by = ask.chance.choice([*ask.view.groups, *ask.view.names] or [None])
    if by is None:
        return None
    name = ask.name(by) if ask.chance.random() < 0.4 else plural(natural(by.name))
    if ask.chance.random() < 0.2 and by.distinct <= MOST_GROUPS:
        text, code = ask.say(ph.VALUES, cat=name), f"list(df[{literal(by.name)}].dropna().unique())"
        return Question("values", text, (Step(code),), "The values are {}.")
    code = f"df[{literal(by.name)}].nunique()"
    return Question(
        "distinct",
        ask.say(ph.DISTINCT, cat=name),
        (Step(code),),
        f"There are {{}} different values of {natural(by.name)}.",
    )


def correlation(ask: Asking) -> Question | None:
    first = ask.number()
    second = ask.number(first) if first else None
    if first is None or second is None:
        return None
    text = ask.say(ph.CORRELATION, num=ask.name(first), num2=ask.name(second))
    code = f"df[{literal(first.name)}].corr(df[{literal(second.name)}])"
    return Question("correlation", text, (Step(code),), "The correlation is {}.")


def missing(ask: Asking) -> Question | None:
    draw = ask.chance.random()
    if draw < 0.12:
        return Question(
            "missing",
            ask.say(ph.MISSING_TOTAL),
            (Step("df.isna().sum().sum()"),),
            "{} values are missing in the table.",
        )
    gaps = [c for c in ask.view.facts.columns if c.missing]
    if draw < 0.24 and len({c.missing for c in gaps}) == len(gaps) and gaps:
        return Question(
            "missing",
            ask.say(ph.MISSING_MOST),
            (Step("df.isna().sum().idxmax()"),),
            "The column {} has the most missing values.",
        )
    column = ask.chance.choice(gaps if gaps and ask.chance.random() < 0.6 else ask.view.facts.columns)
    text, code = ask.say(ph.MISSING, any=ask.name(column)), f"df[{literal(column.name)}].isna().sum()"
    return Question("missing", text, (Step(code),), f"{{}} values of {natural(column.name)} are missing.")


def row_best(ask: Asking) -> Question | None:
    column = ask.number()
    named = ask.view.names or [c for c in ask.view.facts.columns if c.kind == "text" and c.distinct > 5]
    if column is None or not named:
        return None
    name, high = ask.chance.choice(named), ask.chance.random() < 0.65
    best = ask.chance.choice(("highest", "largest", "biggest", "most") if high else ("lowest", "smallest", "least"))
    text = ask.say(ph.ROW_BEST, id=ask.name(name), num=ask.name(column), best=best)
    code = f"df.loc[df[{literal(column.name)}].{'idxmax' if high else 'idxmin'}(), {literal(name.name)}]"
    return Question("row-best", text, (Step(code),), f"It is {{}}, with the {best} {natural(column.name)}.")


def top(ask: Asking) -> Question | None:
    column = ask.number()
    if column is None:
        return None
    k, high = ask.chance.choice((2, 3, 3, 4, 5, 5, 10)), ask.chance.random() < 0.7
    best = ask.chance.choice(("highest", "largest", "biggest") if high else ("lowest", "smallest"))
    slots = {"k": str(k), "num": ask.name(column), "best": best}
    function = "nlargest" if high else "nsmallest"
    named = ask.view.names
    if named and ask.chance.random() < 0.6:
        name = ask.chance.choice(named)
        text = ask.say(
            ph.TOP_NAMED, id=plural(natural(name.name)) if ask.chance.random() < 0.6 else ask.name(name), **slots
        )
        code = f"df.{function}({k}, {literal(column.name)})[[{literal(name.name)}, {literal(column.name)}]]"
        return Question("top", text, (Step(code),), f"The {k} {best}: {{}}.")
    code = f"df[{literal(column.name)}].{function}({k}).tolist()"
    return Question("top", ask.say(ph.TOP, **slots), (Step(code),), f"The {k} {best} values are {{}}.")


def share(ask: Asking) -> Question | None:
    where = ask.condition()
    if where is None:
        return None
    frame = ask.say(ph.SHARE, **{name: f"<{name}>" for name in where.slots})
    percent = "percent" in frame.lower()  # before the slots are filled: a column may be called percent
    text = re.sub(r"<(\w+)>", lambda slot: where.slots[slot[1]], frame)
    code = f"({where.code}).mean()" + (" * 100" if percent else "")
    return Question("share", text, (Step(code),), "It is {} percent." if percent else "The share is {}.")


def spread(ask: Asking) -> Question | None:
    column = ask.number()
    if column is None:
        return None
    text, label = ask.say(ph.RANGE, col=ask.name(column)), f"df[{literal(column.name)}]"
    return Question("range", text, (Step(f"{label}.max() - {label}.min()"),), "The range is {}.")


def above_mean(ask: Asking) -> Question | None:
    column = ask.number()
    if column is None:
        return None
    text, label = ask.say(ph.ABOVE_MEAN, col=ask.name(column)), f"df[{literal(column.name)}]"
    return Question("above-mean", text, (Step(f"len(df[{label} > {label}.mean()])"),), "{} are above the mean.")


def derived(ask: Asking) -> Question | None:
    first = ask.number()
    second = ask.number(first) if first else None
    if first is None or second is None:
        return None
    a, b = f"df[{literal(first.name)}]", f"df[{literal(second.name)}]"
    if ask.chance.random() < 0.5:
        text = ask.say(ph.PRODUCT, num=ask.name(first), num2=ask.name(second))
        return Question("derived", text, (Step(f"({a} * {b}).sum()"),), "The total is {}.")
    label, sign = ask.chance.choice((("ratio", "/"), ("difference", "-"), ("total", "+")))
    text = ask.say(ph.NEW_COLUMN, new=label, num=ask.name(first), num2=ask.name(second), sign=ph.SIGNS[sign])
    code = f'df["{label}"] = {a} {sign} {b}\ndf["{label}"].mean()'
    return Question("derived", text, (Step(code),), f"The new column {label} has a mean of {{}}.")


def quantile(ask: Asking) -> Question | None:
    column, p = ask.number(), ask.chance.choice((10, 25, 75, 80, 90, 95))
    if column is None:
        return None
    text = ask.say(ph.QUANTILE, col=ask.name(column), p=str(p))
    return Question(
        "quantile", text, (Step(f"df[{literal(column.name)}].quantile({p / 100:g})"),), f"The {p}th percentile is {{}}."
    )


def dates(ask: Asking) -> Question | None:
    if not ask.view.dates:
        return None
    column = ask.chance.choice(ask.view.dates)
    label, name = f"df[{literal(column.name)}]", ask.name(column)
    if ask.chance.random() < 0.5:
        first = ask.chance.random() < 0.5
        word = ask.chance.choice(
            ("earliest", "first", "oldest") if first else ("latest", "last", "most recent", "newest")
        )
        text = ask.say(ph.EARLIEST, date=name, first=word)
        return Question(
            "dates",
            text,
            (Step(f"{label}.{'min' if first else 'max'}()"),),
            f"The {word} {natural(column.name)} is {{}}.",
        )
    year, month = _period(column, ask.chance)
    if ask.chance.random() < 0.5:
        period, code = str(year), f"{label}.dt.year == {year}"
    else:
        period, code = f"{MONTHS[month - 1]} {year}", f"({label}.dt.year == {year}) & ({label}.dt.month == {month})"
    text = ask.say(ph.IN_PERIOD, date=name, period=period)
    return Question("dates", text, (Step(f"len(df[{code}])"),), f"There are {{}} in {period}.")


MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


def _period(column: Column, chance: random.Random) -> tuple[int, int]:
    first, last = (tuple(map(int, example[:7].split("-"))) for example in column.examples[:2])
    start, end = first[0] * 12 + first[1] - 1, last[0] * 12 + last[1] - 1
    at = chance.randint(start, max(start, end))
    return at // 12, at % 12 + 1


def shape(ask: Asking) -> Question | None:
    if ask.chance.random() < 0.7:
        return Question("columns", ask.say(ph.COLUMNS), (Step("len(df.columns)"),), "The table has {} columns.")
    return Question("columns", ask.say(ph.COLUMN_NAMES), (Step("list(df.columns)"),), "The columns are {}.")


def two_steps(ask: Asking) -> Question | None:
    """Find a group first, then look into it: the second call uses what the first one gave."""
    column, by = ask.number(), ask.group()
    other = ask.number(column) if column else None
    if column is None or by is None or other is None or by in (column, other):
        return None
    high = ask.chance.random() < 0.7
    best, most = ("highest", "most") if high else ("lowest", "least")
    inner, outer = ask.chance.choice(("mean", "sum")), ask.chance.choice(("mean", "sum", "max"))
    pick = "idxmax" if high else "idxmin"
    slots = {"cat": ask.name(by), "col": ask.name(column), "most": most, "best": best}
    if ask.chance.random() < 0.4:
        first, text = (
            f"df[{literal(by.name)}].value_counts().{pick}()",
            ask.say(ph.OF_MOST_ROWS, stat=ask.word(outer), **slots),
        )
    else:
        first = f"df.groupby({literal(by.name)})[{literal(other.name)}].{inner}().{pick}()"
        text = ask.say(ph.OF_BEST, stat=ask.word(outer), inner=ask.word(inner), other=ask.name(other), **slots)
    second = f"df[df[{literal(by.name)}] == {{}}][{literal(column.name)}].{outer}()"
    return Question(
        "two-steps", text, (Step(first), Step(second)), f"The {_plain(outer)} of {natural(column.name)} there is {{}}."
    )


Builder = Callable[[Asking], "Question | None"]
KINDS: tuple[tuple[Builder, int], ...] = (  # and how often each is asked, relative to the others
    (aggregate, 10),
    (filtered, 12),
    (count, 2),
    (count_where, 11),
    (count_two, 9),
    (filtered_two, 4),
    (group, 8),
    (group_count, 4),
    (group_best, 8),
    (group_most_rows, 5),
    (distinct, 5),
    (correlation, 4),
    (missing, 6),
    (row_best, 6),
    (top, 5),
    (share, 4),
    (spread, 2),
    (above_mean, 2),
    (derived, 3),
    (quantile, 2),
    (dates, 6),
    (shape, 2),
    (two_steps, 5),
)


def _plain(how: str) -> str:
    return {"sum": "total", "min": "minimum", "max": "maximum", "std": "standard deviation"}.get(how, how)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def draw_question(view: View, chance: random.Random, held_out: bool) -> Question:
    """A question about a table, of a kind that its columns allow."""
    ask = Asking(view, chance, held_out)
    builders, weights = zip(*KINDS, strict=True)
    while True:
        question = chance.choices(builders, weights)[0](ask)
        if question is not None:
            return question
