"""Written questions: every kind runs and says something, what is held out shares no sentence, errors are real."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import product

import pytest

from herd.posttrain.synthesis import dialogs
from herd.posttrain.synthesis.chat import HELD_OUT_SMALL_TALK, SMALL_TALK
from herd.posttrain.synthesis.dialogs import draw_dialog, draw_turn, play, restore, told, view_of
from herd.posttrain.synthesis.kinds import KINDS
from herd.posttrain.synthesis.phrases import all_phrasings
from herd.posttrain.synthesis.questions import Asking, NoPhrasing, Question, Step
from herd.posttrain.synthesis.words import literal, mention, natural, plural

BUILDERS = {builder.__name__: builder for builder, _ in KINDS}


def asked(kind: str, view, seed, held_out: bool = False) -> Question | None:
    try:
        return BUILDERS[kind](Asking(view, random.Random(seed), held_out))
    except NoPhrasing:
        return None


@pytest.fixture(scope="module")
def opened(sandbox, tables):
    """(view, session) of each table."""
    found = []
    for path in tables:
        session = sandbox.session()
        found.append((view_of(session.open_table(path), session), session))
    return found


@pytest.fixture(scope="module")
def shops(opened):
    return opened[0]


# ---- kinds of questions ----


@pytest.mark.parametrize("held_out", [False, True], ids=["train", "held-out"])
@pytest.mark.parametrize("kind", BUILDERS)
def test_the_code_of_every_kind_runs_and_says_something(kind, held_out, opened):
    told_of = Counter()
    for number, (view, session) in enumerate(opened):
        for draw in range(6):
            question = asked(kind, view, f"{kind}{number}{draw}", held_out)
            if question is None:
                continue
            assert question.text.strip() and question.answer.count("{}") == 1
            restore(view, session)
            assert session.run(question.steps[0].code).ok, question
            turn = play(question, session)
            told_of[number] += turn is not None
            if turn is not None:
                assert turn.messages[-1].content and "{}" not in turn.messages[-1].content
    assert len(told_of) >= 2 and sum(told_of.values()) >= 5, told_of


def test_sentences_have_no_trace_of_their_templates(shops):
    view, _ = shops
    for draw in range(300):
        for kind in BUILDERS:
            question = asked(kind, view, draw, held_out=draw % 2 == 0)
            if question is not None:
                assert not re.search(r"[\[\]{}|]|  ", question.text), question.text


def test_a_second_step_uses_what_the_first_one_gave(shops):
    view, session = shops
    seen = 0
    for draw in range(20):
        question = asked("two_steps", view, draw)
        turn = play(question, session) if question else None
        if turn is None:
            continue
        first, second = turn.codes
        value = session.run(first).value
        assert value is not None and literal(value["value"]) in second and "{}" not in second
        result = session.run(second)
        assert result.value == turn.gold and turn.messages[4].content == result.text
        seen += 1
    assert seen >= 5


def test_no_condition_is_made_of_a_value_that_was_cut(opened):
    view, _ = opened[1]
    long = [column for column in view.facts.columns if column.name == "Long name"]
    assert any(example.endswith("...") for example in long[0].examples)
    for draw in range(300):
        where = Asking(view, random.Random(draw), False).condition()
        assert where is not None and "..." not in where.code


def test_a_column_called_percent_does_not_make_a_share_a_percentage(opened):
    view, _ = opened[1]
    for draw in range(400):
        question = asked("share", view, draw, held_out=draw % 2 == 0)
        assert question is not None
        percent = re.search(r"percent of (?!at)|percentage|, in percent,", question.text.lower()) is not None
        assert question.steps[0].code.endswith("* 100") == percent, question


def test_what_fails_or_says_nothing_is_no_turn(shops):
    _, session = shops
    for code in ('df["nothing"]', "None", "df[df.units > 1000]", '"x" * 400', 'float("nan")', "x = 1"):
        assert play(Question("k", "?", (Step(code),)), session) is None
    fails_later = Question("k", "?", (Step("df.region.mode()[0]"), Step("df[df.nothing == {}]")))
    assert play(fails_later, session) is None


def test_a_result_is_told_as_it_was_shown(shops):
    _, session = shops
    counts = session.run("df.region.value_counts()")
    assert told(counts).count(", ") == 2 and "North" in told(counts)
    assert told(session.run("df.units.sum()")) == session.run("df.units.sum()").text
    many = told(session.run("df.groupby('day').units.sum()"))
    assert re.search(r" and \d+ more$", many)


# ---- phrasings ----


def sentences(template: str) -> set[str]:
    """All that a template can become with neutral slots, without case, signs and the noun for rows."""
    parts = re.split(r"(\[[^\[\]]*\])", template.replace("[rows]", "records"))
    choices = [part[1:-1].split("|") if part.startswith("[") else [part] for part in parts]
    return {" ".join(re.findall(r"[\w<>=%]+", "".join(words).lower())) for words in product(*choices)}


def test_no_held_out_sentence_can_be_trained_on():
    """Every expansion of every template, over all kinds, with slots left open; conditions each by themselves."""
    conditions = {"is_value", "is_number", "yes", "no", "compared"}  # parts of a sentence
    whole = [p for kind, p in all_phrasings().items() if kind not in conditions]
    for group in (whole, *([all_phrasings()[kind]] for kind in conditions)):
        train = {s for p in group for t in p.train for s in sentences(t)}
        held_out = {s for p in group for t in p.held_out for s in sentences(t)}
        assert train and held_out and not train & held_out
        assert group is not whole or (len(train) > 1000 and len(held_out) > 60)
    assert all(p.held_out and p.train for p in all_phrasings().values())


def test_the_slots_of_a_kind_are_given_in_both_phrasings():
    """A held-out phrasing asks for nothing that training phrasings of its kind never fill."""
    for name, phrasings in all_phrasings().items():
        slots = [
            {s.lower() for t in side for s in re.findall(r"\{(\w+)\}", t)}
            for side in (phrasings.train, phrasings.held_out)
        ]
        assert slots[1] <= slots[0], name


def test_small_talk_held_out_is_none_that_is_trained_on():
    trained = {said.lower().strip(".!?") for group, _ in SMALL_TALK for said in group}
    assert not trained & {said.lower().strip(".!?") for said in HELD_OUT_SMALL_TALK}


# ---- dialogs ----


def test_a_failing_call_has_its_real_error_and_is_not_trained_on(shops, monkeypatch):
    view, session = shops
    monkeypatch.setattr(dialogs, "ERROR_SHARE", 1.0)
    monkeypatch.setattr(dialogs, "TALK_SHARE", 0.0)
    dialog = draw_dialog(view, session, random.Random(1), turns=8)
    failed = [i for i, m in enumerate(dialog.messages) if m.role == "assistant" and not m.trained]
    assert len(failed) >= 6
    for index in failed:
        before, call, answer, repair = dialog.messages[index - 1 : index + 3]
        assert before.role == "user" and answer.role == "tool" and repair.trained and repair.calls
        code = call.calls[0].code
        assert code is not None
        result = session.run(code)
        assert not result.ok and result.text == answer.content
        assert repair.calls[0].code != code
    assert all(m.trained for i, m in enumerate(dialog.messages) if i not in failed)


def test_a_dialog_is_drawn_again_from_the_same_seed_whatever_was_asked_before(shops, monkeypatch):
    """A column that a question added is gone in the next dialog."""
    view, session = shops
    count = Question("columns", "How many columns?", (Step("len(df.columns)"),))
    with monkeypatch.context() as patch:
        patch.setattr(dialogs, "draw_question", lambda *_: count)
        session.run('df["ratio"] = 1')
        assert draw_dialog(view, session, random.Random(3), turns=1).messages[-1].content == "7"
    first = draw_dialog(view, session, random.Random(3), turns=6)
    session.run('df["ratio"] = 1')
    assert draw_dialog(view, session, random.Random(3), turns=6) == first
    assert draw_dialog(view, session, random.Random(4), turns=6) != first
    restore(view, session)
    assert session.facts().columns == view.facts.columns


def test_turns_are_drawn_until_one_works(opened):
    for view, session in opened:
        turn = draw_turn(view, session, random.Random(5), held_out=True)
        assert turn.messages[0].content == turn.question.text and turn.messages[-1].role == "assistant"


# ---- words ----


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("unit_price", "unit price"),
        ("UnitPrice", "unit price"),
        ("GDP.2020", "GDP 2020"),
        ("Größe", "größe"),
        ("#", "#"),
    ],
)
def test_labels_in_plain_words(label, words):
    assert natural(label) == words


def test_a_mention_by_its_last_word_is_never_ambiguous():
    labels = ["unit price", "total_price", "order date"]
    said = [mention(label, labels, random.Random(i)) for label in labels for i in range(300)]
    assert "date" in said and "price" not in said
    assert [plural(word) for word in ("city", "box", "day", "sales", "row")] == [
        "cities",
        "boxes",
        "days",
        "sales",
        "rows",
    ]
