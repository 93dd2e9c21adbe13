"""Which of several drafts of a call is run, and what the person is told of it."""

from __future__ import annotations

import threading

import pytest

from herd.deploy.assistant import Code, Conversation, Done, Notice, Output
from herd.deploy.drafts import choose
from herd.model.dialog import Dialog, Message
from herd.model.generation import Sampling
from herd.tools.sandbox import Result

RESULTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 3.0}


def run(code: str) -> Result:
    value = RESULTS.get(code)
    if value is None:
        return Result(False, "NameError", None, "NameError", 0.0)
    return Result(True, str(value), {"kind": "number", "value": value}, None, 0.0)


def no_gaps(_: str) -> list[str]:
    return []


def test_the_result_that_most_share_wins_however_it_was_written() -> None:
    chosen = choose(["c", "a", "c", "b", "a"], run, no_gaps)
    assert chosen is not None
    assert (chosen.code, chosen.agree, chosen.drafts, chosen.doubt) == ("a", 3, 5, None)


def test_of_equals_the_first_wins_and_a_minority_is_told() -> None:
    chosen = choose(["d", "c"], run, no_gaps)
    assert chosen is not None and chosen.code == "d"
    assert chosen.doubt is not None and "only 1 of 2 drafts" in chosen.doubt


def test_fewer_gaps_come_before_more_votes() -> None:
    chosen = choose(
        ["c", "c", "c", "a", "b"], run, lambda code: {"c": ["the question says 3"], "a": ["x"]}.get(code, [])
    )
    assert chosen is not None and (chosen.code, chosen.agree, chosen.gaps) == ("b", 2, ())
    told = choose(["c", "c"], run, lambda _: ["the question says 3"])
    assert told is not None and told.doubt == "Look at the code before you trust this: the question says 3."


def test_failing_drafts_have_no_vote() -> None:
    chosen = choose(["x", "x", "x", "c"], run, no_gaps)
    assert chosen is not None and (chosen.code, chosen.agree, chosen.drafts) == ("c", 1, 4)
    assert choose(["x", "y"], run, no_gaps) is None


def test_what_is_no_python_has_no_vote() -> None:
    def gaps(code: str) -> list[str]:
        compile(code, "", "eval")
        return []

    assert choose(["(", "("], None, gaps) is None


def test_untried_drafts_are_compared_as_they_are_written() -> None:
    chosen = choose(["a", "b", "b"], None, no_gaps)
    assert chosen is not None and (chosen.code, chosen.agree) == ("b", 2)


@pytest.fixture
def talk(scripted, session):
    def make(*messages: str, drafts: int) -> Conversation:
        return Conversation(scripted(*messages, drafts=drafts), session, Dialog((Message("system", "Table df"),)))

    return make


MEAN, SUM, COUNT = "> df['units'].mean()", "> df['units'].sum()", "> df['units'].count()"


def test_a_call_is_drafted_again_and_the_best_is_run_once(talk, session) -> None:
    conversation = talk(MEAN, SUM, "Words.", SUM, "There are 22.", drafts=3)
    events = list(conversation.ask("Total units?"))
    assert events[0] == Code("df['units'].sum()") and isinstance(events[1], Output)
    assert session.ran == ["df['units'].sum()"]
    assert not any(isinstance(event, Notice) for event in events)  # two of three calls agree
    assert conversation.dialog.messages[-3].calls[0].code == "df['units'].sum()"
    samplings = conversation.assistant.generator.samplings
    assert [one.temperature for one in samplings] == [0, 1, 1, 1, 0]


def test_drafts_change_nothing_in_the_session(talk, session) -> None:
    double = "> df['units'] = df['units'] * 2\nn = df['units'].sum()\nn"
    events = list(talk(double, SUM, SUM, "It is 22.", drafts=2).ask("Total units?"))
    assert Output("22", {"kind": "number", "value": 22}) in events
    assert "n" not in session.names and session.names["df"]["units"].sum() == 22


def test_what_nobody_named_is_told_and_another_round_is_drafted(talk) -> None:
    price = "> df['price'].sum()"
    conversation = talk(price, price, price, price, price, "That is it.", drafts=2)
    events = list(conversation.ask("Total units?"))
    assert isinstance(events[0], Notice) and "'units'" in events[0].text and "'price'" in events[0].text
    assert len(conversation.assistant.generator.samplings) == 6
    assert len({one.seed for one in conversation.assistant.generator.samplings[1:5]}) == 2


def test_a_repair_counts_what_ran_before(talk) -> None:
    events = list(
        talk("> df['score'] = df['units']", "> df['score'] = df['units']", COUNT, COUNT, "4.", drafts=1).ask("units")
    )
    assert next(event.text for event in events if isinstance(event, Code)) == "df['score'] = df['units']"
    assert isinstance(events[-1], Done) and events[-1].calls == 2


def test_words_and_sampled_calls_are_not_drafted(talk) -> None:
    conversation = talk("Hello.", drafts=3)
    list(conversation.ask("Hi"))
    assert len(conversation.assistant.generator.samplings) == 1
    conversation = talk(SUM, "22.", drafts=3)
    list(conversation.ask("units?", sampling=Sampling(temperature=0.7)))
    assert len(conversation.assistant.generator.samplings) == 2


def test_a_stopped_turn_drafts_nothing(talk) -> None:
    stop = threading.Event()
    conversation = talk(SUM, SUM, drafts=1)
    conversation.assistant.generator.held = True
    events = conversation.ask("units?", stop)
    stop.set()
    last = list(events)[-1]
    assert isinstance(last, Done) and last.reason == "stopped" and len(conversation.assistant.generator.prompts) == 1
