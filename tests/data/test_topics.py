"""Knowledge classes: what weak labels and the classifier name on real text, and how a mix is capped."""

from __future__ import annotations

import ast
import os
from functools import cache
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.console import HerdError
from herd.data.linear import features
from herd.data.quality import Sample, sample_of
from herd.data.topics import OTHER, SEEDS, TOPICS, TopicModel, cap, fit_topics, keeps, weak_labels
from herd.data.words import tokens

LIBRARY = Path(os.__file__).parent
PACKAGES = (
    "asyncio",
    "concurrent",
    "ctypes",
    "email",
    "http",
    "importlib",
    "json",
    "logging",
    "unittest",
    "urllib",
    "xml",
)


GERMAN = "Der Hund lief über die Wiese und bellte, weil die Katze auf dem Baum saß. "


def docstrings(file: Path) -> str:
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    tree = ast.walk(ast.parse(file.read_text("utf-8", "replace")))
    return "\n\n".join(text for node in tree if isinstance(node, nodes) and (text := ast.get_docstring(node)))


@cache
def samples() -> tuple[Sample, ...]:
    """Manuals of programming, and licences, as they are installed."""
    found = []
    for file in [*LIBRARY.glob("*.py"), *(file for name in PACKAGES for file in (LIBRARY / name).rglob("*.py"))]:
        path = str(file.relative_to(LIBRARY))
        if len(text := docstrings(file)) > 800:
            found.append(sample_of(path, "library", path, "", "en", tokens(text)))
    for file in sorted(Path(numpy.__file__).parents[1].glob("*.dist-info/**/LICENSE*")):
        if file.is_file():
            path = file.relative_to(Path(numpy.__file__).parents[1]).as_posix()
            found.append(sample_of(path, "licences", path, "", "en", tokens(file.read_text("utf-8", "replace"))))
    return tuple({one.id: one for one in found}.values())


@cache
def model() -> TopicModel:
    return fit_topics(samples(), 1)


def test_licences_and_manuals_get_their_topics() -> None:
    named = {
        kind: [model().classify_features(one.features)[0] for one in samples() if one.source == kind]
        for kind in ("licences", "library")
    }
    assert named["licences"].count("law") >= 0.9 * len(named["licences"]) > 30
    assert named["library"].count("programming") > 0.4 * len(named["library"]) and named["library"].count("law") <= 3
    evidence = model().evidence
    assert evidence is not None and evidence.agreed > 0.6 and evidence.documents > 20


def test_the_classifier_knows_more_than_the_words_it_was_given() -> None:
    """Of documents that the seeds could not decide it names some: it has learned the topics' other words."""
    weak = weak_labels([one.features for one in samples()])
    undecided = [one for one, label in zip(samples(), weak, strict=True) if not label]
    named = [model().classify_features(one.features)[0] for one in undecided]
    assert len(undecided) > 20 and sum(map(bool, named)) > 0.1 * len(undecided)
    terms = """Permission is granted, free of charge, to any person obtaining a copy of this software, to use, copy,
    modify, merge, publish and sell copies of the Software, subject to the following conditions: the above notice shall
    be included in all copies. In no event shall the holders be liable for any claim arising from the use of it."""
    seeds = set(SEEDS["law"].split())
    text = " ".join(word for word in terms.split() if word.lower().strip(",.:") not in seeds)
    assert model().classify(tokens(text))[0] == "law"


def test_text_of_no_topic_that_was_learned_is_not_named() -> None:
    for text in ("", "zzz qqq", GERMAN * 5):
        topic, share = model().classify(tokens(text))
        assert topic == "" and 0 <= share <= 1


def test_a_language_without_labels_has_no_topics() -> None:
    licence = next(
        one for one in samples() if one.source == "licences" and model().classify_features(one.features)[0] == "law"
    )
    assert model().languages == {"en"}
    assert model().classify_features(licence.features, "en")[0] == "law"
    assert model().classify_features(licence.features, "de") == ("", 0.0)


def test_each_topics_own_words_label_it_and_a_blend_is_left_alone() -> None:
    documents = [features(tokens(text)) for text in SEEDS.values()]
    filler = [features(tokens(f"nothing {index} here")) for index in range(30)]
    labels = weak_labels([*documents, *filler])
    assert labels[: len(TOPICS)] == list(TOPICS) and set(labels[len(TOPICS) :]) == {OTHER}
    blend = features(tokens(" ".join(" ".join(text.split()[:8]) for text in SEEDS.values())))
    assert weak_labels([*documents, *filler, blend])[-1] == ""


def test_the_order_of_samples_changes_nothing_and_files_bring_the_model_back(tmp_path: Path) -> None:
    again = fit_topics(reversed(samples()), 1)
    for name, one in (("a", model()), ("b", again)):
        (tmp_path / name).mkdir()
        one.save(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    loaded = TopicModel.load(tmp_path / "a")
    assert (loaded.languages, loaded.labelled) == (model().languages, model().labelled)
    for one in samples()[::10]:
        assert loaded.classify_features(one.features) == model().classify_features(one.features)
    (tmp_path / "a" / "topics-labels.json").write_text("[]")
    with pytest.raises(HerdError, match="topics-labels"):
        TopicModel.load(tmp_path / "a")


def test_labels_that_are_given_are_the_ones_learned() -> None:
    labels = {one.id: "arts" if one.source == "licences" else "health" for one in samples()}
    taught = fit_topics(samples(), 1, labels)
    assert taught.model.classes == ("arts", "health")
    right = [taught.classify_features(one.features)[0] == labels[one.id] for one in samples()]
    assert sum(right) > 0.95 * len(right)


def test_too_few_documents_are_an_error_that_says_what_was_seen() -> None:
    with pytest.raises(HerdError, match="topics: a topic with 20 documents, and others, are needed; recognised: "):
        fit_topics(samples()[:10], 1)


def test_the_arts_are_capped_as_in_the_paper() -> None:
    shares = cap({"arts": 600, "science": 300, "": 100}, {"arts": 0.2})
    assert shares["science"] == shares[""] == 1
    assert shares["arts"] * 600 == pytest.approx(0.2 * (400 + shares["arts"] * 600))


def test_a_second_topic_that_the_first_cap_pushes_over_is_capped_too() -> None:
    shares = cap({"arts": 800, "law": 100, "science": 100}, {"arts": 0.5, "law": 0.2})
    kept = {topic: size * shares[topic] for topic, size in {"arts": 800, "law": 100, "science": 100}.items()}
    assert kept["law"] / sum(kept.values()) <= 0.2 + 1e-9 and kept["arts"] / sum(kept.values()) <= 0.5 + 1e-9
    assert shares["law"] < 1 and shares["science"] == 1


def test_caps_that_cannot_hold_keep_their_ratio() -> None:
    assert cap({"arts": 10}, {"arts": 0.2}) == {"arts": 1}
    assert cap({"arts": 100, "law": 100}, {"arts": 0.1, "law": 0.3}) == pytest.approx({"arts": 1 / 3, "law": 1})
    assert cap({}, {"arts": 0.2}) == {} == cap({"arts": 0}, {"arts": 0.2})


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(TOPICS), st.integers(1, 10**12), min_size=1),
    st.dictionaries(st.sampled_from(TOPICS), st.floats(0.01, 0.99)),
    st.integers(1, 10**12),
)
def test_no_topic_passes_its_cap_and_none_within_it_loses_anything(sizes, caps, free) -> None:
    sizes = {**sizes, "": free}
    shares = cap(sizes, caps)
    kept = {topic: size * shares[topic] for topic, size in sizes.items()}
    total = sum(kept.values())
    for topic, size in kept.items():
        assert 0 < shares[topic] <= 1
        if topic in caps:
            assert size <= caps[topic] * total * (1 + 1e-6)
            assert shares[topic] == 1 or size >= caps[topic] * total * (1 - 1e-6)  # no more goes than has to
        else:
            assert shares[topic] == 1


def test_what_is_kept_is_decided_by_the_id_and_nested() -> None:
    ids = [f"{index:016x}" for index in range(4_000)]
    few, many = ({one for one in ids if keeps(one, share, 1)} for share in (0.3, 0.6))
    assert few < many and abs(len(few) / 4_000 - 0.3) < 0.03 and abs(len(many) / 4_000 - 0.6) < 0.03
    assert all(keeps(one, 1.0, 1) for one in ids) and not any(keeps(one, 0.0, 1) for one in ids)
    assert few != {one for one in ids if keeps(one, 0.3, 2)}
