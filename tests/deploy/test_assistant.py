"""A conversation about a table: what a person sees of each turn, and that no turn ends the conversation."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import pytest

from herd.console import HerdError
from herd.deploy.assistant import MAX_CALLS, Code, Conversation, Done, Error, Notice, Output, Text
from herd.deploy.reading import WORDS_ONLY
from herd.model.dialog import Dialog, Message
from herd.model.generation import Sampling
from herd.tools.sandbox import Limits, Sandbox

SYSTEM = Message("system", "Table df from sales")


@pytest.fixture
def talk(scripted, session) -> Any:
    """Makes a conversation with a model of given messages over the sales table."""

    def make(*messages, **more):
        return Conversation(scripted(*messages, **more), session, Dialog((SYSTEM,)))

    return make


def words(events):
    return "".join(event.piece for event in events if isinstance(event, Text))


def test_a_question_becomes_code_its_result_and_words(talk):
    events = list(talk("> df['units'].sum()", "It is 22.").ask("How many units?"))
    assert events[0] == Code("df['units'].sum()")
    assert events[1] == Output("22", {"kind": "number", "value": 22})
    assert words(events) == "It is 22."
    assert isinstance(events[-1], Done) and events[-1].reason == "answered" and events[-1].calls == 1


def test_words_come_piece_by_piece_in_whole_characters(talk):
    events = list(talk("Zürich — 東京 is far").ask("?"))
    pieces = [event.piece for event in events if isinstance(event, Text)]
    assert len(pieces) > 3 and "".join(pieces) == "Zürich — 東京 is far"
    assert all("\ufffd" not in piece for piece in pieces)


def test_the_model_reads_the_result_and_earlier_turns(talk):
    conversation = talk("> df['units'].max()", "Nine.", "> df['units'].min()", "One.")
    list(conversation.ask("largest?"))
    list(conversation.ask("and smallest?"))
    last = conversation.assistant.generator.prompts[-1]
    places = [
        last.index(part) for part in ("sales", "largest?", "['units'].max()", "9", "Nine.", "and smallest?", "min()")
    ]
    assert places == sorted(places)


def test_variables_live_on_in_the_next_turn(talk):
    conversation = talk("> north = df[df['region'] == 'North']", "Kept.", "> north['units'].sum()", "Six.")
    list(conversation.ask("keep the north"))
    assert Output("6", {"kind": "number", "value": 6}) in list(conversation.ask("sum it"))


def test_code_that_fails_can_be_repaired(talk):
    events = list(talk("> df['unit'].sum()", "> df['units'].sum()", "22").ask("sum?"))
    assert [type(event) for event in events[:4]] == [Code, Error, Code, Output]
    assert "KeyError" in events[1].text
    assert events[-1].reason == "answered" and events[-1].calls == 2


def test_columns_that_code_creates_are_allowed_in_the_next_call(talk):
    conversation = talk("> df['takings'] = df['units'] * df['price']", "> df['takings'].sum()", "done")
    list(conversation.ask("takings?"))
    grammars = [sampling.grammar for sampling in conversation.assistant.generator.samplings]
    labels = [next(line for line in grammar.splitlines() if line.startswith("KNOWN:")) for grammar in grammars]
    assert "takings" not in labels[0] and "takings" in labels[1] and "units" in labels[1]


def test_when_df_is_no_longer_a_table_code_stays_possible(talk):
    conversation = talk("> df = 5", "> df + 1", "Six.")
    events = list(conversation.ask("spoil it"))
    assert Output("6", {"kind": "number", "value": 6}) in events and events[-1].reason == "answered"
    assert "TEXT" in conversation.assistant.generator.samplings[1].grammar


def test_after_the_last_call_only_words_are_allowed(talk):
    conversation = talk(*["> df.shape[0]"] * MAX_CALLS, "Four rows.")
    events = list(conversation.ask("rows?"))
    assert sum(isinstance(event, Code) for event in events) == MAX_CALLS
    assert conversation.assistant.generator.samplings[-1].grammar == WORDS_ONLY
    assert words(events) == "Four rows." and events[-1].reason == "answered"


def test_a_model_that_emits_no_call_answers_in_words(talk):
    events = list(talk("A region is a part of a country.").ask("what is a region?"))
    assert events[-1].reason == "answered" and events[-1].calls == 0
    assert not any(isinstance(event, Code) for event in events)


def test_a_model_that_says_nothing_is_reported(talk):
    conversation = talk("", "Hello.")
    events = list(conversation.ask("?"))
    assert any(isinstance(event, Notice) and "no answer" in event.text for event in events)
    assert words(list(conversation.ask("again?"))) == "Hello."


def test_a_call_that_never_ends_is_not_run_and_forgotten(talk, session):
    conversation = talk("> x...", "> df['units'].sum()", "22")
    first = list(conversation.ask("go on", sampling=Sampling(temperature=0.0, max_tokens=40)))
    assert isinstance(first[-2], Error) and "did not end within 40 tokens" in first[-2].text
    assert first[-1].reason == "failed" and session.ran == []
    assert list(conversation.ask("sum?"))[-1].reason == "answered"
    assert "go on" not in conversation.assistant.generator.prompts[-1]


def test_words_that_are_cut_are_kept_and_said(talk):
    conversation = talk("...", "Yes.")
    events = list(conversation.ask("?", sampling=Sampling(temperature=0.0, max_tokens=10)))
    assert events[-1].reason == "length" and any(isinstance(event, Notice) for event in events)
    assert words(list(conversation.ask("well?"))) == "Yes."


def test_stop_ends_the_writing_and_forgets_the_turn(talk):
    conversation = talk("...", "Yes.")
    stop, seen = threading.Event(), []
    for event in conversation.ask("never mind", stop):
        seen.append(event)
        if len(seen) == 3:
            stop.set()
    assert seen[-1].reason == "stopped" and len(seen) <= 5
    assert conversation.assistant.generator.closed.is_set() and conversation.assistant.generator.given <= 5
    list(conversation.ask("well?"))
    assert "never mind" not in conversation.assistant.generator.prompts[-1]


def test_a_sandbox_that_dies_fails_the_turn_only(talk, session, monkeypatch):
    conversation = talk("> 1", "> df['units'].sum()", "22")
    with monkeypatch.context() as broken:
        broken.setattr(session, "run", lambda code: (_ for _ in ()).throw(HerdError("sandbox: it has ended")))
        events = list(conversation.ask("one"))
    assert events[-2:-1] == [Error("sandbox: it has ended")] and events[-1].reason == "failed"
    assert list(conversation.ask("two"))[-1].reason == "answered"


def test_oldest_turns_make_room_and_the_table_stays(talk):
    conversation = talk(*["answer " * 12] * 9, context=700)
    notices = []
    for turn in range(9):
        events = list(conversation.ask(f"question {turn}: " + "why " * 12))
        assert events[-1].reason == "answered"
        notices += [event for event in events if isinstance(event, Notice)]
    last = conversation.assistant.generator.prompts[-1]
    assert "sales" in last and "question 8" in last and "question 0" not in last
    assert notices and "oldest" in notices[0].text


def test_a_question_longer_than_the_context_is_refused(talk):
    conversation = talk("Yes.", context=300)
    events = list(conversation.ask("why " * 400))
    assert "fit into the model's context" in events[0].text and events[-1].reason == "failed"
    assert words(list(conversation.ask("why?"))) == "Yes."


def test_the_guard_answers_before_the_model_is_asked(talk):
    conversation = talk("Sure.", guard=lambda text: "I won't." if "bomb" in text else None)
    refused = list(conversation.ask("a bomb"))
    assert words(refused) == "I won't." and refused[-1].reason == "refused"
    assert conversation.assistant.generator.prompts == []
    assert words(list(conversation.ask("a sum"))) == "Sure."


def test_stop_strings_end_the_words_even_across_tokens(talk):
    conversation = talk("One. Two. STOPPING here")
    events = list(conversation.ask("?", sampling=Sampling(temperature=0.0, stop=("STOPPING",))))
    assert words(events) == "One. Two. "
    assert conversation.dialog.messages[-1].content == "One. Two. "


def test_without_a_table_no_call_can_be_opened(scripted):
    conversation: Any = Conversation(scripted("Hello."), None, Dialog(()))
    assert words(list(conversation.ask("hi"))) == "Hello."
    assert conversation.assistant.generator.samplings[0].grammar == WORDS_ONLY


def test_an_endless_loop_in_the_sandbox_ends_and_the_talk_goes_on(scripted, tmp_path):
    path = tmp_path / "sales.csv"
    path.write_text("units\n5\n8\n")
    with ExitStack() as stack:
        try:
            sandbox = stack.enter_context(Sandbox(Limits(seconds=1)))
            session = stack.enter_context(sandbox.session())
            session.open_table(path)
        except HerdError as error:
            pytest.skip(str(error))
        model = scripted("> while True: pass", "> df['units'].sum()", "13.")
        events = list(Conversation(model, session, Dialog((SYSTEM,))).ask("sum?"))
    assert isinstance(events[1], Error) and "1 s" in events[1].text
    assert any(isinstance(event, Output) and event.value == {"kind": "number", "value": 13} for event in events)
    assert words(events) == "13." and isinstance(events[-1], Done) and events[-1].reason == "answered"
