"""The finished smoke run: what a person and the next room rely on."""

from __future__ import annotations

import io
import json
import shutil
from datetime import date
from pathlib import Path

import duckdb
import pytest
from safetensors import safe_open

from herd.artifact import published
from herd.cli import main
from herd.evidence import Ledger

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "smoke.toml"
MEMBERS = ("small", "medium", "flagship")


def query(sql: str) -> list[tuple[object, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(sql).fetchall()


@pytest.fixture
def own_run(smoke_run, tmp_path):
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(smoke_run, tmp_path / "smoke"))


def test_every_stage_is_published(smoke_run):
    shared = {"sources", "curate", "tokenizer", "shards", "ladder", "forecast"}
    steps = ("pretrain", "long-context", "anneal", "evaluate", "export")
    assert set(published(smoke_run)) == shared | {f"{step}-{member}" for step in steps for member in MEMBERS}


def test_every_artifact_opens_with_stock_tools(smoke_run):
    seen = set()
    for artifact in published(smoke_run).values():
        for name in artifact.manifest["files"]:
            path, kind = artifact.path / name, Path(name).suffix
            seen.add(kind)
            if kind == ".parquet":
                assert query(f"select count(*) from '{path}'")
            elif kind == ".safetensors":
                with safe_open(path, "np") as tensors:
                    assert list(tensors.keys())
            elif kind == ".json":
                json.loads(path.read_text())
            elif kind == ".jsonl":
                assert all(json.loads(line) for line in path.read_text().splitlines())
            else:
                assert name in ("tokenizer.model", "huggingface/tokenizer.model"), f"{path}: what opens this?"
    assert {".parquet", ".safetensors", ".json", ".jsonl"} <= seen


def test_every_document_carries_source_licence_and_date(smoke_run):
    done = published(smoke_run)
    for stage in ("sources", "curate"):
        files = "documents/*.parquet" if stage == "sources" else "documents.parquet"
        rows = query(f"select source, licence, retrieved from '{done[stage].path}/{files}'")
        assert rows
        assert all(source and licence and isinstance(day, date) for source, licence, day in rows)


def test_the_forecast_was_written_before_the_flagship_was_trained(smoke_run):
    done = published(smoke_run)
    forecast, flagship = done["forecast"], done["pretrain-flagship"]
    assert flagship.manifest["asked"]["inputs"]["forecast"] == forecast.content
    assert forecast.manifest["recorded"]["started"] <= flagship.manifest["recorded"]["started"]
    claims = {id: entry.claim for id, entry in Ledger(smoke_run).latest().items()}
    expected, measured = claims["flagship.forecast.loss"], claims["flagship.pretrain.loss"]
    assert expected.low is not None and expected.high is not None
    assert expected.low < expected.value < expected.high
    assert claims["flagship.forecast.error"].value == pytest.approx(measured.value / expected.value - 1)


def test_training_learnt_something(smoke_run):
    """Below the 9 bits of a uniform guess over 512 tokens, and each held-out slice has its interval around it."""
    claims = {id: entry.claim for id, entry in Ledger(smoke_run).latest().items()}
    for member in MEMBERS:
        assert claims[f"{member}.pretrain.loss"].value < 5.5
        overall = claims[f"{member}.bits-per-byte"]
        assert overall.low is not None and overall.high is not None
        assert overall.low < overall.value < overall.high


def test_the_export_loads_in_transformers(smoke_run):
    transformers = pytest.importorskip("transformers")
    folder = published(smoke_run)["export-flagship"].path / "huggingface"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("def main():", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=5, do_sample=False).shape[1] == ids.shape[1] + 5


def test_the_report_shows_forecast_and_measured(smoke_run):
    page = (smoke_run / "report.html").read_text()
    for claim in ("flagship.forecast.loss", "flagship.pretrain.loss"):
        assert f'id="claim-{claim}"' in page and f'href="#claim-{claim}"' in page


def test_a_second_run_finds_everything_done(own_run, capsys):
    before = {p: p.stat().st_mtime_ns for p in own_run.glob("*/manifest.json")}
    entries = len(Ledger(own_run).entries())
    assert main(["run", str(RECIPE), "--out", str(own_run)]) == 0
    assert "21 stages were done already" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in own_run.glob("*/manifest.json")} == before
    assert len(Ledger(own_run).entries()) == entries


def test_forcing_a_stage_begins_anew_and_gives_the_same_content(own_run, capsys):
    before = {stage: artifact.content for stage, artifact in published(own_run).items()}
    work = own_run / ".drafts" / f"{published(own_run)['anneal-small'].path.name}.work"
    work.mkdir(parents=True)
    (work / "step-000000001.json").write_text("what a killed run left")
    assert (
        main(["run", str(RECIPE), "--only", "anneal", "--force", "anneal", "--member", "small", "--out", str(own_run)])
        == 0
    )
    assert "damaged" not in capsys.readouterr().err  # the checkpoint was not even looked at
    assert {stage: artifact.content for stage, artifact in published(own_run).items()} == before


def test_a_change_repeats_only_what_depends_on_it(own_run, tmp_path):
    changed = tmp_path / "smoke.toml"
    changed.write_text(RECIPE.read_text().replace("bootstrap_samples = 200", "bootstrap_samples = 201"))
    before = {stage: artifact.path.name for stage, artifact in published(own_run).items()}
    assert main(["run", str(changed), "--out", str(own_run)]) == 0
    after = {stage: artifact.path.name for stage, artifact in published(own_run).items()}
    assert {stage for stage in before if before[stage] != after[stage]} == {f"evaluate-{m}" for m in MEMBERS}


def test_status_sees_a_flipped_bit(own_run, capsys):
    assert main(["status", "--run", str(own_run), "--verify"]) == 0
    weights = published(own_run)["anneal-small"].path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    capsys.readouterr()
    assert main(["status", "--run", str(own_run), "--verify"]) == 1
    assert "anneal-small" in capsys.readouterr().out


def test_members_generate_and_chat(smoke_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["members", "--run", str(smoke_run)]) == 0
    listed = capsys.readouterr().out
    assert all(member in listed for member in MEMBERS) and "tokens/s" in listed
    words = ["generate", "--run", str(smoke_run), "--member", "small", "--max-tokens", "20", "def fib("]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert first.startswith("def fib(") and len(first) > len("def fib(\n")
    assert main(words) == 0
    assert capsys.readouterr().out == first
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n" + "long " * 100 + "\n\n"))
    assert main(["chat", "--run", str(smoke_run), "--member", "medium", "--max-tokens", "10"]) == 0
    said = capsys.readouterr().out
    assert "base model" in said and "say it shorter" in said


def test_a_member_that_is_not_there_is_named(smoke_run, capsys):
    assert main(["generate", "--run", str(smoke_run), "--member", "huge", "x"]) == 1
    assert "huge" in capsys.readouterr().err
