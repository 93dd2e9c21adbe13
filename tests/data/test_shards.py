"""Shards: every document once, in its stream, traceable; the same bytes however memory is bounded."""

from __future__ import annotations

import pydoc_data.topics
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from herd.artifact import Artifact
from herd.console import HerdError
from herd.data import shards as shards_module
from herd.data.documents import CURATED, Writer, document_id
from herd.data.shards import Shards, ShardSettings, load_shards, shard
from herd.model.tokenizer import Tokenizer, train_tokenizer

TEXTS = dict(sorted(pydoc_data.topics.topics.items()))  # Python's reference: 80 real pages
GROUPS = {"general": "docs", "code": "code", "reasoning": "prose"}


def rows(texts: dict[str, str]) -> list[dict]:
    """Curated rows: every ninth is held out, groups take turns."""
    made = []
    for i, (name, text) in enumerate(texts.items()):
        group = list(GROUPS)[i % 3]
        made.append(
            dict.fromkeys(CURATED.names)
            | {
                "id": document_id("topics", name),
                "source": "topics",
                "path": name,
                "kind": GROUPS[group],
                "language": "en",
                "split": "heldout" if i % 9 == 0 else "train",
                "group": group,
                "text": text,
                "bytes": len(text.encode()),
            }
        )
    return sorted(made, key=lambda row: row["id"])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(list(TEXTS.values())[:20], 700)


@pytest.fixture(scope="module")
def make(run_stage, tokenizer):
    """Shards of some curated rows."""

    def published(documents: list[dict], seed: int = 3) -> Artifact:
        def write(_settings, _inputs, out) -> None:
            with Writer(out.folder / "documents.parquet", CURATED, weigh="text") as writer:
                for row in documents:
                    writer.write(row)

        inputs = {
            "curate": run_stage(write, None),
            "tokenizer": run_stage(lambda _s, _i, out: tokenizer.save(out.folder), None),
        }
        return run_stage(shard, ShardSettings(seed=seed), inputs)

    return published


@pytest.fixture(scope="module")
def made(make) -> Artifact:
    return make(rows(TEXTS))


def pieces(shards: Shards, stream: str) -> dict[str, list[int]]:
    starts = shards.starts[stream]
    return {
        shards.document_at(stream, int(a)): shards.streams[stream][a:b].tolist()
        for a, b in zip(starts, starts[1:], strict=False)
    }


def test_every_training_document_is_whole_and_in_the_stream_of_its_group_and_kind(made, tokenizer):
    shards = load_shards(made.path)
    assert sorted(shards.streams) == ["code/code", "general/docs", "reasoning/prose"]
    for stream in shards.streams:
        group, kind = stream.split("/")
        expected = {
            row["id"]: [tokenizer.bos_id, *tokenizer.encode_documents([row["text"]])[0].tolist(), tokenizer.eos_id]
            for row in rows(TEXTS)
            if (row["group"], row["kind"], row["split"]) == (group, kind, "train")
        }
        assert pieces(shards, stream) == expected
        assert shards.starts[stream][-1] == len(shards.streams[stream])


def test_any_token_leads_back_to_its_document(made):
    shards = load_shards(made.path)
    starts = shards.starts["code/code"]
    first, second = (f"{int(i):016x}" for i in shards.ids["code/code"][:2])
    assert shards.document_at("code/code", int(starts[1]) - 1) == first
    assert shards.document_at("code/code", int(starts[1])) == second
    for position in (-1, int(starts[-1])):
        with pytest.raises(HerdError, match="there is none at"):
            shards.document_at("code/code", position)
    with pytest.raises(HerdError, match="there are: code/code"):
        shards.document_at("poems/prose", 0)


def test_held_out_documents_keep_their_facts(made, tokenizer):
    held = load_shards(made.path).heldout
    by_id = {row["id"]: row for row in rows(TEXTS) if row["split"] == "heldout"}
    assert sorted(held.ids) == sorted(by_id)
    for i, name in enumerate(held.ids):
        row = by_id[name]
        text = tokenizer.decode(held.tokens[held.starts[i] + 1 : held.starts[i + 1] - 1].tolist())
        assert text == row["text"]
        assert (held.kinds[i], held.groups[i], held.bytes[i]) == (row["kind"], row["group"], row["bytes"])


def test_how_memory_is_bounded_changes_no_byte(made, make, monkeypatch):
    monkeypatch.setattr(shards_module, "BUCKET_BYTES", 30_000)
    monkeypatch.setattr(shards_module, "BATCH_DOCUMENTS", 7)
    assert make(rows(TEXTS)).content == made.content


def test_the_order_is_drawn_from_the_seed_and_moves_no_document_past_another(made, make):
    """Adding or removing documents must not shuffle the rest, or every later artifact would be another one."""
    shards = load_shards(made.path)
    fewer = load_shards(make([row for row in rows(TEXTS) if row["path"] > "c"]).path)
    left = {f"{int(i):016x}" for i in fewer.ids["general/docs"]}
    assert [i for i in map("{:016x}".format, shards.ids["general/docs"].tolist()) if i in left] == [
        "{:016x}".format(i) for i in fewer.ids["general/docs"].tolist()
    ]
    other = load_shards(make(rows(TEXTS), seed=4).path)
    assert other.ids["code/code"].tolist() != shards.ids["code/code"].tolist()
    assert sorted(other.ids["code/code"].tolist()) == sorted(shards.ids["code/code"].tolist())


def test_a_document_without_a_group_counts_as_general(make):
    plain = [row | {"group": None, "kind": "prose"} for row in rows(TEXTS)]
    assert list(load_shards(make(plain).path).streams) == ["general/prose"]


def test_nothing_is_read_whole(make, tmp_path):
    """Mapping shards and reading one window takes no memory for the rest."""
    many = {f"{name}-{i}": text for name, text in TEXTS.items() for i in range(8)}
    artifact = make(rows(many))
    resident = _resident()
    tracemalloc.start()
    shards = load_shards(artifact.path)
    assert np.asarray(shards.streams["general/docs"][:64]).sum() > 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = artifact.file("train.safetensors").stat().st_size
    assert size > 1_000_000
    assert peak < size / 4
    assert _resident() - resident < size / 2


def _resident() -> int:
    """Bytes of memory that this process has to itself."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("memory is measured on Linux")
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_too_little_to_hold_out_is_an_error(make):
    with pytest.raises(HerdError, match="0 held out: add text"):
        make([row | {"split": "train"} for row in rows(TEXTS)])
