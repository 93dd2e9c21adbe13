"""The stage from raw documents to curated ones, which also writes down what was dropped or changed, by which rule.

Steps, in the paper's order (3.1.1) with one change: text is extracted before personal data and language are judged,
since both are judged on text. Four passes go over the parts of the corpus, as tasks that any engine may run:

1. `cleaning`: blocklist, extraction, personal data, language; hashes are written.
   `duplicates`: whole sites, URLs, equal texts, near-duplicates and repeated lines are decided by key range.
2. `filtering`: those decisions take effect, rules and benchmarks drop more.
3. `scoring`: distance from the corpus's words, quality, topic.
4. `writing`: what scores drop, and the rest.

Memory is bounded by `part_bytes` and the ranges of keys, but for a few numbers a document that say its fate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from herd.data.decontaminate import Benchmarks
from pydantic import Field, field_serializer

from herd import console
from herd.artifact import Artifact, Draft
from herd.console import HerdError
from herd.data import cleaning, duplicates, filtering, funnel, language, listed_files, scoring, writing
from herd.data.documents import file_identity, raw_parts
from herd.data.domain_scores import DomainCounts, merge, verdicts
from herd.data.domains import DomainList
from herd.data.duplicates import Corpus
from herd.data.engine import Engine, run_tasks
from herd.data.quality import fit_quality, lowest
from herd.data.topics import fit_topics
from herd.data.word_lists import DirtyWords
from herd.recipe_data import Data
from herd.recipe_section import Section

LARGE_CORPUS = 1_000  # documents; every corpus of this size that we saw held near-duplicates and scraps
CLUSTERS_NAMED = 10


class CurateSettings(Section):
    """What changes the outcome of curation: `[data]` without its sources and what training does with the outcome.

    `base` is the folder that paths of lists start from; their contents are facts of the stage.
    """

    data: Data
    seed: int
    base: Path = Field(default=Path(), exclude=True)

    @field_serializer("data")
    def _what_matters(self, data: Data) -> dict[str, Any]:
        own = data.model_dump(exclude={"source", "mix", "part_bytes"})
        return own | {"class_caps": data.mix.class_caps}


def fingerprint(settings: CurateSettings) -> dict[str, Any]:
    """Digests of the lists and benchmarks that the recipe names, so that a changed one makes the corpus anew."""
    data = settings.data
    specs = [*data.blocklists, *data.dirty_words]
    facts: dict[str, Any] = {"lists": listed_files.fingerprint(specs, settings.base)} if specs else {}
    if data.decontamination is not None:
        facts["benchmarks"] = Benchmarks.fingerprint(data.decontamination.paths, settings.base)
    return facts


def curate(settings: CurateSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Curate inputs["sources"]; writes `documents.parquet`, `drops.parquet`, `changes.parquet`, `samples.parquet`
    and `funnel.json`.

    Documents that are kept and documents that were dropped add up to the input. Raises HerdError where less text is
    left than `data.min_bytes`, or a list of the recipe can't be read.
    """
    raw = raw_parts(inputs["sources"].path)
    work = _Work(settings, out.work, raw, Engine(settings.data.engine, settings.data.workers))
    cleaned = work.clean()
    corpus, sites = work.compare(cleaned)
    filtered = work.filter(corpus, sites)
    scores = work.score(corpus)
    written = work.write(corpus, scores)
    names = [(out.work, f"{name}.{step}") for step in ("clean", "filter", "write") for name in corpus.names]
    funnel.write_records(out.folder, names)
    writing.join([out.work / f"{name}.final.parquet" for name in corpus.names], out.folder / "documents.parquet")
    books = funnel.summary(funnel.add_up(part["books"] for part in [*cleaned, *filtered, *written]))
    books |= _facts(corpus, cleaned, sites)
    _complain(books, settings.data)
    out.write_json("funnel.json", books)
    for name in ("documents", "drops", "changes", "samples"):
        out.identify(f"{name}.parquet", file_identity(out.folder / f"{name}.parquet"))
    if (out.work / "models").is_dir():
        _publish_models(out)


class _Lists(NamedTuple):
    """Lists of the recipe, read once and written as arrays that every task maps."""

    blocklist: Path | None
    benchmarks: Path | None


def _prepare(settings: CurateSettings, folder: Path) -> _Lists:
    data, base = settings.data, settings.base
    folder.mkdir(exist_ok=True)
    blocklist, benchmarks = folder / "blocklist.npy", folder / "benchmarks.npz"
    if data.blocklists:
        found = DomainList.load(data.blocklists, base)
        console.say(f"blocklists: {found.entries:,} domains")
        found.write(blocklist)
    if data.dirty_words:
        found = DirtyWords.load(data.dirty_words, base, data.languages).entries
        console.say("dirty words: " + ", ".join(f"{code} {count:,}" for code, count in found.items()))
    if data.decontamination is not None:
        rules = data.decontamination
        Benchmarks.load(rules.paths, base, rules.ngram).write(benchmarks)
    return _Lists(blocklist if data.blocklists else None, benchmarks if data.decontamination else None)


class _Work(NamedTuple):
    """The passes over one corpus; `folder` survives a kill, and every pass goes on where it stopped."""

    settings: CurateSettings
    folder: Path
    raw: list[Path]
    engine: Engine

    @property
    def buckets(self) -> int:
        """Buckets of documents in which lines are counted apart."""
        documents = sum(pq.read_metadata(path).num_rows for path in self.raw)
        return max(1, -(-documents // self.settings.data.line_bucket_documents))

    def _lists(self) -> _Lists:
        return _prepare(self.settings, self.folder / "lists")

    def clean(self) -> list[dict[str, Any]]:
        lists, buckets = self._lists(), self.buckets
        tasks = [
            (
                path.stem,
                cleaning.Cleaning(
                    path,
                    self.folder,
                    path.stem,
                    self.settings.data,
                    buckets,
                    lists.blocklist,
                    self.settings.base,
                ),
            )
            for path in self.raw
        ]
        return run_tasks(self.engine, "text and hashes", cleaning.clean, tasks, self.folder / "clean")

    def compare(self, cleaned: list[dict[str, Any]]) -> tuple[Corpus, dict[int, tuple[str, float, float]]]:
        data = self.settings.data
        names = [path.stem for path in self.raw]
        corpus = duplicates.join_facts(self.folder, names, [part["documents"] for part in cleaned])
        found = verdicts(_sites(cleaned))
        sites = {cleaning.text_key(site): tuple(verdict) for site, verdict in found.items()}
        duplicates.decide(corpus, data, np.array(sorted(sites), np.uint64), self.engine)
        lines = sum(len(np.load(f"{path}.keys.npy", mmap_mode="r")) for path, _ in corpus.runs("lines"))
        corpus.save("repeated", duplicates.repeated_lines(corpus, lines, data.line_repeats, self.engine))
        return corpus, sites

    def filter(self, corpus: Corpus, sites: dict[int, tuple[str, float, float]]) -> list[dict[str, Any]]:
        lists, buckets, settings = self._lists(), self.buckets, self.settings
        reference = settings.data.quality.reference
        tasks = [
            (
                name,
                filtering.Filtering(
                    corpus,
                    number,
                    settings.data,
                    buckets,
                    sites,
                    settings.base,
                    lists.benchmarks,
                    tuple(reference),
                    settings.seed,
                ),
            )
            for number, name in enumerate(corpus.names)
        ]
        filtered = run_tasks(self.engine, "filter", filtering.apply, tasks, self.folder / "filter")
        self._learn(corpus)
        return filtered

    def _learn(self, corpus: Corpus) -> None:
        """What the scores need: the corpora's words, and classifiers trained on a sample."""
        totals: dict[str, Any] = {}
        for name in corpus.names:
            with np.load(self.folder / f"{name}.words.npz") as counts:
                for kind in counts.files:
                    totals[kind] = totals.get(kind, 0) + counts[kind]
        np.savez(self.folder / "words.npz", **totals)
        models = self.folder / "models"
        models.mkdir(exist_ok=True)
        reference, seed = self.settings.data.quality.reference, self.settings.seed
        paths = [self.folder / f"{name}.learn.npz" for name in corpus.names]
        samples = lowest(filtering.load_samples(paths), reference, seed)
        with console.progress("learn what it is about"):
            try:
                fit_topics(samples, seed).save(models)
            except HerdError as error:  # a small corpus: documents go without topics
                console.say(str(error))
            if reference:
                fit_quality(samples, reference, seed).save(models)

    def score(self, corpus: Corpus) -> list[str]:
        reference = tuple(self.settings.data.quality.reference)
        tasks = [
            (
                name,
                scoring.Scoring(
                    self.folder / f"{name}.filtered.parquet",
                    self.folder / f"{name}.scores.npz",
                    self.folder / "words.npz",
                    self.folder / "models",
                    reference,
                ),
            )
            for name in corpus.names
        ]
        return run_tasks(self.engine, "score", scoring.score, tasks, self.folder / "score")

    def write(self, corpus: Corpus, scores: Sequence[str]) -> list[dict[str, Any]]:
        data, seed = self.settings.data, self.settings.seed
        limits = scoring.limits(scores, data)
        tasks = [
            (name, writing.Writing(self.folder, name, file, limits, data, seed))
            for name, file in zip(corpus.names, scores, strict=True)
        ]
        return run_tasks(self.engine, "write", writing.write, tasks, self.folder / "write")


def _sites(cleaned: list[dict[str, Any]]) -> dict[str, DomainCounts]:
    """Counts of every site, over all parts."""
    total: dict[str, DomainCounts] = {}
    for part in cleaned:
        merge({site: DomainCounts(*values) for site, values in part["sites"].items()}, total)
    return total


def _facts(corpus: Corpus, cleaned: list[dict[str, Any]], sites: Mapping[int, Any]) -> dict[str, Any]:
    """What `funnel.json` says besides counts: languages, sites that went, and the largest clusters of copies."""
    fate, keeper, ids = corpus.array("fate"), corpus.array("keeper"), corpus.array("ids")
    copies = keeper[np.isin(fate, [duplicates.URL, duplicates.EXACT, duplicates.NEAR])]
    kept, sizes = np.unique(copies, return_counts=True)
    largest = np.lexsort((ids[kept], -sizes))[:CLUSTERS_NAMED]
    names = {cleaning.text_key(site): site for part in cleaned for site in part["sites"]}
    return {
        "languages": language.merge_tables([part["languages"] for part in cleaned]),
        "sites_dropped": [
            {"site": names[key], "rule": verdict[0], "score": verdict[1], "threshold": verdict[2]}
            for key, verdict in sorted(sites.items(), key=lambda item: names[item[0]])
        ],
        "clusters": {
            "count": len(kept),
            "documents": int(sizes.sum()) + len(kept),
            "largest": [{"kept": f"{int(ids[kept[i]]):016x}", "documents": int(sizes[i]) + 1} for i in largest],
        },
    }


def _publish_models(out: Draft) -> None:
    """The classifiers that were trained, with what they showed on documents held out from them."""
    target = out.folder / "models"
    target.mkdir()
    for path in sorted((out.work / "models").iterdir()):
        (target / path.name).write_bytes(path.read_bytes())


def _complain(books: Mapping[str, Any], data: Data) -> None:
    """Warn of a step that drops everything or, where that is odd, nothing; raise HerdError where too little is left."""
    for step in funnel.exhausted(books):
        console.warn(f"curation: the step '{step}' dropped every document it was given; see funnel.json")
    for step in idle(books, data):
        console.warn(
            f"curation: the step '{step}' dropped nothing, which is odd for so many documents; see funnel.json"
        )
    kept = books["kept"]
    if kept["bytes"] < data.min_bytes:
        worst = ", ".join(f"{rule} ({count:,})" for rule, count in funnel.worst_rules(books, 3))
        raise HerdError(
            f"curation left {console.human_bytes(kept['bytes'])} of text, data.min_bytes asks for "
            f"{console.human_bytes(data.min_bytes)}: add sources, or lower data.min_bytes"
            + (f"; most documents were dropped by {worst}" if worst else "")
        )
    for name in ("train", "heldout"):
        if not kept["splits"].get(name):
            console.warn(f"curation: no document in the split '{name}'; data.held_out_share is {data.held_out_share:g}")


def idle(books: Mapping[str, Any], data: Data) -> list[str]:
    """Steps that dropped and changed nothing where some were to be expected: asked for, or a large corpus."""
    expected = {"near": LARGE_CORPUS, "lines": LARGE_CORPUS, "heuristics": LARGE_CORPUS}
    if data.blocklists:
        expected["blocklist"] = LARGE_CORPUS
    if data.quality.drop_share:
        expected["quality"] = 1
    if data.decontamination is not None:
        expected["contamination"] = LARGE_CORPUS
    return [
        step["step"]
        for step in books["steps"]
        if step["documents_in"] >= expected.get(step["step"], 1 << 62)
        and not step["documents_dropped"]
        and not step["rules"]
    ]
