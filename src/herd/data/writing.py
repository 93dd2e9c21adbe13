"""The last pass over a part: what the scores drop, and the documents that stay as they are published."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from herd.data.documents import CURATED, Writer, read_rows
from herd.data.funnel import Ledger
from herd.data.linear import hash_share
from herd.data.scoring import Limits
from herd.data.technical import group_of
from herd.recipe_data import Data

JUDGED_CODE = 0.5  # probability of a yes from which a page is one of code


class Writing(NamedTuple):
    """A task: write a part's documents that stay, by their scores and the limits."""

    folder: Path
    name: str
    scores: str
    limits: Limits
    data: Data
    seed: int


def write(task: Writing) -> dict[str, Any]:
    """Write a part's outcome; returns its books."""
    with np.load(task.scores) as arrays:
        scores = {name: arrays[name] for name in arrays.files}
    with (
        Ledger(task.folder, f"{task.name}.write") as ledger,
        Writer(task.folder / f"{task.name}.final.parquet", CURATED, weigh="text") as writer,
    ):
        for index, row in enumerate(read_rows(task.folder / f"{task.name}.filtered.parquet")):
            own = {name: values[index].item() for name, values in scores.items()}
            if _drops(row, own, task, ledger):
                continue
            row |= {
                "topic": own["topic"],
                "quality": None if np.isnan(own["quality"]) else own["quality"],
                "split": split_of(row["id"], task.seed, task.data.held_out_share),
                "group": _group(row, own, task.data.languages[0]),
            }
            ledger.keep(row)
            writer.write({name: row[name] for name in CURATED.names})
        books = ledger.books()
    return {"books": books}


def _group(row: dict[str, Any], own: dict[str, Any], primary: str) -> str:
    """The group of the mix; a page that a judge's model calls code counts as code, whatever its markup says."""
    page = "code" if own["code"] >= JUDGED_CODE else row["page"]
    return group_of(row["kind"], page, row["language"], primary, own["reasoning"])


def _drops(row: dict[str, Any], own: dict[str, Any], task: Writing, ledger: Ledger) -> bool:
    """Whether a score drops the document, and the record of it."""
    size, text = row["bytes"], row["text"]
    ledger.enter("contamination", size)
    if own["leak"]:
        rules = task.data.decontamination
        ledger.drop(row, "contamination", own["leak"], own["hits"], rules.max_hits if rules else 0, size, text)
        return True
    ledger.enter("outliers", size)
    limit = task.limits.divergence.get(own["cell"])
    if limit is not None and own["divergence"] > limit:
        ledger.drop(row, "outliers", "odd_words", own["divergence"], limit, size, text)
        return True
    ledger.show_passed(row, "outliers", text)
    ledger.enter("quality", size)
    limit = task.limits.quality.get(row["language"])
    if limit is not None and own["judged"] and own["quality"] < limit:
        ledger.drop(row, "quality", "unlike_reference", own["quality"], limit, size, text)
        return True
    if limit is not None and own["judged"]:
        ledger.show_passed(row, "quality", text)
    ledger.enter("mix", size)
    share = task.limits.topics.get(own["topic"], 1.0)
    if share < 1 and hash_share(row["id"], task.seed) >= share:
        ledger.drop(row, "mix", f"too_much_{own['topic'].replace(' ', '_')}", 1.0, share, size, text)
        return True
    return False


def split_of(document: str, seed: int, held_out_share: float) -> str:
    """train or heldout, from the seed and the document's id alone: adding documents moves none of the others.

    Of near-duplicates that were found all but one were dropped; looser copies may lie on both sides.
    """
    digest = hashlib.sha256(f"{seed}\0{document}".encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") < held_out_share * 2**64 else "train"


def join(parts: Sequence[Path], target: Path) -> None:
    """Parts as one Parquet file, in their order; one row group is in memory at a time."""
    with pq.ParquetWriter(target, CURATED, compression="zstd") as writer:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for group in range(file.num_row_groups):
                    writer.write_table(file.read_row_group(group))
