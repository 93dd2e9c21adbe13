"""Shards small enough to train on in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from herd.artifact import Artifact, find, publish

VOCAB = 64


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A published shards artifact of documents that count upwards with noise, so that there is something to learn."""
    random = np.random.default_rng(0)

    def documents(count: int) -> list[np.ndarray]:
        made = []
        for _ in range(count):
            steps = random.choice([1, 2, 5], 80, p=[0.8, 0.15, 0.05])
            made.append(np.concatenate(([0], 2 + np.cumsum(steps) % (VOCAB - 2), [1])).astype(np.uint16))
        return made

    run = tmp_path_factory.mktemp("shards")
    with publish(run, "shards", "0" * 64, {"inputs": {}}, {}) as out:
        made = {"code/code": documents(300), "general/docs": documents(100)}
        save_file({name: np.concatenate(some) for name, some in made.items()}, out.folder / "train.safetensors")
        where = {f"{name}.starts": np.cumsum([0, *map(len, some)]) for name, some in made.items()}
        which = {f"{name}.ids": np.arange(len(some), dtype=np.uint64) for name, some in made.items()}
        save_file(where | which, out.folder / "provenance.safetensors")
        held = documents(20)
        tensors = {
            "tokens": np.concatenate(held),
            "starts": np.cumsum([0, *map(len, held)]),
            "bytes": np.full(20, 160),
        }
        save_file(tensors, out.folder / "heldout.safetensors")
        groups = ("code", "general")
        rows = [{"id": str(i), "kind": "code", "group": groups[i % 2], "language": "en"} for i in range(20)]
        out.write_json("shards.json", {"schema": 2, "vocab_size": VOCAB, "bos_id": 0, "heldout": rows})
    artifact = find(Path(run), "shards", "0" * 64)
    assert artifact is not None
    return artifact
