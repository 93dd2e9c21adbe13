"""MinHash de-duplication: speed of signatures, quality against labels, and a million short documents.

    python minhash.py --texts FILE --warm FILE      signatures of a JSONL file, as datatrove_chain.py computes them
    python minhash.py --hash FILE --arrays FOLDER   digests and signatures of its documents, kept as arrays
    python minhash.py --join FOLDER                 equal and near-duplicate documents, from those arrays alone

Each prints one JSON line; CPU seconds are the process's after imports and what is loaded once.

Truth is computed, never assumed: the exact Jaccard similarity of word 5-grams of the very texts that are de-duplicated.
Recall: of the labelled pairs of at least 0.8, those that end with the same keeper. False merges: of the documents that
the near-duplicate step merged, those that no chain of pairs of at least 0.7 ties to their keeper. Documents that only
such a chain ties to a keeper below 0.7 are reported as chained.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.data import dedup
from herd.data.words import tokens

THRESHOLD = 0.8
MARGIN = 0.1  # below the threshold by more than this, a merge is an error
SHORT_DOCUMENTS, SHORT_WORDS, SHORT_STEP = 1_000_000, 20, 4
Keepers = NDArray[np.int64]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--texts", type=Path)
    options.add_argument("--warm", type=Path)
    options.add_argument("--hash", type=Path)
    options.add_argument("--arrays", type=Path)
    options.add_argument("--join", type=Path)
    chosen = options.parse_args()
    if chosen.texts:
        signatures(chosen.warm)
        print(json.dumps(signatures(chosen.texts)))
    elif chosen.hash:
        print(json.dumps(hashed(chosen.hash, chosen.arrays)))
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
    made = dedup.Signatures()
    for text in read(texts):
        made.add(tokens(text))
    made.array()
    return {"cpu-s": (cpu() - between) - (between - start), "read-s": between - start, "documents-read": count}


def hashed(texts: Path, arrays: Path) -> dict[str, float]:
    """Digests, lengths and signatures of all documents, written as numpy arrays."""
    start = cpu()
    digests, lengths, made = [], [], dedup.Signatures()
    for text in read(texts):
        parts = tokens(text)
        digests.append(dedup.text_digest(text))
        lengths.append(len(parts.data))
        made.add(parts)
    arrays.mkdir(parents=True, exist_ok=True)
    np.save(arrays / "digests.npy", np.frombuffer(b"".join(digests), "V16"))
    np.save(arrays / "lengths.npy", np.array(lengths, np.int64))
    np.save(arrays / "signatures.npy", made.array())
    return {"cpu-s": cpu() - start, "rss-gb": peak()}


def joined(arrays: Path) -> dict[str, float]:
    """De-duplicate from arrays: CPU seconds and peak memory of everything but hashing."""
    start = cpu()
    digests = [one.tobytes() for one in np.load(arrays / "digests.npy")]
    lengths = np.load(arrays / "lengths.npy")
    made = np.load(arrays / "signatures.npy", mmap_mode="r")
    ids = [f"{number:07d}" for number in range(len(lengths))]
    equal, keeper = deduplicated(digests, made, lengths, ids)
    clusters = len(np.unique(keeper))
    return {
        "cpu-s": cpu() - start, "rss-gb": peak(), "documents": len(ids), "kept": clusters,
        "equal": int((equal != np.arange(len(ids))).sum()),
    }  # fmt: skip


def deduplicated(
    digests: list[bytes], made: NDArray[np.uint32], lengths: NDArray[np.int64], ids: list[str]
) -> tuple[Keepers, Keepers]:
    """For each document the equal one kept in its place, and then the near-duplicate kept in that one's place."""
    equal = dedup.exact_duplicates(digests, ids)
    left = np.flatnonzero(equal == np.arange(len(ids)))
    near = dedup.near_duplicates(made[left], lengths[left], [ids[i] for i in left.tolist()], THRESHOLD).keeper
    keeper = np.arange(len(ids))
    keeper[left] = left[near]
    return equal, keeper[equal]


def quality(texts: list[str], labels: dict[str, Any]) -> dict[str, float]:
    """Recall and false merges over the corpus, as the module says; `texts` as the extractor gives them now."""
    from curation.corpus import Texts, jaccard

    made, words = dedup.Signatures(), Texts()
    parts = [tokens(text) for text in texts]
    for one in parts:
        made.add(one)
    digests = [dedup.text_digest(text) for text in texts]
    lengths = np.array([len(one.data) for one in parts], np.int64)
    equal, keeper = deduplicated(digests, made.array(), lengths, [f"{number:07d}" for number in range(len(texts))])

    known: dict[int, Any] = {}

    def alike(a: int, b: int) -> float:
        for number in (a, b):
            if number not in known:
                known[number] = words.of(texts[number])
        return jaccard(known[a], known[b])

    truth = [(pair["a"], pair["b"], pair["label"], alike(pair["a"], pair["b"])) for pair in labels["pairs"]]
    figures: dict[str, float] = {}
    for label in ("mirror", "natural", "copy", "recrawl"):
        pairs = [(a, b) for a, b, name, exact in truth if name == label and exact >= THRESHOLD]
        figures[f"recall-{label}-pairs"] = len(pairs)
        figures[f"recall-{label}"] = share([keeper[a] == keeper[b] for a, b in pairs])
    for low, high in ((0.8, 0.85), (0.85, 0.9), (0.9, 1.01)):
        found = [keeper[a] == keeper[b] for a, b, name, exact in truth if name == "mirror" and low <= exact < high]
        figures[f"recall-mirror-{low}-to-{min(high, 1.0)}"] = share(found)
        figures[f"recall-mirror-{low}-to-{min(high, 1.0)}-pairs"] = len(found)
    negatives = [keeper[a] == keeper[b] for a, b, name, exact in truth if name == "hard-negative"]
    figures |= {"hard-negatives": len(negatives), "hard-negatives-merged": sum(map(bool, negatives))}

    groups: dict[int, list[int]] = defaultdict(list)
    for number in np.flatnonzero(equal == np.arange(len(texts))).tolist():
        groups[int(keeper[number])].append(number)
    merged = false = chained = 0
    for kept, members in groups.items():
        tied = reachable(kept, members, lambda a, b: alike(a, b) >= THRESHOLD - MARGIN)
        merged += len(members) - 1
        false += len(members) - len(tied)
        chained += sum(alike(kept, one) < THRESHOLD - MARGIN for one in tied if one != kept)
    return figures | {"merged": merged, "merged-false": false, "chained": chained, "false-merges": false / max(1, merged)}


def reachable(start: int, members: list[int], near: Any) -> list[int]:
    """Members that a chain of near pairs ties to `start`, with it."""
    found, rest = [start], [one for one in members if one != start]
    for one in found:
        closer = [other for other in rest if near(one, other)]
        found += closer
        rest = [other for other in rest if other not in closer]
    return found


def short_documents(texts: list[str], count: int = SHORT_DOCUMENTS) -> list[str]:
    """Lines of at least 40 characters, and of longer lines stretches of 20 words that start every 4 words.

    The corpus has 0.2M such lines: the overlapping stretches make a million of about 113 bytes of them.
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


def share(found: list[Any]) -> float:
    return sum(map(bool, found)) / len(found) if found else float("nan")


def cpu() -> float:
    """CPU seconds so far of this process and its ended children."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def peak() -> float:
    """Peak resident memory of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
