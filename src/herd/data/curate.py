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
from pydantic import Field, field_serializer

from herd import console
from herd.artifact import Artifact, Draft
from herd.console import HerdError
from herd.data import cleaning, decontaminate, duplicates, filtering, funnel, judged, listed_files, scoring, writing
from herd.data.decontaminate import Benchmarks
from herd.data.documents import file_identity, raw_parts
from herd.data.domain_scores import DomainCounts, merge, verdicts
from herd.data.domains import DomainList
from herd.data.duplicates import Corpus
from herd.data.engine import Crew, Engine
from herd.data.judged import Teacher
from herd.data.language import LanguageTable
from herd.data.quality import QualityModels, Sample, fit_quality, lowest
from herd.data.topics import TOPICS, fit_topics
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
        facts["benchmarks"] = decontaminate.fingerprint(data.decontamination.paths, settings.base)
    return facts


def curate(
    settings: CurateSettings, inputs: Mapping[str, Artifact], out: Draft, teacher: Teacher | None = None
) -> None:
    """Curate inputs["sources"]; writes `documents.parquet`, `drops.parquet`, `changes.parquet`, `samples.parquet`
    and `funnel.json`.

    Documents that are kept and documents that were dropped add up to the input. `teacher` judges quality where the
    recipe asks for a judge. Raises HerdError where less text is
    left than `data.min_bytes`, or a list of the recipe can't be read.
    """
    with Crew(Engine(settings.data.engine, settings.data.workers)) as crew:
        work = _Work(settings, out.work, raw_parts(inputs["sources"].path), crew, teacher)
        cleaned = work.clean()
        corpus, sites = work.compare(cleaned)
        filtered = work.filter(corpus, sites)
        written = work.write(corpus, work.score(corpus))
    names = [(out.work, f"{name}.{step}") for step in ("clean", "filter", "write") for name in corpus.names]
    funnel.write_records(out.folder, names)
    writing.join([out.work / f"{name}.final.parquet" for name in corpus.names], out.folder / "documents.parquet")
    books = funnel.summary(funnel.add_up(part["books"] for part in [*cleaned, *filtered, *written]))
    books |= _facts(corpus, cleaned, sites)
    books["idle_rules"] = idle(books, settings.data)
    _complain(books, settings.data)
    out.write_json("funnel.json", books)
    for name in ("documents", "drops", "changes", "samples"):
        out.identify(f"{name}.parquet", file_identity(out.folder / f"{name}.parquet"))
    if (out.work / "models").is_dir():
        _publish_models(out)


def _prepare(settings: CurateSettings, folder: Path) -> Path | None:
    """Read the recipe's lists once, for what is wrong with them to be said first; the blocklist as an array's file."""
    data, base = settings.data, settings.base
    if (found := cleaning.dirty_words(data, base)) is not None:
        console.say("dirty words: " + ", ".join(f"{code} {count:,}" for code, count in found.entries.items()))
        if missing := sorted(set(data.languages) - found.languages):
            console.warn(f"data.dirty_words has no list for {', '.join(missing)}: text in it is not looked at")
    if data.decontamination is not None:
        found = Benchmarks.load(data.decontamination.paths, base, data.decontamination.ngram)
        console.say(f"decontamination: {found.count:,} n-grams of {', '.join(found.names)}")
    if unknown := sorted(set(data.mix.class_caps) - set(TOPICS)):
        raise HerdError(f"data.mix.class_caps: no class '{unknown[0]}'; there are {', '.join(TOPICS)}")
    if not data.blocklists:
        return None
    found = DomainList.load(data.blocklists, base)
    console.say(f"blocklists: {found.entries:,} domains and addresses")
    found.write(folder / "blocklist.npy")
    return folder / "blocklist.npy"


class _Work(NamedTuple):
    """The passes over one corpus; `folder` survives a kill, and every pass goes on where it stopped."""

    settings: CurateSettings
    folder: Path
    raw: list[Path]
    crew: Crew
    teacher: Teacher | None

    @property
    def buckets(self) -> int:
        """Buckets of documents in which lines are counted apart."""
        documents = sum(pq.read_metadata(path).num_rows for path in self.raw)
        return max(1, -(-documents // self.settings.data.line_bucket_documents))

    def clean(self) -> list[dict[str, Any]]:
        blocklist, buckets = _prepare(self.settings, self.folder), self.buckets
        tasks = [
            (
                path.stem,
                cleaning.Cleaning(
                    path,
                    self.folder,
                    path.stem,
                    self.settings.data,
                    buckets,
                    blocklist,
                    self.settings.base,
                ),
            )
            for path in self.raw
        ]
        return self.crew.run("text and hashes", cleaning.clean, tasks, self.folder / "clean")

    def compare(self, cleaned: list[dict[str, Any]]) -> tuple[Corpus, dict[int, tuple[str, float, float]]]:
        data = self.settings.data
        names = [path.stem for path in self.raw]
        corpus = duplicates.join_facts(self.folder, names, [part["documents"] for part in cleaned])
        found = verdicts(_sites(cleaned))
        sites = {
            cleaning.text_key(site): (verdict.rule, verdict.score, verdict.threshold) for site, verdict in found.items()
        }
        duplicates.decide(corpus, data, np.array(sorted(sites), np.uint64), self.crew)
        lines = sum(len(np.load(f"{path}.keys.npy", mmap_mode="r")) for path, _ in corpus.runs("lines"))
        corpus.save("repeated", duplicates.repeated_lines(corpus, lines, data.line_repeats, self.crew))
        return corpus, sites

    def filter(self, corpus: Corpus, sites: dict[int, tuple[str, float, float]]) -> list[dict[str, Any]]:
        buckets, settings = self.buckets, self.settings
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
                    tuple(reference),
                    settings.seed,
                ),
            )
            for number, name in enumerate(corpus.names)
        ]
        filtered = self.crew.run("filter", filtering.apply, tasks, self.folder / "filter")
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
        rules = self.settings.data.decontamination
        if rules is not None and rules.common_documents:
            found = (np.load(self.folder / f"{name}.benchmarks.npy") for name in corpus.names)
            np.save(self.folder / "common.npy", decontaminate.common(found, rules.common_documents))
        models = self.folder / "models"
        models.mkdir(exist_ok=True)
        reference, seed = self.settings.data.quality.reference, self.settings.seed
        paths = [self.folder / f"{name}.learn.npz" for name in corpus.names]
        with console.progress("learn what it is about"):
            samples = lowest((sample for sample, _ in filtering.load_samples(paths)), reference, seed)
            try:
                fit_topics(samples, seed).save(models)
            except HerdError as error:  # a small corpus: documents go without topics
                console.say(str(error))
            texts = lowest((sample for sample, text in filtering.load_samples(paths) if text), reference, seed)
            first = self._learn_reference(texts, models)
        if self.teacher is not None:
            filtered = [self.folder / f"{name}.filtered.parquet" for name in corpus.names]
            rules = self.settings.data.quality
            judged.learn(self.teacher, rules, first, texts, filtered, self.folder, models, seed)

    def _learn_reference(self, texts: Sequence[Sample], models: Path) -> QualityModels | None:
        reference = self.settings.data.quality.reference
        if not reference:
            return None
        try:
            found = fit_quality(texts, reference, self.settings.seed)
        except HerdError as error:  # a reference that could not be had: nothing is dropped by it
            console.warn(str(error))
            return None
        found.save(models)
        return found

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
                    self.settings.base,
                    self.settings.data.decontamination,
                ),
            )
            for name in corpus.names
        ]
        return self.crew.run("score", scoring.score, tasks, self.folder / "score")

    def write(self, corpus: Corpus, scores: Sequence[str]) -> list[dict[str, Any]]:
        data, seed = self.settings.data, self.settings.seed
        limits = scoring.limits(scores, data)
        tasks = [
            (name, writing.Writing(self.folder, name, file, limits, data, seed))
            for name, file in zip(corpus.names, scores, strict=True)
        ]
        return self.crew.run("write", writing.write, tasks, self.folder / "write")


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
    languages = LanguageTable()
    for part in cleaned:
        languages.merge(LanguageTable.from_json(part["languages"]))
    names = {cleaning.text_key(site): site for part in cleaned for site in part["sites"]}
    return {
        "languages": [row._asdict() for row in languages.rows()],
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
    for step in books["idle_rules"]:
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
