"""Initial pre-training of a member, just as the ladder trained its cells, and its loss against the forecast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_serializer

from herd.artifact import Artifact, Draft
from herd.console import HerdError, say
from herd.data.loader import derive_seed
from herd.data.mix import mix_lines
from herd.data.shards import Shards, load_shards
from herd.evaluate.perplexity import DocumentLosses, score_documents
from herd.evidence import Claim, write_claims
from herd.model.config import ModelConfig
from herd.model.formats.native import save_native
from herd.model.transformer import Transformer, init_weights
from herd.pretrain.plan import PlannedBatches, TrainingPlan, bytes_per_token, member_plan, mixture_for, training_mix
from herd.recipe import Compute, Member, Pretrain, Scaling, Section
from herd.recipe_data import Mix
from herd.scaling.forecast import Forecast
from herd.train.hardware import Hardware, choose_hardware
from herd.train.launch import fresh, open_network, whole_model
from herd.train.loop import Plan, train
from herd.train.objective import next_token
from herd.train.record import write_training


class InitialSettings(Section):
    seed: int
    member: Member
    mix: Mix = Mix()
    scaling: Scaling
    pretrain: Pretrain
    max_documents: int
    hardware: dict[str, str]
    threads: int
    compute: Compute = Field(exclude=True)

    @field_serializer("member")
    def _without_role(self, member: Member) -> dict[str, Any]:
        return member.model_dump(exclude={"role"})

    @field_serializer("scaling")
    def _only_what_counts(self, scaling: Scaling) -> dict[str, Any]:
        return scaling.model_dump(
            exclude={
                "budgets_flops",
                "forecast_flops",
                "confidence",
                "cells_per_budget",
                "extra_cells",
                "expected_optimum",
            }
        )


class StepSettings(Section):
    """Settings of the steps that continue a member's training: the long-context step and annealing."""

    seed: int
    member: str
    mix: Mix = Mix()
    pretrain: Pretrain
    max_documents: int
    hardware: dict[str, str]
    threads: int
    compute: Compute = Field(exclude=True)


def initial(settings: InitialSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: train a member from scratch. The forecast is among the inputs, so its hash, and with it that it was
    written before this training, is part of this artifact's key.
    """
    shards = load_shards(inputs["shards"].path)
    found = Forecast.from_dict(inputs["forecast"].json("forecast.json"))
    plan = member_plan(settings.scaling, settings.pretrain, settings.member, shards.vocab_size, found)
    assert plan is not None
    planned = inputs["forecast"].json("recorded/members.json")[settings.member.name]
    if (planned["parameters"], planned["tokens"]) != (plan.config.parameters, plan.tokens):
        raise HerdError(
            f"{settings.member.name}: the forecast planned {planned['parameters']:,} parameters on "
            f"{planned['tokens']:,} tokens, this version of herd plans {plan.config.parameters:,} on {plan.tokens:,}: "
            "make the forecast anew with --force forecast"
        )
    hardware = choose_hardware(settings.compute)
    weights = fresh(plan.config, derive_seed(settings.seed, "init"))
    network = open_network(plan.config, weights, settings.compute, hardware)
    mixture, rows = mixture_for(shards, training_mix(settings.mix, inputs), plan.tokens)
    for line in mix_lines(rows):
        say(line)
    batches = PlannedBatches(shards, plan.stretches, derive_seed(settings.seed, "order"), mixture=mixture)
    state = train(
        network,
        next_token,
        batches,
        Plan(plan.steps, plan.schedule, settings.pretrain.optimizer, settings.compute, bytes_per_token(shards)),
        hardware,
        f"{settings.member.name}: initial pre-training",
        out.work,
    )
    if (model := whole_model(network, plan.config, hardware)) is None:
        return  # the first rank writes and measures
    save_native(out.folder, plan.config, model.state_dict())
    losses = score_documents(model, shards.heldout, plan.config.context, hardware.dtype, settings.max_documents)
    write_training(out, state, plan_facts(plan, shards) | {"mix": [row._asdict() for row in rows]})
    write_claims(out.folder / "claims.json", _claims(settings.member, losses, plan, found))


def new_model(config: ModelConfig, seed: int, hardware: Hardware) -> Transformer:
    """A network with initial weights drawn from the seed; the draws are made on the CPU so that devices agree."""
    model = Transformer(config)
    init_weights(model, seed)
    return model.to(hardware.device)


def plan_facts(plan: TrainingPlan, shards: Shards) -> dict[str, Any]:
    """What was planned, for people and for later stages: `training.json`."""
    return {
        "parameters": plan.config.parameters,
        "matmul_parameters": plan.config.matmul_parameters,
        "tokens": plan.tokens,
        "epochs": plan.tokens / shards.train_tokens,
        "steps": plan.steps,
        "flops": plan.flops,
        "batch_tokens": plan.stretches[-1].sequences * plan.stretches[-1].context,
        "learning_rate": {
            "peak": plan.schedule.peak,
            "final": plan.schedule(plan.steps - 1),
            "warmup_steps": plan.schedule.warmup,
        },
    }


def _claims(member: Member, losses: DocumentLosses, plan: TrainingPlan, found: Forecast) -> list[Claim]:
    loss = losses.claim(f"{member.name}.pretrain.loss", f"held-out loss of {member.name} after initial pre-training")
    if member.size != "forecast" or member.tokens != "optimal":
        return [loss]
    expected = found.loss_of_size(plan.config.matmul_parameters)
    what = f"measured loss of {member.name} over the forecast made before it was trained, minus one"
    return [loss, Claim(f"{member.name}.forecast.error", what, loss.value / expected - 1, "fraction", loss.n, loss.of)]
