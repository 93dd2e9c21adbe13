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
from herd.data.scoring import Limits, documents, read_scores, scores_of
from herd.data.settings import CurateSettings
from herd.data.technical import group_of
from herd.data.topics import keeps

JUDGED_CODE = 0.5  # probability of a yes from which a page is one of code


class Writing(NamedTuple):
    """A task: write a part's documents that stay, by their scores and the limits."""

    folder: Path
    name: str
    settings: CurateSettings
    limits: Limits


def write(task: Writing) -> dict[str, Any]:
    """Write a part's outcome; returns its books."""
    scores = documents(read_scores(scores_of(task.folder, task.name)))
    with (
        Ledger(task.folder, f"{task.name}.write") as ledger,
        Writer(task.folder / f"{task.name}.final.parquet", CURATED, weigh="text") as writer,
    ):
        rows = read_rows(task.folder / f"{task.name}.filtered.parquet")
        for row, own in zip(rows, scores, strict=True):
            if _drops(row, own, task, ledger):
                continue
            row |= {
                "topic": own["topic"],
                "quality": None if np.isnan(own["quality"]) else own["quality"],
                "split": split_of(row["id"], task.settings.seed, task.settings.data.held_out_share),
                "group": _group(row, own, task.settings.data.languages[0]),
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
    found = task.limits.drop(own)
    for step in ("contamination", "outliers", "quality"):
        ledger.enter(step, size)
        if found is not None and found.step == step:
            ledger.drop(row, *found, size, text)
            return True
        if step == "outliers" or (step == "quality" and own["judged"] and own["language"] in task.limits.quality):
            ledger.show_passed(row, step, text)
    ledger.enter("mix", size)
    share = task.limits.topics.get(own["topic"], 1.0)
    if keeps(row["id"], share, task.settings.seed):
        return False
    ledger.drop(row, "mix", f"too_much_{own['topic'].replace(' ', '_')}", 1.0, share, size, text)
    return True


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
                    writer.write_table(file.read_row_group(group, use_threads=False))
