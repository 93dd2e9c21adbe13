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

import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from herd import console
from herd.artifact import Artifact, Draft
from herd.console import HerdError
from herd.data import cleaning, decontaminate, duplicates, funnel, listed_files, scoring, writing
from herd.data.documents import file_identity, raw_parts
from herd.data.duplicates import Corpus
from herd.data.engine import Crew, Engine
from herd.data.judged import Teacher
from herd.data.language import LanguageTable
from herd.data.passes import Passes, Sites
from herd.data.settings import CurateSettings
from herd.recipe_data import Data

LARGE_CORPUS = 1_000  # documents; every corpus of this size that we saw held near-duplicates and scraps
CLUSTERS_NAMED = 10


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
    recipe asks for a judge. Raises HerdError where less text is left than `data.min_bytes`, or a list of the recipe
    can't be read.
    """
    with Crew(Engine(settings.data.engine, settings.data.workers)) as crew:
        work = out.work.resolve()  # workers on other machines stand elsewhere
        settings = settings.model_copy(update={"base": settings.base.resolve()})
        passes = Passes(settings, work, raw_parts(inputs["sources"].path.resolve()), crew, teacher)
        cleaned = passes.clean()
        corpus, sites = passes.compare(cleaned)
        filtered = passes.filter(corpus, sites)
        written = passes.write(corpus, passes.score(corpus))
    names = [(work, f"{name}.{step}") for step in ("clean", "filter", "write") for name in corpus.names]
    funnel.write_records(out.folder, names)
    writing.join([work / f"{name}.final.parquet" for name in corpus.names], out.folder / "documents.parquet")
    books = funnel.summary(funnel.add_up(part["books"] for part in [*cleaned, *filtered, *written]))
    books |= _facts(corpus, cleaned, sites)
    books["idle_rules"] = idle(books, settings.data)
    _complain(books, settings.data)
    out.write_json("funnel.json", books)
    for name in ("documents", "drops", "changes", "samples"):
        out.identify(f"{name}.parquet", file_identity(out.folder / f"{name}.parquet"))
    shutil.copytree(work / scoring.MODELS, out.folder / scoring.MODELS)


def _facts(corpus: Corpus, cleaned: list[dict[str, Any]], sites: Sites) -> dict[str, Any]:
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
