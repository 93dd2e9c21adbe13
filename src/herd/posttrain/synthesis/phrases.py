"""How people ask: a small grammar of phrasings for each kind of question, some of them never trained on.

A phrasing is a template: `[a|b|]` is one of its alternatives, `{slot}` is filled by the question. Each kind has
phrasings to train on and held-out ones that differ in wording and build, not only in a word: what is measured on
those is measured on sentences whose template no training example had.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Phrasings:
    """Templates of one kind of question."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def of(self, held_out: bool) -> tuple[str, ...]:
        return self.held_out if held_out else self.train


def expand(template: str, chance: random.Random, **slots: str) -> str:
    """One sentence of a template. Slots are filled last, so that brackets in a column's name stay as they are."""
    while (found := _CHOICE.search(template)) is not None:
        options = found[1].split("|")
        template = template[: found.start()] + chance.choice(options) + template[found.end() :]
    text = re.sub(r"\{(\w+)\}", lambda slot: slots[slot[1]], template)
    text = re.sub(r" {2,}", " ", text).strip()
    return text[:1].upper() + text[1:] if chance.random() < 0.85 else text


ASK = "[What is|What's|what is|Tell me|Give me|Find|Calculate|Compute|Show me|I need|Please give me|I'd like to know]"
ROWS = (  # what a row is called; people say what it stands for, and the table rarely does
    *("rows", "records", "entries", "lines", "cases", "observations", "items", "people", "orders", "customers"),
    *("patients", "employees", "products", "visits", "tickets", "events", "readings", "students", "cars", "trips"),
)

STATISTIC = {  # the word for a statistic: with an article before it, as an adjective, as an imperative
    "mean": Phrasings(
        ("average", "mean", "average", "average value", "mean value", "avg"), ("arithmetic mean", "average")
    ),
    "sum": Phrasings(("total", "sum", "total", "overall total", "combined total"), ("grand total", "total amount")),
    "median": Phrasings(("median", "median value", "median"), ("midpoint (median)", "median")),
    "min": Phrasings(("minimum", "lowest", "smallest", "minimum value", "min"), ("smallest recorded", "minimal")),
    "max": Phrasings(("maximum", "highest", "largest", "biggest", "max"), ("largest recorded", "maximal")),
    "std": Phrasings(("standard deviation", "standard deviation", "std"), ("standard deviation",)),
}

AGGREGATE = Phrasings(
    (
        f"{ASK} the {{stat}} [of|for|in] [|the] {{col}}[?|?|]",
        "[What is|What's] the {stat} {col}[?|]",
        f"{ASK} the {{stat}} {{col}}[?|]",
        "{stat} [of|] {col}[?|]",
        "[the|] {stat} {col} [in this table|in this file|in the data|overall|across all [rows]|please]?",
        "How [high|large|big] is the {stat} [of|] {col}?",
        "[Can you|Could you] [tell me|compute|work out|find] the {stat} {col}?",
        "I [want|need] the {stat} [of|for] {col}.",
        "What was the {stat} {col} [overall|across [rows]|in total|]?",
        "What {stat} {col} [do we have|did we see|is there]?",
    ),
    (
        "Looking at {col}, what {stat} do you get?",
        "For {col}: {stat}, please.",
        "Work out what the {stat} comes to for {col}.",
        "Taking every [row|record] into account, report the {stat} of {col}.",
    ),
)
HOW_MUCH = Phrasings(  # sum only
    (
        "How much {col} [is there|is there in total|do we have in total|was there altogether]?",
        "What does {col} add up to?",
        "Add up {col}.",
        "Sum up [all|] the {col} [values|].",
        "How much {col} in [total|all]?",
        "What is the {col} [altogether|in total|all together]?",
    ),
    ("If you add all {col} together, what do you get?", "{col}, all summed up?"),
)
FILTERED = Phrasings(
    (
        f"{ASK} the {{stat}} [of|for|] {{col}} {{cond}}[?|]",
        "[What is|What's|What was] the {stat} {col} {cond}?",
        "{Cond}, what is the {stat} [of|] {col}?",
        "{stat} {col} {cond}[?|]",
        "[How high|How large] is the {stat} {col} {cond}?",
        "[Can you|Could you] [find|compute|get] the {stat} {col} {cond}?",
        "Considering only [rows] {cond}, what is the {stat} {col}?",
    ),
    (
        "Looking only at [rows|records] {cond}, report the {stat} of {col}.",
        "Keep just the [records|rows] {cond}. What {stat} does {col} have?",
        "What would be the {stat} of {col} {cond}?",
    ),
)
FILTERED_SUM = Phrasings(
    ("How much {col} [in total|] {cond}?", "What does {col} add up to {cond}?", "How much {col} was there {cond}?"),
    ("{Cond}, how much {col} is there when summed?",),
)
IS_VALUE = Phrasings(  # a condition: a column has a value
    (
        "where [|the] {cat} is {val}",
        "with [|a] {cat} {val}",
        "for {val}",
        "for {val}",
        "in {val}",
        "whose {cat} is {val}",
        "with {cat} equal to {val}",
        "when [|the] {cat} is {val}",
        "for [|the] {cat} {val}",
        "for [|the] {val} {cat}",
        "in the {val} {cat}",
        "from {val}",
        "among {val} [rows]",
        "for {val} [rows]",
        "of {val}",
        "that are {val}",
        "with {val} as {cat}",
    ),
    ("having {val} as [the|their] {cat}", "if the {cat} equals {val}", "restricted to {cat} = {val}"),
)
IS_NUMBER = Phrasings(
    (
        "where {cat} is {val}",
        "with {cat} {val}",
        "with {cat} equal to {val}",
        "for {cat} {val}",
        "when {cat} is {val}",
        "whose {cat} is {val}",
    ),
    ("having {val} as {cat}", "if {cat} equals {val}"),
)
YES = Phrasings(
    (
        "that are {plain}",
        "that are {plain}",
        "with {cat} yes",
        "where {cat} is yes",
        "that have {plain}",
        "with {plain}",
        "which are {plain}",
        "who are {plain}",
        "marked as {plain}",
        "for {plain} ones",
    ),
    ("flagged {plain}", "for which {cat} holds"),
)
NO = Phrasings(
    (
        "that are not {plain}",
        "that aren't {plain}",
        "with {cat} no",
        "where {cat} is no",
        "without {plain}",
        "which are not {plain}",
        "that have no {plain}",
        "who are not {plain}",
    ),
    ("not flagged {plain}", "for which {cat} does not hold"),
)
COMPARED = Phrasings(  # a condition: a number compared with a limit; {than} is the comparison in words
    (
        "with {num} {than}",
        "with {num} {than}",
        "with [a|an] {num} {than}",
        "where {num} is {than}",
        "where the {num} is {than}",
        "whose {num} is {than}",
        "that have [a|] {num} {than}",
        "having {num} {than}",
        "when {num} is {than}",
    ),
    ("in which {num} comes out {than}", "for {num} {than} only"),
)
THAN = {  # every number after it: "above 30"
    ">": Phrasings(
        ("above", "over", "greater than", "more than", "higher than", "larger than", ">"), ("exceeding", "above")
    ),
    "<": Phrasings(("below", "under", "less than", "lower than", "smaller than", "<"), ("beneath", "below")),
    ">=": Phrasings(("of at least", "at least", "greater than or equal to", ">=", "no less than"), ("not below",)),
    "<=": Phrasings(("of at most", "at most", "no more than", "<=", "less than or equal to"), ("not above",)),
}
COUNT = Phrasings(
    (
        "How many [rows] are there[| in total| in the table| in this file| in the data| altogether]?",
        "How many [rows] [do we have|does the table have|are in the table|does this file contain|are listed]?",
        "[Count|Count all] [the|] [rows][.|]",
        "[What is|Give me|Tell me] the number of [rows][.|?|]",
        "number of [rows]",
        "How [long|big] is [the table|this table|the file|the data set]?",
        "total number of [rows]?",
    ),
    (
        "What's the [row|record] count?",
        "How many [rows|records] did you find in here?",
        "State the size of the table in rows.",
    ),
)
COUNT_WHERE = Phrasings(
    (
        "How many [rows] [are there|] {cond}?",
        "How many [rows] {cond} [are there|do we have|]?",
        "[Count|Count the] [rows] {cond}[.|]",
        "[What is|Give me|Tell me] the number of [rows] {cond}[.|?]",
        "number of [rows] {cond}",
        "How often [do we have|is there|do we see] [a row|a record|one] {cond}?",
        "How many [rows] have {has}?",
        "How many [rows] have {has}?",
        "How many {is} [rows] are there?",
        "In how many [rows] is {being}?",
        "How many {is} [are there|do we have|]?",
        "How many are {is}?",
    ),
    (
        "What number of [rows|records] [show|carry] {has}?",
        "Tally the [rows|records] {cond}.",
        "Of all [rows|records], how many come {cond}?",
    ),
)
COUNT_TWO = Phrasings(
    (
        "How many [rows] {cond} and {cond2}?",
        "How many [rows] {cond} [have|also have] {has2}?",
        "[Count|Count the] [rows] {cond} and {cond2}[.|]",
        "[What is|Give me] the number of [rows] {cond} and {cond2}[?|]",
        "How many {is} [rows] have {has2}?",
        "How many [rows] have {has} and {has2}?",
        "How many {is} [rows] [are there|] {cond2}?",
        "number of [rows] {cond} and {cond2}",
        "How many [rows] [are there|] {cond} {cond2}?",
        "How many [rows] are both {cond} and {cond2}?",
    ),
    (
        "Of the [rows|records] {cond}, how many come {cond2}?",
        "Tally the [rows|records] {cond} that are at the same time {cond2}.",
        "What number of [rows|records] [show|carry] {has} together with {has2}?",
    ),
)
FILTERED_TWO = Phrasings(
    (
        f"{ASK} the {{stat}} {{col}} {{cond}} and {{cond2}}[?|]",
        "[What is|What's] the {stat} {col} {cond} {cond2}?",
        "{stat} {col} {cond} and {cond2}",
        "For {is} [rows] {cond2}, what is the {stat} {col}?",
    ),
    ("Looking only at [rows|records] {cond} and at the same time {cond2}, report the {stat} of {col}.",),
)
GROUP = Phrasings(
    (
        f"{ASK} the {{stat}} {{col}} [by|per|for each|for every|in each] {{cat}}[?|]",
        f"{ASK} the {{stat}} [of|for] {{col}} [by|per|for each|for every|within each] {{cat}}[?|]",
        "{stat} {col} [by|per] {cat}[?|]",
        "[What is|What's] the {stat} {col} [by|per|for each|in each] {cat}?",
        "[Break down|Split] the {stat} {col} by {cat}[.|]",
        "For each {cat}, what is the {stat} {col}?",
        "How does the {stat} {col} [differ|vary|compare] [by|across|between] {cat}?",
        "[Group|Group the data] by {cat} and [show|give|compute] the {stat} {col}[.|]",
        "[Compare|List] the {stat} {col} [of|across|for] [all|the] {cat} [values|groups|]",
    ),
    (
        "Report {stat} {col} separately for every {cat}.",
        "One figure per {cat}, please: {stat} {col}.",
        "Take each {cat} on its own. What {stat} of {col} does it show?",
    ),
)
GROUP_COUNT = Phrasings(
    (
        "How many [rows] [are there|do we have] [per|for each|in each|by|for every] {cat}?",
        "[Count|Count the] [rows] [per|by|for each|in each] {cat}[.|]",
        "How often does each {cat} [occur|appear]?",
        "[Number|number] of [rows] [per|by|for each] {cat}[?|]",
        "[What is|Give me|Show] the [distribution|breakdown|frequency] of {cat}[?|.]",
        "How are the [rows] [distributed|spread|split] [over|across|by] {cat}?",
        "How many of each {cat} [are there|do we have]?",
    ),
    (
        "Report the frequency with which every {cat} turns up.",
        "For all {cat} levels, state how many [rows|records] fall there.",
    ),
)
GROUP_BEST = Phrasings(
    (
        "[Which|What] {cat} has the {best} {stat} {col}?",
        "[Which|What] {cat} had the {best} {stat} {col}?",
        "[Find|Name|Tell me|Show] the {cat} with the {best} {stat} {col}[.|]",
        "{cat} with [the|] {best} {stat} {col}[?|]",
        "In which {cat} is the {stat} {col} [the|] {best}?",
        "For which {cat} is the {stat} {col} [the|] {best}?",
        "[Which|What] is the {cat} with the {best} {stat} {col}?",
        "By {cat}, where is the {stat} {col} {best}?",
    ),
    (
        "Ranking the {cat} groups by {stat} {col}, which one comes out {best}?",
        "Name whichever {cat} shows the {best} {stat} {col}.",
        "Where does {stat} {col} turn out {best}, by {cat}?",
    ),
)
GROUP_BEST_SUM = Phrasings(
    (
        "[Which|What] {cat} has the {most} {col} [in total|overall|altogether|]?",
        "[Which|What] {cat} [brought in|generated|made up|accounts for|had|got|produced] the {most} {col} [in total|overall|]?",
        "[Which|What] {cat} contributes the {most} to {col}?",
    ),
    ("Summed over its rows, whose {col} is the {most} by {cat}?",),
)
GROUP_MOST_ROWS = Phrasings(
    (
        "[Which|What] {cat} has the {most} [rows]?",
        "[Which|What] {cat} [occurs|appears|comes up] the {most} [often|]?",
        "[Which|What] {cat} is the {most} [common|frequent]?",
        "[What is|What's] the {most} [common|frequent|popular] {cat}?",
        "[Find|Name|Tell me] the {most} [common|frequent] {cat}[.|]",
        "[Which|What] {cat} [do we see|is listed|is used] {most} often?",
        "[Which|What] {cat} has the {highest} number of [rows]?",
        "{most} [common|frequent] {cat}[?|]",
    ),
    (
        "Name the {cat} that turns up in the {most} [rows|records].",
        "Which value of {cat} leads by count, {most} first?",
    ),
)
DISTINCT = Phrasings(
    (
        "How many [different|distinct|unique] {cat} [values|] [are there|do we have|are listed|]?",
        "[Count|Count the] [different|distinct|unique] {cat} [values|][.|]",
        "[What is|Give me] the number of [different|distinct|unique] {cat} [values|][?|]",
        "How many [different|distinct|unique] values does {cat} have?",
        "How many {cat} [values|types|kinds] [are there|do we have]?",
        "How many [different|unique] {cat} [appear|occur] in the [data|table|file]?",
        "number of [unique|distinct] {cat} [values|]",
    ),
    ("Not counting repeats, how many {cat} entries exist?", "How varied is {cat}: how many separate values?"),
)
VALUES = Phrasings(
    (
        "[What|Which] {cat} values [are there|do we have|occur|exist]?",
        "[List|Show|Give me] [all|all the|the] [different|unique|distinct|] {cat} [values|][.|]",
        "[What are|Which are] the [different|unique|possible] {cat} [values|]?",
    ),
    ("Enumerate every {cat} that exists.",),
)
CORRELATION = Phrasings(
    (
        "[What is|What's] the correlation [between|of] {num} and {num2}?",
        "[How strongly|How] [are|do] {num} and {num2} [correlated|related|correlate]?",
        "[Is there|Do we see] [a|any] [correlation|relationship|relation] between {num} and {num2}?",
        "[Calculate|Compute|Find|Give me|Show] the correlation [between|of] {num} [and|with] {num2}[.|]",
        "How [much|closely|strongly] does {num} [correlate|go together] with {num2}?",
        "correlation of {num} and {num2}",
        "Does {num} [correlate with|depend on|go up with] {num2}?",
    ),
    (
        "State how tightly {num} and {num2} move together (correlation).",
        "{num} against {num2}: which correlation coefficient?",
    ),
)
MISSING = Phrasings(
    (
        "How many [values|entries|cells|] [are missing in|are missing from|are missing for] {any}?",
        "How many missing values [are there in|does|in] {any} [have|]?",
        "How many [rows] [have no|lack a|are missing a|don't have a|are without a|have a missing] {any}[?|]",
        "[Count|Count the] missing [values|entries] [in|of] {any}[.|]",
        "How often is {any} [missing|empty|blank|not filled in|not known]?",
        "[What is|Give me] the number of missing {any} [values|entries][?|]",
        "How many {any} [values|entries] are [missing|empty|blank]?",
    ),
    ("In how many [rows|records] was {any} left empty?", "State the gaps in {any} as a count."),
)
MISSING_TOTAL = Phrasings(
    (
        "How many missing values are there [in total|altogether|in the table|in the data|in all columns|overall]?",
        "[Count|Count all] missing values[| in the table]",
        "[How many|What number of] cells are [empty|missing|blank] [in the whole table|in total|]?",
    ),
    ("Over the entire table, how many gaps are there?",),
)
MISSING_MOST = Phrasings(
    (
        "[Which|What] column has the most [missing values|missing data|gaps|empty cells|blanks]?",
        "[Where|In which column] are the most values missing?",
        "[Which|What] column is missing the most [values|data]?",
    ),
    ("Name the column hit hardest by missing data.",),
)
ROW_BEST = Phrasings(
    (
        "[Which|What] {id} has the {best} {num}?",
        "[Which|What] {id} had the {best} {num}?",
        "[Which|What] is the {id} with the {best} {num}?",
        "[Find|Name|Tell me|Show|Give me] the {id} with the {best} {num}[.|]",
        "{id} with [the|] {best} {num}[?|]",
        "[What is|What's] the {id} of the [row|record|entry|one] with the {best} {num}?",
        "Who has the {best} {num} ({id})?",
        "For which {id} is {num} [the|] {best}?",
        "[Which|What] {id} [reached|recorded|shows] the {best} {num}?",
    ),
    ("Name whichever {id} tops the list with the {best} {num}.", "The single {best} {num} belongs to which {id}?"),
)
TOP = Phrasings(
    (
        "[What are|Which are|Show|List|Give me|Show me|Find] the {k} {best} {num} [values|][.|?|]",
        "[What are|Which are|Show|List|Give me|Show me] the {k} {best} [values of|values for] {num}[.|]",
        "[Show|List|Give me] the {best} {k} {num} [values|][.|]",
        "{k} {best} {num} [values|]",
    ),
    ("Sort {num} and report the {k} {best} figures.", "Which {k} figures of {num} are {best}?"),
)
TOP_NAMED = Phrasings(
    (
        "[What are|Which are|Show|List|Give me|Show me|Find] the {k} {id} with the {best} {num}[.|?|]",
        "[Which|What] {k} {id} have the {best} {num}?",
        "[Show|List|Give me] the {k} {id} with the {best} {num}[.|]",
        "[Show|List|What are] the {k} {best} {id} by {num}[.|]",
        "{k} {id} with the {best} {num}",
    ),
    (
        "Rank by {num} and report the {k} {id} that come out {best}.",
        "Whose {num} is among the {k} {best}? Report {id}.",
    ),
)
NEW_COLUMN = Phrasings(
    (
        "Add a column {new} as {num} {sign} {num2} and [give|show|tell] me its [mean|average][.|]",
        "[Create|Make] a [new|] column {new} = {num} {sign} {num2}. What is its [mean|average]?",
        "[Compute|Calculate] {new} as {num} {sign} {num2}[, then average it| and average it][.|]",
    ),
    ("Let {new} be {num} {sign} {num2} in a column of its own; report the mean.",),
)
SIGNS = {"/": "divided by", "-": "minus", "+": "plus"}
OF_BEST = Phrasings(
    (
        "[What is|What's] the {stat} {col} [of|in|for] the {cat} with the {best} {inner} {other}?",
        "[Find|Take] the {cat} with the {best} {inner} {other}[, then give|. What is] its {stat} {col}[?|]",
        "For the {cat} with the {best} {inner} {other}, what is the {stat} {col}?",
        "Which {cat} has the {best} {inner} {other}, and what is its {stat} {col}?",
    ),
    ("Pick the {cat} whose {inner} {other} is {best}; report {stat} {col} there.",),
)
OF_MOST_ROWS = Phrasings(
    (
        "[What is|What's] the {stat} {col} [of|in|for] the {most} common {cat}?",
        "[Find|Take] the {most} [common|frequent] {cat} and give [me|] its {stat} {col}[.|]",
        "For the {cat} with the {most} rows, what is the {stat} {col}?",
        "Which {cat} is {most} common, and what is its {stat} {col}?",
    ),
    ("Report {stat} {col} for whichever {cat} is {most} frequent.",),
)
SHARE = Phrasings(
    (
        "[What share|What fraction|What proportion] of [the|] [rows] [are|is|have] {is_or_has}?",
        "[What percentage|What percent|How many percent] of [the|] [rows] [are|is|have] {is_or_has}?",
        "[What is|Give me] the [share|proportion|percentage|fraction] of [rows] {cond}[?|]",
        "[share|percentage|proportion] of [rows] {cond}",
    ),
    ("Expressed as a [share|percentage] of all [rows|records], how common are those {cond}?",),
)
RANGE = Phrasings(
    (
        "[What is|Give me|Tell me] the range of {col}[?|]",
        "[What is|What's] the [difference|gap] between the [highest|largest|maximum] and [lowest|smallest|minimum] {col}?",
        "How [wide|large] is the [range|spread] of {col}?",
    ),
    ("From smallest to largest, how far does {col} stretch?",),
)
ABOVE_MEAN = Phrasings(
    (
        "How many [rows] [are|have {col}] above [the|] average {col}?",
        "How many [rows] have [a|] {col} above [the|] [average|mean]?",
        "How many [rows] have [a|] [higher|larger] than average {col}?",
        "[Count|Count the] [rows] with {col} above [the|its] [average|mean][.|]",
    ),
    ("What number of [rows|records] beat the mean {col}?",),
)
PRODUCT = Phrasings(
    (
        "[What is|What's|Compute|Calculate] the total [of|] {num} times {num2}[?|]",
        "[What is|Give me] the sum of {num} multiplied by {num2}[?|]",
        "Multiply {num} by {num2} and [add it up|sum it|give me the total][.|]",
    ),
    ("Row by row take {num} x {num2}; what is the sum?",),
)
QUANTILE = Phrasings(
    (
        "[What is|Give me|Tell me] the {p}th percentile of {col}[?|]",
        "[What is|What's] the {p}% quantile of {col}?",
        "{p}th percentile of {col}",
    ),
    ("Below which {col} do {p} percent of the [rows|records] fall?",),
)
EARLIEST = Phrasings(
    (
        "[What is|What's|What was] the {first} {date}?",
        "When was the {first} {date}?",
        "[Find|Tell me|Give me|Show me] the {first} {date}[.|]",
        "{first} {date}?",
        "On which {date} [is|was] the {first} [row|record|entry|one]?",
    ),
    ("In time, which {date} comes {first}?",),
)
IN_PERIOD = Phrasings(
    (
        "How many [rows] [are|were|are there|do we have] in {period}[| by {date}]?",
        "How many [rows] have [a|] {date} in {period}?",
        "[Count|Count the] [rows] [from|in] {period}[| ({date})]",
        "number of [rows] in {period}",
        "How many [rows] [happened|took place|were recorded|date from] in {period}?",
    ),
    ("What number of [rows|records] carry a {date} from {period}?",),
)
COLUMNS = Phrasings(
    (
        "How many columns [are there|does the table have|do we have|does this file have]?",
        "[What is|Give me] the number of columns[?|]",
        "number of columns",
        "[Count|Count the] columns[.|]",
    ),
    ("What's the column count here?",),
)
COLUMN_NAMES = Phrasings(
    (
        "[What|Which] columns [are there|does the table have|do we have]?",
        "[List|Show|Name] [the|all|all the] columns[.|]",
        "What are the column names?",
    ),
    ("Enumerate the fields of this table.",),
)
