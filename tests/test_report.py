"""The report: self-contained, every number with its evidence, whatever a run has and whatever documents are called."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from herd.artifact import Artifact, Draft, canonical_json, open_artifact, publish, stage_key, write_atomically
from herd.data.documents import CURATED, DROPS, Writer
from herd.evidence import Claim, Ledger, write_claims
from herd.report import write_report
from herd.report_plots import scientific, smooth
from herd.scaling.forecast import forecast
from herd.scaling.isoflop import Cell

HOSTILE = 'docs/<script>alert("x")</script>&amp;.html'
RECORDED = {
    "started": "2026-01-02T03:04:05+00:00",
    "seconds": 7.5,
    "machine": {"cpu": "a <b>fast</b> one", "cores": 2, "python": "3.12", "system": "Linux", "torch": "2.9"},
    "herd": "0.1.0",
    "command": "herd run tiny.toml --only sources --force sources",
}
SOURCE = {
    "kind": "folder",
    "documents": 50,
    "bytes": 90_000,
    "licences": {"MIT": 30, "unknown": 20},
    "skipped": None,
    "skipped_files": {"not text": 2},
}
ABSENT = SOURCE | {
    "documents": 0,
    "bytes": 0,
    "licences": {},
    "skipped": "there is no apt on this machine",
    "skipped_files": {},
}


class FakeRun:
    """Publishes artifacts with made-up content, as the stages would."""

    def __init__(self, path: Path, minute: int = 0) -> None:
        self.path, self.minute = path, minute
        self.artifacts: dict[str, Artifact] = {}
        path.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        stage: str,
        files: Mapping[str, Any],
        claims: list[Claim] | None = None,
        inputs: tuple[str, ...] = (),
        write: Any = None,
    ) -> None:
        hashes = {name.split("-")[0]: self.artifacts[name].content for name in inputs}
        key = stage_key(stage, 1, {}, hashes)
        self.minute += 1
        recorded = {**RECORDED, "started": f"2026-01-02T03:{self.minute:02d}:05+00:00"}
        with publish(self.path, stage, key, {"version": 1, "settings": {}, "inputs": hashes}, recorded) as draft:
            for name, value in files.items():
                (draft.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (draft.folder / name).write_text(value) if isinstance(value, str) else draft.write_json(name, value)
            if claims:
                write_claims(draft.folder / "claims.json", claims)
            if write is not None:
                write(draft)
        self.artifacts[stage] = open_artifact(self.path / f"{stage}-{key[:12]}")
        Ledger(self.path).add(self.artifacts[stage], f"herd run tiny.toml --only {stage} --force {stage}")
        folders = {name: artifact.path.name for name, artifact in self.artifacts.items()}
        write_atomically(self.path / "current.json", canonical_json({"schema": 1, "artifacts": folders}))

    def data(self, sources: int = 2) -> None:
        """Sources, of which one more is absent, and curation."""
        names = [f"source-{i}" for i in range(sources)]
        table = dict.fromkeys(names, SOURCE) | {"absent": ABSENT}
        dates = {name: {"first": "2026-01-01", "last": "2026-01-02"} for name in names} | {"absent": None}
        self.add("sources", {"sources.json": table, "recorded/retrieved.json": dates})
        self.add("curate", {"funnel.json": _funnel()}, inputs=("sources",), write=_drops)

    def laws(self, budgets: int = 3, members: tuple[str, ...] = ("flagship", "small")) -> None:
        """Tokenizer, shards, ladder and forecast."""
        self.add(
            "tokenizer",
            {"x": "x"},
            [Claim("tokenizer.bytes-per-token", "compression", 2.5, "bytes/token", 5, "held-out documents")],
            ("curate",),
        )
        self.add(
            "shards",
            {"shards.json": {"train_tokens": {"docs": 40_000}, "heldout_tokens": 2_000, "vocab_size": 512}},
            inputs=("tokenizer",),
        )
        cells = _cells(budgets)
        self.add(
            "ladder",
            {"cells.json": [c.__dict__ for c in cells]},
            [
                Claim(
                    f"ladder.{c.budget_flops:.3g}.{c.parameters}.loss",
                    "a cell",
                    c.loss,
                    "nats/token",
                    5,
                    "held-out documents",
                )
                for c in cells
            ],
            ("shards",),
        )
        found = forecast(cells, 3 * cells[-1].budget_flops, seed=1)
        plans = {m: {"parameters": 9_000, "tokens": 50_000, "flops": 1e12} for m in members}
        claims = [
            Claim(
                "forecast.size-exponent",
                "exponent",
                found.size_law.exponent,
                "1",
                len(cells),
                "cells",
                *found.exponent_interval,
                0.9,
            ),
            Claim(
                "flagship.forecast.loss",
                "forecast",
                found.loss,
                "nats/token",
                len(cells),
                "cells",
                *found.loss_interval,
                0.9,
            ),
        ]
        self.add("forecast", {"forecast.json": found.to_dict(), "recorded/members.json": plans}, claims, ("ladder",))
        self.found = found

    def member(
        self, name: str, offset: float = 0.0, share: float = 0.5, slices: tuple[str, ...] = ("kind.docs", "language.en")
    ) -> None:
        """All stages of a member; its loss is at `share` of the forecast's interval."""
        low, high = self.found.loss_interval
        loss = low + share * (high - low)
        for step in ("pretrain", "long-context", "anneal"):
            facts = {"parameters": 9_000, "matmul_parameters": 8_800, "tokens": 50_000, "epochs": 1.25, "flops": 1e12}
            rows = "".join(
                canonical_json({"tokens": 500 * i, "loss": loss + offset + 3 / math.sqrt(i)}) + "\n"
                for i in range(1, 101)
            )
            files = {
                "training.json": facts,
                "metrics.jsonl": rows,
                "config.json": {"layers": 2, "dim": 16, "context": 64},
            }
            self.add(f"{step}-{name}", files, _losses(name, step, loss, self.found.loss), ("forecast", "shards"))
        bits = [(f"{name}.bits-per-byte", 5)] + [(f"{name}.bits-per-byte.{s}", 4) for s in slices]
        claims = [
            Claim(
                id,
                "bits",
                2.1 + offset + i / 9,
                "bits/byte",
                n,
                "held-out documents",
                2 + offset + i / 9,
                2.2 + offset + i / 9,
                0.95,
                "bootstrap",
            )
            for i, (id, n) in enumerate(bits)
        ]
        claims += [
            Claim(f"{name}.decode.tokens-per-second", "speed", 1200.0, "tokens/s", 96, "tokens"),
            Claim(f"{name}.memory.bytes", "memory", 14_000, "bytes"),
        ]
        self.add(f"evaluate-{name}", {}, claims, (f"anneal-{name}",))
        figures = {"tokens": 2048, "max_abs_logit_error": 0.0, "kl_nats": 1e-5, "top1_agreement": 0.99}
        parity = {
            "schema": 2,
            "formats": {
                "huggingface": {"exact_after_rounding": True, "largest_change": 0.0, "against_source": figures}
            },
        }
        self.add(f"export-{name}", {"parity.json": parity, "huggingface/model": "weights"}, inputs=(f"anneal-{name}",))


def _step(step: str, read: tuple[int, int], dropped: tuple[int, int], rule: str = "") -> dict[str, Any]:
    """A step of the funnel: documents and bytes that it read, and that its one rule (if any) dropped."""
    documents, size = dropped
    return {
        "step": step,
        "documents_in": read[0],
        "bytes_in": read[1],
        "documents_dropped": documents,
        "bytes_dropped": size,
        "rules": {rule: {"documents": documents, "bytes": size}} if rule else {},
    }


def _kept() -> dict[str, Any]:
    """What curation kept, and its divisions."""
    by = {"kind": {"docs": 70}, "language": {"en": 60, "de": 10}, "source": {"source-0": 70}}
    by |= {"group": {"general": 60, "multilingual": 10}, "topic": {"": 70}}
    divisions = {f"by_{k}": {n: {"documents": d, "bytes": d * 1000} for n, d in v.items()} for k, v in by.items()}
    return {"documents": 70, "bytes": 100_000, "splits": {"train": 65, "heldout": 5}, **divisions}


def _languages() -> list[dict[str, Any]]:
    """Documents by declared and by identified language: one label that lies, one that is right, and none."""
    of = {"source": "source-0", "share": 0.5, "confidence": 0.913}
    labels = ((9, "hi", "en"), (51, "en", "en"), (10, "", "de"))
    return [
        of | {"documents": n, "bytes": 1000 * n, "declared": said, "identified": found} for n, said, found in labels
    ]


def _funnel() -> dict[str, Any]:
    """The books of curation."""
    return {
        "steps": [
            _step("extract", (100, 180_000), (10, 5_000), "no_text"),
            _step("heuristics", (90, 120_000), (20, 20_000), "too_short"),
            _step("near", (70, 100_000), (1, 9), "minhash"),
            _step("mix", (1, 100_000), (1, 0)),
        ],
        "kept": _kept(),
        "licences": {"MIT": 70},
        "masked": {"email": 3},
        "idle_rules": ["heuristics.long_words"],
        "languages": _languages(),
        "clusters": {"count": 2, "documents": 14, "largest": [{"kept": "77", "documents": 12}]},
    }


def _drops(draft: Draft) -> None:
    with Writer(draft.folder / "documents.parquet", CURATED) as writer:
        writer.write({"id": "77", "source": "source-0", "path": f"cluster-{HOSTILE}"})
    with Writer(draft.folder / "drops.parquet", DROPS) as writer:
        for i in range(5):
            row = {"id": str(i), "source": "source-0", "path": f"{i}-{HOSTILE}", "bytes": 9, "url": "", "kept": ""}
            writer.write(row | {"step": "extract", "rule": "no_text", "score": 0.0, "threshold": 1.0})
            writer.write(row | {"step": "heuristics", "rule": "too_short", "score": 20.0 + i, "threshold": 200.0})
        copy = {"id": "76", "source": "source-0", "path": "copy.html", "bytes": 9, "url": "", "kept": "id-of-the-kept"}
        writer.write(copy | {"step": "near", "rule": "minhash", "score": 0.93, "threshold": 0.8})


def _cells(budgets: int) -> list[Cell]:
    """Bowls around an optimum that grows with the square root of the budget, with a little noise, always the same."""
    cells = []
    for i in range(budgets):
        budget = 1e9 * 2**i
        optimum = 5_000 * 2 ** (i / 2)
        for j in range(5):
            size = round(optimum * 1.7 ** (j - 2))
            loss = 2 + 40 * budget**-0.15 + 0.1 * math.log(size / optimum) ** 2 + 0.004 * math.sin(7 * i + 3 * j)
            cells.append(Cell(budget, size, round(budget / 6 / size), loss))
    return cells


def _losses(name: str, step: str, loss: float, expected: float) -> list[Claim]:
    def one(id: str, value: float) -> Claim:
        return Claim(f"{name}.{id}", f"held-out loss: {id}", value, "nats/token", 5, "held-out documents")

    if step == "pretrain":
        error = Claim(f"{name}.forecast.error", "error", loss / expected - 1, "fraction", 5, "held-out documents")
        return [one("pretrain.loss", loss)] + ([error] if name == "flagship" else [])
    if step == "long-context":
        return [one("long-context.loss-before", loss), one("long-context.loss", loss - 0.02)]
    return [one("anneal.loss-last", loss - 0.05), one("anneal.loss-average", loss - 0.04)]


class Elements(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(attribute))]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    fake = FakeRun(tmp_path_factory.mktemp("runs") / "tiny")
    fake.data()
    fake.laws()
    fake.member("flagship", slices=("kind.docs", "kind.code", "language.en"))
    fake.member("small", 0.3)
    write_report(fake.path)
    return fake


@pytest.fixture(scope="module")
def page(run: FakeRun) -> Elements:
    return Elements((run.path / "report.html").read_text())


def test_the_page_loads_nothing_and_runs_nothing(run: FakeRun, page: Elements) -> None:
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    targets = page.all("src") + page.all("href") + page.all("xlink:href")
    assert targets and not [t for t in targets if re.match(r"[a-z]+:|//", t)]
    assert not re.search(r"@import|url\((?!#)", (run.path / "report.html").read_text())
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_every_link_leads_somewhere(run: FakeRun, page: Elements) -> None:
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    for target in page.all("href"):
        assert target[1:] in ids if target.startswith("#") else (run.path / target).exists(), target


def test_every_claim_is_in_the_ledger_with_its_command(run: FakeRun, page: Elements) -> None:
    entries = Ledger(run.path).latest()
    assert len(entries) > 30
    for id, entry in entries.items():
        assert f"claim-{id}" in page.all("id")
        assert id in page.text and entry.command in page.text


def test_text_of_the_corpus_is_escaped(run: FakeRun, page: Elements) -> None:
    assert "<script" not in (run.path / "report.html").read_text()
    assert f"0-{HOSTILE}" in page.text and "a <b>fast</b> one" in page.text
    assert f"3-{HOSTILE}" not in page.text  # three examples a rule


def test_why_documents_were_dropped_and_a_source_was_skipped(page: Elements) -> None:
    assert "no text: 10 documents" in page.text and "20 < 200" in page.text
    assert "there is no apt on this machine" in page.text


def test_the_diet_names_its_steps_and_warns_of_rules_that_never_or_always_fire(page: Elements) -> None:
    for said in ("text extracted", "rules of quality applied", "near-duplicates dropped"):
        assert said in page.text
    assert "Never fired in the step 'heuristics': long words." in page.text
    assert "The step 'mix' (topics capped) dropped every document it was given." in page.text


def test_the_diet_shows_where_language_labels_lie_and_how_the_mix_is_made_up(page: Elements) -> None:
    assert "source-0 hi en the label lies 9 9.0 kB 0.91" in page.text
    assert page.text.count("the label lies") == 1  # what declared nothing, or the truth, does not lie
    assert re.search(r"group documents bytes general 60 60.0 kB multilingual 10", page.text)
    assert "topic documents" not in page.text  # nothing was classified


def test_the_diet_shows_clusters_and_what_was_kept_for_a_copy(page: Elements) -> None:
    assert f"2 clusters; the largest has 12 documents: cluster-{HOSTILE} and its copies" in page.text
    assert "copy.html source-0; kept in its place: id-of-the-kept 0.93 > 0.8" in page.text


def test_the_forecast_is_said_to_hold_or_to_fail(run: FakeRun, page: Elements, tmp_path: Path) -> None:
    assert "inside the interval" in page.text and "outside the interval" not in page.text
    assert run.artifacts["forecast"].content in page.text and "written before the training" in page.text
    missed = FakeRun(tmp_path / "missed")
    missed.data()
    missed.laws()
    missed.member("flagship", share=1.5)
    text = Elements(write_report(missed.path).read_text()).text
    assert "outside the interval" in text and "inside the interval" not in text


def test_a_forecast_made_anew_after_training_does_not_count(run: FakeRun, tmp_path: Path) -> None:
    late = FakeRun(tmp_path / "late")
    late.data()
    late.laws()
    late.member("flagship")
    late.laws(budgets=4)
    text = Elements(write_report(late.path).read_text()).text
    assert "can't count as written before" in text and "pretrain-flagship" in text.split("made anew since")[1]


@pytest.mark.parametrize("stages", ["data", "laws"])
def test_a_run_stopped_early_says_what_is_not_there(tmp_path: Path, stages: str) -> None:
    early = FakeRun(tmp_path / "early")
    early.data()
    if stages == "laws":
        early.laws()
    page = Elements(write_report(early.path).read_text())
    assert "100.0 kB" in page.text and "not finished" in page.text
    assert ("The ladder is not there yet" in page.text) == (stages == "data")
    assert "The training of a member is not there yet" in page.text


def test_a_page_that_is_up_to_date_is_left_alone(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path / "tiny")
    fake.data()
    path = write_report(fake.path)
    first = path.stat()
    assert write_report(fake.path) == path and path.stat().st_mtime_ns == first.st_mtime_ns
    write_report(fake.path, anew=True)
    assert path.stat().st_ino != first.st_ino  # a new file took its place
    again = path.read_bytes()
    fake.laws()
    assert write_report(fake.path).read_bytes() != again


def test_equal_runs_have_equal_pages(run: FakeRun) -> None:
    before = (run.path / "report.html").read_bytes()
    assert write_report(run.path, anew=True).read_bytes() == before


def test_claims_of_artifacts_that_were_replaced_are_marked(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path / "tiny")
    fake.data()
    gone = {
        "claim": Claim("ghost.loss", "of a member that is gone", 1.0, "nats/token").__dict__,
        "artifact": "pretrain-ghost-000000000000",
    }
    row = {"schema": 1, **gone, "content": "0", "inputs": {}, "command": "herd run ghost.toml", "recorded": {}}
    (fake.path / "evidence.jsonl").write_text(json.dumps(row) + "\n")
    assert "deleted since" in Elements(write_report(fake.path).read_text()).text


@pytest.mark.parametrize(("value", "said"), [(3e11, "3×10¹¹"), (1e12, "10¹²"), (8.1e12, "8.1×10¹²"), (5e-3, "5×10⁻³")])
def test_powers_of_ten_as_a_person_writes_them(value: float, said: str) -> None:
    assert scientific(value) == said


def test_smoothing_keeps_the_mean_of_a_constant_and_the_ends() -> None:
    tokens, losses = smooth([256 * i for i in range(1, 500)], [2.0] * 499)
    assert set(losses) == {2.0} and tokens[0] == 256 and list(tokens) == sorted(tokens)
    assert smooth([], []) == ((), ()) and smooth([5.0], [1.0]) == ((5.0,), (1.0,))
