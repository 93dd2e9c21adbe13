"""The stage that reads every source of the recipe into files of raw documents.

Where a source is cut by `max_bytes`, documents are taken in the order of the hash of their path: a fair sample that
is the same on every machine. Folders are read in units, several at once; what is written is in the order of sources
and paths whoever reads it, and the dates of retrieval are not part of the content hash.
"""

from __future__ import annotations

import hashlib
import heapq
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from herd import console
from herd.artifact import Artifact, Draft
from herd.console import HerdError
from herd.data.debian import read_debian_packages
from herd.data.documents import RAW, RawDocument, Writer, document_id, file_identity, read_rows
from herd.data.engine import Crew, Engine
from herd.data.hub import read_hugging_face
from herd.data.python_installation import installation_facts, read_python_installation
from herd.data.readers import Skipped, Unavailable, Unit, listing, read_unit, units
from herd.data.tables import read_tables
from herd.recipe_data import DebianPackages, Folder, HuggingFace, PythonInstallation, Source
from herd.recipe_section import Section


class CollectSettings(Section):
    """What `collect` reads. `base` is the recipe file's folder; where it lies doesn't change what is read from it."""

    sources: list[Source]
    base: Path = Field(exclude=True)
    part_bytes: int = 32_000_000
    engine: Engine = Field(default=Engine(), exclude=True)


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
            facts[source.name] = listing(source.path, settings.base)
    return facts


def collect(settings: CollectSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Read every source; writes `documents/00000.parquet` and so on (schema RAW) and `sources.json`.

    Raises HerdError naming the source where a required one is missing, an archive doesn't have its digest, or
    nothing at all was read.
    """
    books: dict[str, dict[str, Any]] = {}
    work = out.work.resolve()  # workers on other machines stand elsewhere
    with Crew(settings.engine) as crew:
        for source in sorted(settings.sources, key=lambda source: source.name):
            one = books[source.name] = _read_source(source, settings, crew, work / source.name)
            if one["reason"] and source.required:
                raise HerdError(f"source '{source.name}': {one['reason']}")
            if one["reason"]:
                console.say(f"source '{source.name}' is left out: {one['reason']} (--force sources tries again)")
            _report(source.name, one)
    parts = [(work / name / part["file"], part["identity"]) for name, one in books.items() for part in one["parts"]]
    if not parts:
        names = ", ".join(f"'{name}'" for name in books)
        raise HerdError(f"no documents in any source ({names}): there is nothing to learn from")
    (out.folder / "documents").mkdir()
    for number, (part, identity) in enumerate(parts):
        name = f"documents/{number:05}.parquet"
        _link(part, out.folder / name)
        out.identify(name, identity)
    kinds = {source.name: source.kind for source in settings.sources}
    facts = {name: {"kind": kinds[name], **one["facts"], "skipped": one["reason"]} for name, one in books.items()}
    out.write_json("sources.json", facts)
    out.write_json(f"{out.recorded.name}/retrieved.json", {name: one["retrieved"] for name, one in books.items()})


def _link(source: Path, target: Path) -> None:
    """Another name for a file that stays where it is, for a run that is killed here; a copy where none can be had."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


class _Reading(NamedTuple):
    """A task: read one unit of a source (all of it where `unit` is None) into files in `folder`."""

    source: Any
    base: Path
    unit: Unit | None
    folder: Path
    name: str
    part_bytes: int


def _read_source(source: Any, settings: CollectSettings, crew: Crew, work: Path) -> dict[str, Any]:
    """What reading a source gave: its parts in order, facts, days; and the reason where it could not be had."""
    skipped = Skipped()
    try:
        pieces = units(source, settings.base, settings.part_bytes, skipped) if isinstance(source, Folder) else [None]
    except Unavailable as error:
        return _books([], str(error))
    named = [(f"{number:06}", unit) for number, unit in enumerate(pieces)]
    tasks = [
        (name, _Reading(source, settings.base.resolve(), unit, work, name, settings.part_bytes)) for name, unit in named
    ]
    results = crew.run(f"read {source.name}", _read, tasks, work)
    if reasons := [result["reason"] for result in results if result["reason"]]:
        shutil.rmtree(work)  # the next run tries again
        return _books([], reasons[0])
    if source.max_bytes is not None and len(results) > 1:
        results = [_cut(results, source.max_bytes, work, settings.part_bytes)]
    return _books([*results, {"parts": [], "licences": {}, "skipped": skipped, "days": []}], None)


def _books(results: list[dict[str, Any]], reason: str | None) -> dict[str, Any]:
    parts = [part for result in results for part in result["parts"]]
    licences, skipped = (
        sum((Counter(result[name]) for result in results), Counter[str]()) for name in ("licences", "skipped")
    )
    days = sorted(day for result in results for day in result["days"])
    return {
        "reason": reason,
        "parts": parts,
        "facts": {
            "documents": sum(part["documents"] for part in parts),
            "bytes": sum(part["bytes"] for part in parts),
            "licences": dict(sorted(licences.items())),
            "skipped_files": {why: count for why, count in sorted(skipped.items()) if count},
        },
        "retrieved": {"first": days[0], "last": days[-1]} if days else None,
    }


def _read(task: _Reading) -> dict[str, Any]:
    """Read a unit and write its documents, in order, as parts; also where it could not be had, and why."""
    skipped = Skipped()
    try:
        documents = _sample(_documents(task, skipped), task.source.max_bytes, skipped)
        return _write(documents, task, skipped) | {"reason": None}
    except Unavailable as error:
        return {"parts": [], "licences": {}, "skipped": {}, "days": [], "reason": str(error)}


def _documents(task: _Reading, skipped: Skipped) -> Iterator[RawDocument]:
    if task.unit is not None:
        return read_unit(task.source, task.base, task.unit, skipped)
    if isinstance(task.source, PythonInstallation):
        return read_python_installation(task.source, skipped)
    if isinstance(task.source, DebianPackages):
        return read_debian_packages(task.source, skipped)
    if isinstance(task.source, HuggingFace):
        return read_hugging_face(task.source, task.base, skipped)
    return read_tables(task.source, skipped)


def _write(documents: Iterable[RawDocument], task: _Reading, skipped: Skipped) -> dict[str, Any]:
    """Documents as parts of about `part_bytes`; a path that comes twice is counted and left out."""
    licences, days, seen = Counter[str](), set[str](), set[str]()

    def rows() -> Iterator[dict[str, Any]]:
        for document in documents:
            if document.path in seen:
                skipped["same path twice"] += 1
                continue
            seen.add(document.path)
            licences[document.licence] += 1
            days.add(document.retrieved.isoformat())
            yield {
                "id": document_id(task.source.name, document.path),
                "source": task.source.name,
                **document._asdict(),
            }

    parts = list(_write_parts(rows(), task.folder, task.name, task.part_bytes))
    return {"parts": parts, "licences": licences, "skipped": skipped, "days": sorted(days)}


def _write_parts(rows: Iterator[dict[str, Any]], folder: Path, name: str, part_bytes: int) -> Iterator[dict[str, Any]]:
    for number, first in enumerate(rows):
        path = folder / f"{name}-{number:04}.parquet"
        count, size, row = 0, 0, first
        with Writer(path, RAW, weigh="content") as writer:
            while row is not None:
                writer.write(row)
                count, size = count + 1, size + len(row["content"])
                row = next(rows, None) if size < part_bytes else None
        yield {"file": path.name, "documents": count, "bytes": size, "identity": _identity(path)}


def _identity(path: Path) -> str:
    """Identity of a part; the day counts where it decides which version of an address is kept."""
    columns = ["url", "retrieved"]
    days = [f"{row['url']} {row['retrieved']}" for row in read_rows(path, columns) if row["url"]]
    return hashlib.sha256("\n".join([file_identity(path), *days]).encode("utf-8", "replace")).hexdigest()


def _rank(path: str) -> int:
    """Where a document stands when only some are taken: by the hash of its path, fair and the same anywhere."""
    return int.from_bytes(hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest(), "big")


def _sample(documents: Iterator[RawDocument], max_bytes: int | None, skipped: Skipped) -> Iterable[RawDocument]:
    """The documents whose path hashes come first, as many as fit into `max_bytes`, in the order of their paths.

    All of them, in the order they come, without a bound. Works on a stream: what has to go is what hashes highest,
    and once a hash was too high it stays so. No more than `max_bytes` and one document are held.
    """
    if max_bytes is None:
        return documents
    heap: list[tuple[int, str, RawDocument]] = []
    seen: set[str] = set()
    total, cut = 0, 1
    for document in documents:
        if document.path in seen:
            skipped["same path twice"] += 1
            continue
        seen.add(document.path)
        if len(document.content) > max_bytes:
            skipped["larger than max_bytes"] += 1
            continue
        rank = -_rank(document.path)
        if cut <= 0 and rank <= cut:
            skipped["beyond max_bytes"] += 1
            continue
        heapq.heappush(heap, (rank, document.path, document))
        total += len(document.content)
        while total > max_bytes:
            cut, _, gone = heapq.heappop(heap)
            total -= len(gone.content)
            skipped["beyond max_bytes"] += 1
    return sorted((document for _, _, document in heap), key=lambda document: document.path)


def _cut(results: list[dict[str, Any]], max_bytes: int, work: Path, part_bytes: int) -> dict[str, Any]:
    """Of units that were cut to `max_bytes` each, what `_sample` would have taken of all of them together."""
    files = [part["file"] for result in results for part in result["parts"]]
    sizes: list[tuple[int, int]] = []
    for file in files:
        for row in read_rows(work / file, ["path", "content"]):
            sizes.append((_rank(row["path"]), len(row["content"])))
    total, last = 0, -1
    for rank, size in sorted(sizes):
        if (total := total + size) > max_bytes:
            break
        last = rank
    licences, days = Counter[str](), set[str]()

    def rows() -> Iterator[dict[str, Any]]:
        for file in files:
            for row in read_rows(work / file):
                if _rank(row["path"]) <= last:
                    licences[row["licence"]] += 1
                    days.add(row["retrieved"].isoformat())
                    yield row

    parts = list(_write_parts(rows(), work, "cut", part_bytes))
    skipped = sum((Counter(result["skipped"]) for result in results), Counter[str]())
    skipped["beyond max_bytes"] += len(sizes) - sum(part["documents"] for part in parts)
    return {"parts": parts, "licences": licences, "skipped": skipped, "days": sorted(days)}


def _report(name: str, books: dict[str, Any]) -> None:
    if books["reason"]:
        return
    facts = books["facts"]
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
    "damaged record",
    "record cut short",
    "decompression bomb",
    "record of unknown type",
    "rest of a file that is all damage",
    "not a notebook",
    "row too large or not text",
}
_NAMED = ("larger than", "package not", "no such module")
