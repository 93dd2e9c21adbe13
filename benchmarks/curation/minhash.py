"""MinHash de-duplication: speed of signatures, quality against labels, and a million short documents.

    python minhash.py --texts FILE --warm FILE      signatures of a JSONL file, as datatrove_chain.py computes them
    python minhash.py --hash FILE --work FOLDER     hashes of its documents, written as the first pass of curation does
    python minhash.py --join FOLDER                 equal and near-duplicate documents, decided from those

Each prints one JSON line; CPU seconds are the process's after imports, without reading the JSONL file.

Truth is computed, never assumed: the exact Jaccard similarity of word 5-grams of the very texts that are compared.
Recall: of the labelled pairs of at least 0.8 whose pages both reach the comparison, those that end with one keeper.
False merges: of the documents that the near-duplicate step dropped, those that no chain of pairs of at least 0.7 ties
to their keeper. Documents that only such a chain ties to a keeper less alike than 0.7 are counted as chained.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from herd.data import cleaning, duplicates, minhash
from herd.data.documents import Writer, document_id
from herd.data.engine import Crew, Engine
from herd.data.settings import CurateSettings
from herd.data.words import tokens
from herd.recipe_data import Data, Folder

THRESHOLD = 0.8
MARGIN = 0.1  # below the threshold by more than this, a merge is an error
SHORT_DOCUMENTS, SHORT_WORDS, SHORT_STEP = 1_000_000, 20, 3
PART_DOCUMENTS = 100_000
DATA = Data(source=[Folder(kind="folder", name="short", path=".")], workers=1)
SETTINGS = CurateSettings(data=DATA, seed=1)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--texts", type=Path)
    options.add_argument("--warm", type=Path)
    options.add_argument("--hash", type=Path)
    options.add_argument("--work", type=Path)
    options.add_argument("--join", type=Path)
    chosen = options.parse_args()
    if chosen.texts:
        signatures(chosen.warm)
        print(json.dumps(signatures(chosen.texts)))
    elif chosen.hash:
        print(json.dumps(hashed(chosen.hash, chosen.work)))
    else:
        print(json.dumps(joined(chosen.join)))


def read(texts: Path) -> Iterator[str]:
    with texts.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def write(texts: list[str], to: Path) -> None:
    with to.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"text": text, "id": f"{number:07d}"}) + "\n")


def signatures(texts: Path) -> dict[str, float]:
    """CPU seconds of reading a JSONL file, and from its texts to their signatures."""
    start = cpu()
    count = sum(1 for _ in read(texts))
    between = cpu()
    made = minhash.Signatures()
    for text in read(texts):
        made.add(tokens(text))
    made.array()
    return {"cpu-s": (cpu() - between) - (between - start), "read-s": between - start, "documents-read": count}


def hashed(texts: Path, work: Path) -> dict[str, float]:
    """The facts that the first pass keeps of each document, in parts, without extraction and language."""
    start, names, counts, size = cpu(), [], [], 0
    work.mkdir(parents=True, exist_ok=True)
    day = date(2026, 3, 1)
    rows = enumerate(read(texts))
    while batch := list(islice(rows, PART_DOCUMENTS)):
        names.append(f"{len(names):05}")
        counts.append(len(batch))
        facts = cleaning.Facts(cleaning.Cleaning(work / names[-1], work, SETTINGS, 1, None))
        with Writer(work / f"{names[-1]}.extracted.parquet", cleaning.EXTRACTED, weigh="text") as writer:
            for number, text in batch:
                parts = tokens(text)
                row = {
                    "id": document_id("short", str(number)), "source": "short", "path": str(number), "url": "",
                    "kind": "code", "page": "", "language": "", "licence": "", "retrieved": day, "text": text,
                    "verbatim": [], "bytes": len(parts.data), "dirty": 0,
                }  # fmt: skip
                size += len(parts.data)
                writer.write(row)
                facts.add(row, parts)
        facts.write()
    (work / "parts.json").write_text(json.dumps([names, counts]))
    return {"cpu-s": cpu() - start, "rss-gb": peak(), "mean-bytes": size / sum(counts)}


def joined(work: Path) -> dict[str, float]:
    """CPU seconds and peak memory of everything beyond hashing: exchange, similarities, connected components."""
    names, counts = json.loads((work / "parts.json").read_text())
    start = cpu()
    corpus = duplicates.join_facts(work, names, counts)
    with Crew(Engine("local", 1)) as crew:
        fates = duplicates.decide(corpus, DATA, np.empty(0, np.uint64), crew)
    figures: dict[str, float] = {"cpu-s": cpu() - start, "rss-gb": peak(), "documents": corpus.documents}
    dropped = {name: int((fates.fate == fate).sum()) for fate, name in duplicates.STEP_OF.items()}
    return figures | {"exact": dropped["exact"], "near": dropped["near"]}


def quality(texts: list[str], labels: dict[str, Any], drops: list[dict[str, Any]], warc: str) -> dict[str, float]:
    """Recall and false merges of a curated WARC: its texts in the order of records, labels, and table of drops."""
    from curation.mirrors import Texts, jaccard

    starts = [labels["start"], *(record["end"] for record in labels["records"][:-1])]
    number_of = {document_id("crawl", f"{warc}#{start}"): number for number, start in enumerate(starts)}
    keeper, step = list(range(len(texts))), [""] * len(texts)
    for row in drops:
        number = number_of[row["id"]]
        step[number] = row["step"]
        keeper[number] = number_of[row["kept"]] if row["kept"] else number
    compared = [name not in ("blocklist", "extract", "pii", "language", "domains") for name in step]

    words, known = Texts(), {}

    def alike(a: int, b: int) -> float:
        for number in (a, b):
            if number not in known:
                known[number] = words.of(texts[number])
        return jaccard(known[a], known[b])

    figures: dict[str, float] = {}
    truth = [
        (pair["label"], alike(pair["a"], pair["b"]), keeper[pair["a"]] == keeper[pair["b"]])
        for pair in labels["pairs"]
        if compared[pair["a"]] and compared[pair["b"]]
    ]
    near = [same for _, exact, same in truth if exact >= THRESHOLD]
    figures |= {"labelled-pairs": len(near), "recall": share(near)}
    for label in ("mirror", "natural", "copy", "recrawl"):
        found = [same for name, exact, same in truth if name == label and exact >= THRESHOLD]
        figures |= {f"{label}-pairs": len(found), f"{label}-recall": share(found)}
    for low, high in ((0.8, 0.85), (0.85, 0.9), (0.9, 1.0)):
        found = [same for name, exact, same in truth if name == "mirror" and low <= exact < high]
        figures |= {f"mirror-{low}-{high}-pairs": len(found), f"mirror-{low}-{high}-recall": share(found)}
    negatives = [same for name, exact, same in truth if name == "hard-negative" and exact < THRESHOLD - MARGIN]
    figures |= {"hard-negatives": len(negatives), "hard-negatives-merged": sum(negatives)}

    groups: dict[int, list[int]] = defaultdict(list)
    for number, name in enumerate(step):
        if name == "near":
            groups[keeper[number]].append(number)
    false = chained = 0
    for kept, members in groups.items():
        tied = reachable(kept, members, lambda a, b: alike(a, b) >= THRESHOLD - MARGIN)
        false += len(members) - len(tied)
        chained += sum(alike(kept, one) < THRESHOLD - MARGIN for one in tied)
    merged = step.count("near")
    return figures | {
        "merged": merged,
        "merged-false": false,
        "chained": chained,
        "false-merges": false / max(1, merged),
    }


def reachable(start: int, members: list[int], near: Callable[[int, int], bool]) -> list[int]:
    """Members that a chain of near pairs ties to `start`."""
    found, rest = [start], list(members)
    for one in found:
        closer = [other for other in rest if near(one, other)]
        found += closer
        rest = [other for other in rest if other not in closer]
    return found[1:]


def short_documents(texts: list[str], count: int = SHORT_DOCUMENTS) -> list[str]:
    """Lines of at least 40 characters, and of longer lines stretches of 20 words that start every 3 words.

    The corpus has 0.2M such lines: overlapping stretches make a million of 112 bytes of them.
    """
    found: list[str] = []
    for text in texts:
        for line in text.split("\n"):
            if len(line) < 40:
                continue
            parts = line.split()
            last = max(1, len(parts) - SHORT_WORDS + SHORT_STEP)
            found += [" ".join(parts[start : start + SHORT_WORDS]) for start in range(0, last, SHORT_STEP)]
        if len(found) >= count:
            break
    return found[:count]


def share(found: list[bool]) -> float:
    return sum(found) / len(found) if found else 1.0


def cpu() -> float:
    """CPU seconds so far of this process and its ended children."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def peak() -> float:
    """Peak resident memory of this process, GB. (ru_maxrss begins with that of the process it was started from.)"""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
