"""Quality scores, the classifier under them, and the groups of the mix, on text that comes with Python."""

from __future__ import annotations

import ast
import os
import random
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from herd.console import HerdError
from herd.data.held_out import held_out, origins_held_out, separation
from herd.data.linear import LinearModel, features, hash_share, train
from herd.data.quality import (
    ALL,
    QualityModels,
    Sample,
    fit,
    fit_quality,
    lowest,
    origin_of,
    ranked,
    sample_of,
    threshold,
)
from herd.data.technical import code_score, group_of, lines_of, reasoning_score
from herd.data.words import tokens

LIBRARY = Path(os.__file__).parent
PACKAGES = ("asyncio", "concurrent", "email", "http", "json", "logging", "multiprocessing", "unittest", "urllib", "xml")


@cache
def modules() -> dict[str, str]:
    """Sources of the standard library by path, enough of them to learn from."""
    files = [
        *sorted(LIBRARY.glob("*.py")),
        *(file for name in PACKAGES for file in sorted((LIBRARY / name).rglob("*.py"))),
    ]
    texts = {str(file.relative_to(LIBRARY)): file.read_text("utf-8", "replace") for file in files}
    return {path: text for path, text in texts.items() if len(text) > 2_000}


def docstrings(source: str) -> str:
    """What a module says of itself, as one page."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return "\n\n".join(
        text for node in ast.walk(ast.parse(source)) if isinstance(node, nodes) and (text := ast.get_docstring(node))
    )


@cache
def samples() -> tuple[Sample, ...]:
    """Pages of docstrings (source `manual`) and the code they stand in (source `code`), in two languages by name."""
    found = []
    for number, (path, text) in enumerate(sorted(modules().items())):
        for source, part in (("manual", docstrings(text)), ("code", text)):
            if len(part) > 400:
                found.append(
                    sample_of(
                        f"{source}-{path}",
                        source,
                        path,
                        f"https://{path.split('/')[0]}/",
                        ("en", "xx")[number % 2],
                        tokens(part),
                    )
                )
    return tuple(found)


@cache
def models() -> QualityModels:
    return fit_quality(samples(), {"manual"}, seed=1)


def test_reference_text_ranks_above_the_rest_on_origins_never_seen() -> None:
    evidence = models().evidence["all"]
    assert evidence is not None and evidence.by_origin is not None
    assert evidence.by_origin.auroc > 0.95 and evidence.by_origin.interval.low > 0.9
    assert evidence.by_origin.clusters < evidence.by_origin.positives + evidence.by_origin.negatives
    assert "unseen origins" in evidence.sentence() and "unseen documents" in evidence.sentence()
    import pydoc_data.topics

    prose = np.median([models().score(tokens(text), "en") for text in pydoc_data.topics.topics.values()])
    code = np.median(
        [models().score(tokens(text), "en") for path, text in modules().items() if path.startswith("email")]
    )
    assert prose > 0.7 and code < 0.3  # pages that were no part of the sample, and code that was


def test_labels_without_sense_separate_nothing() -> None:
    ids, origins = [one.id for one in samples()], [one.origin for one in samples()]
    found = []
    for seed in range(5):
        labels = np.array([hash_share(identity, 90 + seed) < 0.5 for identity in ids], np.int64)
        measured = held_out(ids, [one.features for one in samples()], labels, origins, ("a", "b"), seed)
        assert measured is not None and measured.by_origin is not None
        found.append(measured.by_origin.auroc)
    assert 0.4 < float(np.mean(found)) < 0.6


def test_a_mark_of_origins_looks_learnable_at_random_and_is_not() -> None:
    """Labels that belong to the origin alone, by chance: pages resemble their neighbours, so a random split lies."""
    chosen = [one for one in samples() if one.origin in PACKAGES]
    origins = [one.origin for one in chosen]
    gaps = []
    for seed in range(4):
        labels = np.array([hash_share(origin, seed) < 0.5 for origin in origins], np.int64)
        measured = held_out(
            [one.id for one in chosen], [one.features for one in chosen], labels, origins, ("a", "b"), seed
        )
        if measured is not None and measured.by_origin is not None:
            gaps.append(measured.by_document.auroc - measured.by_origin.auroc)
    assert len(gaps) >= 2 and float(np.mean(gaps)) > 0.15


def test_the_order_of_samples_and_the_cut_into_parts_change_nothing(tmp_path: Path) -> None:
    shuffled = list(samples())
    random.Random(4).shuffle(shuffled)
    again = fit_quality(iter(shuffled), {"manual"}, seed=1)
    again.save(tmp_path)
    first = tmp_path / "first"
    first.mkdir()
    models().save(first)
    for file in sorted(first.iterdir()):
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name
    parts = [lowest(shuffled[start::3], {"manual"}, 1, count=7) for start in range(3)]
    whole = lowest(samples(), {"manual"}, 1, count=7)
    assert lowest([one for part in parts for one in part], {"manual"}, 1, count=7) == whole
    assert len(whole) == 4 * 7  # two languages, reference and others


def test_another_process_with_more_threads_gives_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from herd.data.linear import features, train\n"
        "from herd.data.words import tokens; import pydoc_data.topics as t\n"
        "f = [features(tokens(x)) for x in t.topics.values()]\n"
        "train(f, [len(x) % 2 for x in f], ('a', 'b'), 3).save(Path(sys.argv[1]), sys.argv[2])"
    )
    for name in ("1", "2"):
        command = [sys.executable, "-c", code, str(tmp_path), name]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": name, "PYTHONHASHSEED": name})
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_saved_models_score_the_same_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    models().save(tmp_path)
    loaded = QualityModels.load(tmp_path)
    for one in samples()[:20]:
        score = models().score_features(one.features, one.language)
        assert loaded.score_features(one.features, one.language) == score
    assert {name: [*points] for name, points in loaded.quantiles.items()} == {
        name: [*points] for name, points in models().quantiles.items()
    }
    file = tmp_path / "quality-all.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(HerdError, match="quality-all"):
        QualityModels.load(tmp_path)
    (tmp_path / "quality.json").write_text('{"models": ["../all"], "quantiles": {}}')
    with pytest.raises(HerdError, match=r"quality\.json"):
        QualityModels.load(tmp_path)


def test_each_language_loses_its_own_share_however_its_scores_lie() -> None:
    english, hindi = np.linspace(0.5, 1.0, 200), np.linspace(0.0, 0.1, 100)
    assert (english < threshold(english, 0.2)).sum() == 40 and (hindi < threshold(hindi, 0.2)).sum() == 20
    assert not (english < threshold(english, 0.0)).any() and not (hindi < threshold(hindi, 0.0)).any()
    assert threshold(np.full(10, 0.3), 0.5) == 0.3  # none lies below: what is equally good is not dropped by chance


def test_another_model_takes_the_place_of_the_first_and_is_ranked_anew() -> None:
    labels = [len(one.features) > 900 for one in samples()]
    model, measured = fit(samples(), labels, ("short", "long"), 1)
    judged = ranked({ALL: model}, {ALL: measured}, samples(), {"manual"})
    one = samples()[0]
    assert judged.score_features(one.features, "en") == model.score_features(one.features)[1]
    assert set(judged.quantiles) == {"en", "xx", ALL} and judged.quantiles[ALL].shape == (101,)
    with pytest.raises(HerdError, match="every source is reference text"):
        ranked({ALL: model}, {}, samples(), {"manual", "code"})


def test_quantiles_are_of_a_languages_other_documents() -> None:
    others = [one for one in samples() if one.source == "code" and one.language == "en"]
    scores = [models().score_features(one.features, "en") for one in others]
    lowest, middle, highest = models().quantiles["en"][[0, 50, 100]]
    assert (lowest, middle, highest) == (min(scores), np.median(scores), max(scores))


def test_too_little_reference_text_is_an_error_that_counts_it() -> None:
    few = [one for one in samples() if one.source == "code" or one.id.endswith(("a.py", "b.py"))][:60]
    with pytest.raises(HerdError, match=r"data\.quality\.reference: 0 reference documents and 60 others"):
        fit_quality(few, {"nowhere"}, 1)
    with pytest.raises(HerdError, match="no documents of b"):
        train([few[0].features], [0], ("a", "b"), 1)


def test_scoring_is_cheap_and_long_documents_cost_no_more() -> None:
    model = models().models["all"]
    read = [tokens(text) for text in modules().values()]
    for one in read:
        assert len(one.words) >= 0  # computed by curation anyway
    start = time.process_time()
    for one in read:
        model.score(one)
    seconds = time.process_time() - start
    assert sum(len(one.data) for one in read) / seconds > 40e6
    assert len(features(tokens("a fine word " * 400_000))) < 1_100
    assert model.score(tokens("")).sum() == pytest.approx(1)


def test_what_stands_far_behind_the_middle_is_not_read() -> None:
    words = ["one", "two", "three"] * 2_000
    assert np.array_equal(
        features(tokens(" ".join(words))), features(tokens(" ".join([*words[:-3], "an", "other", "end"])))
    )
    assert not np.array_equal(
        features(tokens(" ".join(words))), features(tokens(" ".join(["an", "other", *words[2:]])))
    )


def test_origins_held_out_are_whole_and_leave_both_classes_to_learn_from() -> None:
    labels = np.array([0, 1] * 50)
    held = origins_held_out(labels, [f"o{index // 5}" for index in range(100)], 1)
    assert 3 <= len(held) <= 8
    assert not origins_held_out(labels, ["one"] * 100, 1)
    assert not origins_held_out(labels, ["ab"[label] for label in labels], 1)


def test_separation_is_the_share_of_pairs_in_order() -> None:
    scores, positive = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])
    found = separation(scores, positive, ["a", "b", "c", "d"], 1)
    assert found.auroc == (1 + 1 + 0.5 + 1) / 4
    rng = np.random.default_rng(0)
    many = separation(
        rng.normal(size=400) + np.repeat([0, 1], 200), np.repeat([False, True], 200), [str(i) for i in range(400)], 1
    )
    assert (
        many.interval.low < 0.76 < many.interval.high and many.interval.high - many.interval.low < 0.12
    )  # Phi(1/sqrt 2)
    clustered = separation(rng.normal(size=400), np.repeat([False, True], 200), ["ab"[i % 2] for i in range(400)], 1)
    assert clustered.interval == (0, 1)  # two clusters prove nothing


def test_the_origin_is_the_site_or_the_folder() -> None:
    assert origin_of("web", "x", "https://docs.example.org/a/b") == "docs.example.org"
    assert origin_of("files", "manual/a/b.txt") == "files/manual"
    assert origin_of("files", "a", "http://[bad") == "files/a"


PROOF = """There are infinitely many primes. Suppose, for contradiction, that p1, ..., pn are all the primes and let
N = p1 p2 ... pn + 1. No prime of the list divides N, because the remainder is 1. But every integer greater than 1 has a
prime divisor. Hence the list was not complete, which proves the theorem. The same argument implies a weak bound."""
BALL = """A ball is thrown upwards with velocity v = 20 m/s. Let h denote the height. At the top the kinetic energy
m v^2 / 2 equals the potential energy m g h, so that h = v^2 / (2 g). Substituting g = 9.81 m/s^2 gives h = 20.4 m. The
time follows from v = g t, hence t = 2.04 s. Solving the equation for the range at an angle theta we obtain
R = v^2 sin(2 theta) / g."""
CHANGES = """Changes in version 4.2.1 (2024-03-05)

* Fixed a crash when the file was empty.
* The documentation of the second argument is clearer.
* Added support for Python 3.12 and removed support for 3.7.
* Thanks to all contributors for their patience and reports.

Changes in version 4.2.0 (2024-01-11)

* The cache is now cleared when the process ends.
* Updated the translations for German and Dutch.
"""
MINIFIED = "var a=function(b,c){return b?c(b):null};for(var d=0;d<9;d++){a(d,function(e){return e*2})};" * 60
NOVEL = """The city grew quickly after the railway reached it. Because wool was cheap, mills were built along the
river, and so the population doubled in twenty years. Suppose a family came in those days; it would find work, but
hardly a house, and the children went to school only in winter when there was nothing to do in the fields."""


def licences() -> list[str]:
    files = sorted(Path(np.__file__).parents[1].glob("*.dist-info/**/LICENSE*"))
    return [file.read_text("utf-8", "replace") for file in files if file.is_file()][:60]


def test_pages_of_code_with_prose_rank_above_changelogs_licences_and_minified_code() -> None:
    import pydoc_data.topics
    import re
    import statistics

    topics = pydoc_data.topics.topics
    pages = [re.__doc__, statistics.__doc__, topics["strings"], topics["formatstrings"], topics["with"], topics["try"]]
    lowest_page = min(code_score(tokens(page or "")) for page in pages)
    assert lowest_page > 0.2
    assert all(code_score(tokens(other)) < lowest_page for other in (CHANGES, MINIFIED, NOVEL, PROOF))
    scores = [code_score(tokens(licence)) for licence in licences()]
    assert len(scores) > 10 and sum(score >= lowest_page for score in scores) <= 0.05 * len(scores)
    bare = "\n".join(f"x{i} = f(y{i}, z[{i}]);" for i in range(50))
    assert code_score(tokens(bare)) == 0 and lines_of(tokens(bare)).code == 1
    assert code_score(tokens("")) == 0


def test_deduction_ranks_above_everything_that_only_resembles_it() -> None:
    import pydoc_data.topics

    pages = [reasoning_score(tokens(page)) for page in (PROOF, BALL)]
    others = [CHANGES, MINIFIED, NOVEL, *licences(), *pydoc_data.topics.topics.values(), *modules().values()]
    scores = sorted(reasoning_score(tokens(other)) for other in others)
    assert min(pages) >= 0.9
    assert scores[int(0.99 * len(scores))] < 0.5 and scores[-1] < min(pages)
    assert reasoning_score(tokens("")) == 0


def test_docstrings_of_mathematics_score_above_those_of_the_standard_library() -> None:
    mpmath = pytest.importorskip("mpmath", reason="no mathematical text is installed")
    sources = sorted(Path(mpmath.__file__).parent.rglob("*.py"))
    pages = [
        page for file in sources if "tests" not in file.parts and len(page := docstrings(file.read_text())) > 2_000
    ]
    library = [page for text in modules().values() if len(page := docstrings(text)) > 2_000]
    mathematics, usual = ([reasoning_score(tokens(page)) for page in group] for group in (pages, library))
    flags = np.array([True] * len(mathematics) + [False] * len(usual))
    assert separation(np.array(mathematics + usual), flags, [str(i) for i in range(len(flags))], 1).auroc > 0.85


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", ":", "::/", "a://", "://", ">>", ">>>", "$", "\t\n  }", "\ud800" * 3, "=" * 10_000]
)
def test_any_text_has_scores(text: str) -> None:
    assert 0 <= code_score(tokens(text)) <= 1 and 0 <= reasoning_score(tokens(text)) <= 1
    assert 0 <= models().score(tokens(text), "en") <= 1


def test_an_address_on_a_line_of_its_own_is_no_code() -> None:
    page = (
        "You may obtain a copy of the text of these rules at the address below.\n\n    https://example.org/a-b_c?d=e;\n"
    )
    assert lines_of(tokens(page)).code == 0 < lines_of(tokens(page.replace("https://", "https = "))).code


def test_a_distilled_model_replaces_the_counts() -> None:
    model = LinearModel(("no", "yes"), np.zeros((2, 1 << 18), np.float32), np.array([0, 3], np.float32))
    assert code_score(tokens(NOVEL), model) == reasoning_score(tokens(NOVEL), model) == pytest.approx(0.9526, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "page", "language", "reasoning", "group"),
    [
        ("code", "", "und", 0.9, "code"),
        ("docs", "code", "en", 0.0, "code"),
        ("docs", "code", "de", 0.0, "multilingual"),
        ("docs", "reasoning", "en", 0.1, "reasoning"),
        ("prose", "article", "en", 0.7, "reasoning"),
        ("prose", "article", "de", 0.7, "multilingual"),
        ("prose", "", "und", 0.0, "general"),
        ("table", "", "de", 0.0, "general"),
    ],
)
def test_groups(kind: str, page: str, language: str, reasoning: float, group: str) -> None:
    assert group_of(kind, page, language, "en", reasoning) == group
