"""The kinds of questions: for each a builder that draws columns, values and a phrasing.

A builder returns the question with the code that answers it, or None where the table has no columns for it. Nothing
is executed here: the gold value is what running the steps gives (`dialogs.py`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextlib import suppress

from herd.posttrain.synthesis import phrases as ph
from herd.posttrain.synthesis.questions import MOST_GROUPS, Asking, NoPhrasing, Question, Step, View
from herd.posttrain.synthesis.words import literal, natural, plural
from herd.tools.table import Column


def aggregate(ask: Asking) -> Question | None:
    column = ask.number()
    if column is None:
        return None
    how = ask.chance.choice(("mean", "mean", "sum", "sum", "median", "min", "max", "std"))
    phrasings = ("aggregate", "how_much") if how == "sum" and ask.chance.random() < 0.5 else ("aggregate",)
    text = ask.say(*phrasings, stat=ask.word(how), col=ask.name(column))
    answer = f"The {_plain(how)} of {natural(column.name)} is {{}}."
    return Question("aggregate", text, (Step(f"df[{literal(column.name)}].{how}()"),), answer)


def filtered(ask: Asking) -> Question | None:
    column = ask.number()
    where = ask.condition(column) if column else None
    if column is None or where is None:
        return None
    how = ask.chance.choice(("mean", "mean", "sum", "sum", "median", "min", "max"))
    phrasings = ("filtered", "filtered_sum") if how == "sum" and ask.chance.random() < 0.5 else ("filtered",)
    text = ask.say(*phrasings, stat=ask.word(how), col=ask.name(column), **where.slots)
    code = f"df[{where.code}][{literal(column.name)}].{how}()"
    return Question("filtered", text, (Step(code),), f"The {_plain(how)} of {natural(column.name)} there is {{}}.")


def count(ask: Asking) -> Question | None:
    return Question("count", ask.say("count"), (Step("len(df)"),), "There are {} rows.")


def count_where(ask: Asking) -> Question | None:
    where = ask.condition()
    if where is None:
        return None
    text = ask.say("count_where", **where.slots)
    return Question("count-where", text, (Step(f"len(df[{where.code}])"),), "There are {} of them.")


def count_two(ask: Asking) -> Question | None:
    first = ask.condition()
    second = ask.condition(first.column) if first else None
    if first is None or second is None:
        return None
    text = ask.say("count_two", **first.slots, **second.numbered())
    code = f"len(df[({first.code}) & ({second.code})])"
    return Question("count-two", text, (Step(code),), "There are {} that meet both conditions.")


def filtered_two(ask: Asking) -> Question | None:
    column = ask.number()
    first = ask.condition(column) if column else None
    second = ask.condition(column, first.column) if column and first else None
    if column is None or first is None or second is None:
        return None
    how = ask.chance.choice(("mean", "sum", "max", "min"))
    text = ask.say("filtered_two", stat=ask.word(how), col=ask.name(column), **first.slots, **second.numbered())
    code = f"df[({first.code}) & ({second.code})][{literal(column.name)}].{how}()"
    return Question("filtered-two", text, (Step(code),), f"The {_plain(how)} under both conditions is {{}}.")


def group(ask: Asking) -> Question | None:
    column, by = ask.number(), ask.group()
    if column is None or by is None or by == column or by.distinct > MOST_GROUPS:
        return None
    how = ask.chance.choice(("mean", "mean", "sum", "sum", "median", "min", "max"))
    text = ask.say("group", stat=ask.word(how), col=ask.name(column), cat=ask.name(by))
    code = f"df.groupby({literal(by.name)})[{literal(column.name)}].{how}()"
    return Question(
        "group", text, (Step(code),), f"{_capital(_plain(how))} of {natural(column.name)} by {natural(by.name)}: {{}}."
    )


def group_count(ask: Asking) -> Question | None:
    by = ask.group()
    if by is None or by.distinct > MOST_GROUPS:
        return None
    text = ask.say("group_count", cat=ask.name(by))
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
    phrasings = "group_best_sum" if how == "sum" and ask.chance.random() < 0.5 else "group_best"
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
        "group_most_rows", cat=ask.name(by), most="most" if high else "least", highest="highest" if high else "lowest"
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
        text, code = ask.say("values", cat=name), f"list(df[{literal(by.name)}].dropna().unique())"
        return Question("values", text, (Step(code),), "The values are {}.")
    code = f"df[{literal(by.name)}].nunique()"
    return Question(
        "distinct",
        ask.say("distinct", cat=name),
        (Step(code),),
        f"There are {{}} different values of {natural(by.name)}.",
    )


def correlation(ask: Asking) -> Question | None:
    first = ask.number()
    second = ask.number(first) if first else None
    if first is None or second is None:
        return None
    text = ask.say("correlation", num=ask.name(first), num2=ask.name(second))
    code = f"df[{literal(first.name)}].corr(df[{literal(second.name)}])"
    return Question("correlation", text, (Step(code),), "The correlation is {}.")


def missing(ask: Asking) -> Question | None:
    draw = ask.chance.random()
    if draw < 0.12:
        return Question(
            "missing",
            ask.say("missing_total"),
            (Step("df.isna().sum().sum()"),),
            "{} values are missing in the table.",
        )
    gaps = [c for c in ask.view.facts.columns if c.missing]
    if draw < 0.24 and len({c.missing for c in gaps}) == len(gaps) and gaps:
        return Question(
            "missing",
            ask.say("missing_most"),
            (Step("df.isna().sum().idxmax()"),),
            "The column {} has the most missing values.",
        )
    column = ask.chance.choice(gaps if gaps and ask.chance.random() < 0.6 else ask.view.facts.columns)
    text, code = ask.say("missing", any=ask.name(column)), f"df[{literal(column.name)}].isna().sum()"
    return Question("missing", text, (Step(code),), f"{{}} values of {natural(column.name)} are missing.")


def row_best(ask: Asking) -> Question | None:
    column = ask.number()
    named = ask.view.names or [c for c in ask.view.facts.columns if c.kind == "text" and c.distinct > 5]
    if column is None or not named:
        return None
    name, high = ask.chance.choice(named), ask.chance.random() < 0.65
    best = ask.chance.choice(("highest", "largest", "biggest", "most") if high else ("lowest", "smallest", "least"))
    text = ask.say("row_best", id=ask.name(name), num=ask.name(column), best=best)
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
            "top_named", id=plural(natural(name.name)) if ask.chance.random() < 0.6 else ask.name(name), **slots
        )
        code = f"df.{function}({k}, {literal(column.name)})[[{literal(name.name)}, {literal(column.name)}]]"
        return Question("top", text, (Step(code),), f"The {k} {best}: {{}}.")
    code = f"df[{literal(column.name)}].{function}({k}).tolist()"
    return Question("top", ask.say("top", **slots), (Step(code),), f"The {k} {best} values are {{}}.")


def share(ask: Asking) -> Question | None:
    where = ask.condition()
    if where is None:
        return None
    frame = ask.say("share", **{name: f"<{name}>" for name in where.slots})
    percent = "percent" in frame.lower()  # before the slots are filled: a column may be called percent
    text = re.sub(r"<(\w+)>", lambda slot: where.slots[slot[1]], frame)
    code = f"({where.code}).mean()" + (" * 100" if percent else "")
    return Question("share", text, (Step(code),), "It is {} percent." if percent else "The share is {}.")


def spread(ask: Asking) -> Question | None:
    column = ask.number()
    if column is None:
        return None
    text, label = ask.say("range", col=ask.name(column)), f"df[{literal(column.name)}]"
    return Question("range", text, (Step(f"{label}.max() - {label}.min()"),), "The range is {}.")


def above_mean(ask: Asking) -> Question | None:
    column = ask.number()
    if column is None:
        return None
    text, label = ask.say("above_mean", col=ask.name(column)), f"df[{literal(column.name)}]"
    return Question("above-mean", text, (Step(f"len(df[{label} > {label}.mean()])"),), "{} are above the mean.")


def derived(ask: Asking) -> Question | None:
    first = ask.number()
    second = ask.number(first) if first else None
    if first is None or second is None:
        return None
    a, b = f"df[{literal(first.name)}]", f"df[{literal(second.name)}]"
    if ask.chance.random() < 0.5:
        text = ask.say("product", num=ask.name(first), num2=ask.name(second))
        return Question("derived", text, (Step(f"({a} * {b}).sum()"),), "The total is {}.")
    label, sign = ask.chance.choice((("ratio", "/"), ("difference", "-"), ("total", "+")))
    text = ask.say("new_column", new=label, num=ask.name(first), num2=ask.name(second), sign=ph.SIGNS[sign])
    code = f'df["{label}"] = {a} {sign} {b}\ndf["{label}"].mean()'
    return Question("derived", text, (Step(code),), f"The new column {label} has a mean of {{}}.")


def quantile(ask: Asking) -> Question | None:
    column, p = ask.number(), ask.chance.choice((10, 25, 75, 80, 90, 95))
    if column is None:
        return None
    text = ask.say("quantile", col=ask.name(column), p=str(p))
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
        text = ask.say("earliest", date=name, first=word)
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
    text = ask.say("in_period", date=name, period=period)
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
        return Question("columns", ask.say("columns"), (Step("len(df.columns)"),), "The table has {} columns.")
    return Question("columns", ask.say("column_names"), (Step("list(df.columns)"),), "The columns are {}.")


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
            ask.say("of_most_rows", stat=ask.word(outer), **slots),
        )
    else:
        first = f"df.groupby({literal(by.name)})[{literal(other.name)}].{inner}().{pick}()"
        text = ask.say("of_best", stat=ask.word(outer), inner=ask.word(inner), other=ask.name(other), **slots)
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
    (two_steps, 4),
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
        with suppress(NoPhrasing):
            question = chance.choices(builders, weights)[0](ask)
            if question is not None:
                return question
