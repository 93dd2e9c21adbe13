"""The stage that reads every source of the recipe into one file of raw documents.

Where a source is cut by `max_bytes`, documents are taken in the order of the hash of their path: a fair sample that
is the same on every machine. What is written is sorted, and the dates of retrieval are not part of the content hash.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from herd import console
from herd.artifact import Artifact, Draft
from herd.console import HerdError
from herd.data.debian import read_debian_packages
from herd.data.documents import RAW, RawDocument, Writer, document_id, file_identity
from herd.data.python_installation import installation_facts, read_python_installation
from herd.data.readers import Skipped, Unavailable, listing, read_folder
from herd.data.tables import read_tables
from herd.recipe_data import DebianPackages, Folder, PythonInstallation, Source, Tables
from herd.recipe_section import Section


class CollectSettings(Section):
    """What `collect` reads. `base` is the recipe file's folder; where it lies doesn't change what is read from it."""

    sources: list[Source]
    base: Path = Field(exclude=True)


def fingerprint(settings: CollectSettings) -> dict[str, Any]:
    """Facts, found in well under a second, that tell whether `collect` would read the same as before.

    Versions for a Python installation, names, sizes and times for a folder. Packages from elsewhere are identified
    by the settings alone: a new version in the archive does not make an old corpus stale.
    """
    facts: dict[str, Any] = {}
    for source in settings.sources:
        if isinstance(source, PythonInstallation):
            facts[source.name] = installation_facts(source)
        elif isinstance(source, Folder):
            facts[source.name] = listing(settings.base / source.path)
    return facts


def collect(settings: CollectSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Read every source; writes `documents.parquet` (schema RAW) and `sources.json`.

    Raises HerdError naming the source where a required one is missing, an archive doesn't have its digest, or
    nothing at all was read.
    """
    summary: dict[str, Any] = {}
    retrieved: dict[str, Any] = {}
    with Writer(out.folder / "documents.parquet", RAW, weigh="content") as writer:
        for source in sorted(settings.sources, key=lambda source: source.name):
            skipped = Skipped()
            reason = None
            try:
                documents = _sample(_read(source, settings.base, skipped), source.max_bytes, skipped)
            except Unavailable as error:
                if source.required:
                    raise HerdError(f"source '{source.name}': {error}") from None
                documents, reason = [], str(error)
                console.say(f"source '{source.name}' is left out: {error} (--force sources tries again)")
            for document in documents:
                row = document._asdict()
                writer.write({"id": document_id(source.name, document.path), "source": source.name, **row})
            summary[source.name] = _facts(source, documents, skipped, reason)
            dates = sorted({document.retrieved.isoformat() for document in documents})
            retrieved[source.name] = {"first": dates[0], "last": dates[-1]} if dates else None
            _report(source.name, summary[source.name])
    if not any(facts["documents"] for facts in summary.values()):
        names = ", ".join(f"'{name}'" for name in summary)
        raise HerdError(f"no documents in any source ({names}): there is nothing to learn from")
    out.write_json("sources.json", summary)
    out.write_json(f"{out.recorded.name}/retrieved.json", retrieved)
    out.identify("documents.parquet", file_identity(out.folder / "documents.parquet"))


def _read(source: Any, base: Path, skipped: Skipped) -> Iterator[RawDocument]:
    if isinstance(source, PythonInstallation):
        return read_python_installation(source, skipped)
    if isinstance(source, DebianPackages):
        return read_debian_packages(source, skipped)
    if isinstance(source, Tables):
        return read_tables(source, skipped)
    return read_folder(source, base, skipped)


def _sample(documents: Iterator[RawDocument], max_bytes: int | None, skipped: Skipped) -> list[RawDocument]:
    """The documents whose path hashes come first, as many as fit into `max_bytes`, in the order of their paths.

    Works on a stream: what has to go is what hashes highest, and once a hash was too high it stays so. No more than
    `max_bytes` and one document are held.
    """
    heap: list[tuple[int, str, RawDocument]] = []
    seen: set[str] = set()
    total, cut = 0, 1
    for document in documents:
        if document.path in seen:
            skipped["same path twice"] += 1
            continue
        seen.add(document.path)
        if max_bytes is not None and len(document.content) > max_bytes:
            skipped["larger than max_bytes"] += 1
            continue
        rank = -int.from_bytes(hashlib.sha256(document.path.encode("utf-8", "surrogateescape")).digest(), "big")
        if cut <= 0 and rank <= cut:
            skipped["beyond max_bytes"] += 1
            continue
        heapq.heappush(heap, (rank, document.path, document))
        total += len(document.content)
        while max_bytes is not None and total > max_bytes:
            cut, _, gone = heapq.heappop(heap)
            total -= len(gone.content)
            skipped["beyond max_bytes"] += 1
    return sorted((document for _, _, document in heap), key=lambda document: document.path)


def _facts(source: Any, documents: list[RawDocument], skipped: Skipped, reason: str | None) -> dict[str, Any]:
    return {
        "kind": source.kind,
        "documents": len(documents),
        "bytes": sum(len(document.content) for document in documents),
        "licences": dict(Counter(document.licence for document in documents)),
        "skipped": reason,
        "skipped_files": {why: count for why, count in sorted(skipped.items()) if count},
    }


def _report(name: str, facts: dict[str, Any]) -> None:
    if facts["skipped"]:
        return
    # Documents beyond max_bytes were asked to be left out, and other kinds of file are no loss.
    worth_saying = {
        why: n for why, n in facts["skipped_files"].items() if why in _WORTH_SAYING or why.startswith(_NAMED)
    }
    left = ", ".join(f"{count:,} {why}" for why, count in worth_saying.items())
    line = f"source '{name}': {facts['documents']:,} documents, {console.human_bytes(facts['bytes'])}"
    console.say(f"{line} (left out: {left})" if left else line)


_WORTH_SAYING = {
    "unreadable",
    "unreadable folder",
    "not text",
    "malformed line",
    "row without text",
    "row too large or not text",
}
_NAMED = ("larger than", "package not", "no such module")
