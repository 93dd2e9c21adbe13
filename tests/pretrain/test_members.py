"""Initial training, the long-context step and annealing of one member, each a stage on the one before."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from herd.artifact import Artifact, find, publish
from herd.model.formats.native import load_native
from herd.pretrain.anneal import anneal
from herd.pretrain.initial import InitialSettings, StepSettings, initial
from herd.pretrain.long_context import long_context
from herd.pretrain.plan import member_plan
from herd.recipe import Anneal, Architecture, Batch, Compute, LearningRate, LongContext, Member, Pretrain, Scaling, Size
from herd.scaling.forecast import Forecast, forecast
from herd.scaling.isoflop import Cell
from herd.train.hardware import choose_hardware

PRETRAIN = Pretrain(
    context_tokens=16,
    architecture=Architecture(head_dim=4, ffn_multiple_of=4),
    learning_rate=LearningRate(peak=0.02),
    batch=Batch(tokens=64),
    long_context=LongContext(context_tokens=32, share=0.2),
    anneal=Anneal(share=0.3, checkpoints=4, upsample={"docs": 3.0, "prose": 2.0}),
)
SCALING = Scaling(
    budgets_flops=[1e7, 2e7, 4e7], forecast_flops=1.2e8, grid=[Size(layers=1, dim=8), Size(layers=1, dim=32)]
)
VOCAB = 64  # of the shards in conftest.py
COMPUTE = Compute(device="cpu", dtype="float32")


def found() -> Forecast:
    """A forecast from an exact bowl, optimum 2,000 parameters at 2e7 FLOPs."""
    import math

    cells = []
    for budget in SCALING.budgets_flops:
        for n in (500, 1000, 2000, 4000, 8000):
            loss = 3 * (budget / 1e7) ** -0.1 + 0.1 * (math.log(n) - math.log(2000 * (budget / 2e7) ** 0.5)) ** 2
            cells.append(Cell(budget, n, int(budget / n / 6), loss))
    return forecast(cells, SCALING.forecast_flops, 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("member")


def make(run, name: str, stage, settings, inputs) -> Artifact:
    with publish(run, name, name.ljust(64, "0"), {"inputs": {}}, {}) as out:
        stage(settings, inputs, out)
    artifact = find(run, name, name.ljust(64, "0"))
    assert artifact is not None
    return artifact


@pytest.fixture(scope="module")
def steps(run, shards):
    """The three artifacts of a member that the forecast sized."""
    common = {
        "seed": 0,
        "pretrain": PRETRAIN,
        "max_documents": 10,
        "hardware": choose_hardware(COMPUTE).describe(),
        "threads": 1,
        "compute": COMPUTE,
    }
    flagship = Member(name="flagship", role="reference", size="forecast")
    with publish(run, "forecast", "forecast".ljust(64, "0"), {"inputs": {}}, {}) as out:
        out.write_json("forecast.json", found().to_dict())
        plan = member_plan(SCALING, PRETRAIN, flagship, VOCAB, found())
        assert plan is not None
        out.write_json(
            "recorded/members.json", {"flagship": {"parameters": plan.config.parameters, "tokens": plan.tokens}}
        )
    predicted = find(run, "forecast", "forecast".ljust(64, "0"))
    assert predicted is not None
    first = make(
        run,
        "pretrain",
        initial,
        InitialSettings(member=flagship, scaling=SCALING, **common),
        {"shards": shards, "forecast": predicted},
    )
    second = make(
        run,
        "long",
        long_context,
        StepSettings(member="flagship", **common),
        {"shards": shards, "pretrain": first},
    )
    third = make(
        run,
        "anneal",
        anneal,
        StepSettings(member="flagship", **common),
        {"shards": shards, "pretrain": first, "model": second},
    )
    return first, second, third


def claims(artifact: Artifact) -> dict[str, float]:
    return {row["id"]: row["value"] for row in artifact.json("claims.json")}


def test_the_member_has_the_forecast_size_and_budget(steps):
    facts = steps[0].json("training.json")
    assert facts["matmul_parameters"] == pytest.approx(found().parameters, rel=0.3)
    assert facts["flops"] == pytest.approx(SCALING.forecast_flops, rel=0.03)
    assert facts["learning_rate"]["final"] == pytest.approx(0.002)


def test_it_learnt_and_says_how_far_the_forecast_was_off(steps):
    expected = found().loss_of_size(steps[0].json("training.json")["matmul_parameters"])
    measured = claims(steps[0])
    assert measured["flagship.pretrain.loss"] < 2.5  # a uniform guess over 64 tokens costs 4.16
    assert measured["flagship.forecast.error"] == pytest.approx(measured["flagship.pretrain.loss"] / expected - 1)


def test_the_long_context_step_keeps_the_network_and_stretches_its_positions(steps):
    before, after = (load_native(artifact.path).config for artifact in steps[:2])
    assert (before.context, after.context) == (16, 32)
    assert after.rope_scaling is not None and after.rope_scaling.factor == 2.0
    assert before.parameters == after.parameters
    facts = steps[1].json("training.json")
    assert facts["tokens"] == pytest.approx(0.2 * steps[0].json("training.json")["tokens"], rel=0.05)
    assert facts["learning_rate"]["final"] == facts["learning_rate"]["peak"] == pytest.approx(0.002)


def test_annealing_ends_at_zero_and_averages(steps):
    rows = [json.loads(line) for line in steps[2].file("metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["learning_rate"] == 0.0
    weights, before = load_file(steps[2].file("model.safetensors")), load_file(steps[1].file("model.safetensors"))
    assert weights.keys() == before.keys()
    assert not torch.equal(weights["norm.weight"], before["norm.weight"])
    measured = claims(steps[2])
    change = measured["flagship.anneal.loss-average"] - measured["flagship.anneal.loss-last"]
    assert measured["flagship.anneal.averaging-change"] == pytest.approx(change)


def test_all_of_it_again_gives_the_same_bytes(steps, run, shards):
    settings = StepSettings(
        seed=0,
        member="flagship",
        pretrain=PRETRAIN,
        max_documents=10,
        hardware=choose_hardware(COMPUTE).describe(),
        threads=1,
        compute=COMPUTE,
    )
    again = make(run, "again", anneal, settings, {"shards": shards, "pretrain": steps[0], "model": steps[1]})
    assert again.content == steps[2].content
