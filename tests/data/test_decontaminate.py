"""Decontamination: a benchmark's item is found in any layout, real documentation stays, and bad files are named."""

from __future__ import annotations

import gzip
import json
import pickle
import pydoc_data.topics
import re
from pathlib import Path

import pytest

from herd.console import HerdError
from herd.data.decontaminate import Benchmarks, benchmark_files, common, fingerprint
from herd.data.words import tokens

TOPICS = pydoc_data.topics.topics
GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "eval" / "gsm8k_test.jsonl"
PROBLEM = {
    "task_id": "shelf/1",
    "question": "Marta's bookshop orders 48 atlases in spring, and then half as many globes in the first week of May. "
    "How many items did the shop order in all?",
    "choices": ["72", "seventy-two crates that hold exactly one atlas or globe each", "24"],
    "canonical_solution": "def ordered(atlases: int) -> int:\n    globes = atlases // 2\n    total = atlases + globes\n"
    "    return total  # both of them together, as the question asks\n",
}
SUMS = {"prompt": "Add up all the numbers from one to forty that seven divides without rest, then halve it."}


@pytest.fixture
def benchmarks(tmp_path) -> Benchmarks:
    (tmp_path / "shop.jsonl").write_text(json.dumps(PROBLEM) + "\n\n" + json.dumps(SUMS) + "\n")
    (tmp_path / "sums.jsonl.gz").write_bytes(gzip.compress(json.dumps(SUMS).encode()))
    return Benchmarks.load(["shop.jsonl", "sums.jsonl.gz"], tmp_path)


def planted(item: str) -> str:
    """A real page with something in the middle of it."""
    page = TOPICS["bltin-file-objects"] if "bltin-file-objects" in TOPICS else next(iter(TOPICS.values()))
    return f"{page}\n{item}\n{page}"


@pytest.mark.parametrize(
    "layout",
    [
        str,
        str.upper,
        lambda text: re.sub(r"[^\w\s]", " ", text),
        lambda text: text.replace(" ", "\n"),
        lambda text: "- **" + text.replace(" ", "_ *").replace("_ *", "  ") + "**!",
    ],
    ids=["as it is", "capitals", "no punctuation", "a word a line", "markdown"],
)
@pytest.mark.parametrize("field", ["question", "canonical_solution"])
def test_a_planted_item_is_found_in_any_layout(benchmarks, field, layout):
    document = tokens(planted(layout(PROBLEM[field])))
    found = benchmarks.hits(document)
    assert found.benchmarks == {"shop": found.total}
    assert found.total >= 5
    verdict = benchmarks.judge(document)
    assert verdict is not None
    assert (verdict.rule, verdict.score, verdict.threshold) == ("benchmark:shop", found.total, 0)


def test_a_part_of_an_item_is_found_and_a_shorter_quote_is_not(benchmarks):
    words = PROBLEM["question"].split()
    assert benchmarks.hits(tokens(planted(" ".join(words[3:17])))).total >= 1
    assert benchmarks.hits(tokens(planted(" ".join(words[3:13])))).total == 0


def test_a_short_text_is_looked_for_whole(benchmarks):
    """An answer of ten words is found; those of one word are in every document and count for nothing."""
    assert benchmarks.hits(tokens(planted(PROBLEM["choices"][1]))).total == 1
    assert benchmarks.hits(tokens(planted("seventy-two crates that hold exactly one atlas"))).total == 0
    assert benchmarks.hits(tokens("72 and 24, shelf/1")).total == 0


def test_what_two_benchmarks_hold_counts_for_both(benchmarks):
    found = benchmarks.hits(tokens(planted(SUMS["prompt"])))
    assert found.benchmarks == {"shop": found.total, "sums": found.total}


def test_a_few_hits_may_be_allowed(benchmarks):
    document = tokens(planted(PROBLEM["question"]))
    count = benchmarks.hits(document).total
    assert benchmarks.judge(document, count) is None
    assert benchmarks.judge(document, count - 1) is not None


def test_real_documentation_stays(benchmarks):
    assert len(TOPICS) > 70
    assert not any(benchmarks.judge(tokens(text)) for text in TOPICS.values())
    assert not any(benchmarks.judge(tokens(path.read_text())) for path in Path(json.__file__).parent.glob("*.py"))
    assert benchmarks.judge(tokens("")) is None


def test_against_a_real_benchmark():
    if not GSM8K.exists():
        pytest.skip("GSM8K is not on this machine")
    found = Benchmarks.load([GSM8K.name], GSM8K.parent)
    assert found.count > 50_000
    assert not any(found.judge(tokens(text)) for text in TOPICS.values())
    items = [json.loads(line) for line in GSM8K.read_text().splitlines()][::40]
    caught = [found.judge(tokens(planted(item["question"].upper()))) for item in items]
    assert all(verdict is not None and verdict.rule == "benchmark:gsm8k_test" for verdict in caught)


def test_phrases_that_many_documents_hold_can_be_let_through(tmp_path):
    licence = "Licensed under the Apache License Version 2.0 you may not use this file except in compliance with it"
    (tmp_path / "code.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in (licence, SUMS["prompt"])))
    benchmarks = Benchmarks.load(["code.jsonl"], tmp_path)
    corpus = [tokens(f"{licence}\n{text}") for text in list(TOPICS.values())[:6]] + [tokens(SUMS["prompt"])]
    assert all(benchmarks.judge(document) for document in corpus)
    lenient = benchmarks.without(common(map(benchmarks.found_in, corpus), 5))
    assert [lenient.judge(document) is None for document in corpus] == [True] * 6 + [False]
    unchanged = benchmarks.without(common(map(benchmarks.found_in, corpus), 6))
    assert all(unchanged.judge(document) for document in corpus)


def test_folders_text_json_and_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    inside = tmp_path / "sets" / "deep"
    inside.mkdir(parents=True)
    (inside / "exam.txt").write_text(PROBLEM["question"])
    (inside / "notes.pdf").write_bytes(b"%PDF")
    (inside / "tree.json").write_text(json.dumps({"data": [{"paragraphs": [SUMS]}]}))
    pq.write_table(pa.table({"choices": [[PROBLEM["canonical_solution"]]], "n": [1]}), inside / "table.parquet")
    found = Benchmarks.load(["sets"], tmp_path)
    assert found.names == ("exam", "table", "tree")
    everything = planted("\n\n".join([PROBLEM["question"], SUMS["prompt"], PROBLEM["canonical_solution"]]))
    assert sorted(found.hits(tokens(everything)).benchmarks) == ["exam", "table", "tree"]
    assert len(benchmark_files(["sets"], tmp_path)) == 3


def test_the_fingerprint_follows_the_content(tmp_path):
    (tmp_path / "exam.txt").write_text(PROBLEM["question"])
    before = fingerprint(["exam.txt"], tmp_path)
    assert fingerprint([str(tmp_path / "exam.txt")], Path("/")) == before
    (tmp_path / "exam.txt").write_text(SUMS["prompt"])
    assert fingerprint(["exam.txt"], tmp_path) != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"question": "what"}\n{"question": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: not valid JSON"),
        ("a.jsonl", b'{"question": "one two three"}', r"a\.jsonl: no text of 8 words"),
        ("a.parquet", b"PAR1 not really", r"a\.parquet: not a whole Parquet file"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 50_000)[:-9], r"a\.jsonl\.gz: can't be read"),
        ("a.exe", b"MZ", "is not JSONL, JSON, Parquet or text"),
        ("b.txt", b"", r"a\.txt is not there"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HerdError, match=message):
        Benchmarks.load([name if name != "b.txt" else "a.txt"], tmp_path)


def test_benchmarks_travel_to_worker_processes(benchmarks):
    document = tokens(planted(PROBLEM["question"]))
    assert pickle.loads(pickle.dumps(benchmarks)).hits(document) == benchmarks.hits(document)
