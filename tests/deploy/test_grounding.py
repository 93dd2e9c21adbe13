"""What separates code from a question: each kind of gap, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.deploy.grounding import gaps
from herd.tools.table import Column, TableFacts

ORDERS = TableFacts(
    "orders",
    500,
    (
        Column("Order No", "number", 0, 500, ("1", "500")),
        Column("Region", "text", 0, 3, ("North", "South", "West")),
        Column("Payment Method", "text", 0, 2, ("Credit card", "Invoice")),
        Column("Customer", "text", 0, 400, ("Ann", "Bob", "Cy", "Dee", "Eve", "Flo")),
        Column("quantity", "number", 0, 20, ("1", "20")),
        Column("unitPrice", "number", 0, 90, ("0.5", "99.0")),
        Column("returned", "bool", 0, 2, ("False", "True")),
        Column("X1", "number", 0, 9, ("0", "9")),
        Column("total", "number", 0, 300, ("1", "900")),
    ),
    (),
)

NONE = {  # question -> code that leaves nothing open
    "What is the total quantity ordered in the West region?": 'df[df["Region"] == "West"]["quantity"].sum()',
    "How many by credit card were returned?": 'len(df[(df["Payment Method"] == "Credit card") & df["returned"]])',
    "Mean unit price where the quantity is at least five": 'df[df["quantity"] >= 5]["unitPrice"].mean()',
    "Share of the orders with more than 10 percent, x 1?": '(df["X1"] > 0.1).mean()',
    "Show the three regions with the highest unit prices": 'df.groupby("Region")["unitPrice"].max().nlargest(3)',
    "Largest quantity in south": 'df[df["Region"] == "South"]["quantity"].max()',
    "Average unit_price of orders over 2k in total": 'df[df["total"] > 2000]["unitPrice"].mean()',
    "What was bought by the customer Zoe in total?": 'df[df["Customer"] == "Zoe"]["total"].sum()',
}

SOME = [  # (question, code, what is said about it)
    ("Total quantity in the West region?", 'df["quantity"].sum()', ["'Region'", "'West'"]),
    ("Total quantity by region?", 'df.groupby("Region")["Order No"].sum()', ["'quantity'", "'Order No'"]),
    ("Quantities above 7?", 'len(df[df["quantity"] > 3])', ["says 7", "says 3"]),
    ("How many of Region North?", 'len(df[df["Region"] == "Credit card"])', ["'North'", "'Credit card'", "never"]),
    ("How many with quantity 3?", 'len(df[df["quantity"] == "3"])', ["never '3'"]),
    ("How many with region 3?", 'len(df[df["Region"] == 3])', ["never 3"]),
]


@pytest.mark.parametrize("question", NONE)
def test_code_that_answers_the_question_has_no_gaps(question: str) -> None:
    assert gaps(question, (), NONE[question], ORDERS) == []


@pytest.mark.parametrize(("question", "code", "parts"), SOME)
def test_each_gap_is_named(question: str, code: str, parts: list[str]) -> None:
    found = gaps(question, (), code, ORDERS)
    assert all(any(part in line for line in found) for part in parts), found
    assert len(found) == len(parts), found


def test_what_was_said_before_and_what_has_run_count() -> None:
    code = 'df[df["Region"] == "West"]["quantity"].mean()'
    assert gaps("And for West?", ("Mean quantity for each region?",), code, ORDERS) == []
    assert len(gaps("And for West?", (), code, ORDERS)) == 1
    first = 'df["score"] = df["quantity"] * df["unitPrice"]'
    question = "Multiply quantity by unit price and give the mean"
    assert gaps(question, (), 'df["score"].mean()', ORDERS, [first]) == []
    assert len(gaps(question, (), 'df["score"].mean()', ORDERS)) == 2


def test_text_that_is_no_python_is_an_error() -> None:
    with pytest.raises(SyntaxError):
        gaps("How many?", (), "len(df[", ORDERS)


@given(st.text(), st.text(max_size=60))
def test_any_question_and_any_strings_are_read(question: str, text: str) -> None:
    assert isinstance(gaps(question, (text,), f"df[{text!r}] == {text!r}", ORDERS), list)
    assert isinstance(gaps(question, (), "x == 10 ** 400 + " + "9" * 400, ORDERS), list)
