"""Learning the tokenizer from the curated training text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pyarrow.parquet as pq

from herd.artifact import Artifact, Draft
from herd.console import progress
from herd.evidence import Claim, write_claims
from herd.model.tokenizer import train_tokenizer
from herd.recipe import Section, Tokenizer


class VocabularySettings(Section):
    seed: int
    tokenizer: Tokenizer


def learn(settings: VocabularySettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: learn merges from a fair sample of inputs["curate"]'s training documents; measures the compression.

    The sample is the documents of lowest hash, up to `train_bytes`, and compression is measured on held-out ones.
    """
    columns = ["id", "split", "bytes", "text"]
    table = pq.read_table(inputs["curate"].file("documents.parquet"), columns=columns).to_pydict()
    rows = sorted(
        range(len(table["id"])), key=lambda i: hashlib.sha256(f"{settings.seed}\0{table['id'][i]}".encode()).digest()
    )
    sample, size = [], 0
    for i in rows:
        if table["split"][i] == "train" and size < settings.tokenizer.train_bytes:
            sample.append(table["text"][i])
            size += table["bytes"][i]
    with progress("tokenizer: learning merges"):
        tokenizer = train_tokenizer(sample, settings.tokenizer.vocab_size)
    tokenizer.save(out.folder)
    held = [table["text"][i] for i in rows if table["split"][i] == "heldout"][:200]
    tokens = sum(len(ids) for ids in tokenizer.encode_documents(held))
    encoded = sum(len(text.encode()) for text in held)
    claim = Claim(
        "tokenizer.bytes-per-token",
        "compression of held-out text",
        encoded / tokens,
        "bytes/token",
        len(held),
        "held-out documents",
    )
    write_claims(out.folder / "claims.json", [claim])
