"""The passes over a corpus, in order: what each task is given, and what is learned between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from herd import console
from herd.console import HerdError
from herd.data import cleaning, decontaminate, duplicates, filtering, judged, language, scoring, writing
from herd.data.domain_scores import DomainCounts, merge, verdicts
from herd.data.domains import DomainList
from herd.data.duplicates import Corpus
from herd.data.engine import Crew
from herd.data.judged import Teacher
from herd.data.quality import QualityModels, Sample, fit_quality, lowest
from herd.data.settings import CurateSettings
from herd.data.topics import TOPICS, fit_topics

Sites = dict[int, tuple[str, float, float]]  # key of a site that goes -> rule, score, threshold


def _prepare(settings: CurateSettings, folder: Path) -> Path | None:
    """Read the recipe's lists once, for what is wrong with them to be said first; the blocklist as an array's file."""
    data = settings.data
    cleaning.forget_lists()
    filtering.forget_benchmarks()
    if (found := cleaning.dirty_words(settings)) is not None:
        console.say("dirty words: " + ", ".join(f"{code} {count:,}" for code, count in found.entries.items()))
        if missing := sorted(set(data.languages) - found.languages):
            console.warn(f"data.dirty_words has no list for {', '.join(missing)}: text in it is not looked at")
    if (found := filtering.benchmarks_of(settings)) is not None:
        console.say(f"decontamination: {found.count:,} n-grams of {', '.join(found.names)}")
    if unknown := sorted(set(data.mix.class_caps) - set(TOPICS)):
        raise HerdError(f"data.mix.class_caps: no class '{unknown[0]}'; there are {', '.join(TOPICS)}")
    if unknown := sorted(set(data.languages) - language.languages() - {language.UNKNOWN}):
        raise HerdError(f"data.languages: no language '{unknown[0]}'; expected ISO 639 codes such as en, de")
    if not data.blocklists:
        return None
    found = DomainList.load(data.blocklists, settings.base)
    console.say(f"blocklists: {found.entries:,} domains and addresses")
    found.write(folder / "blocklist.npy")
    return folder / "blocklist.npy"


class Passes(NamedTuple):
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
            (path.stem, cleaning.Cleaning(path, self.folder, self.settings, buckets, blocklist)) for path in self.raw
        ]
        return self.crew.run("text and hashes", cleaning.clean, tasks, self.folder / "clean")

    def compare(self, cleaned: list[dict[str, Any]]) -> tuple[Corpus, Sites]:
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

    def filter(self, corpus: Corpus, sites: Sites) -> list[dict[str, Any]]:
        buckets = self.buckets
        tasks = [
            (name, filtering.Filtering(corpus, number, self.settings, buckets, sites))
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
        np.savez(self.folder / scoring.WORDS, **totals)
        rules = self.settings.data.decontamination
        if rules is not None and rules.common_documents:
            found = (np.load(self.folder / f"{name}.benchmarks.npy") for name in corpus.names)
            np.save(self.folder / scoring.COMMON, decontaminate.common(found, rules.common_documents))
        models = self.folder / scoring.MODELS
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
        tasks = [(name, scoring.Scoring(self.folder, name, self.settings)) for name in corpus.names]
        return self.crew.run("score", scoring.score, tasks, self.folder / "score")

    def write(self, corpus: Corpus, scores: Sequence[str]) -> list[dict[str, Any]]:
        limits = scoring.limits(self.folder, scores, self.settings.data)
        tasks = [(name, writing.Writing(self.folder, name, self.settings, limits)) for name in corpus.names]
        return self.crew.run("write", writing.write, tasks, self.folder / "write")


def _sites(cleaned: list[dict[str, Any]]) -> dict[str, DomainCounts]:
    """Counts of every site, over all parts."""
    total: dict[str, DomainCounts] = {}
    for part in cleaned:
        merge({site: DomainCounts(*values) for site, values in part["sites"].items()}, total)
    return total
