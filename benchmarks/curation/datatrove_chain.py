"""datatrove's chain from WARC to de-duplicated documents, and its signature stage alone; runs in its own environment.

    python datatrove_chain.py --warc FILE --warm FILE --work FOLDER
    python datatrove_chain.py --texts FILE --warm FILE --work FOLDER

The chain is the one that FineWeb's example script builds, less what needs a download (language model, URL lists):
WarcReader, Trafilatura, Gopher's repetition and quality filters, C4's, FineWeb's, a writer; then MinHash of 14 bands of
8 over word 5-grams in its four stages, and a writer. Steps are called one after the other as its local executor calls
them, without the executor's server process; the extractor's child process is counted. One second for a page, the
default, is made ten: on a busy machine it would drop pages by the clock. Prints one JSON line; CPU seconds of this
process and its children, after imports and after a small run that loads tokenizers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import types
from collections import deque
from pathlib import Path
from typing import Any

try:
    import magic  # noqa: F401  # pyright: ignore
except ImportError:  # the library libmagic isn't there; the reader asks it only where a response names no type
    stub: Any = types.ModuleType("magic")
    stub.from_buffer = lambda *_, **__: "text/html"
    sys.modules["magic"] = stub

import multiprocess  # pyright: ignore
import trafilatura  # noqa: F401  # pyright: ignore  (the extractor's child, forked from here, need not import it)
from datatrove.pipeline.dedup import (  # pyright: ignore
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig  # pyright: ignore
from datatrove.pipeline.extractors import Trafilatura  # pyright: ignore
from datatrove.pipeline.filters import (  # pyright: ignore
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.readers import JsonlReader, WarcReader  # pyright: ignore
from datatrove.pipeline.writers import JsonlWriter  # pyright: ignore
from loguru import logger  # pyright: ignore

BANDS, ROWS, WORDS, PAGE_SECONDS = 14, 8, 5, 10


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--warc", type=Path)
    options.add_argument("--texts", type=Path)
    options.add_argument("--warm", type=Path, required=True, help="a small file of the same kind, run first")
    options.add_argument("--work", type=Path, required=True)
    chosen = options.parse_args()
    logger.remove()
    work = chain if chosen.warc else signatures
    work(chosen.warm, chosen.work / "warm")
    print(json.dumps(work(chosen.warc or chosen.texts, chosen.work / "run")))


def chain(warc: Path, folder: Path) -> dict[str, float]:
    """CPU seconds by part, and how many documents came through each."""
    settings = MinhashConfig(n_grams=WORDS, num_buckets=BANDS, hashes_per_bucket=ROWS)
    texts, hashes, pairs, removed = (str(folder / name) for name in ("texts", "hashes", "pairs", "removed"))
    reader, extractor = WarcReader(str(warc.parent), glob_pattern=warc.name), Trafilatura(timeout=PAGE_SECONDS)
    filters = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter()]
    before = cpu()
    run([reader, extractor, *filters, JsonlWriter(texts, compression=None)])
    filtered = cpu()
    run([JsonlReader(texts), MinhashDedupSignature(hashes, config=settings)])
    signed = cpu()
    for band in range(BANDS):
        run([MinhashDedupBuckets(hashes, pairs, config=settings)], band, BANDS)
    run([MinhashDedupCluster(pairs, removed, config=settings)])
    run([JsonlReader(texts), MinhashDedupFilter(removed), JsonlWriter(str(folder / "out"))])
    after = cpu()
    counts = {
        "documents-read": passed(reader),
        "documents-extracted": passed(extractor),
        "documents-filtered": passed(filters[-1]),
    }
    seconds = {"extract-filter-s": filtered - before, "signature-s": signed - filtered, "cluster-s": after - signed}
    return {"cpu-s": after - before, **seconds, **counts}


def signatures(texts: Path, folder: Path) -> dict[str, float]:
    """CPU seconds of reading a JSONL file, and of reading it and computing signatures."""
    settings = MinhashConfig(n_grams=WORDS, num_buckets=BANDS, hashes_per_bucket=ROWS)
    before = cpu()
    run([JsonlReader(str(texts.parent), glob_pattern=texts.name)])
    read = cpu()
    reader = JsonlReader(str(texts.parent), glob_pattern=texts.name)
    run([reader, MinhashDedupSignature(str(folder / "hashes"), config=settings)])
    whole = cpu() - read
    return {"cpu-s": whole - (read - before), "read-s": read - before, "documents-read": passed(reader)}


def run(steps: list[Any], rank: int = 0, world: int = 1) -> None:
    data: Any = None
    for step in steps:
        data = step(data, rank, world)
    if data:
        deque(data, maxlen=0)


def passed(step: Any) -> int:
    """Documents that left a step."""
    stats = step.stats.stats
    name = "forwarded" if "forwarded" in stats else "documents"
    return int(stats[name].total)


def cpu() -> float:
    """CPU seconds so far of this process and its children, the ended ones waited for."""
    for children in (multiprocessing.active_children(), multiprocess.active_children()):
        for child in children:
            child.join(5)
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


if __name__ == "__main__":
    main()
