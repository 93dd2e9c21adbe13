"""Each step of curation on a small web of real text: what it must drop, what it must keep, and when it warns."""

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from herd import console
from herd.artifact import Artifact
from herd.console import HerdError
from herd.data import scoring
from herd.data.curate import CurateSettings, curate, idle
from herd.data.engine import Engine
from herd.data.heuristics import judge
from herd.data.lines import line_keys, without_repeated
from herd.data.outliers import count_bins, divergence, limits, log_shares
from herd.data.sources import CollectSettings, collect
from herd.data.words import distinct, tokens
from herd.recipe_data import Data, Decontamination, Folder, Mix

# Chapters of Python's language reference: real prose that comes with every Python.
CHAPTERS = [
    text
    for text in dict.fromkeys(text for _, text in sorted(topics.items()) if 700 < len(text) < 40_000)
    if judge(text, tokens(text), "prose", 200, 400_000, language="en") is None
]
GERMAN = (
    "Die Größe der Bäume hängt vom Boden ab, auf dem sie stehen, und von der Höhe über dem Meer. Wer im Frühjahr durch "
    "die Täler wandert, sieht blühende Wiesen; oben liegt noch Schnee, und die Wege sind für Räder gesperrt."
)
WEB = Folder(kind="folder", name="web", path="web")
Row = dict[str, str]


def page(number: int, url: str = "", **more: str) -> Row:
    return {"text": CHAPTERS[number], "url": url or f"https://docs.example/{number}", **more}


class Web:
    """Rows of a crawl, and what curation makes of them."""

    def __init__(self, base: Path, run_stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base, self._run_stage = base, run_stage
        self.warned: list[str] = []
        monkeypatch.setattr(console, "warn", self.warned.append)

    def curate(self, rows: list[Row], **more: Any) -> Artifact:
        (self.base / "web").mkdir(exist_ok=True)
        (self.base / "web" / "crawl.jsonl").write_text("\n".join(map(json.dumps, rows)))
        asked = CollectSettings(sources=[WEB], base=self.base, engine=Engine(workers=1))
        data = Data(**{"source": [WEB], "min_bytes": 1, "workers": 1, "outlier_share": 0, **more})
        settings = CurateSettings(data=data, seed=1, base=self.base)
        self.sources: Artifact = self._run_stage(collect, asked)
        return self._run_stage(curate, settings, {"sources": self.sources})


@pytest.fixture
def web(tmp_path: Path, run_stage: Any, monkeypatch: pytest.MonkeyPatch) -> Web:
    return Web(tmp_path, run_stage, monkeypatch)


def drops(artifact: Artifact) -> dict[int, tuple[str, str]]:
    """Line of the crawl -> step and rule."""
    rows = pq.read_table(artifact.file("drops.parquet")).to_pylist()
    return {int(row["path"].split("#")[1]): (row["step"], row["rule"]) for row in rows}


def kept(artifact: Artifact) -> dict[int, dict[str, Any]]:
    rows = pq.read_table(artifact.file("documents.parquet")).to_pylist()
    return {int(row["path"].split("#")[1]): row for row in rows}


def test_listed_domains_go_with_all_that_is_below_them(web: Web) -> None:
    (web.base / "bad.txt").write_text("# ours\nbad.example\n")
    rows = [
        page(0, "https://bad.example/a"),
        page(1, "http://www.sub.bad.example:80/b"),
        page(2, "https://notbad.example"),
    ]
    artifact = web.curate(rows, blocklists=["bad.txt"])
    assert drops(artifact) == {1: ("blocklist", "listed_domain"), 2: ("blocklist", "listed_domain")}
    assert kept(artifact)[3]["url"] == "https://notbad.example"
    with pytest.raises(HerdError, match=r"missing\.txt"):
        web.curate(rows, blocklists=["missing.txt"])


def test_of_one_address_the_most_recent_page_is_kept(web: Web) -> None:
    rows = [
        page(0, "http://www.docs.example/x/", retrieved="2024-01-01"),
        page(1, "https://docs.example/x#top", retrieved="2025-06-01"),
        page(2, "https://docs.example/x?page=2", retrieved="2020-01-01"),
    ]
    artifact = web.curate(rows)
    assert drops(artifact) == {1: ("url", "older_version")} and set(kept(artifact)) == {2, 3}
    (row,) = pq.read_table(artifact.file("drops.parquet")).to_pylist()
    assert row["kept"] == kept(artifact)[2]["id"]


def test_addresses_without_a_host_and_pages_of_one_script_are_not_one_page(web: Web) -> None:
    urls = ["http://", "http://", "https://app.example/#/one", "https://app.example/#/two"]
    assert drops(web.curate([page(n, url) for n, url in enumerate(urls)])) == {}


def test_copies_of_copies_belong_to_the_document_that_is_kept(web: Web) -> None:
    """An older page equal to one that is a near-copy of a third: one cluster, one keeper."""
    longer = CHAPTERS[5] + "\nOne more sentence stands at the end of the longest version."
    rows = [
        page(5, "https://a.example", retrieved="2025-01-01"),
        {"text": longer, "url": "https://b.example"},
        page(6, "https://a.example", retrieved="2020-01-01"),
        page(5, "https://c.example"),
    ]
    artifact = web.curate(rows)
    keeper = kept(artifact)[2]["id"]
    found = pq.read_table(artifact.file("drops.parquet")).to_pylist()
    assert {row["kept"] for row in found} == {keeper} and len(found) == 3
    assert {row["step"] for row in found} == {"url", "exact", "near"}
    assert artifact.json("funnel.json")["clusters"]["largest"] == [{"kept": keeper, "documents": 4}]


def test_near_copies_go_and_chapters_of_one_book_stay(web: Web) -> None:
    changed = CHAPTERS[7].replace("the", "this", 2)
    rows = [page(n) for n in range(40)] + [{"text": changed, "url": "https://mirror.example"}]
    artifact = web.curate(rows)
    assert list(drops(artifact).values()) == [("near", "minhash")]
    (row,) = pq.read_table(artifact.file("drops.parquet")).to_pylist()
    assert row["score"] >= row["threshold"] == 0.8


def test_sites_full_of_personal_data_go_whole(web: Web) -> None:
    def directory(number: int, site: str, addresses: int) -> Row:
        lines = CHAPTERS[number].split("\n")
        people = [f"{line} Write to person{i}.{number}@mail.org" for i, line in enumerate(lines[:addresses])]
        return {"text": "\n".join(people + lines[addresses:]), "url": f"https://{site}/{number}"}

    people = [directory(n, "people.example", 9) for n in range(25)]
    project = [directory(n, "project.example", n % 2) for n in range(25, 50)]
    artifact = web.curate(people + project)
    gone = drops(artifact)
    assert {gone.get(n) for n in range(1, 26)} == {("domains", "domain_personal_data")}
    assert not set(gone) & set(range(26, 51))
    assert "@mail.org" not in "".join(row["text"] for row in kept(artifact).values())


def test_dirty_pages_go_and_a_word_or_two_does_not_hurt(web: Web) -> None:
    (web.base / "en.txt").write_text("blorptastic\nzurgle the frobnak\n")
    filthy = CHAPTERS[3][:3_000].replace(" the ", " blorptastic ")
    mild = CHAPTERS[4].replace(" the ", " blorptastic ", 2)
    artifact = web.curate([{"text": filthy}, {"text": mild}, page(8)], dirty_words=["en.txt"])
    assert drops(artifact) == {1: ("heuristics", "dirty_words")}
    web.curate([page(8)], dirty_words=["en.txt"], languages=["en", "de"])
    assert any("no list for de" in line for line in web.warned)


def test_benchmark_items_go_wherever_they_stand_and_common_phrases_do_not(web: Web) -> None:
    item = "How many metres of rope does a climber need who ties nine knots of forty centimetres each along the wall"
    phrase = "permission is hereby granted free of charge to any person obtaining a copy of this software and files"
    (web.base / "quiz.jsonl").write_text(json.dumps({"question": item}) + "\n" + json.dumps({"text": phrase}))
    rows = [page(n) for n in range(10)]
    rows[2]["text"] += "\n" + item.upper().replace(" of ", " of\n  ") + "?"
    for n in (4, 5, 6):
        rows[n]["text"] += "\n" + phrase
    rules = Decontamination(paths=["quiz.jsonl"], common_documents=2)
    assert drops(web.curate(rows, decontamination=rules)) == {3: ("contamination", "benchmark:quiz")}
    strict = Decontamination(paths=["quiz.jsonl"])
    assert set(drops(web.curate(rows, decontamination=strict))) == {3, 5, 6, 7}


def test_class_caps_take_documents_out_and_unknown_classes_are_errors(web: Web) -> None:
    with pytest.raises(HerdError, match=r"data.mix.class_caps: no class 'gardening'; there are"):
        web.curate([page(0)], mix=Mix(class_caps={"gardening": 0.5}))


def test_caps_of_topics_are_reckoned_over_what_the_other_limits_leave(tmp_path: Path) -> None:
    """Half of the talk about programs leaks a benchmark: what is left of it is a third of the rest, not a half."""
    columns = {
        "cell": ["c"] * 8, "language": ["en"] * 8, "judged": [False] * 8, "divergence": [1.0] * 8, "quality": [0.5] * 8,
        "topic": ["programming"] * 4 + [""] * 4, "bytes": [100] * 8, "leak": ["x"] * 2 + [""] * 6, "hits": [1.0] * 8,
    }  # fmt: skip
    np.savez(tmp_path / "a.scores.npz", **{name: np.array(values) for name, values in columns.items()})  # pyright: ignore
    np.savez(tmp_path / "empty.scores.npz")
    data = Data(source=[WEB], outlier_share=0, mix=Mix(class_caps={"programming": 0.3}))
    share = scoring.limits(tmp_path, ["a", "empty"], data).topics["programming"]
    assert share * 200 == pytest.approx(0.3 * (share * 200 + 400))


def test_texts_without_words_are_not_alike_for_having_none(web: Web) -> None:
    rows = [
        page(0),
        {"text": "+-* " * 400, "url": "https://a.example"},
        {"text": "/=% " * 500, "url": "https://b.example"},
    ]
    assert {step for step, _ in drops(web.curate(rows, languages=["en", "und"])).values()} == {"heuristics"}


def test_another_day_of_an_address_makes_other_sources(web: Web) -> None:
    rows = [page(0, "https://a.example", retrieved="2024-01-01"), page(1, "https://a.example", retrieved="2025-01-01")]
    first = drops(web.curate(rows))
    contents = [web.sources.content]
    rows[0]["retrieved"], rows[1]["retrieved"] = rows[1]["retrieved"], rows[0]["retrieved"]
    second = drops(web.curate(rows))
    assert (set(first), set(second)) == ({1}, {2}) and web.sources.content != contents[0]


def test_a_list_that_was_edited_between_two_runs_is_read_anew(web: Web) -> None:
    filthy = CHAPTERS[3][:3_000].replace(" the ", " blorptastic ")
    (web.base / "en.txt").write_text("zurgle\n")
    assert drops(web.curate([{"text": filthy}, page(8)], dirty_words=["en.txt"])) == {}
    (web.base / "en.txt").write_text("blorptastic\n")
    assert drops(web.curate([{"text": filthy}, page(8)], dirty_words=["en.txt"])) == {1: ("heuristics", "dirty_words")}


def test_a_language_that_nobody_can_tell_is_an_error(web: Web) -> None:
    with pytest.raises(
        HerdError, match=r"data.languages: no language 'english'; expected ISO 639 codes such as en, de"
    ):
        web.curate([page(0)], languages=["english"])


def test_a_reference_that_is_no_source_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"quality.reference: no source 'wbe'; there are web"):
        Data.model_validate({"source": [WEB.model_dump()], "quality": {"reference": ["wbe"]}})


def test_damaged_rows_cost_only_themselves(web: Web) -> None:
    (web.base / "web").mkdir()
    (web.base / "web" / "latin.html").write_bytes(b"<p>" + GERMAN.encode("latin-1"))
    (web.base / "web" / "torn.html").write_bytes(b"<p>\xff\xfe\x00broken")
    (web.base / "web" / "empty.html").write_bytes(b"")
    (web.base / "web" / "bare.html").write_bytes(b"<html><body></body></html>")
    artifact = web.curate([page(0), page(1)], languages=["en", "de"])
    found = pq.read_table(artifact.file("documents.parquet")).to_pylist()
    assert len([row for row in found if row["path"].startswith("crawl")]) == 2
    assert any("Bäume" in row["text"] for row in found)


def test_words_from_another_world_are_outliers_in_their_cell() -> None:
    corpus: dict[str, Any] = {}
    for text in CHAPTERS:
        count_bins(corpus, "prose en", tokens(text))
    shares = log_shares(corpus["prose en"])
    usual = [divergence(tokens(text), shares) for text in CHAPTERS]
    odd = divergence(tokens(" ".join(f"qx{n * 7919:x}" for n in range(600))), shares)
    assert odd > max(usual)
    cut = limits({"cell": np.array([*usual, odd]), "few": np.array(usual[:3])}, 1 / len(usual))
    assert max(usual) <= cut["cell"] < odd and "few" not in cut
    assert limits({"cell": np.array(usual)}, 0) == {}


def lines_out(documents: list[str], repeated: str, verbatim: tuple[tuple[int, int], ...] = ()) -> list[str]:
    keys = distinct(line_keys(tokens(repeated), ()))
    return [without_repeated(text, tokens(text), verbatim, keys)[0] for text in documents]


def test_a_line_in_more_documents_than_the_limit_goes_and_one_in_as_many_stays(web: Web) -> None:
    line = "Read the newsletter of this Manual, page {n}!"
    rows = [{"text": f"{line.format(n=n)}\n{CHAPTERS[n]}"} for n in range(7)]
    assert not any("newsletter" in row["text"] for row in kept(web.curate(rows)).values())
    assert all("newsletter" in row["text"] for row in kept(web.curate(rows[:6])).values())
    many = [{"text": f"{line.format(n=n)}\n{CHAPTERS[n]}"} for n in range(10)]
    apart = kept(web.curate(many, line_bucket_documents=5))  # two buckets, of about five documents each
    assert any("newsletter" in row["text"] for row in apart.values())
    changes = pq.read_table(web.curate(rows).file("changes.parquet")).to_pylist()
    assert {(row["step"], row["rule"], row["count"]) for row in changes} == {("lines", "repeated_line", 1)}
    assert all("newsletter" in row["sample"] for row in changes)


def test_verbatim_indented_and_short_lines_are_left_alone() -> None:
    text = "import numpy as np\n    return the value here\n}\n1. \n--quiet\nThe same line of the menu\nown text"
    repeated = text.replace("    return", "return").replace("\nown text", "")
    assert lines_out([text], repeated, ((0, 1),)) == [text.replace("The same line of the menu\n", "")]


def test_steps_that_never_or_always_fire_warn(web: Web) -> None:
    (web.base / "bad.txt").write_text("nowhere.example\n")
    artifact = web.curate([page(n) for n in range(30)])
    books = artifact.json("funnel.json")
    large = [{**step, "documents_in": 5_000} for step in books["steps"]]
    named = idle({"steps": large}, Data(source=[WEB], blocklists=["bad.txt"]))
    assert {"near", "heuristics", "lines", "blocklist"} <= set(named) and "contamination" not in named
    assert idle(books, Data(source=[WEB])) == []  # thirty documents: nothing is odd yet
    with pytest.raises(HerdError, match="curation left 0 B"):
        web.curate([page(n) for n in range(30)], languages=["th"])
    assert any("the step 'language' dropped every document" in line for line in web.warned)
