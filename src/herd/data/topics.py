"""What kind of knowledge a document holds, so that the mix can take less of what there is too much of (paper 3.1.2).

Documents that use several words of one topic and few of the others are labelled with it, and the linear classifier is
trained on them in the run: it then knows topics by all their words, of which only a few dozen are written down here.
Such labels are weak. They hold for documents with one plain topic, in English (other languages come out as "", which
no cap touches); they can't tell quality or level; and the share of a topic that is measured with them is a share of
what the seeds recognise. Labels from a `Generator` can take their place: `fit_topics` reads those it is given.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from herd.console import HerdError
from herd.data.held_out import origins_held_out
from herd.data.linear import BUCKETS, Features, LinearModel, buckets_of, features, hash_share, train
from herd.data.quality import Sample
from herd.data.words import Tokens, tokens
from herd.intervals import Interval, wilson

SEEDS = {
    "science": """theorem lemma proof equation equations integral integrals derivative differential matrix matrices
    vector algebra algebraic geometry polynomial polynomials prime integer rational coefficients roots factorization
    convergence asymptotic symmetric permutation modulo sine cosine gamma bessel hypergeometric physics quantum electron
    atom molecule chemistry chemical energy velocity gravity planet star galaxy telescope species evolution cell protein
    gene dna biology ecosystem geology temperature experiment hypothesis laboratory astronomy wavelength""",
    "programming": """function class method variable argument parameter returns compiler interpreter syntax exception
    callback iterator iterable subclass inheritance decorator lambda closure recursion string boolean constructor
    attribute module import namespace api library debugger unittest refactoring javascript python java typedef""",
    "data": """dataset dataframe column columns rows sql query table join aggregate histogram regression mean median
    variance percentile correlation sampling distribution statistics outlier csv parquet pandas clustering classifier
    probability estimator quantile forecast chart plot axis database index schema transaction""",
    "systems": """kernel process thread scheduler filesystem mount partition socket tcp udp ip dns router firewall
    packet server client daemon proxy cluster container docker ssh tls certificate encryption permission root sudo
    configure install package upgrade boot driver cpu cache latency bandwidth virtual backup administrator""",
    "history": """century war empire king queen emperor dynasty revolution republic treaty army battle colony colonial
    ancient medieval parliament election president minister government society political religion church philosophy
    culture anthropology archaeology migration constitution democracy slavery soldiers civilization historian""",
    "arts": """film movie actor actress director album song singer band guitar orchestra symphony painting painter
    sculpture gallery novel novelist poem poet theatre drama television episode celebrity concert festival dance comedy
    cinema audience soundtrack fiction character artist museum literature studio premiere award""",
    "law": """licence license licensee licensor copyright warranty liability merchantability infringement damages
    herein hereby thereof court plaintiff defendant statute jurisdiction contract clause agreement patent trademark
    indemnify sublicense lawsuit judge attorney legal tort regulation compliance terms redistribution""",
    "business": """company market customer customers revenue profit investment investor shares stock bank loan interest
    price prices sales marketing budget tax invoice accounting employee employer salary management supplier trade
    economy economic inflation startup shareholders dividend merger commerce retail insurance""",
    "health": """patient patients disease symptoms treatment doctor hospital clinical medicine medical drug dose therapy
    surgery infection virus bacteria vaccine cancer diabetes heart blood pressure pain diet nutrition vitamin exercise
    pregnancy mental anxiety depression sleep immune diagnosis nurse chronic""",
    "everyday": """recipe cook cooking bake oven butter sugar flour kitchen garden plants soil travel hotel beach trip
    holiday family children parents wedding shopping clothes dress shoes furniture bedroom cleaning car bicycle dog cat
    pet football game team coach player weekend dinner restaurant fashion""",
    "reference": """changelog release released version fixed bugfix deprecated removed added changed contributors
    authors maintainer acronym glossary abbreviation index appendix bibliography isbn dictionary encyclopedia catalogue
    directory listing table synopsis errata roadmap upstream commit issue pull merged tagged""",
}
TOPICS = tuple(SEEDS)
OTHER = "other"  # what a document is trained as that uses few words of any topic, or of one too rare to learn
DISTINCT = 4  # different words of a topic that a document must use to be labelled with it
FEW = 2  # a document that uses no more of any topic is an example of OTHER
MARGIN = 1.5  # times the weight of any other topic
CONFIDENCE = 0.5  # a topic less probable than this is not named
# Of a document's words and pairs must have been trained on: manuals had 0.42 to 1, German among English ones 0.07 to
# 0.17. A large corpus fills the buckets, and then the language alone decides.
KNOWN = 0.3
MIN_DOCUMENTS = 20  # labelled, before a topic is learned; rarer topics are never named
LARGEST_CLASS = 3_000  # labelled documents of one topic that are trained on


class Evidence(NamedTuple):
    """Share of held-out documents, from origins not trained on, whose weak label the classifier repeats."""

    agreed: float
    interval: Interval
    documents: int


@dataclass(frozen=True)
class TopicModel:
    """Names topics. `labelled` counts the documents behind each, `languages` are those with 20 labelled documents;
    `evidence` is None where origins are too few.
    """

    model: LinearModel
    labelled: Mapping[str, int]
    languages: frozenset[str]
    evidence: Evidence | None = None

    def classify(self, tokens: Tokens, language: str | None = None) -> tuple[str, float]:
        """The most probable topic and its probability; ("", that probability) for OTHER, below 0.5, in a language that
        no topic was learned in, and where fewer than 0.3 of the document's words and pairs were trained on.
        """
        return self.classify_features(features(tokens), language)

    def classify_features(self, buckets: Features, language: str | None = None) -> tuple[str, float]:
        """`classify` of what `features` gave."""
        if language is not None and language not in self.languages:
            return "", 0.0
        shares = self.model.score_features(buckets)
        best = int(shares.argmax())
        topic, share = self.model.classes[best], float(shares[best])
        named = share >= CONFIDENCE and topic != OTHER and float(self._trained[buckets].mean()) >= KNOWN
        return (topic if named else ""), share

    @cached_property
    def _trained(self) -> NDArray[np.bool_]:
        return np.asarray(self.model.weights.any(axis=0))

    def save(self, folder: Path) -> None:
        """Write topics.safetensors, topics.json and topics-labels.json, which says what was learned from."""
        self.model.save(folder, "topics")
        facts = {
            "schema": 1,
            "labelled": dict(sorted(self.labelled.items())),
            "languages": sorted(self.languages),
            "evidence": self.evidence,
        }
        (folder / "topics-labels.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")

    @staticmethod
    def load(folder: Path) -> TopicModel:
        """What `save` wrote, for classifying. Raises HerdError."""
        try:
            facts = json.loads((folder / "topics-labels.json").read_text("utf-8"))
            labelled = {str(topic): int(count) for topic, count in facts["labelled"].items()}
            languages = frozenset(map(str, facts["languages"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HerdError(f"{folder / 'topics-labels.json'}: not what curation wrote ({error})") from None
        return TopicModel(LinearModel.load(folder, "topics"), labelled, languages)


@cache
def _seed_buckets() -> tuple[Features, ...]:
    return tuple(np.unique(buckets_of(tokens(text).words)) for text in SEEDS.values())


def weak_labels(documents: Sequence[Features]) -> list[str]:
    """The topic of each document, OTHER where it uses few seed words of any, "" where it can't be told.

    A seed word weighs by its rarity among the documents (log N / n): in manuals `function` says nothing, `polynomial`
    much. The topic of a document has four different seed words at least and 1.5 times the weight of any other.
    """
    used = np.zeros((len(documents), sum(map(len, _seed_buckets()))), np.bool_)
    every = np.concatenate(_seed_buckets())
    present = np.zeros(BUCKETS, np.bool_)
    for row, buckets in zip(used, documents, strict=True):
        present[buckets] = True
        row[:] = present[every]
        present[buckets] = False
    rarity = np.log((len(documents) + 1) / (used.sum(axis=0) + 1))
    edges = np.cumsum([0, *map(len, _seed_buckets())])[:-1]
    distinct = np.add.reduceat(used.astype(np.int64), edges, axis=1)
    weights = np.add.reduceat(used * rarity, edges, axis=1)
    labels = []
    for counts, own in zip(distinct, weights, strict=True):
        best = int(own.argmax())
        second = float(np.delete(own, best).max())
        if counts[best] >= DISTINCT and own[best] >= MARGIN * second:
            labels.append(TOPICS[best])
        else:
            labels.append(OTHER if counts.max() <= FEW else "")
    return labels


def fit_topics(samples: Iterable[Sample], seed: int, labels: Mapping[str, str] | None = None) -> TopicModel:
    """Train on samples in any order. `labels` (document id: topic or OTHER) replaces the weak ones, for example by a
    judge's.

    Raises HerdError where no topic has 20 documents or nothing is left to tell it from.
    """
    every = sorted(samples, key=lambda one: (hash_share(one.id, seed), one.id))
    if labels is None:
        found = weak_labels([one.features for one in every])
    else:
        found = [labels.get(one.id, "") for one in every]
    counts = Counter(topic for topic in found if topic)
    frequent = [topic for topic in sorted(counts) if counts[topic] >= MIN_DOCUMENTS and topic != OTHER]
    rare = sum(counts.values()) - sum(counts[topic] for topic in frequent)
    classes = (*frequent, OTHER) if rare >= MIN_DOCUMENTS else tuple(frequent)
    if not frequent or len(classes) < 2:
        seen = ", ".join(f"{topic} {count}" for topic, count in sorted(counts.items())) or "none"
        raise HerdError(f"topics: a topic with {MIN_DOCUMENTS} documents, and others, are needed; recognised: {seen}")
    taken: Counter[int] = Counter()
    chosen: list[tuple[Sample, int]] = []
    for one, topic in zip(every, found, strict=True):
        target = classes.index(topic if topic in classes else classes[-1])
        if topic and (topic in classes or OTHER in classes) and taken[target] < LARGEST_CLASS:
            taken[target] += 1
            chosen.append((one, target))
    spoken = Counter(one.language for one, topic in zip(every, found, strict=True) if topic and topic != OTHER)
    languages = frozenset(language for language, count in spoken.items() if count >= MIN_DOCUMENTS)
    documents = [one.features for one, _ in chosen]
    targets = np.array([target for _, target in chosen])
    model = train(documents, targets, classes, seed)
    held = origins_held_out(targets, [one.origin for one, _ in chosen], seed)
    if not held:
        return TopicModel(model, dict(counts), languages)
    unseen = np.array([one.origin in held for one, _ in chosen])
    rest, part = [np.flatnonzero(mask).tolist() for mask in (~unseen, unseen)]
    first = train([documents[index] for index in rest], targets[rest], classes, seed)
    right = int((first.score_all([documents[index] for index in part]).argmax(1) == targets[part]).sum())
    return TopicModel(model, dict(counts), languages, Evidence(right / len(part), wilson(right, len(part)), len(part)))


def cap(topic_bytes: Mapping[str, int], class_caps: Mapping[str, float]) -> dict[str, float]:
    """For each topic the share of its documents to keep, so that no capped topic is above its cap in what is kept.

    Where capped topics are all there is and their caps add up to less than 1, nothing could satisfy them: then what is
    kept of them stands in the ratio of the caps.
    """
    sizes = {topic: float(size) for topic, size in topic_bytes.items() if size > 0}
    caps = {topic: class_caps[topic] for topic in sorted(sizes) if topic in class_caps}
    if caps and len(caps) == len(sizes) and (reach := sum(caps.values())) < 1:
        caps = {topic: share / reach for topic, share in caps.items()}
        total = min(sizes[topic] / share for topic, share in caps.items())
        return {topic: min(1.0, caps[topic] * total / size) for topic, size in sizes.items()}
    bound: set[str] = set()
    while True:
        free = sum(size for topic, size in sizes.items() if topic not in bound)
        total = free / (1 - sum(caps[topic] for topic in bound)) if bound else free
        more = {topic for topic in caps if topic not in bound and sizes[topic] > caps[topic] * total * (1 + 1e-12)}
        if not more:
            return {topic: caps[topic] * total / size if topic in bound else 1.0 for topic, size in sizes.items()}
        bound |= more


def keeps(document_id: str, share: float, seed: int) -> bool:
    """Whether a document is among the `share` of its topic that is kept; a smaller share keeps a part of these."""
    return hash_share(document_id, seed) < share
