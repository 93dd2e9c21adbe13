"""Learning the tokenizer from the curated training text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from herd.artifact import Artifact, Draft
from herd.console import HerdError, progress
from herd.evidence import Claim, write_claims
from herd.model.tokenizer import train_tokenizer
from herd.recipe import Section, Tokenizer

HELD_OUT_DOCUMENTS = 200  # that compression is measured on


class VocabularySettings(Section):
    seed: int
    tokenizer: Tokenizer


def learn(settings: VocabularySettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: learn merges from a fair sample of inputs["curate"]'s training documents; measures the compression.

    The sample is the documents of lowest hash, up to `train_bytes`, and compression is measured on held-out ones.
    """
    path = inputs["curate"].file("documents.parquet")
    table = pq.read_table(path, columns=["id", "split", "bytes"]).to_pydict()
    rows = sorted(
        range(len(table["id"])), key=lambda i: hashlib.sha256(f"{settings.seed}\0{table['id'][i]}".encode()).digest()
    )
    sample, size = [], 0
    for i in rows:
        if table["split"][i] == "train" and size < settings.tokenizer.train_bytes:
            sample.append(i)
            size += table["bytes"][i]
    held = [i for i in rows if table["split"][i] == "heldout"][:HELD_OUT_DOCUMENTS]
    if not sample or not held:
        raise HerdError(f"tokenizer: {len(sample)} documents to learn from and {len(held)} held out: add text")
    texts = _texts(path, {*sample, *held})
    with progress("tokenizer: learning merges"):
        tokenizer = train_tokenizer([texts[i] for i in sample], settings.tokenizer.vocab_size)
    tokenizer.save(out.folder)
    tokens = sum(len(ids) for ids in tokenizer.encode_documents([texts[i] for i in held]))
    encoded = sum(len(texts[i].encode()) for i in held)
    claim = Claim(
        "tokenizer.bytes-per-token",
        "compression of held-out text",
        encoded / tokens,
        "bytes/token",
        len(held),
        "held-out documents",
    )
    write_claims(out.folder / "claims.json", [claim])


def _texts(path: Path, wanted: set[int]) -> dict[int, str]:
    """Texts of some rows of a Parquet file, by row; one row group is in memory besides."""
    found: dict[int, str] = {}
    first = 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            own = [row for row in range(first, first + count) if row in wanted]
            if own:
                texts = file.read_row_group(group, ["text"])["text"]
                found |= {row: texts[row - first].as_py() for row in own}
            first += count
    return found
