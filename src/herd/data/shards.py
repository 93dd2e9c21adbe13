"""Token shards: curated documents as token ids, one stream per kind of document, in safetensors files.

A stream is the kind's training documents in an order drawn from the seed, each written as begin-of-text, tokens,
end-of-text. Streams of different kinds stay apart so that a later stage can weigh them differently. Held-out
documents stay separate documents, with their length in bytes, so that losses can be given in bits per byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file

from herd.artifact import Artifact, Draft
from herd.console import HerdError, progress
from herd.model.formats.weights import write_tensors
from herd.model.tokenizer import Tokenizer
from herd.recipe import Section

SCHEMA = 1
BATCH_DOCUMENTS = 512


class ShardSettings(Section):
    seed: int


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents: `tokens` of all, document i being tokens[starts[i]:starts[i+1]], and facts of each."""

    tokens: np.ndarray
    starts: np.ndarray
    bytes: np.ndarray
    ids: list[str]
    kinds: list[str]
    languages: list[str]


@dataclass(frozen=True)
class Shards:
    """Training streams by kind and held-out documents."""

    streams: dict[str, np.ndarray]
    heldout: HeldOut
    vocab_size: int
    bos_id: int

    @property
    def train_tokens(self) -> int:
        return sum(len(stream) for stream in self.streams.values())


def shard(settings: ShardSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: encode inputs["curate"] with inputs["tokenizer"].

    Raises HerdError where nothing is left to train on or to hold out.
    """
    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    table = pq.read_table(
        inputs["curate"].file("documents.parquet"), columns=["id", "kind", "language", "split", "bytes", "text"]
    )
    rank = [_order(settings.seed, i) for i in table["id"].to_pylist()]
    table = table.take(np.argsort(np.array(rank)))
    rows: dict[str, list[np.ndarray]] = {}
    held: list[tuple[str, str, str, int, np.ndarray]] = []
    with progress("shards: encoding", table.num_rows) as bar:
        for start in range(0, table.num_rows, BATCH_DOCUMENTS):
            batch = table.slice(start, BATCH_DOCUMENTS).to_pydict()
            encoded = tokenizer.encode_documents(batch["text"])
            for i, ids in enumerate(encoded):
                tokens = np.concatenate(([tokenizer.bos_id], ids, [tokenizer.eos_id]))
                if batch["split"][i] == "train":
                    rows.setdefault(batch["kind"][i], []).append(tokens)
                else:
                    held.append((batch["id"][i], batch["kind"][i], batch["language"][i], batch["bytes"][i], tokens))
            bar.update(start + len(encoded), "documents")
    if not rows or len(held) < 2:
        raise HerdError(
            f"shards: {sum(map(len, rows.values()))} documents to train on and {len(held)} held out: add text"
        )
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    streams = {kind: np.concatenate(parts).astype(dtype) for kind, parts in sorted(rows.items())}
    _write(out, streams, held, dtype, {"vocab_size": tokenizer.vocab_size, "bos_id": tokenizer.bos_id})


def _write(
    out: Draft,
    streams: dict[str, np.ndarray],
    held: list[tuple[str, str, str, int, np.ndarray]],
    dtype: type,
    vocabulary: dict[str, int],
) -> None:
    write_tensors(out.folder / "train.safetensors", {k: torch.from_numpy(v) for k, v in streams.items()})
    starts = np.cumsum([0] + [len(row[4]) for row in held]).astype(np.int64)
    tensors = {
        "tokens": np.concatenate([row[4] for row in held]).astype(dtype),
        "starts": starts,
        "bytes": np.array([row[3] for row in held], dtype=np.int64),
    }
    write_tensors(out.folder / "heldout.safetensors", {k: torch.from_numpy(v) for k, v in tensors.items()})
    facts = {
        "schema": SCHEMA,
        **vocabulary,
        "train_tokens": {kind: len(stream) for kind, stream in streams.items()},
        "heldout_tokens": int(starts[-1]),
        "heldout": [{"id": row[0], "kind": row[1], "language": row[2]} for row in held],
    }
    out.write_json("shards.json", facts)


def load_shards(folder: Path) -> Shards:
    """Read the shards of a published artifact."""
    facts = json.loads((folder / "shards.json").read_text(encoding="utf-8"))
    held, documents = load_file(folder / "heldout.safetensors"), facts["heldout"]
    return Shards(
        load_file(folder / "train.safetensors"),
        HeldOut(
            held["tokens"],
            held["starts"],
            held["bytes"],
            [d["id"] for d in documents],
            [d["kind"] for d in documents],
            [d["language"] for d in documents],
        ),
        facts["vocab_size"],
        facts["bos_id"],
    )


def _order(seed: int, document: str) -> str:
    return hashlib.sha256(f"{seed}\0{document}".encode()).hexdigest()
