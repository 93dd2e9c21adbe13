"""`herd dialog show`: every token once and in order, the trained ones marked; no file controls the terminal."""

import itertools
import json
import os
import pathlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.cli import main
from herd.model.dialog import Encoded, encode, from_openai
from herd.model.tokenizer import train_tokenizer
from herd.run import import_model
from herd.show_dialog import PART, SIGNS, Shown, cells, encode_parts, visible, warnings

LIBRARY = pathlib.Path(os.__file__).parent
CODE = {"id": "a", "function": {"name": "python", "arguments": '{"code": "1 + 1"}'}}
TALK = [
    {"role": "system", "content": "Short answers."},
    {"role": "user", "content": "What is\n1 + 1 in हिन्दी?"},
    {"role": "assistant", "content": "", "tool_calls": [CODE]},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "दो"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([(LIBRARY / "json/decoder.py").read_text(encoding="utf-8")], 500)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    tokenizer.save(folder := tmp_path_factory.mktemp("tokenizer"))
    return str(folder)


@pytest.fixture
def show(folder, tmp_path, capsys, monkeypatch):
    """Prints a file of this content, and returns what was printed."""
    monkeypatch.setenv("COLUMNS", "100")

    def print_file(content, *options, name="chats.jsonl", status=0):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8", errors="surrogatepass")
        tokenizer = [] if "--run" in options else ["--tokenizer", folder]
        assert main(["dialog", "show", str(path), *tokenizer, *options]) == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    return print_file


def lines(*dialogs):
    return "".join(json.dumps(dialog) + "\n" for dialog in dialogs)


def test_trained_tokens_stand_in_marks_and_counts_are_the_encoders(show, tokenizer):
    printed = show(lines({"messages": TALK}))
    marked = re.findall("«(.*?)»", printed)[1:]  # the first is the legend's
    assert [run.replace("│", "").replace(PART, "") for run in marked] == [
        "<|python_tag|>1 + 1<|eom_id|>",
        "दो<|eot_id|>",
    ]
    encoded = encode(from_openai(TALK), tokenizer)
    share = f"{sum(encoded.trained) / len(encoded.ids):.0%}"
    counts = (
        f"{len(encoded.ids)} tokens, {sum(encoded.trained)} trained ({share}), {sum(encoded.formatting)} formatting"
    )
    assert counts in printed and "warning" not in printed


def test_ids_stand_beneath_their_tokens_in_order(show, tokenizer):
    printed = show(lines(TALK), "--ids").splitlines()[3:]
    ids = [number for line in printed[1::2] for number in line.split()]
    assert [int(number) for number in ids] == encode(from_openai(TALK), tokenizer).ids
    columns = [match.start() for match in re.finditer(r"\d+", printed[1])]
    assert printed[0][columns[1] :].startswith("<|start_header_id|>")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), TEXT), max_size=4))
def test_every_token_is_shown_once_and_nothing_controls_the_terminal(tokenizer, messages):
    dialog = from_openai([{"role": role, "content": content} for role, content in messages])
    shown = Shown(tokenizer)
    parts, whole = encode_parts(dialog, shown), encode(dialog, tokenizer)
    if messages:
        assert list(itertools.chain(*(part.ids for part in parts))) == whole.ids
        assert list(itertools.chain(*(part.trained for part in parts))) == whole.trained
    for part, message in zip(parts, dialog.messages, strict=True):
        found = cells(part, tokenizer)
        assert [cell.id for cell in found] == [str(id) for id in part.ids]
        text = "".join(cell.text for cell in found)
        assert text.isprintable()
        words = text.replace(PART, "").replace("«", "").replace("»", "")
        assert re.sub(f"[{PART}«»]", "", visible(message.content)) in words


def test_a_hostile_file_is_escaped(show):
    content = "\x1b[2J\x1b]0;title\x07\x9b31m [red]x[/red] [link=http://a]b[/link] \u202egpj.exe\r\b\x7f\u200b\ud800"
    printed = show(lines([{"role": "user", "content": content}, {"role": "assistant", "content": content}]))
    assert not {c for c in printed if not c.isprintable()} - {"\n"}
    assert "[red]" in printed.replace("│", "") and "\\x1b" in printed and "\\u202e" in printed


def test_warnings_name_what_would_not_be_learned(show):
    printed = show(
        lines(
            [
                {"role": "user", "content": "<|eot_id|> or <|secret|>"},
                {"role": "assistant", "content": "a", "weight": 0},
            ],
            [*TALK, {"role": "user", "content": "and?"}],
            [],
        )
    )
    first, second, third = printed.split("chats.jsonl:")[1:]
    assert [part.count("warning: ") for part in (first, second, third)] == [4, 1, 1]
    for part in (
        "messages[0]: <|eot_id|> stands in its text and is encoded as text\n",
        "messages[0]: <|secret|> stands in its text and is encoded as text; the vocabulary has no special token",
        "messages[1]: not trained, the stop token neither (weight 0)",
        "nothing is trained",
    ):
        assert part in first
    assert "the last message is the user's: no answer follows it" in second
    assert "nothing is trained" in third


def test_words_that_are_trained_without_their_stop_token_are_warned_of(tokenizer):
    """Our encoder never does it; where a mask is wrong, models never stop."""
    dialog = from_openai([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    parts = encode_parts(dialog, Shown(tokenizer))
    wrong = Encoded(parts[1].ids, [*parts[1].trained[:-1], False], parts[1].formatting)
    found = list(warnings(dialog, [parts[0], wrong], Shown(tokenizer, context=5)))
    assert found == [
        "messages[1]: its stop token is not trained: a model would not learn to stop there",
        f"{len(parts[0].ids) + len(wrong.ids)} tokens are more than the member's context of 5",
    ]


def test_the_first_dialogs_are_shown_and_the_others_counted(show):
    content = lines(*[TALK] * 7) + "\n"
    assert show(content).count("tokens,") == 3
    printed = show(content, "--first", "5")
    assert printed.count("tokens,") == 5 and "2 more in the file" in printed
    assert "more in the file" not in show(content, "--first", "7")


@pytest.mark.parametrize("spread", [TALK, {"messages": TALK}], ids=["list", "object"])
def test_one_dialog_may_fill_the_file(show, spread):
    printed = show(json.dumps(spread, indent=1), name="chat.json")
    assert printed.count("tokens,") == 1 and "more" not in printed


def test_calls_are_written_in_the_format_asked_for(show):
    call = {"id": "a", "function": {"name": "f", "arguments": {"a": 1}}}
    printed = show(lines([{"role": "assistant", "tool_calls": [call]}]), "--calls", "function-tag").replace("│", "")
    assert '<function=f>{"a": 1}</function>' in printed


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        ("", [], "chats.jsonl: no dialogs in it"),
        ("{\n", [], "chats.jsonl:1: not JSON"),
        ('[]\n[{"role": "us\\u001ber"}]\n', [], "chats.jsonl:2: messages[0].role: 'us\\x1ber'"),
        ('{"text": "a"}\n', [], "chats.jsonl:1: no list under the key 'messages'"),
        ("[" * 5_000, [], "chats.jsonl:1: not JSON"),
        ("[]\n", ["--first", "0"], "--first: 0; expected at least 1"),
        ("[]\n", ["--calls", "xml"], "--calls: 'xml'; expected one of json, tagged-json"),
        ("[]\n", ["--member", "a"], "--tokenizer stands alone"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_named(show, content, options, problem):
    assert problem in show(content, *options, status=1)


def test_a_file_that_is_not_there(folder, capsys):
    assert main(["dialog", "show", "gone.jsonl", "--tokenizer", folder]) == 1
    assert "gone.jsonl: there is no such file" in capsys.readouterr().err
    assert main(["dialog", "show", "gone.jsonl", "--tokenizer", "gone"]) == 1
    assert "not a tokenizer that herd wrote" in capsys.readouterr().err


def test_without_a_tokenizer_it_is_the_newest_runs_assistants(
    show, gguf_fields, gguf_tensors, write_gguf, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "chats.jsonl"
    path.write_text(lines([*TALK, {"role": "user", "content": "long " * 100}]))
    assert main(["dialog", "show", str(path)]) == 1
    assert "no run under ./runs" in capsys.readouterr().err
    fields = gguf_fields("smollm")
    write_gguf(tmp_path / "tiny.gguf", fields, gguf_tensors(len(fields["tokenizer.ggml.tokens"])))
    import_model("tiny.gguf")
    assert main(["dialog", "show", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "<|im_start|>" in printed and "are more than the member's context of 128" in printed
    assert "<jupyter_code>" in show(lines(TALK), "--run", "runs/tiny", "--member", "tiny")
    problem = show(lines(TALK), "--run", "runs/tiny", "--member", "gone", status=1)
    assert "no member 'gone'; trained so far: tiny" in problem


def test_signs_are_printable():
    assert all(sign.isprintable() for sign in SIGNS.values()) and PART.isprintable()
