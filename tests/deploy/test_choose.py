"""Choosing a member: memory by formula, verdicts by interval, the smallest that passes, and the reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from herd.artifact import find, publish, write_current
from herd.cli import main
from herd.console import HerdError
from herd.deploy.choose import (
    Candidate,
    Constraint,
    Requirement,
    choose,
    parse_requirement,
    parse_size,
    print_choice,
    verdict,
)
from herd.evidence import Claim, Ledger, write_claims
from herd.model.config import LLAMA3, ModelConfig
from herd.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]

GIB = 2**30


def member(name, size, speed=None, **claims):
    found = {
        id.replace("_", "."): Claim(id, "", value, "fraction", 100, "", low, high)
        for id, (value, low, high) in claims.items()
    }
    if speed is not None:
        found["decode.tokens-per-second"] = Claim("s", "", speed, "tokens/s")
    return Candidate(name, LLAMA3[size], found)


HERD = [member("big", "8B", 10, right=(0.8, 0.74, 0.85)), member("small", "1B", 60, right=(0.72, 0.65, 0.78))]


def test_memory_is_weights_and_cache_of_the_context():
    """8B at 8,192 tokens: 15.0 GiB of weights and exactly 1 GiB of cache in 16 bits, as the paper's shape gives it."""
    judged = choose(HERD, Constraint(17 * GIB, 8192)).judgements
    assert [j.candidate.name for j in judged] == ["small", "big"]
    assert judged[1].memory_bytes - HERD[0].weight_bytes() == GIB
    assert HERD[0].weight_bytes() / GIB == pytest.approx(15.0, abs=0.05)


def test_the_smallest_that_passes_is_picked():
    assert choose(HERD, Constraint(40 * GIB, 8192)).picked == "small"
    assert choose(HERD, Constraint(40 * GIB, 8192, needs=(Requirement("right", 0.7),))).picked == "big"


@pytest.mark.parametrize(
    "constraint, words",
    [
        (Constraint(GIB, 4096), "needs 2.6 GB of 1.1 GB"),
        (Constraint(40 * GIB, 200_000), "was trained for 131,072 tokens"),
        (Constraint(40 * GIB, 4096, min_speed=100), "60.0 tokens/s is too low"),
        (Constraint(40 * GIB, 4096, needs=(Requirement("right", 0.9),)), "DISPROVEN"),
        (Constraint(40 * GIB, 4096, needs=(Requirement("other", 0.9),)), "NOT MEASURED"),
    ],
    ids=["memory", "context", "speed", "disproven", "not-measured"],
)
def test_none_is_picked_and_the_reason_said(constraint, words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    choice = choose(HERD, constraint)
    assert choice.picked is None and words in choice.reason
    print_choice(choice, constraint)
    printed = capsys.readouterr().out
    assert words in printed and "picked: none" in printed


def test_a_speed_that_nobody_measured_does_not_pass():
    choice = choose([member("new", "1B")], Constraint(40 * GIB, 4096, min_speed=1))
    assert choice.picked is None and "was not measured" in choice.reason
    assert choose([member("new", "1B")], Constraint(40 * GIB, 4096)).picked == "new"


@pytest.mark.parametrize(
    "low, high, at_least, word",
    [
        (0.70, 0.80, True, "PROVEN"),
        (0.69, 0.80, True, "UNDECIDED"),
        (0.60, 0.69, True, "DISPROVEN"),
        (0.60, 0.70, False, "PROVEN"),
        (0.60, 0.71, False, "UNDECIDED"),
        (0.71, 0.80, False, "DISPROVEN"),
        (None, None, True, "UNDECIDED"),
    ],
    ids=["at-the-bar", "across", "below", "cost-at-the-bar", "cost-across", "cost-above", "no-interval"],
)
def test_verdicts_follow_the_interval_not_the_value(low, high, at_least, word):
    claim = Claim("c", "", 0.99 if at_least else 0.0, "fraction", 10, "", low, high)
    assert verdict(Requirement("c", 0.7, at_least), claim)[0] == word


def test_a_claim_may_be_named_with_its_member():
    needs = (Requirement("big.right", 0.7),)
    choice = choose(HERD, Constraint(40 * GIB, 4096, needs=needs))
    assert choice.picked == "big" and choice.judgements[0].verdicts[0][1] == "NOT MEASURED"


def test_a_run_without_members_picks_none():
    assert choose([], Constraint(GIB, 1)).picked is None


def test_the_verb_reads_a_runs_members_and_ledger(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    shutil.copy(ROOT / "recipes" / "smoke.toml", tmp_path / "recipe.toml")
    name = load_recipe(tmp_path / "recipe.toml").member[0].name
    stage = f"pretrain-{name}"
    config = ModelConfig(2, 64, 4, 2, 128, 1000, 16, 512)
    with publish(tmp_path, stage, "0" * 64, {"inputs": {}}, {}) as draft:
        draft.write_json("config.json", config.to_dict())
        write_claims(draft.folder / "claims.json", [Claim(f"{name}.right", "", 0.8, "fraction", 100, "", 0.71, 0.87)])
        write_claims(draft.recorded / "claims.json", [Claim(f"{name}.decode.tokens-per-second", "", 99.0, "tokens/s")])
    artifact = find(tmp_path, stage, "0" * 64)
    assert artifact is not None
    Ledger(tmp_path).add(artifact, "herd run")
    write_current(tmp_path, stage, artifact.path.name)
    asked = ["choose", "--run", str(tmp_path), "--memory", "1GiB", "--context", "512", "--min-speed", "50"]
    assert main([*asked, "--need", "right>=0.7"]) == 0
    printed = capsys.readouterr().out
    assert f"picked: {name}" in printed and "PROVEN" in printed and "99 tokens/s" in printed
    assert main([*asked, "--need", "right>=75%"]) == 1
    assert "UNDECIDED" in capsys.readouterr().out
    assert main([*asked[:3], "--memory", "lots", "--context", "512"]) == 1
    assert "8GiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, size",
    [("8GiB", 8 * GIB), ("8GB", 8 * 10**9), ("8g", 8 * 10**9), ("1.5 gib", 3 * GIB // 2), ("512MiB", 2**29), ("7b", 7)],
    ids=["GiB", "GB", "g", "fraction", "MiB", "bytes"],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["8", "GiB", "-8GB", "8 apples", "", "8GBB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(HerdError, match="8GiB"):
        parse_size(text)


def test_requirements():
    assert parse_requirement("assistant.executed.unseen.after-dpo>=0.7") == Requirement(
        "assistant.executed.unseen.after-dpo", 0.7
    )
    assert parse_requirement("violation <= 5%") == Requirement("violation", 0.05, at_least=False)
    for text in ("right>0.7", "right", ">=0.7", "right>=high"):
        with pytest.raises(HerdError, match="CLAIM>=VALUE"):
            parse_requirement(text)
